"""What a sweep's config stands for, and every way in which it can be wrong."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
import yaml

from tests.support.running import ROOT
from tests.support.sweeping import config, make_lm_eval_quick, write_tasks
from trimix_lm_eval.fusion import policies
from trimix_lm_eval.fusion.policies import register
from trimix_lm_eval.fusion.policies.base import _REGISTRY
from trimix_lm_eval.fusion.weights import PAPER_GRID, Weights
from trimix_lm_eval.sweep import plan, sweep
from trimix_lm_eval.sweep.lm import TriMix
from trimix_lm_eval.utils.errors import TrimixError
from trimix_lm_eval.utils.options import option

TRIO = {"pretrained": "l", "small_cpt": "c", "small_base": "b"}


def asked(sweep_block=None, **more):
    """A config of models that do not exist: a plan asks for none."""
    base = {"model": "trimix", "model_args": dict(TRIO), "tasks": ["t"], "output_path": "out"}
    block = {"policies": ["ppl"]} if sweep_block is None else sweep_block
    return {**base, "sweep": block, **more}


def variants(block, **more):
    (setting,) = plan.read(asked(block, **more)).settings
    return setting.variants


# ---------------------------------------------------------------- points and policies


def test_the_paper_grid_and_all_policies():
    made = variants({"grid": "paper", "policies": "all"})
    named = [name for name in policies.names() if name != "fixed"]
    assert [v.name for v in made[: len(named)]] == named
    points = {v.policy.points()[0] for v in made if v.name.startswith("fixed")}
    assert points == set(PAPER_GRID) - {Weights(1.0, 1.0)}, "1:1 is proxy_tuning"
    assert len(made) == len(named) + 35
    whole = plan.read(asked({"grid": "paper"}))
    assert list(whole.points) == [point.label() for point in PAPER_GRID]
    assert whole.points["1:1"] == "proxy_tuning"


def test_all_policies_without_a_grid_hold_the_fixed_one():
    assert {v.policy.name for v in variants({"policies": "all"})} == set(policies.names())


@pytest.mark.parametrize(
    ("grid", "names"),
    [
        (["0.1:0.9"], ["fixed_0.1_0.9"]),
        ("0.1:0.9;1:0", ["large_ins", "fixed_0.1_0.9"]),
        ([[0.1, 0.9], [0.1, 0.9, 0.1], ["0.1", "0.9"]], ["fixed_0.1_0.9"]),
        ({"alpha": [0, 1], "beta": 0.5}, ["fixed_0_0.5", "fixed_1_0.5"]),
        ({"alpha": [0.2], "beta": [0.9], "gamma": [None, 0.5]}, ["fixed_0.2_0.9", "…_0.5"]),
        (["-0.5:1"], ["fixed_-0.5_1"]),
    ],
)
def test_grids(grid, names):
    full = [name.replace("…", names[0]) for name in names]
    sources = {**TRIO, "large_base": "lb"}
    assert sorted(v.name for v in variants({"grid": grid}, model_args=sources)) == sorted(full)


def test_no_variant_runs_twice():
    block = {
        "grid": ["0.1:0.9", "1:1"],
        "policies": [
            "proxy_tuning",
            {"policy": "fixed", "alpha": 1, "beta": 1},
            {"policy": "fixed"},
            "ppl",
            {"policy": "ppl", "grid": "paper"},
            {"policy": "gate", "floor": 0},
            "gate",
        ],
    }
    assert [v.name for v in variants(block)] == ["proxy_tuning", "fixed_0.1_0.9", "ppl", "gate"]


def test_names_say_what_differs_from_the_defaults():
    block = {
        "policies": [
            {"policy": "ppl", "refine": "quadratic"},
            {"policy": "ppl_task", "prompts": 7},
            {"policy": "gate", "host": "small_base", "floor": 0.25},
            {"policy": "ent", "grid": "0.1:0.9;0.3:1"},
            {"policy": "ent", "grid": "0.1:0.9;0.3:0.9"},
        ]
    }
    first, second, third, *grids = [v.name for v in variants(block)]
    assert first == "ppl_refine=quadratic"
    assert second == "ppl_task_prompts=7"
    assert third == "gate_host=small_base_floor=0.25"
    assert len(set(grids)) == 2 and all(name.startswith("ent_grid=0.1_0.9_0.3_") for name in grids)
    assert all(set(name) <= set(Path(name).name) for name in grids)


def test_every_policy_gets_every_plausibility_that_it_can_have():
    block = {"policies": ["ppl", "small_cpt"], "plausibility": [None, 0.1]}
    assert [v.name for v in variants(block)] == ["ppl", "ppl_plausibility=0.1", "small_cpt"]
    assert plan.read(asked(block)).without_mask == ("small_cpt",)
    arguments = {**TRIO, "plausibility_source": "small_cpt"}
    assert [v.settings.plausibility for v in variants(block, model_args=arguments)] == [
        None,
        0.1,
        None,
        0.1,
    ]


def test_model_args_are_those_of_a_plain_run():
    (one,) = variants({"grid": ["0.3:0.5"], "plausibility": 0.1, "seeds": 7})
    assert one.model_args == {
        **TRIO,
        "policy": "fixed",
        "alpha": 0.3,
        "beta": 0.5,
        "plausibility": 0.1,
        "seed": 7,
    }
    assert one.settings.seed == 7 and one.settings.plausibility == 0.1


@pytest.mark.parametrize("given", [5, -1, ["a=b"], True])
def test_model_args_of_another_type_are_refused(given):
    with pytest.raises(TrimixError, match=f"model_args is {re.escape(repr(given))}"):
        plan.read(asked(model_args=given))


def test_a_policy_of_ones_own_is_swept_like_the_others(monkeypatch):
    monkeypatch.setattr("trimix_lm_eval.fusion.policies.base._REGISTRY", dict(_REGISTRY))

    @register
    class Half(policies.Policy):
        """Half of each."""

        name = "half"

        def points(self):
            return (Weights(0.5, 0.5),)

    assert "half" in [v.name for v in variants({"grid": "paper", "policies": "all"})]


def test_an_option_that_is_a_tuple_of_anything_names_its_folder(monkeypatch):
    monkeypatch.setattr("trimix_lm_eval.fusion.policies.base._REGISTRY", dict(_REGISTRY))

    @register
    @dataclasses.dataclass(frozen=True)
    class Words(policies.Policy):
        """Equal weights."""

        name = "words"
        k: object = option("a", "words", "Some.", lambda _, value: tuple(value))

        def points(self):
            return (Weights(0.5, 0.5),)

    swept = [{"policy": "words", "k": given} for given in (["a"], ["b", "cd"], [1, 2])]
    names = [re.sub("_[0-9a-f]{6}$", "", v.name) for v in variants({"policies": swept})]
    assert names == ["words", "words_k=b_cd", "words_k=1_2"]


# ---------------------------------------------------------------- settings


def test_shots_and_seeds_are_settings():
    made = plan.read(asked({"policies": ["ppl"], "num_fewshot": [None, 5], "seeds": [1, 2]}))
    assert [s.folder for s in made.settings] == [
        "own_shots_seed1",
        "own_shots_seed2",
        "5shot_seed1",
        "5shot_seed2",
    ]
    assert [s.config.num_fewshot for s in made.settings] == [None, None, 5, 5]
    assert [s.config.seed for s in made.settings] == [[1] * 4, [2] * 4] * 2
    assert [s.variants[0].settings.seed for s in made.settings] == [1, 2, 1, 2]


def test_languages_share_a_run_if_the_models_are_the_same():
    block = {"policies": ["ppl"], "languages": ["bo", "ug"]}
    (one,) = plan.read(asked(block, tasks="demo,sib_{language}")).settings
    assert one.folder == "" and one.tasks == ["demo", "sib_bo", "sib_ug"]


def test_a_language_with_models_of_its_own_is_a_part():
    block = {
        "policies": ["ppl"],
        "languages": [{"language": "bo", "flores": "bod_Tibt"}, {"language": "ug", "flores": "u"}],
        "num_fewshot": [0],
    }
    arguments = "pretrained=l,small_cpt=cpt-{language},small_base=b"
    made = plan.read(asked(block, model_args=arguments, tasks=["sib_{flores}", "demo"])).settings
    assert [s.folder for s in made] == ["bo/0shot", "ug/0shot"]
    assert [s.part for s in made] == ["bo", "ug"]
    assert [s.tasks for s in made] == [["sib_bod_Tibt", "demo"], ["sib_u", "demo"]]
    found = [s.variants[0].settings.sources["small_cpt"].path for s in made]
    assert found == ["cpt-bo", "cpt-ug"]


def test_the_name_and_what_lm_eval_adds(tmp_path):
    file = tmp_path / "my paper.yaml"
    file.write_text(yaml.safe_dump(asked(batch_size=4, limit=3)), encoding="utf-8")
    made = plan.read(file)
    assert made.name == "my paper" and made.output == Path("out")
    config = made.settings[0].config
    assert config.log_samples is True and config.limit == 3
    assert made.settings[0].variants[0].settings.batch_size == 4
    assert plan.read(asked(log_samples=False)).settings[0].config.log_samples is False
    assert plan.read(asked({"name": "other", "policies": "ppl"})).name == "other"


@pytest.mark.parametrize(
    ("given", "size"),
    [
        ({}, "auto"),
        ({"batch_size": 2}, 2),
        ({"model_args": {**TRIO, "batch_size": 3}}, 3),
    ],
)
def test_a_sweep_has_more_than_one_row_in_flight_unless_told_otherwise(given, size):
    made = plan.read(asked(**given))
    assert {one.settings.batch_size for one in made.settings[0].variants} == {size}


def test_the_docs_and_the_example_are_plans():
    page = (ROOT / "docs" / "sweeps.md").read_text(encoding="utf-8")
    (shown,) = [b for b in re.findall(r"^```yaml\n(.*?)^```", page, re.M | re.S) if "sweep:" in b]
    made = plan.read(yaml.safe_load(shown)).settings
    assert len(made) == 2 * 2 * 2 and made[0].folder == "bo/0shot_seed1234"
    example = plan.read(ROOT / "examples" / "sweep_demo.yaml")
    assert len(example.points) == 36
    assert example.settings[0].tasks == [
        *("trimix_demo_rolling", "trimix_demo_finish", "trimix_demo_say"),
        *("trimix_sib200_bod_Tibt_ll", "trimix_sib200_uig_Arab_ll"),
    ]


# ---------------------------------------------------------------- what is wrong


@pytest.mark.parametrize(
    ("block", "says"),
    [
        (None, "no `sweep:` block"),
        ({}, "no `sweep:` block"),
        ("paper", "no `sweep:` block"),
        ({"name": "x"}, "neither points nor policies"),
        ({"polices": "all"}, "key in sweep 'polices'. Did you mean 'policies'"),
        ({"grid": "paper", "name": "a/b"}, "name is 'a/b'"),
        ({"grid": "paper", "name": None}, "name is None"),
        ({"policies": []}, "policies is an empty list"),
        ({"policies": ["ppl"], "seeds": []}, "seeds is an empty list"),
        ({"policies": ["ppl"], "languages": []}, "languages is an empty list"),
        ({"policies": ["pppl"]}, "'pppl'. Did you mean 'ppl'"),
        ({"policies": [{"policy": "ppl", "flor": 1}]}, "option of policy=ppl 'flor'"),
        ({"policies": [{"floor": 0.1}]}, "policies has"),
        ({"policies": [7]}, "policies has 7"),
        ({"policies": [{"policy": "ppl", "refine": "quadratc"}]}, "Did you mean 'quadratic'"),
        ({"grid": []}, "The grid is empty"),
        ({"grid": "papers"}, "'papers' is not a list of points"),
        ({"grid": [60]}, "(?s)grid has the number 60.*in quotes"),
        ({"grid": {"alpha": [0.1]}}, "names no beta"),
        ({"grid": {"alpha": [0.1], "beta": []}}, "beta is an empty list"),
        ({"grid": {"alpha": [0.1], "delta": [1]}}, "axis of the grid 'delta'"),
        ({"grid": {"alpha": ["x"], "beta": [1]}}, "not a list of points"),
        ({"grid": ["0.1:0.9:0.5"]}, "needs the source large_base"),
        ({"policies": ["ppl"], "plausibility": ["high"]}, "plausibility='high' is not a number"),
        ({"policies": ["ppl"], "plausibility": [2]}, "plausibility=2.0 is out of range"),
        ({"policies": ["ppl"], "num_fewshot": [1.5]}, "num_fewshot=1.5 is not a whole number"),
        (
            {"policies": ["ppl"], "num_fewshot": ["many"]},
            "num_fewshot='many' is not a whole",
        ),
        ({"policies": ["ppl"], "seeds": [None]}, "seeds=None is not a whole number"),
        ({"policies": ["ppl"], "seeds": [True]}, "seeds=True is not a whole number"),
        ({"policies": ["ppl"], "languages": [False]}, "(?s)languages has False.*no: in quotes"),
        ({"policies": ["ppl"], "languages": ["bo"]}, "neither tasks nor model_args have a place"),
    ],
)
def test_wrong_blocks(block, says):
    given = asked()
    given["sweep"] = block
    with pytest.raises(TrimixError, match=says) as error:
        plan.read(given)
    assert "\n  -> " in str(error.value)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"model": "hf"}, "model is 'hf', not 'trimix'"),
        ({"output_path": None}, "output_path is None"),
        ({"output_path": "out.json"}, "output_path is 'out.json'"),
        ({"use_cache": "x"}, "use_cache is of no use to a sweep"),
        ({"hf_hub_log_args": {"push_results_to_hub": True}}, "hf_hub_log_args is of no use"),
        ({"predict_only": True}, "predict_only is of no use"),
        ({"batchsize": 3}, "(?s)'batchsize'.*Did you mean 'batch_size'"),
        ({"tasks": []}, "names no tasks"),
        ({"tasks": [{"task": "x"}]}, "tasks has"),
        ({"tasks": ["t_{language}"]}, "(?s)placeholder {language}.*add languages"),
        ({"model_args": {**TRIO, "small_cpt": "{lang}"}}, "model_args has the placeholder {lang}"),
        ({"model_args": {**TRIO, "policy": "ppl"}}, "model_args has policy=ppl"),
        ({"model_args": {**TRIO, "alpha": 0.3}}, "(?s)model_args has alpha=0.3.*sweep block"),
        ({"model_args": "small_cpt=c,small_base=b"}, "No large instruction-tuned model"),
        ({"model_args": {"pretrained": "l"}}, "policy=ppl needs the sources small_cpt and"),
        ({"model_args": {**TRIO, "polcy": 1}}, "'polcy'"),
        ({"model_args": {**TRIO, "batch_size": 3}, "batch_size": 3}, "batch_size is given twice"),
        ({"limit": 3, "samples": {"t": [1]}}, "lm-eval refuses"),
    ],
)
def test_wrong_configs(more, says):
    with pytest.raises(TrimixError, match=says):
        plan.read(asked(**more))


@pytest.mark.parametrize(
    ("block", "more"),
    [
        ({"policies": ["ppl"], "num_fewshot": [1]}, {"num_fewshot": 2}),
        ({"policies": ["ppl"], "seeds": [1]}, {"seed": 2}),
        ({"policies": ["ppl"], "seeds": [1]}, {"model_args": {**TRIO, "seed": 2}}),
        ({"policies": ["ppl"], "plausibility": [0.1]}, {"model_args": {**TRIO, "plausibility": 1}}),
    ],
)
def test_what_is_swept_is_said_once(block, more):
    with pytest.raises(TrimixError, match="given in the sweep block and outside of it"):
        plan.read(asked(block, **more))


def test_a_language_that_fills_only_some_placeholders():
    block = {"policies": ["ppl"], "languages": [{"language": "bo"}, {"flores": "x"}]}
    with pytest.raises(TrimixError, match="does not fill {flores}"):
        plan.read(asked(block, tasks=["t_{language}", "u_{flores}"]))


def test_two_languages_of_one_name():
    block = {
        "policies": ["ppl"],
        "languages": [{"language": "bo", "cpt": "a"}, {"language": "bo", "cpt": "b"}],
    }
    with pytest.raises(TrimixError, match="Two parts of the sweep would write into bo/ppl"):
        plan.read(asked(block, model_args={**TRIO, "small_cpt": "{cpt}"}))


@pytest.mark.parametrize("content", [None, "a: [", "- 1"])
def test_files_that_cannot_be_read(tmp_path, content):
    file = tmp_path / "s.yaml"
    if content is not None:
        file.write_text(content, encoding="utf-8")
    with pytest.raises(TrimixError, match="lm_eval run --config"):
        plan.read(file)


# ---------------------------------------------------------------- parts with models of their own


def test_each_language_runs_with_its_models_and_the_large_one_is_loaded_once(
    pico, tmp_path, monkeypatch
):
    make_lm_eval_quick(monkeypatch)
    folders = pico("llama")
    loaded = []
    load_many = TriMix.load_many

    def spy(variants, device, kept):
        before = set(kept)
        made = load_many(variants, device, kept)
        loaded.append(sorted(Path(spec.path).name for spec in set(kept) - before))
        return made

    monkeypatch.setattr(TriMix, "load_many", spy)
    given = config(
        folders,
        write_tasks(tmp_path / "tasks", ["shot_bo", "shot_ug"]),
        tmp_path / "out",
        tasks=["shot_{task}"],
        limit=2,
        sweep={
            "policies": ["ppl"],
            "languages": [
                {"language": "bo", "task": "bo", "cpt": "small_cpt"},
                {"language": "ug", "task": "ug", "cpt": "small_base"},
            ],
        },
    )
    given["model_args"]["small_cpt"] = str(Path(folders["small_cpt"]).parent / "{cpt}")
    files = sweep(given)
    assert [f.relative_to(tmp_path / "out").parts[:2] for f in files] == [
        ("bo", "ppl"),
        ("ug", "ppl"),
    ]
    assert loaded[0] == ["large_ins", "small_base", "small_cpt"]
    assert "large_ins" not in loaded[1]
    for file, task in zip(files, ("shot_bo", "shot_ug"), strict=True):
        found = json.loads(file.read_text(encoding="utf-8"))
        assert list(found["results"]) == [task]
        sources = found["config"]["trimix"]["sources"]
        same = sources["small_cpt"]["digest"] == sources["small_base"]["digest"]
        assert same == (task == "shot_ug")


def test_a_task_that_does_not_exist(pico, tmp_path, monkeypatch):
    make_lm_eval_quick(monkeypatch)
    folder = write_tasks(tmp_path / "tasks", ["choice"])
    given = config(pico("llama"), folder, tmp_path / "out", sweep={"policies": ["ppl"]})
    with pytest.raises(TrimixError, match="no task 'chioce'. Did you mean 'choice'"):
        sweep({**given, "tasks": ["chioce"]})
    assert not (tmp_path / "out").exists()
