"""Results files read back: whatever a file holds, what reads it gives a named error or a number."""

from __future__ import annotations

import copy
import csv
import json
import math

import pytest

from tests.analysis.test_export import TASK, submittable
from tests.support.results_files import trimix_config, write_run
from trimix_lm_eval.analysis.export import card, eval_results, model_index, refusals, table
from trimix_lm_eval.analysis.leaderboard.entries import collect
from trimix_lm_eval.analysis.report.csv_files import csv_files
from trimix_lm_eval.analysis.report.model import assemble
from trimix_lm_eval.analysis.results import read
from trimix_lm_eval.fusion.weights import PAPER_GRID
from trimix_lm_eval.utils.errors import TrimixError

PAPER = [list(point) for point in PAPER_GRID]
VALUES = (None, 5, "x", [[1, 2, 3, 4]], {"a": 1}, math.inf)


def whole_file(folder):
    """A results file with everything in it that anything reads."""
    told = trimix_config("ppl", grid=[[0.1, 0.9, None]], weights_chosen={TASK: {"0.1:0.9": 204}})
    told["data"] = {"x": {"from": f"Davlan/sib200@{'d' * 40}/x", "sha256": "00"}}
    told["task_points"] = {TASK: "0.1:0.9"}
    told["prompt_nll"] = {TASK: {"0.1:0.9": 2.0}}
    path = submittable(folder, trimix=told)
    content = json.loads(path.read_text())
    content["config"]["model_args"] = {"pretrained": "org/large_ins", "policy": "ppl"}
    content["configs"][TASK]["fewshot_config"] = {"split": "train"}
    content["configs"][TASK]["dataset_kwargs"] = {"select": {"language": "ben_Beng"}}
    return path, content


def places(value, at=()):
    """The path of every part."""
    if at:
        yield at
    items = value.items() if isinstance(value, dict) else enumerate(value[:2])
    for key, part in items:
        yield from places(part, (*at, key)) if isinstance(part, (dict, list)) else [(*at, key)]


def use(path):
    """Do with a file all that can be done; a problem is an answer, too."""
    runs, problems = read([path])
    csv_files(assemble(runs, problems))
    for run in runs:
        run.task_points.get(TASK)
        if not refusals.reasons(run):
            rows = table.rows_of([run])
            model_index.files(rows, "mix")
            card.files([run], "mix")
            try:
                eval_results.files(rows)
            except TrimixError as error:
                assert "Nothing to write" in str(error)
    return problems


def test_a_damaged_part_is_no_traceback(tmp_path, monkeypatch):
    monkeypatch.setattr("trimix_lm_eval.analysis.report.model.pictures", lambda plane: [])
    path, content = whole_file(tmp_path)
    assert not use(path) and not refusals.reasons(read([path])[0][0])
    for at in places(content):
        for value in VALUES:
            damaged = copy.deepcopy(content)
            part = damaged
            for key in at[:-1]:
                part = part[key]
            part[at[-1]] = value
            path.write_text(json.dumps(damaged))
            try:
                use(path)
            except Exception as error:
                raise AssertionError(f"{'.'.join(map(str, at))} = {value!r}") from error


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000])
def test_depth_without_end_is_a_problem(tmp_path, text):
    (tmp_path / "results_deep.json").write_text(text)
    runs, (problem,) = read([tmp_path])
    assert not runs and "is not JSON" in problem.what
    path = write_run(tmp_path / "good", {"t": [1.0]})
    next(path.parent.glob("samples*")).write_text(text)
    ((run,), _) = read([path])
    with pytest.raises(RecursionError):
        run.samples("t")
    (line,) = csv.DictReader(csv_files(assemble([run], []))["scores.csv"].splitlines())
    assert line["value"] == "1.0"


def test_the_newest_is_not_the_one_without_a_date(tmp_path):
    for number, date in enumerate([2e9, None, 1.9e9, "soon"]):
        path = write_run(tmp_path, {"t": [1.0]}, stamp=str(number), samples=False)
        path.write_text(json.dumps({**json.loads(path.read_text()), "date": date}))
    runs, _ = read([tmp_path])
    assert [run.raw["date"] for run in runs] == [None, "soon", 1.9e9, 2e9]


def test_a_file_counts_once(tmp_path, monkeypatch):
    path = write_run(tmp_path / "a", {"t": [1.0]}, samples=False)
    (tmp_path / "link").symlink_to(tmp_path / "a")
    monkeypatch.chdir(tmp_path)
    here = path.relative_to(tmp_path)
    for places in ([path, here], [here, tmp_path], [tmp_path / "link" / path.name, here]):
        runs, problems = read(places)
        assert len(runs) == 1 and not problems


def test_what_a_sweep_is_still_writing_is_no_result(tmp_path):
    done = write_run(tmp_path / "out" / "ppl" / "model", {TASK: [1.0]})
    half = write_run(tmp_path / "out" / ".paper.sweep" / "results0" / "model", {TASK: [0.0]})
    runs, problems = read([tmp_path])
    assert [run.path for run in runs] == [done] and not problems
    entries, left_out = collect(tmp_path)
    assert half not in [x.path for x in left_out] and not any(e.row.value == 0.0 for e in entries)
    assert read([half.parents[1]])[0], "unless one asks for it"


@pytest.mark.parametrize(
    ("told", "listed", "metric", "up"),
    [
        ({"t": {"acc": False}}, True, "acc", False),
        ({"t": {"bits_per_byte": True}}, None, "bits_per_byte", True),
        ({"t": {"acc": None}}, False, "acc", False),
        (None, None, "bits_per_byte", False),
        ({"t": {"word_perplexity": None}}, None, "word_perplexity", False),
        (None, None, "acc", True),
        (None, False, "mine", False),
    ],
)
def test_which_way_is_up(tmp_path, told, listed, metric, up):
    """As the file says; lm-eval before 0.4.3 said it in the YAML only, or not at all."""
    path = write_run(tmp_path, {"t": [1.0]}, samples=False, higher_is_better=told)
    content = json.loads(path.read_text())
    content["results"]["t"] = {f"{metric},none": 1.0}
    content["configs"]["t"]["metric_list"] = [{"metric": metric, "higher_is_better": listed}]
    path.write_text(json.dumps(content))
    ((run,), _) = read([path])
    assert run.scores["t"][0].higher_is_better is up


@pytest.mark.parametrize(
    ("policy", "label"),
    [
        ({"name": "ppl", "grid": PAPER, "optimum": "grid"}, "ppl"),
        ({"name": "ppl", "grid": PAPER, "optimum": "newton"}, "ppl (newton)"),
        (
            {"name": "ppl_task", "grid": PAPER, "optimum": "newton", "prompts": 7},
            "ppl_task (newton, prompts 7)",
        ),
        ({"name": "ent", "grid": [[0.1, 0.9, None]], "optimum": "grid"}, "ent (grid of 1)"),
        ({"name": "gate", "host": "large_base", "floor": 0.2}, "gate (host large_base, floor 0.2)"),
        ({"name": "mine", "share": 0.2}, "mine"),
        ({"name": "mine", "label": "Mine", "differing": ["share 0.2"]}, "mine (share 0.2)"),
    ],
)
def test_policies_as_versions_before_and_others_recorded_them(tmp_path, policy, label):
    told = {**trimix_config("ppl"), "policy": policy}
    ((run,), _) = read([write_run(tmp_path, {"t": [1.0]}, trimix=told, samples=False)])
    assert run.label == label
    assert run.title == label.replace(
        policy["name"], policy.get("label", f"TriMix {policy['name']}")
    )
