"""Exports: what is refused and why, what is written and read back, what is uploaded."""

from __future__ import annotations

import copy
import csv
import json
import os
import re
import subprocess

import pytest
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries
from huggingface_hub.repocard_data import model_index_to_eval_results

from tests.support import quick_python
from tests.support.hub_uploads import TOKEN, Uploads
from tests.support.results_files import aggregate, trimix_config, write_run
from trimix_lm_eval import cli
from trimix_lm_eval.analysis import export
from trimix_lm_eval.analysis.export import origins, refusals, table
from trimix_lm_eval.analysis.leaderboard import entries
from trimix_lm_eval.analysis.results import read
from trimix_lm_eval.fusion import policies
from trimix_lm_eval.fusion.weights import PAPER_GRID
from trimix_lm_eval.loading import settings
from trimix_lm_eval.tasklib.catalog import read_all
from trimix_lm_eval.utils.errors import TrimixError
from trimix_lm_eval.utils.paths import tasks_dir

TASK = "trimix_sib200_ben_Beng"
ANSWERS = [1.0, 0.0, 1.0, 1.0] * 51
SHIPPED = read_all(tasks_dir())


def submittable(folder, policy="ppl", tasks=(TASK,), documents=ANSWERS, trimix=None, **raw):
    """A results file of a run that may be exported, unless told otherwise."""
    configs = {
        task: {
            "task": task,
            "num_fewshot": SHIPPED[task]["num_fewshot"],
            "generation_kwargs": SHIPPED[task].get("generation_kwargs"),
            "metric_list": [{"metric": "acc"}],
            "metadata": {"version": 1.0},
        }
        for task in tasks
    }
    shots = {task: config["num_fewshot"] for task, config in configs.items()}
    return write_run(
        folder,
        dict.fromkeys(tasks, documents),
        trimix=trimix_config(policy) if trimix is None else trimix,
        samples=False,
        **{"configs": configs, "n-shot": shots, **raw},
    )


def changed(path, change):
    """The same file after ``change(its content)``."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


def reasons(*paths):
    runs, problems = read(paths)
    with pytest.raises(TrimixError) as refused:
        refusals.accept(runs, problems)
    return str(refused.value)


# --- what is refused --------------------------------------------------------------------------


def set_limit(content):
    content["config"]["limit"] = 1000.0


def fewer(content):
    content["n-samples"][TASK] = {"original": 204, "effective": 20}


def uncounted(content):
    del content["n-samples"]


def not_a_number(content):
    content["results"][TASK]["f1,none"] = float("nan")


def other_shots(content):
    content["n-shot"][TASK] = 3


def chat(content):
    content["chat_template"] = "{{ messages }}"


def no_revision(content):
    content["config"]["trimix"]["sources"]["small_cpt"]["commit"] = None


def no_source(content):
    content["config"]["trimix"]["policy"] = {"name": "small_cpt"}
    del content["config"]["trimix"]["sources"]["small_cpt"]


def of_grid(content):
    content["config"]["trimix"]["policy"] = {"name": "fixed", "alpha": 0.3, "beta": 0.5}
    content["config"]["trimix"]["sweep"] = {"name": "paper", "points": ["0.3:0.5", "0.1:0.9"]}


def swept_mask(content):
    content["config"]["trimix"]["plausibility"] = 0.1
    content["config"]["trimix"]["sweep"] = {"name": "paper", "points": ["ppl"]}


def upper_bound(content):
    content["config"]["trimix"]["policy"] = {"name": "upper_bound"}


def called_oracle(content):
    content["model_name"] = "TriMix (Oracle)"


def own_policy(content):
    content["config"]["trimix"]["policy"] = {"name": "peek"}


def answers_of_the_test_split(content):
    content["config"]["trimix"]["policy"] = {"name": "ppl_answer"}
    config = content["configs"].pop(TASK)
    for part in ("results", "n-samples", "n-shot", "higher_is_better"):
        content[part]["elsewhere"] = content[part].pop(TASK)
    content["configs"]["elsewhere"] = {**config, "test_split": "test"}


def not_ours(content):
    content["config"].pop("trimix")
    content["config"]["model"] = "hf"


def no_sources(content):
    content["config"]["trimix"]["sources"] = None


def half_a_policy(content):
    content["config"]["trimix"]["policy"] = {"name": "fixed", "alpha": 0.1}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (set_limit, "--limit 1000.0"),
        (fewer, f"{TASK}: 20 of 204 documents"),
        (uncounted, "how many of its documents were scored is not known"),
        (not_a_number, f"f1 of {TASK} is nan"),
        (other_shots, "3 shots in place of 7"),
        (chat, "chat template"),
        (no_revision, "small_cpt (small_cpt): unknown revision"),
        (no_source, "does not say which small_cpt was used"),
        (of_grid, "fixed 0.3:0.5: a point of the sweep paper with 2 points"),
        (swept_mask, "plausibility 0.1: a point of the sweep paper"),
        (upper_bound, "upper_bound: an upper bound is chosen by its score"),
        (called_oracle, "TriMix (Oracle): an upper bound"),
        (own_policy, "policy peek: not known to be honest"),
        (answers_of_the_test_split, "come from the split that is scored (test)"),
        (not_ours, "not a run of TriMix: model 'hf'"),
        (no_sources, "does not say which sources"),
        (half_a_policy, "has damaged entries"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_refused(tmp_path, change, why):
    path = changed(submittable(tmp_path), change)
    assert why in reasons(path)
    for to in export.FORMATS:
        with pytest.raises(TrimixError):
            export.main([path], to, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_all_reasons_of_all_files_at_once(tmp_path):
    good = submittable(tmp_path / "good")
    bad = changed(changed(submittable(tmp_path / "bad"), fewer), no_revision)
    torn = tmp_path / "results_torn.json"
    torn.write_text(good.read_text()[:500])
    gone = tmp_path / "gone.json"
    told = reasons(good, bad, torn, gone)
    assert "3 of 4 results cannot be submitted" in told
    assert "20 of 204" in told and "unknown revision" in told
    assert re.search(rf"- is not JSON.*\n      {torn}\n", told)
    assert re.search(rf"- cannot be read.*\n      {gone}\n", told)
    assert told.endswith(f"the others can, if you name them: {good}")


def test_a_reason_of_many_results_is_told_once_with_two_of_them(tmp_path):
    paths = []
    for number in range(90):
        path = submittable(tmp_path / f"{number:02}", tasks=(TASK, "trimix_milic_bo_math"))
        paths.append(changed(changed(path, set_limit), fewer))
    changed(paths[1], other_shots)
    told = reasons(*paths).splitlines()
    assert told[0] == "Nothing was exported: 90 of 90 results cannot be submitted."
    assert told[1:-1] == [
        "  - limited to a part of the documents (--limit 1000.0)",
        f"      90 results, for example {paths[0]}, {paths[1]}",
        f"  - {TASK}: 3 shots in place of 7, which is not the published protocol",
        f"      {paths[1]}",
    ]


def test_subjects_that_differ_stand_with_their_file(tmp_path):
    both = [refusals.Reason("wrong", subject) for subject in "abc"]
    refused = [refusals.Refused(tmp_path / "x", both), refusals.Refused(tmp_path / "y", both[:1])]
    places = f"{tmp_path / 'x'} (a, b and 1 more), {tmp_path / 'y'} (a)"
    assert refusals.lines(refused) == [f"wrong\n      {places}"]
    assert refusals.lines(refused[1:]) == [f"a: wrong\n      {tmp_path / 'y'}"]


@pytest.mark.parametrize(("count", "refused"), [(3, False), (4, True), (36, True)])
def test_points_run_one_by_one_are_a_grid_too(tmp_path, count, refused):
    paths = [submittable(tmp_path / "ppl"), submittable(tmp_path / "corner", "large_ins")]
    for number, point in enumerate(PAPER_GRID[:count]):
        told = trimix_config("fixed", **point._asdict())
        paths.append(submittable(tmp_path / str(number), trimix=told))
    if not refused:
        export.main(paths, "csv", tmp_path / "out")
        return
    told = reasons(*paths)
    points = count - (count == 36)  # Proxy Tuning is one, which nobody picks by its score
    assert told.count(f"- one of {points} points of the same models") == 1
    assert f"      {points} results, for example {tmp_path}" in told
    others = [*paths[:2], *(paths[-1:] if count == 36 else [])]
    assert set(told.rpartition("name them: ")[2].split()) == set(map(str, others))
    found, left_out = entries.collect(tmp_path)
    assert len(left_out) == points and {e.row.policy for e in found} <= {
        *("ppl", "large_ins", "proxy_tuning"),
    }
    # Of other models, or of another task, a point stands alone.
    export.main([paths[2]], "csv", tmp_path / "out")


@pytest.mark.parametrize("name", ["large_ins", "small_cpt", "small_base", "proxy_tuning"])
def test_corners_of_a_sweep_may_be_exported(tmp_path, name):
    points = {
        "large_ins": (1, 0),
        "small_cpt": (0, 1),
        "small_base": (0, 0),
        "proxy_tuning": (1, 1),
    }
    alpha, beta = points[name]
    told = trimix_config("fixed", alpha=float(alpha), beta=float(beta))
    told["sweep"] = {"name": "paper", "points": ["0.3:0.5", name]}
    told["sources"] = copy.deepcopy(told["sources"])
    unused = {"large_ins", "small_cpt", "small_base"} - set(origins.used(read_one(told, tmp_path)))
    # A model that the point gives no weight may be of any revision.
    for role in unused:
        told["sources"][role]["commit"] = None
    run = read_one(told, tmp_path)
    assert refusals.reasons(run) == []
    assert table.rows_of([run])[0].policy == name


def read_one(told, folder):
    runs, problems = read([submittable(folder, trimix=told)])
    assert not problems
    return runs[0]


def test_every_policy_is_judged(tmp_path):
    """Each says how it is honest; of those of others the file says so, or they are refused."""
    for name in policies.names():
        assert policies.find(name).honesty in ("label_free", "needs_exemplars")
        assert refusals.reasons(read_one(trimix_config(name, **point_of(name)), tmp_path)) == []


def point_of(name):
    return {"alpha": 0.1, "beta": 0.9} if name == "fixed" else {}


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        ({"honesty": "label_free"}, None),
        ({"honesty": "needs_exemplars"}, None),
        ({"honesty": "oracle"}, "policy mine: an oracle, which sees answers or scores"),
        ({"honesty": "very"}, "policy mine: not known to be honest"),
        ({"honesty": ["label_free"]}, "policy mine: not known to be honest"),
        ({}, "policy mine: not known to be honest"),
    ],
)
def test_the_honesty_of_a_policy_of_others_is_what_the_file_says(tmp_path, told, reason):
    found = refusals.reasons(read_one(trimix_config("mine", **told), tmp_path))
    assert len(found) == (reason is not None) and (not found or str(found[0]).startswith(reason))


def test_a_file_cannot_say_that_a_policy_of_ours_is_something_else(tmp_path):
    told = trimix_config("ppl", honesty="oracle", label="Mine")
    run = read_one(told, tmp_path)
    assert refusals.reasons(run) == [] and run.title == "TriMix ppl"


def test_local_folder_with_a_digest_is_known(tmp_path):
    told = trimix_config("ppl")
    told["sources"] = copy.deepcopy(told["sources"])
    told["sources"]["small_cpt"].update(path="/home/me/models/mine", commit=None, digest="abcd" * 4)
    row = table.rows_of([read_one(told, tmp_path)])[0]
    assert (row.small_cpt, row.small_cpt_revision) == ("mine", "digest:" + "abcd" * 4)


# --- what is written --------------------------------------------------------------------------


def test_csv_holds_every_number(tmp_path):
    path = submittable(tmp_path / "run", tasks=(TASK, "trimix_milic_bo_math"))
    (written,) = export.main([path], "csv", tmp_path / "out")
    lines = list(csv.DictReader(written.open(newline="")))
    results = json.loads(path.read_text())["results"]
    assert {line["task"]: float(line["value"]) for line in lines} == {
        task: values["acc,none"] for task, values in results.items()
    }
    assert float(lines[0]["stderr"]) == results[TASK]["acc_stderr,none"]
    assert lines[0] == lines[0] | {
        "n": "204",
        "language": "Bengali",
        "dataset": "Davlan/sib200",
        "split": "test",
        "shots": "7",
        "policy": "ppl",
        "family": "other",
        "large_ins": "org/large_ins",
        "large_ins_revision": "1" * 40,
        "large_base": "",
    }
    assert lines[1]["language"] == "Tibetan"
    rows, problems = table.read_csv(written)
    assert not problems and rows == table.rows_of(read([path])[0])


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (lambda text: "", "is no CSV of `trimix export`"),
        (lambda text: text.replace("task,", "job,", 1), "is no CSV of `trimix export`"),
        (lambda text: text.replace("0.75", "nan"), "line 2 is damaged"),
        (lambda text: text[:-40], "line 2 is damaged"),
        (lambda text: text.replace("True", "yes", 1), "line 2 is damaged"),
    ],
)
def test_damaged_csv_is_a_problem(tmp_path, damage, what):
    (written,) = export.main([submittable(tmp_path / "run")], "csv", tmp_path)
    written.write_text(damage(written.read_text()))
    rows, (problem,) = table.read_csv(written)
    assert rows == [] and what in problem.what


def test_eval_results_read_back(tmp_path):
    runs = [submittable(tmp_path / name, name) for name in ("ent", "ppl")]
    data = {"sib200/x": {"from": f"Davlan/sib200@{'d' * 40}/data/ben/x", "sha256": "0"}}
    changed(runs[0], lambda content: content["config"]["trimix"].update(data=data))
    written = export.main(runs, "eval-results", tmp_path)
    names = [path.relative_to(tmp_path).as_posix() for path in written]
    assert names == [f".eval_results/Davlan-sib200_{name}.yaml" for name in ("ent", "ppl")]
    for path, revision in zip(written, ("d" * 40, None), strict=True):
        (entry,) = parse_eval_result_entries(yaml.safe_load(path.read_text()))
        assert (entry.dataset_id, entry.task_id) == ("Davlan/sib200", TASK)
        assert entry.value == sum(ANSWERS) / 204
        assert entry.dataset_revision == revision
        assert entry.date == "2026-09-21T14:13:20Z"
        assert "acc, n=204, standard error 0.03039, 7-shot" in entry.notes
        assert "large_ins=org/large_ins@1111111" in entry.notes


def test_tasks_without_a_data_set_are_left_out_and_named(tmp_path):
    path = submittable(tmp_path, tasks=(TASK,))
    changed(path, add_task("mine"))
    said = []
    export.main([path], "eval-results", tmp_path / "out", say=said.append)
    assert "left out, for their data is no data set of the Hub: mine" in said
    changed(path, lambda content: content["results"].pop(TASK))
    with pytest.raises(TrimixError, match="Nothing to write: mine"):
        export.main([path], "eval-results", tmp_path / "other")


def add_task(name):
    def change(content):
        for part in ("results", "n-samples", "n-shot", "higher_is_better", "configs"):
            content[part][name] = copy.deepcopy(content[part][TASK])

    return change


def test_a_recipe_runs_no_code_because_a_results_file_says_so(tmp_path):
    """What a reader has to trust is named in a comment, and not switched on."""
    told = trimix_config("ppl", trust_remote_code=True, weights_log="x")
    path = submittable(tmp_path, trimix=told)
    args = {"pretrained": "org/large_ins", "trust_remote_code": True, "dtype": "float32"}
    args |= {"large_trust_remote_code": True, "use_fast": False, "token": "hf_x"}
    changed(path, lambda content: content["config"].update(model_args=args))
    _, recipe = export.main([path], "card", tmp_path / "out")
    content = yaml.safe_load(recipe.read_text())["model_args"]
    assert content["pretrained"] == "org/large_ins" and content["dtype"] == "float32"
    assert not {"trust_remote_code", "large_trust_remote_code", "weights_log"} & set(content)
    assert "to be added by who trusts it: large_trust_remote_code, trust_remote_code, use_fast" in (
        recipe.read_text()
    )
    assert "hf_x" not in recipe.read_text()


def add_filters(content):
    """As gsm8k has them: the numbers of one metric under two filters, and one that both lack."""
    values = content["results"][TASK]
    for key in ("acc,none", "acc_stderr,none"):
        values[key.replace("none", "strict-match")] = values.pop(key)
    values |= {"acc,flexible-extract": 0.9, "acc_stderr,flexible-extract": 0.01}


def test_filters_of_a_task_are_named(tmp_path):
    """Each in CSV, index and card; an entry of .eval_results has room for one, and says which."""
    path = changed(submittable(tmp_path / "run"), add_filters)
    rows, _ = table.read_csv(*export.main([path], "csv", tmp_path / "out"))
    by_filter = {row.filter: (row.value, row.main) for row in rows}
    assert by_filter == {"strict-match": (0.75, True), "flexible-extract": (0.9, False)}
    said = []
    (entry,) = export.main([path], "eval-results", tmp_path / "out", say=said.append)
    (found,) = parse_eval_result_entries(yaml.safe_load(entry.read_text()))
    assert found.value == 0.75 and found.notes.startswith("acc (strict-match), ")
    assert f"{TASK} by its filter strict-match, not flexible-extract" in said[0]
    index, card, _ = (
        *export.main([path], "model-index", tmp_path / "out"),
        *export.main([path], "card", tmp_path / "out"),
    )
    _, results = model_index_to_eval_results(yaml.safe_load(index.read_text())["model-index"])
    names = {"acc, strict-match (ppl)": 0.75, "acc, flexible-extract (ppl)": 0.9}
    assert {it.metric_name: it.metric_value for it in results} == names
    text = card.read_text()
    assert "acc (strict-match)" in text and "acc (flexible-extract)" in text
    assert f"{TASK} by its filter" not in text
    found, _ = entries.collect(tmp_path)
    assert [(e.row.filter, e.best, e.others) for e in found] == [
        ("flexible-extract", True, ()),
        ("strict-match", True, ()),
    ]


def test_model_index_reads_back(tmp_path):
    tasks = (TASK, f"{TASK}_ll")
    path = submittable(tmp_path, tasks=tasks)
    (written,) = export.main([path], "model-index", tmp_path, repo="me/mix")
    name, found = model_index_to_eval_results(yaml.safe_load(written.read_text())["model-index"])
    assert name == "mix"
    # The two forms of one question must not melt into one.
    assert [entry.task_name for entry in found] == list(tasks)
    for entry in found:
        assert entry.metric_value == sum(ANSWERS) / 204
        assert entry.dataset_type == "Davlan/sib200" and entry.dataset_split == "test"
        assert entry.metric_args["n"] == 204 and entry.metric_args["setting"] == "ppl"


def test_card_holds_what_repeats_the_run(tmp_path):
    told = {**trimix_config("ppl", grid=[[*p[:2], None] for p in PAPER_GRID], optimum="grid")}
    told["max_length"] = 2048  # as of a sweep, where model_args do not have it
    path = submittable(tmp_path, trimix=told)
    args = {
        "pretrained": "org/large_ins",
        "small_cpt": "org/small_cpt",
        "small_base": "org/small_base",
        "policy": "ppl",
        "weights_log": "/home/me/weights.jsonl",
    }
    changed(path, lambda content: content["config"].update(model_args=args))
    readme, recipe = export.main([path], "card", tmp_path / "out", repo="me/mix")
    card = ModelCard.load(readme)
    assert card.data.base_model == ["org/large_ins", "org/small_cpt", "org/small_base"]
    assert card.data.language == ["ben"] and card.data.model_name == "mix"
    assert card.data.license is None
    assert [e.metric_value for e in card.data.eval_results] == [sum(ANSWERS) / 204]
    assert f"| {TASK} | Bengali |".replace("_", "\\_") in card.text
    for i in "123":
        assert i * 40 in card.text
    assert "0.7500 | 0.0304 | 204 | 7 |" in card.text
    assert "/home/me" not in readme.read_text()
    assert recipe.read_text() in card.text
    assert f"lm_eval run --config recipes/{recipe.name}" in card.text
    content = yaml.safe_load(recipe.read_text())
    assert content["tasks"] == [TASK] and content["model"] == "trimix"
    assert content["seed"] == [0, 1234, 1234, 1234]
    parsed = settings.parse(content["model_args"])
    assert parsed.policy == "ppl" and parsed.seed == 1234 and parsed.max_length == 2048
    assert policies.build(parsed.policy, **parsed.policy_options).points() == PAPER_GRID
    revisions = {role: spec.revision for role, spec in parsed.sources.items()}
    assert revisions == {"large_ins": "1" * 40, "small_cpt": "2" * 40, "small_base": "3" * 40}


def grouped(folder):
    """A run of four tasks in three languages and two data sets, with groups over them."""
    tamil, math = "trimix_sib200_tam_Taml", "trimix_milic_bo_math"
    path = submittable(folder, tasks=(TASK, tamil, f"{TASK}_ll", math))
    aggregate(path, "trimix_indic_sib200", [TASK, tamil])
    aggregate(path, "mine", ["trimix_indic_sib200", math])
    return path


def test_groups_are_exported_with_their_tasks(tmp_path):
    path = grouped(tmp_path / "run")
    (written,) = export.main([path], "csv", tmp_path / "out")
    rows, problems = table.read_csv(written)
    assert not problems and rows == table.rows_of(read([path])[0])
    results = json.loads(path.read_text())["results"]
    assert {row.task: row.value for row in rows} == {
        task: values["acc,none"] for task, values in results.items()
    }
    by = {row.task: row for row in rows}
    sib, mine = by["trimix_indic_sib200"], by["mine"]
    assert (sib.dataset, sib.split, sib.shots, sib.language) == (
        *("Davlan/sib200", "test", 7),
        "several",
    )
    assert (mine.dataset, mine.shots, mine.language) == ("", None, "several")
    assert (sib.n, mine.n) == (408, 612) and sib.main and mine.stderr
    said = []
    files = export.main([path], "eval-results", tmp_path / "out", say=said.append)
    assert "left out, for their data is no data set of the Hub: mine" in said
    entries = [e for f in files for e in parse_eval_result_entries(yaml.safe_load(f.read_text()))]
    assert {e.task_id: e.value for e in entries} == {
        row.task: row.value for row in rows if row.task != "mine"
    }
    readme, recipe = export.main([path], "card", tmp_path / "out")
    assert "| mine | several |" in readme.read_text() and "of each task" in readme.read_text()
    # A group has to be asked for by its name to be aggregated again.
    assert yaml.safe_load(recipe.read_text())["tasks"] == ["mine", f"{TASK}_ll"]


def test_a_group_is_as_good_as_its_tasks(tmp_path):
    path = changed(grouped(tmp_path / "run"), fewer)
    assert f"{TASK}: 20 of 204 documents" in reasons(path)


def test_recipe_is_a_config_of_lm_eval(tmp_path, demo_run):
    from lm_eval.config.evaluate_config import EvaluatorConfig

    _, recipe = export.main([demo_run], "card", tmp_path)
    config = EvaluatorConfig.from_config(recipe)
    assert config.model == "trimix" and config.tasks == ["trimix_demo_finish"]
    assert config.model_args["pretrained"] == "demo"


@pytest.fixture
def demo_run(tmp_path):
    path = submittable(tmp_path / "run", tasks=())
    content = json.loads(path.read_text())
    content["results"] = {"trimix_demo_finish": {"acc,none": 0.5, "acc_stderr,none": 0.1}}
    content["n-samples"] = {"trimix_demo_finish": {"original": 390, "effective": 390}}
    content["configs"] = {"trimix_demo_finish": {"metric_list": [{"metric": "acc"}]}}
    content["config"]["model_args"] = {"pretrained": "demo", "policy": "ppl"}
    for role, source in content["config"]["trimix"]["sources"].items():
        source.update(path=f"/x/trimix_lm_eval/demo/{role}", commit=None, digest="ab" * 8)
    path.write_text(json.dumps(content))
    return path


def test_demo_is_told_without_its_place(tmp_path, demo_run):
    (written,) = export.main([demo_run], "csv", tmp_path)
    (row,), _ = table.read_csv(written)
    assert (row.large_ins, row.family, row.language) == ("demo/large_ins", "demo", "Tibetan")
    assert "/x/" not in written.read_text()


def test_text_in_a_card_is_no_markup(tmp_path):
    evil = "a|b<script>`x`\nmodel: hf"
    path = changed(submittable(tmp_path), add_task(evil))
    readme, recipe = export.main([path], "card", tmp_path / "out")
    body = readme.read_text().split("\n---\n", 1)[1]
    assert "a\\|b\\<script\\>\\`x\\` model: hf" in body
    assert yaml.safe_load(recipe.read_text())["model"] == "trimix"
    assert yaml.safe_load(recipe.read_text())["tasks"] == [TASK, evil]


def test_a_name_does_not_end_the_card_s_block_of_code(tmp_path):
    evil = "a\n````\n<script>alert(1)</script>"
    path = changed(submittable(tmp_path / "run"), add_task(evil))
    readme, _ = export.main([path], "card", tmp_path / "out")
    _, _, body = readme.read_text().split("---\n", 2)
    lines = body.splitlines()
    start = lines.index("`````yaml")
    inside = lines[start + 1 : lines.index("`````", start)]
    assert any("<script>" in line for line in inside)
    assert not any("<script>" in line for line in lines if line not in inside)


@pytest.mark.parametrize(
    ("to", "words", "said"),
    [
        ("x" * 300, (), "cannot be written: File name too long"),
        ("a\0b", (), "no file can have such a name"),
        ("out", ("--repo", "x\udcff/y\n# z"), "'x?/y?# z' is no id of a repository"),
    ],
)
def test_places_that_there_are_not(tmp_path, monkeypatch, capsys, to, words, said):
    submittable(tmp_path / "in")
    monkeypatch.chdir(tmp_path)
    commands = [["export", "in", "--to", "csv", "--output", to, *words]]
    if not words:
        commands += [["leaderboard", "in", "--output", to], ["report", "in", "--output", to]]
    for command in commands:
        assert cli.main(command) == 1, command
        assert said in capsys.readouterr().err
    assert os.listdir() == ["in"]


def test_a_card_is_of_one_model(tmp_path):
    other = trimix_config("ent")
    other["sources"] = copy.deepcopy(other["sources"])
    other["sources"]["small_cpt"]["commit"] = "9" * 40
    paths = [submittable(tmp_path / "a"), submittable(tmp_path / "b", trimix=other)]
    with pytest.raises(TrimixError, match="of several models: small_cpt is"):
        export.main(paths, "card", tmp_path / "out")
    again = submittable(tmp_path / "c", stamp="2026-12-01T00-00-00.000000")
    with pytest.raises(TrimixError, match="with ppl is in two files"):
        export.main([paths[0], again], "card", tmp_path / "out")
    assert len(table.read_csv(*export.main([*paths, again], "csv", tmp_path / "out"))[0]) == 3


def test_what_a_user_wrote_is_kept(tmp_path):
    path = submittable(tmp_path / "run")
    readme, _ = export.main([path], "card", tmp_path / "out")
    export.main([path], "card", tmp_path / "out")  # the same again is no conflict
    readme.write_text(readme.read_text() + "license: mine")
    with pytest.raises(TrimixError, match="is there already, with other content"):
        export.main([path], "card", tmp_path / "out")
    assert readme.read_text().endswith("license: mine")


def test_output_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TrimixError, match="cannot be written"):
        export.main([submittable(tmp_path)], "csv", tmp_path / "file")


def test_family_is_that_of_the_config(tmp_path):
    known = trimix_config("large_ins")
    known["sources"] = copy.deepcopy(known["sources"])
    for name, expected in (
        ("Qwen/Qwen2.5-14B-Instruct", "qwen2.5"),
        ("Qwen/Qwen2.5-14B-Instruct-mine", "other"),
    ):
        known["sources"]["large_ins"]["path"] = name
        assert table.rows_of([read_one(known, tmp_path)])[0].family == expected


# --- what is uploaded -------------------------------------------------------------------------


def upload(tmp_path, hub, *options, to="card", token=TOKEN, says=""):
    """`trimix export --push` as a user types it, against a Hub of our own."""
    path = submittable(tmp_path / "run")
    env = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    env |= {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home"), "NO_PROXY": "*"}
    env |= {"HF_TOKEN": token} if token else {}
    python = quick_python.python("libraries")
    command = [python, "-m", "trimix_lm_eval", "export", str(path), "--to", to]
    command += ["--output", str(tmp_path / "out"), "--repo", "me/mix", "--push", *options]
    return subprocess.run(command, env=env, input=says, capture_output=True, text=True, timeout=120)


@pytest.fixture
def repository(tmp_path):
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "README.md").write_text("---\nlicense: mit\n---\nMine.\n")
    return folder


@pytest.mark.parametrize(
    ("says", "options", "pull_request"), [("y\n", (), False), ("", ("--yes", "--pr"), True)]
)
def test_push(tmp_path, repository, says, options, pull_request):
    with Uploads("me/mix", repository) as hub:
        done = upload(tmp_path, hub, *options, says=says)
    assert done.returncode == 0, done.stderr
    assert f"To {hub.endpoint}/me/mix" in done.stdout
    assert "README.md (" in done.stdout and "replaces)" in done.stdout
    (commit,) = hub.commits_made
    written = {p: (tmp_path / "out" / p).read_text() for p in ("README.md", "recipes/ppl.yaml")}
    assert commit["files"] == written and commit["pull_request"] == pull_request


def test_push_of_a_model_index_keeps_the_readme(tmp_path, repository):
    with Uploads("me/mix", repository) as hub:
        done = upload(tmp_path, hub, "--yes", to="model-index")
    assert done.returncode == 0, done.stderr
    (commit,) = hub.commits_made
    card = ModelCard(commit["files"]["README.md"])
    assert card.text.strip() == "Mine." and card.data.license == "mit"
    assert card.data.eval_results[0].metric_value == sum(ANSWERS) / 204


def test_push_of_a_model_index_replaces_its_own_numbers_only(tmp_path, repository):
    """Their standard errors differ, too: the older must not stay beside the newer."""
    before = submittable(tmp_path / "before", documents=[1.0] * 204)
    other = submittable(tmp_path / "other", "ent", documents=[0.0] * 204)
    (index,) = export.main([before, other], "model-index", tmp_path / "first", repo="me/mix")
    (repository / "README.md").write_text(f"---\nlicense: mit\n{index.read_text()}---\nMine.\n")
    with Uploads("me/mix", repository) as hub:
        done = upload(tmp_path, hub, "--yes", to="model-index")
    assert done.returncode == 0, done.stderr
    assert "metadata only; 1 of its results are replaced" in done.stdout
    card = ModelCard(hub.commits_made[0]["files"]["README.md"])
    found = {e.metric_name: e.metric_value for e in card.data.eval_results}
    assert found == {"acc (ppl)": sum(ANSWERS) / 204, "acc (ent)": 0.0}
    assert card.text.strip() == "Mine." and card.data.license == "mit"


def test_push_of_a_model_index_without_a_readme_makes_up_none(tmp_path, repository):
    (repository / "README.md").unlink()
    with Uploads("me/mix", repository) as hub:
        done = upload(tmp_path, hub, "--yes", to="model-index")
    assert done.returncode == 0, done.stderr
    card = ModelCard(hub.commits_made[0]["files"]["README.md"])
    assert not card.text.strip() and card.data.eval_results and "new)" in done.stdout


@pytest.mark.parametrize(
    ("readme", "message"),
    [
        ("---\nmodel-index: [5]\n---\nMine.\n", "the metadata of me/mix's README.md cannot be"),
        ("---\na: [\n---\nMine.\n", "the metadata of me/mix's README.md cannot be"),
        (None, "LocalEntryNotFoundError: no network"),
    ],
)
def test_a_readme_that_cannot_be_read_is_not_written_over(
    tmp_path, repository, monkeypatch, readme, message
):
    from huggingface_hub import HfApi
    from huggingface_hub.errors import LocalEntryNotFoundError

    def fail(*args, **kwargs):
        raise LocalEntryNotFoundError("no network")

    if readme is None:
        monkeypatch.setattr(HfApi, "hf_hub_download", fail)
    else:
        (repository / "README.md").write_text(readme)
    with Uploads("me/mix", repository) as hub:
        path = in_process(monkeypatch, hub, tmp_path)
        with pytest.raises(TrimixError, match="Nothing was uploaded: .*") as raised:
            export.main([path], "model-index", tmp_path / "out", repo="me/mix", push=True, yes=True)
    assert message in str(raised.value) and not hub.commits_made


@pytest.mark.parametrize("says", ["n\n", ""])
def test_nothing_is_uploaded_without_a_yes(tmp_path, repository, says):
    with Uploads("me/mix", repository) as hub:
        done = upload(tmp_path, hub, says=says)
    assert done.returncode == 1 and "error: Nothing was uploaded" in done.stderr
    assert not hub.commits_made and (tmp_path / "out/README.md").is_file()


def in_process(monkeypatch, hub, tmp_path, token=TOKEN):
    """Failures need no process of their own: the same, with huggingface_hub told where the Hub is.

    It waits between attempts; not here.
    """
    from huggingface_hub import constants, hf_api
    from huggingface_hub.utils import _http

    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    files = f"{hub.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hf_api.api, "endpoint", hub.endpoint)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(_http.time, "sleep", lambda seconds: None)
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.setenv("HF_TOKEN", token)
    return submittable(tmp_path / "run")


@pytest.mark.parametrize(
    ("status", "repo", "message"),
    [
        (401, "me/mix", "does not let this token write to me/mix (401)"),
        (403, "me/mix", "does not let this token write to me/mix (403)"),
        (500, "me/mix", "the Hub answered 500"),
        (0, "me/other", "me/other is not there, or this token may not see it"),
    ],
)
def test_failed_push(tmp_path, repository, monkeypatch, capsys, status, repo, message):
    with Uploads("me/mix", repository, fail=status) as hub:
        path = in_process(monkeypatch, hub, tmp_path)
        args = ["export", str(path), "--to", "card", "--output", str(tmp_path / "out")]
        assert cli.main([*args, "--repo", repo, "--push", "--yes"]) == 1
    told = capsys.readouterr().err
    assert told.startswith("error: Nothing was uploaded") and message in told
    assert "Traceback" not in told and told.count("\n") == 2
    assert (tmp_path / "out/README.md").is_file() and not hub.commits_made


def test_push_to_nowhere(tmp_path, repository, monkeypatch):
    with Uploads("me/mix", repository) as hub:
        path = in_process(monkeypatch, hub, tmp_path)
    with pytest.raises(TrimixError, match="Nothing was uploaded: .*\n.*check the network"):
        export.main([path], "csv", tmp_path / "out", repo="me/mix", push=True, yes=True)
    assert (tmp_path / "out/results.csv").is_file()


@pytest.mark.parametrize(
    ("repo", "token", "message"),
    [
        ("me/mix", "", "needs a token"),
        ("no id", TOKEN, "is no id of a repository"),
        (None, TOKEN, "needs to know where to"),
    ],
)
def test_push_that_cannot_begin(tmp_path, repository, monkeypatch, repo, token, message):
    with Uploads("me/mix", repository) as hub:
        path = in_process(monkeypatch, hub, tmp_path, token)
        with pytest.raises(TrimixError, match=message):
            export.main([path], "card", tmp_path / "out", repo=repo, push=True)
    assert not (tmp_path / "out").exists() and not hub.asked
