"""A sweep's results are those of plain runs, file by file."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from tests.support.naive import Naive
from tests.support.running import TRIO
from tests.support.sweeping import DOCS, config, make_lm_eval_quick, plain, write_tasks, written
from trimix_lm_eval import TriMix
from trimix_lm_eval.analysis import results
from trimix_lm_eval.analysis.export.refusals import reasons
from trimix_lm_eval.analysis.report.plane import planes
from trimix_lm_eval.analysis.report.systems import systems
from trimix_lm_eval.analysis.report.tables import tables
from trimix_lm_eval.fusion import policies
from trimix_lm_eval.fusion.weights import PAPER_GRID
from trimix_lm_eval.sweep import plan, sweep, table

TASKS = ["choice", "choice_mutual", "rolling", "free", "drawn", "shot_ug"]
BLOCK = {
    "name": "trial",
    "policies": ["all", {"policy": "ppl", "refine": "quadratic"}],
    "grid": ["0.1:0.9", "0.3:0.5", "1:1", "0.3:0.6:0.5"],
}


@pytest.fixture(scope="module", autouse=True)
def quick_lm_eval():
    with pytest.MonkeyPatch.context() as patch:
        make_lm_eval_quick(patch)
        yield


@pytest.fixture(scope="module")
def folders(pico):
    return pico("llama")


@pytest.fixture(scope="module")
def swept(folders, tmp_path_factory):
    """(config, results files) of a sweep of everything."""
    root = tmp_path_factory.mktemp("sweep")
    asked = config(
        folders,
        write_tasks(root / "tasks"),
        root / "out",
        tasks=TASKS,
        batch_size=3,
        limit=5,
        sweep=BLOCK,
    )
    asked["model_args"] |= {
        "large_base": folders["large_base"],
        "weights_log": str(root / "weights.jsonl"),
    }
    return asked, sweep(asked)


def names():
    found = [*policies.names(), "ppl_refine=quadratic", "fixed_0.1_0.9", "fixed_0.3_0.5"]
    return [name for name in (*found, "fixed_0.3_0.6_0.5") if name != "fixed"]


@pytest.mark.parametrize("name", names())
def test_a_variant_equals_a_plain_run(swept, name):
    asked, files = swept
    (setting,) = plan.read(asked).settings
    (variant,) = [v for v in setting.variants if v.name == name]
    (file,) = [f for f in files if f.parents[1].name == name]
    variant.model_args.pop("weights_log")
    setting.config.metadata.pop("weights_log")
    got, want = written(file), plain(setting, variant)
    for task in TASKS:
        for key, value in want["results"][task].items():
            same = pytest.approx(value, abs=1e-5, rel=1e-6) if isinstance(value, float) else value
            assert got["results"][task][key] == same, (task, key)
        for mine, theirs in zip(got["samples"][task], want["samples"][task], strict=True):
            assert mine["doc_id"] == theirs["doc_id"]
            assert mine["prompt_hash"] == theirs["prompt_hash"]
            if task in ("free", "drawn", "shot_ug"):
                assert mine["resps"] == theirs["resps"]
            else:
                values, wanted = (_numbers(sample["resps"]) for sample in (mine, theirs))
                assert values == pytest.approx(wanted, abs=1e-5, rel=1e-6)
        mine, theirs = (r["configs"][task]["metadata"] for r in (got, want))
        mine.pop("weights_log")
        assert mine == theirs
    for key in ("configs", "versions", "n-shot", "higher_is_better", "n-samples", "group_subtasks"):
        assert got[key] == want[key], key
    recorded = got["config"].pop("trimix")
    expected = want["config"].pop("trimix")
    got["config"]["model_args"].pop("weights_log")
    assert got["config"] == want["config"]
    assert recorded.pop("sweep")["variant"] == name
    # Refined, it has read the same prompts under the same points.
    assert ("prompt_nll" in recorded) == (name in ("ppl", "ppl_refine=quadratic"))
    recorded.pop("prompt_nll", None)
    for info in (recorded, expected):
        assert set(info.pop("speculation")) == {
            "mode",
            "rounds",
            "draft_length",
            "acceptance",
            "tokens_per_round",
        }
    assert recorded == expected


def _numbers(resps):
    """The log-likelihoods; lm-eval writes samples with numbers as texts."""
    first = [repeats[0] for repeats in resps]
    return [float(one[0] if isinstance(one, list) else one) for one in first]


def test_thinking_ends_as_in_plain_runs(folders, tmp_path):
    """At what these models often say; some texts have an answer, and some are cut off before."""
    asked = config(
        folders,
        write_tasks(tmp_path / "tasks", ["free"]),
        tmp_path / "out",
        tasks=["free"],
        sweep={"policies": ["large_ins", "small_cpt"]},
    )
    asked["model_args"]["think_end_token"] = "a"
    asked["gen_kwargs"] = {"max_gen_toks": 12}
    for _ in range(2):  # the second time from the journal
        files = sweep(asked)
    (setting,) = plan.read(asked).settings
    counts = []
    for file, variant in zip(files, setting.variants, strict=True):
        got, want = written(file), plain(setting, variant)
        for mine, theirs in zip(got["samples"]["free"], want["samples"]["free"], strict=True):
            assert mine["resps"] == theirs["resps"]
        for key in ("finish_reasons", "unfinished_thoughts"):
            assert got["config"]["trimix"][key] == want["config"]["trimix"][key]
        counts.append(got["config"]["trimix"]["unfinished_thoughts"]["free"])
    assert 0 < sum(counts) < 2 * len(DOCS), counts


def test_settings_are_as_independent_as_runs(folders, tmp_path):
    """Shots and seeds: tasks, exemplars and draws of one leave no trace in the next."""
    asked = config(
        folders,
        write_tasks(tmp_path / "tasks", ["shot_ug", "drawn"]),
        tmp_path / "out",
        tasks=["shot_ug", "drawn"],
        limit=3,
        sweep={"policies": ["ppl_task"], "num_fewshot": [None, 0, 2], "seeds": [5, 6]},
    )
    files = sweep(asked)
    settings = plan.read(asked).settings
    assert [f.relative_to(asked["output_path"]).parts[:2] for f in files] == [
        (s.folder, "ppl_task") for s in settings
    ]
    prompts = set()
    for setting, file in zip(settings, files, strict=True):
        got, want = written(file), plain(setting, setting.variants[0])
        for task in ("shot_ug", "drawn"):
            for mine, theirs in zip(got["samples"][task], want["samples"][task], strict=True):
                assert mine["arguments"]["gen_args_0"]["arg_0"] == theirs["arguments"][0][0]
                assert mine["resps"] == theirs["resps"]
        prompts.add(got["samples"]["shot_ug"][0]["prompt_hash"])
        for info in (got, want):
            info["config"]["trimix"].pop("speculation")
        got["config"]["trimix"].pop("sweep")
        assert got["config"] == want["config"]
        assert got["n-shot"] == want["n-shot"]
    assert len(prompts) >= 4, "shots and seeds make a difference"


def test_the_order_and_place_of_files(swept):
    asked, files = swept
    assert [f.parents[1].name for f in files] == [
        v.name for v in plan.read(asked).settings[0].variants
    ]
    root = Path(asked["output_path"])
    assert {f.name for f in root.iterdir()} == set(names())
    assert sorted(root.rglob("results_*.json")) == sorted(files)
    for file in files:
        assert file.relative_to(root).parts[1] == "__".join(
            asked["model_args"]["pretrained"].split("/")
        )
        assert (file.parents[1] / "fingerprint.json").is_file()


def test_what_results_say_of_the_sweep(swept):
    _, files = swept
    told = [written(file)["config"]["trimix"]["sweep"] for file in files]
    assert len({one["fingerprint"] for one in told}) == len(files)
    for one in told:
        assert one["name"] == "trial"
        assert one["points"] == ["0.1:0.9", "0.3:0.5", "1:1", "0.3:0.6:0.5"]
        assert one["named"] == {"1:1": "proxy_tuning"}


def test_prompt_nll_is_the_naive_mean_over_documents(swept, folders):
    _, files = swept
    (file,) = [f for f in files if f.parents[1].name == "ppl"]
    recorded = written(file)["config"]["trimix"]["prompt_nll"]
    assert set(recorded) == set(TASKS) - {"rolling"}
    naive = Naive({role: folders[role] for role in TRIO}, 265)
    encode = TriMix.from_pretrained(folders["small_cpt"], policy="large_ins").codec.encode
    prompts = [encode(doc["q"])[-96:] for doc in DOCS[:5]]
    means = [naive.grid(ids, 1, PAPER_GRID).mean(dim=1) for ids in prompts]
    mean = sum(means) / len(means)
    assert list(recorded["choice"]) == [point.label() for point in PAPER_GRID]
    # The long one is cut so that its options fit, which moves its mean a little.
    assert list(recorded["choice"].values()) == pytest.approx(mean.tolist(), abs=0.05)


def test_the_weights_log_is_that_of_plain_runs(swept, tmp_path):
    asked, _ = swept
    (setting,) = plan.read(asked).settings
    lines = _lines(asked["model_args"]["weights_log"])
    for name in ("ppl", "gate", "fixed_0.3_0.5"):
        (variant,) = [v for v in setting.variants if v.name == name]
        variant.model_args["weights_log"] = str(tmp_path / f"{name}.jsonl")
        plain(setting, variant)
        want = _lines(tmp_path / f"{name}.jsonl")
        mine = [line for line in lines if line["run"] == want[0]["run"]]
        assert len(mine) == len(want)
        assert len({_request(line) for line in want}) == len(want)
        for one, other in zip(mine, want, strict=True):
            assert one == pytest.approx(other, abs=1e-4)


def _lines(file):
    lines = [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines()]
    return sorted(lines, key=_request)  # written as they finish, which depends on the batches


def _request(line):
    return line["task"], line["doc_id"], line["idx"], line["repeat"]


def test_reports_and_submissions_understand_a_sweep(swept):
    _, files = swept
    runs, problems = results.read(list(files))
    assert not problems
    (system,) = systems(runs)
    (found,) = [p for p in planes(system, tables(system)) if p.task == "choice"]
    assert {point.weights.label() for point in found.points} == {
        "0.1:0.9",
        "0.3:0.5",
        "1:1",
        "0.3:0.6:0.5",
    }
    assert {point.weights.label() for point in found.scattered} == {"0.1:0.9", "0.3:0.5", "1:1"}
    for one in runs:
        tuned = any("the sweep trial with 4 points" in reason.what for reason in reasons(one))
        assert tuned == (one.policy == "fixed")


def test_the_table(swept):
    _, files = swept
    head, metrics, *rows, last = table.lines(files)
    assert head.split() == TASKS
    assert metrics.split() == [
        "acc",
        "↑",
        "acc_mutual_info",
        "↑",
        "bits_per_byte",
        "↓",
        *["exact_match", "↑"] * 3,
    ]
    assert len(rows) == len(files)
    assert rows[0].startswith("bayes ")
    assert last.startswith(f"{len(files)} results below ")


def test_a_number_that_the_first_variant_lacks_moves_no_column(swept, tmp_path):
    files = []
    for name, tasks in (("one", "ac"), ("two", "abc")):
        content = json.loads(swept[1][0].read_text(encoding="utf-8"))
        content["results"] = {task: {"alias": task, "acc,none": 0.5} for task in tasks}
        files.append(tmp_path / name / "m" / "results_1.json")
        files[-1].parent.mkdir(parents=True)
        files[-1].write_text(json.dumps(content), encoding="utf-8")
    assert next(table.lines(files)).split() == ["a", "b", "c"]


def test_the_table_names_filters_and_variants_without_numbers(swept, tmp_path):
    files = []
    for name, scores in (
        ("one", {"acc,strict": 0.25, "acc,flexible": 0.5, "mcc,none": math.nan}),
        ("two", {"acc,strict": "N/A"}),
    ):
        content = json.loads(swept[1][0].read_text(encoding="utf-8"))
        content["results"] = {"t": {"alias": "t", **scores}}
        files.append(tmp_path / name / "m" / "results_1.json")
        files[-1].parent.mkdir(parents=True)
        files[-1].write_text(json.dumps(content), encoding="utf-8")
    head, metrics, row, lost, partly, last = table.lines(files)
    assert head.split() == ["t", "t"]
    assert metrics.split() == ["acc", "(strict)", "↑", "acc", "(flexible)", "↑"]
    assert row.split()[-2:] == ["0.250", "0.500"]
    assert lost.startswith("two: holds no numbers of any task")
    assert partly == "one: mcc of t is nan"
    assert last.startswith("2 results below ")
