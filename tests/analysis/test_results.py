"""Results files read back: whatever a file holds, what reads it gives a named error or a number."""

from __future__ import annotations

import contextlib
import copy
import csv
import json
import math
import os

import pytest
import yaml
from huggingface_hub import (
    ModelCard,
    eval_result_entries_to_yaml,
    parse_eval_result_entries,
)
from huggingface_hub.repocard_data import model_index_to_eval_results

from tests.analysis.test_export import TASK, submittable
from tests.support.results_files import aggregate, trimix_config, write_run
from trimix_lm_eval import cli
from trimix_lm_eval.analysis.export import (
    card,
    eval_results,
    model_index,
    recipe,
    refusals,
    table,
)
from trimix_lm_eval.analysis.leaderboard import entries
from trimix_lm_eval.analysis.leaderboard import page as leaderboard
from trimix_lm_eval.analysis.leaderboard.entries import collect
from trimix_lm_eval.analysis.report import page
from trimix_lm_eval.analysis.report.csv_files import csv_files
from trimix_lm_eval.analysis.report.model import assemble
from trimix_lm_eval.analysis.results import read
from trimix_lm_eval.analysis.results.scores import no_score
from trimix_lm_eval.fusion.weights import PAPER_GRID
from trimix_lm_eval.utils.errors import TrimixError

PAPER = [list(point) for point in PAPER_GRID]
OTHER = "trimix_milic_bo_math"
DEEPER = json.loads("[" * 120 + "]" * 120)
DEEP = json.loads("[" * 90 + "]" * 90)
#: What is no file of ours: 10**400 reads as infinity.
VALUES = (None, True, 5, -1, 10**400, math.nan, "", "=1\ud800\0", [[1, 2, 3, 4]], {"a": 1}, DEEP)


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


def use(path, exported):
    """Do with a file all that can be done; a problem is an answer, too."""
    runs, problems = read([path])
    found = assemble(runs, problems)
    texts = [*csv_files(found).values(), page.render(found, "page.md.j2")]
    passed, refused = refusals.assessed(runs, problems)
    texts += refusals.lines(refused)
    texts.append(leaderboard.render(entries.group(table.rows_of(passed)), "title"))
    assert all(text.encode() for text in texts)
    for run in runs:
        if not refusals.reasons(run):
            export_all(run, exported)
    return problems


def export_all(run, exported):
    """In every format, but for what has been exported before: YAML takes its time."""
    rows, config = table.rows_of([run]), recipe.config(run)
    told = repr((rows, config, run.trimix, run.raw.get("transformers_version")))
    if told not in exported:
        exported.add(told)
        text = card.files([run], "mix")["README.md"]
        name, found = model_index_to_eval_results(ModelCard(text).data.to_dict()["model-index"])
        assert name == "mix"
        assert sorted(map(repr, found)) == sorted(map(repr, model_index.results(rows)))
        with contextlib.suppress(TrimixError):  # nothing to write
            texts, _ = eval_results.files(rows)
            for listed in map(yaml.safe_load, texts.values()):
                entries = parse_eval_result_entries(listed)
                assert entries and eval_result_entries_to_yaml(entries) == listed


def test_a_damaged_part_is_no_traceback(tmp_path, monkeypatch):
    monkeypatch.setattr("trimix_lm_eval.analysis.report.model.pictures", lambda plane: [])
    path, content = whole_file(tmp_path)
    exported = set()
    assert not use(path, exported) and exported and not refusals.reasons(read([path])[0][0])
    for at in places(content):
        for value in VALUES:
            damaged = copy.deepcopy(content)
            part = damaged
            for key in at[:-1]:
                part = part[key]
            part[at[-1]] = value
            path.write_text(json.dumps(damaged))
            try:
                use(path, exported)
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
    with pytest.raises(ValueError, match="nested too deeply"):
        run.samples("t")
    (line,) = csv.DictReader(csv_files(assemble([run], []))["scores.csv"].splitlines())
    assert line["value"] == "1.0"


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda text: text.replace('"acc,none"', '"acc,none": 1, "acc,none"'), "'acc,none' twice"),
        (lambda text: text.replace('"limit": null', '"limit": null, "limit": 5'), "'limit' twice"),
        (lambda text: json.dumps({**json.loads(text), "x": DEEPER}), "more than 100 levels"),
        (lambda text: " \n", "is empty"),
    ],
)
def test_what_json_lets_pass_is_a_problem(tmp_path, damage, said):
    path = write_run(tmp_path / "bad", {"t": [1.0]}, samples=False)
    path.write_text(damage(path.read_text()))
    good = write_run(tmp_path / "good", {"t": [1.0]}, samples=False)
    (run,), (problem,) = read([tmp_path])
    assert said in problem.what and (run.path, problem.path) == (good, path)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_other_encodings_are_read(tmp_path, encoding):
    path = write_run(tmp_path, {"t": [1.0]}, samples=False)
    path.write_text(path.read_text(), encoding=encoding)
    (run,), problems = read([path])
    assert run.scores["t"][0].value == 1.0 and not problems


def test_numbers_without_end(tmp_path):
    """A date of 10**400 or a million digits is none; the other files are read nonetheless."""
    path = write_run(tmp_path, {"t": [1.0]}, stamp="good", samples=False)
    text = path.read_text().replace("1790000000.0", "@")
    for number, date in enumerate(["1" + "0" * 400, "9" * 1_000_000, "-" + "9" * 5000, "1e300"]):
        path.with_name(f"results_{number}.json").write_text(text.replace("@", date))
    runs, problems = read([tmp_path])
    assert len(runs) == 5 and not problems and runs[-1].path == path
    assert {run.date for run in runs[:-1]} == {None}
    path.write_text(text.replace("@", "1").replace('"acc,none": 1.0', f'"acc,none": {10**400}'))
    assert "acc of t is inf" in read([path])[1][0].what


def test_places_that_cannot_be_read(tmp_path, monkeypatch):
    good = write_run(tmp_path / "in", {"t": [1.0]}, samples=False)
    (tmp_path / "in/loop").symlink_to(tmp_path / "in/loop")
    (tmp_path / "in/results_loop.json").symlink_to(tmp_path / "in/results_loop.json")
    (tmp_path / "in/up").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "in/results_pipe.json")
    (tmp_path / "in/closed").mkdir()
    scan = os.scandir

    def refuse(place):
        if os.fspath(place).endswith("closed"):
            raise PermissionError(13, "Permission denied", place)
        return scan(place)

    monkeypatch.setattr(os, "scandir", refuse)
    nul, odd = tmp_path / "a\0b.json", tmp_path / "\udcff.json"
    (run,), problems = read([tmp_path / "in", tmp_path / "in/loop", nul, odd])
    told = {problem.path.name: problem.what for problem in problems}
    assert run.path == good and len(told) == 6
    assert "Permission denied" in told["closed"] and "a pipe" in told["results_pipe.json"]
    assert "symbolic links" in told["results_loop.json"] and "symbolic links" in told["loop"]
    assert "cannot be read" in told[nul.name] or "null byte" in told[nul.name]
    lines = refusals.lines(refusals.unreadable(problems))
    assert all(line.encode() and "\0" not in line for line in lines)


def test_half_characters_are_question_marks(tmp_path):
    path = write_run(tmp_path, {"t\ud800": [1.0]}, samples=False, model_name="\udc00\U0001f600")
    (run,), problems = read([path])
    assert list(run.scores) == ["t?"] and run.raw["model_name"] == "?\U0001f600" and not problems


# --- placeholders -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("bypass,none", 999, "bypass of u is 999, a placeholder: --predict_only scores nothing"),
        ("bypass,strict", 0.0, "bypass (filter strict) of u is 0.0, a placeholder"),
        ("acc,none", -1, "acc of u is -1, which it cannot be"),
        ("acc_norm,none", 999, "acc_norm of u is 999, which it cannot be"),
        ("exact_match,strict", -1.0, "exact_match (filter strict) of u is -1.0, which it cannot"),
        ("perplexity,none", 0.0, "perplexity of u is 0.0, which it cannot be"),
        ("bits_per_byte,none", -1, "bits_per_byte of u is -1, which it cannot be"),
        ("4096,none", -1.0, "4096 of u is -1.0, which it cannot be"),  # RULER's, not run
        ("pass@1,none", -1, "pass@1 of u is -1, which it cannot be"),
        ("prompt_level_strict_acc,none", 999, "prompt_level_strict_acc of u is 999, which it"),
        ("f1_abstractive,none", -1, "f1_abstractive of u is -1, which it cannot be"),
        ("mcc,none", 999, "mcc of u is 999, which it cannot be"),
        ("acc,none", "N/A", "acc of u is 'N/A', which is no number"),
        ("acc,none", None, "acc of u is None, which is no number"),
        ("acc,none", True, "acc of u is True, which is no number"),
        ("acc,none", math.nan, "acc of u is nan"),
    ],
)
def test_placeholders_are_no_scores(tmp_path, capsys, key, value, said):
    """Named by report, and refused by export and leaderboard, whatever else the file holds."""
    path = submittable(tmp_path / "in", tasks=(TASK, OTHER))
    content = json.loads(path.read_text().replace(OTHER, "u"))
    content["results"]["u"] = {"alias": " - u", " ": " ", key: value}
    path.write_text(json.dumps(content))
    (run,), _ = read([path])
    assert list(run.scores) == [TASK] and len(run.lost) == 1 and run.lost[0].startswith(said)
    assert cli.main(["export", str(path), "--to", "csv", "--output", str(tmp_path / "out")]) == 1
    assert cli.main(["leaderboard", str(tmp_path), "--output", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.count(said) == 2 and not (tmp_path / "out").exists()
    content["results"].pop(TASK)
    path.write_text(json.dumps(content))
    assert said in read([path])[1][0].what


@pytest.mark.parametrize(
    ("metric", "value"), [("mcc", -0.2), ("bleu_diff", -3.0), ("rouge1_diff", -1), ("reward", -1)]
)
def test_what_may_be_below_0_is_a_score(metric, value):
    assert no_score(metric, value) == ""


def test_a_task_of_no_document_has_no_score(tmp_path):
    counts = {"t": {"original": 0, "effective": 0}, "u": {"original": 1, "effective": 1}}
    path = write_run(tmp_path, {"t": [1.0], "u": [1.0]}, **{"n-samples": counts})
    ((run,), _) = read([path])
    assert list(run.scores) == ["u"] and run.lost == ("acc of t is of no document",)


def test_no_standard_error_is_below_0(tmp_path):
    path = write_run(tmp_path, {"t": [1.0, 0.0]})
    for value in (-1, "N/A", None, math.nan, True):
        content = json.loads(path.read_text())
        content["results"]["t"]["acc_stderr,none"] = value
        path.write_text(json.dumps(content))
        assert read([path])[0][0].scores["t"][0].stderr is None


@pytest.mark.parametrize("damage", ["gone", "placeholder", "no members"])
def test_a_group_without_all_of_its_tasks_is_no_score(tmp_path, damage):
    path = write_run(tmp_path, {"t": [1.0, 0.0], "u": [1.0, 1.0]})
    aggregate(path, "g", ["t", "u"])
    assert read([path])[0][0].groups
    content = json.loads(path.read_text())
    if damage == "gone":
        content["results"].pop("u")
    elif damage == "placeholder":
        content["results"]["u"]["acc,none"] = -1
    else:
        content["group_subtasks"]["g"] = []
    path.write_text(json.dumps(content))
    ((run,), _) = read([path])
    assert not run.groups and "the group g is without numbers of" in run.lost[-1]


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
