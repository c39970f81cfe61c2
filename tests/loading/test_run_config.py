"""Every key of a run config takes what lm-eval can use, and refuses everything else by its name."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path

import pytest
from lm_eval.config.evaluate_config import EvaluatorConfig

from trimix_lm_eval.harness.check import check_run
from trimix_lm_eval.loading import run_config, run_values
from trimix_lm_eval.sweep import plan
from trimix_lm_eval.utils.errors import TrimixError
from trimix_lm_eval.utils.yaml_files import read_yaml

RUN = {"model": "trimix", "model_args": {"pretrained": "demo"}, "tasks": ["t"], "output_path": "o"}

GOOD = {
    "tasks": ["a,b", ["a", "b,c"], "mine/*.yaml"],
    "num_fewshot": [None, 0, 5],
    "limit": [None, 1, 5.0, 0.25],
    "samples": [{"t": [0, 5]}, '{"t": [1]}'],
    "seed": [None, 7, [1, 2, 3], [1, None, 3, 4]],
    "device": [None, "cpu", "cuda:1"],
    "gen_kwargs": [None, {}, {"temperature": 0.5}, "temperature=0.5,do_sample=true"],
    "metadata": [None, {"data_dir": "x"}],
    "log_samples": [True, False],
    "include_path": [None, ".", [".", ".."]],
    "apply_chat_template": [True, "tool_use"],
}
WRONG = {
    "tasks": [5, True, ["a", 5], {"a": 1}, "", "a,", [""], math.nan, [["a"]]],
    "num_fewshot": [-1, True, "5", 2.0, math.nan, 10**30, [1]],
    "limit": [0, -1, -0.5, math.nan, math.inf, 2.5, True, "5", 10**400, 1e300, [5]],
    "samples": [5, [1], {"t": 5}, {"t": [-1]}, {"t": ["a"]}, {"t": []}, {5: [1]}, "nosuch", "[1]"],
    "seed": [-1, 2**32, True, "5", 1.5, math.nan, [], [1, 2], [1, "a", 3, 4], 10**400],
    "device": [5, True, math.nan, "", ["cpu"], "a\0b"],
    "gen_kwargs": [5, True, "temperature", ["a"], {1: 2}, math.nan],
    "metadata": [5, "x", [1], {None: 1}],
    "model_args": [5, ["a"], math.nan, {1: 2}],
    "log_samples": ["false", 1, 0, "yes", math.nan, []],
    "trust_remote_code": ["false", 1],
    "confirm_run_unsafe_code": ["no"],
    "fewshot_as_multiturn": ["false"],
    "include_path": [5, "", "no/such", ["."] * 2 + ["no/such"], "a\0b", "\ud800"],
    "system_instruction": [5, True, ["a"], "\ud800"],
    "apply_chat_template": [5, "", ["a"]],
    "use_cache": [5, True, ""],
    "verbosity": [5],
    "wandb_args": [5],
}


@pytest.mark.parametrize("key", GOOD)
def test_what_lm_eval_can_use_is_taken(key):
    for value in GOOD[key]:
        run_config.configured({**RUN, key: value}, "run.yaml")


@pytest.mark.parametrize("key", WRONG)
def test_what_it_cannot_is_refused_by_name(key):
    for value in WRONG[key]:
        with pytest.raises(TrimixError, match=key) as refused:
            run_config.configured({**RUN, key: value}, "run.yaml")
        assert len(str(refused.value)) < 400


def test_every_key_of_lm_eval_is_checked():
    """Those that are the model's, too, are checked with its arguments."""
    names = {field.name for field in dataclasses.fields(EvaluatorConfig)}
    assert names - set(run_values._KEYS) == {"tasks", "batch_size", "max_batch_size"}


def test_a_folder_that_is_not_there_is_named_rather_than_the_tasks_in_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(
        "model: trimix\nmodel_args: pretrained=demo\ntasks: [mine]\ninclude_path: my_tasks\n",
        encoding="utf-8",
    )
    with pytest.raises(TrimixError, match="(?s)no folder my_tasks in .*the command is started"):
        check_run("run.yaml")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("device: nosuch", "device is 'nosuch', which names no device"),
        ("gen_kwargs: {max_gen_toks: .nan}", "max_gen_toks"),
        ("gen_kwargs: {top_q: 1}", "generation argument 'top_q'"),
        ("gen_kwargs: {temperature: -1, do_sample: true}", "temperature=-1"),
    ],
)
def test_what_would_end_a_run_after_its_models_are_loaded(tmp_path, line, says):
    file = tmp_path / "run.yaml"
    file.write_text(
        f"model: trimix\nmodel_args: pretrained=demo\ntasks: [t]\n{line}\n", encoding="utf-8"
    )
    with pytest.raises(TrimixError, match=re.escape(says)):
        check_run(str(file))


@pytest.mark.parametrize("given", ["{a", '{"a":' * 9999, '{"a": ' + "1" * 9999 + "}"])
def test_model_arguments_that_are_no_json(given):
    with pytest.raises(TrimixError, match="model_args cannot be read"):
        run_config.model_arguments({}, given)


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [*a]",
        "a: &a {b: *a}",
        f"a: {'[' * 500}",
        f"a: {'[' * 60}{']' * 60}",
        f"a: 0x{'f' * 5000}",
        f"a: {'9' * 5000}",
        "a: &a [x, x]\n" + "\n".join(f"k{i}: &a [*a, *a]" for i in range(30)),
    ],
    ids=["list", "mapping", "open", "deep", "hexadecimal", "digits", "aliases"],
)
def test_yaml_without_end_is_refused(tmp_path: Path, text):
    (tmp_path / "run.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(TrimixError, match=r"run\.yaml (holds|is not YAML)") as refused:
        read_yaml(tmp_path / "run.yaml")
    assert len(str(refused.value).replace(str(tmp_path), "")) < 350


@pytest.mark.parametrize(
    "language", ["..", ".", "../../out", "/etc", ".trial.sweep", "a/../..", "x" * 300, "-rf ~"]
)
def test_no_language_of_a_sweep_writes_outside_of_its_folder(language):
    run = {
        **RUN,
        "model_args": {"pretrained": "l", "small_cpt": "c/{language}", "small_base": "b"},
        "sweep": {"name": "trial", "policies": ["ppl"], "languages": ["bo", language]},
    }
    first, second = (setting.folder for setting in plan.read(run).settings)
    assert first == "bo"
    assert Path(second).name == second and not second.startswith(".") and len(second) < 100


@pytest.mark.parametrize(
    ("block", "says"),
    [
        ({"name": "x" * 101}, "name is 'xxx"),
        ({"name": 5}, "name is 5"),
        ({"languages": ["a\0"]}, "languages has"),
        ({"languages": ["\ud800"]}, "languages has"),
        ({"languages": [" "]}, "languages has"),
        ({"languages": [{"language": 5}]}, "languages has"),
        ({"seeds": [2**32]}, "seeds"),
        ({"seeds": [1, True]}, "seeds=True"),
        ({"seeds": [math.nan]}, "seeds"),
        ({"num_fewshot": [0, False]}, "num_fewshot=False"),
        ({"num_fewshot": [10**30]}, "num_fewshot is 1000"),
        ({"plausibility": [math.nan]}, "plausibility"),
        ({"policies": [math.nan]}, "policies has nan"),
    ],
)
def test_values_of_a_sweep_block(block, says):
    with pytest.raises(TrimixError, match=says):
        plan.read({**RUN, "sweep": {"policies": ["ppl"], **block}})
