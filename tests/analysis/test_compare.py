"""`trimix compare`: its numbers are worked out again from the files by a few lines of its own."""

import csv
import json
import random
import re
from itertools import product

import numpy as np
import pytest

from tests.support.results_files import trimix_config, write_run
from trimix_lm_eval import cli
from trimix_lm_eval.analysis import compare
from trimix_lm_eval.analysis.compare.statistics import holm, ranks
from trimix_lm_eval.analysis.report import bootstrap
from trimix_lm_eval.tasklib.catalog import shipped
from trimix_lm_eval.utils.errors import TrimixError

N = 60
POINTS = list(product((0.1, 0.5), (0.1, 1.0)))
#: By policy and task, how many of 60 documents are right.
RIGHT = {
    "ppl": {"one": 30, "two": 20, "long": 1.0},
    "ent": {"one": 30, "two": 30, "long": 1.1},
    "gate": {"one": 58, "two": 21, "long": 0.9},
    "ppl_answer": {"one": 1, "two": 20},
    "small_cpt": {"one": 29, "two": 20, "long": 1.4},
}


def documents(count, seed, n=N):
    made = [1.0] * count + [0.0] * (n - count)
    random.Random(seed).shuffle(made)
    return made


def policy(name, **more):
    """``config.trimix`` of a policy, with the sources that it runs."""
    told = trimix_config(name, **more)
    if name in ("small_cpt", "gate"):
        wanted = ("small_cpt",) if name == "small_cpt" else ("large_ins", "small_cpt")
        told["sources"] = {role: told["sources"][role] for role in wanted}
    return told


def written(folder, name, right, trimix, **options):
    """Results of a policy on choices and on a text, each a file."""
    choices = {task: documents(right[task], f"{name} {task}") for task in ("one", "two")}
    write_run(folder / name, choices, trimix=trimix, stamp="2026-11-01T00-00-00.000000", **options)
    if "long" in right:
        write_run(
            folder / name,
            {"long": [right["long"]] * N},
            trimix=trimix,
            metric="bits_per_byte",
            stamp="2026-11-01T00-00-01.000000",
            samples=False,
        )


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    for name, right in RIGHT.items():
        written(folder, name, right, policy(name))
    for place, (alpha, beta) in enumerate(POINTS):
        right = {"one": 40 + place, "two": 25 - place, "long": 0.8 + place / 10}
        told = trimix_config("fixed", alpha=alpha, beta=beta, gamma=None)
        written(folder, f"fixed_{alpha}_{beta}", right, told)
    for path in folder.rglob("results*.json"):  # 7, 1 and 1 billion parameters
        whole = json.loads(path.read_text())
        sources = whole["config"]["trimix"]["sources"]
        whole["config"]["model_num_parameters"] = sum(
            {"large_ins": 7, "small_cpt": 1, "small_base": 1}[role] for role in sources
        )
        path.write_text(json.dumps(whole))
    return folder


@pytest.fixture(scope="module")
def compared(results, tmp_path_factory):
    """The files of a comparison."""
    folder = tmp_path_factory.mktemp("compared")
    return compare.write([results], folder / "out", "ppl")


def lines(found):
    with found.files[2].open(encoding="utf-8") as stream:
        return {(line["policy"], line["column"]): line for line in csv.DictReader(stream)}


def one(found, name, column="one"):
    return lines(found)[name, column]


# ---------------------------------------------------------------- Holm and ranks


def test_holm_by_hand():
    """Of four: 0.01 * 4; 0.02 * 3; 0.03 * 2 is 0.06 as well; 0.04 * 1 may not be smaller."""
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([]) == [] and holm([0.2]) == [0.2]
    assert holm([0.6, 0.7]) == [1.0, 1.0], "no p is above 1"


def test_holm_rejects_what_the_step_down_procedure_rejects():
    """Reject the smallest as long as it is at most level / how many are left."""
    rng = random.Random(3)
    for _ in range(200):
        p = [rng.random() ** 3 for _ in range(rng.randint(1, 8))]
        for level in (0.05, 0.2):
            left, rejected = sorted(p), set()
            while left and left[0] <= level / len(left):
                rejected.add(left.pop(0))
            found = zip(p, holm(p), strict=True)
            assert {mine for mine, corrected in found if corrected <= level} == rejected


def test_ranks_are_those_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    rng = random.Random(4)
    for _ in range(50):
        values = [rng.randint(0, 4) / 4 for _ in range(rng.randint(1, 9))]
        assert ranks(values) == list(stats.rankdata([-value for value in values]))


# ---------------------------------------------------------------- every number


def test_scores_are_those_of_the_files(compared):
    for name, right in RIGHT.items():
        for task in ("one", "two"):
            assert float(one(compared, name, task)["value"]) == pytest.approx(right[task] / N)
    assert one(compared, "ent", "long")["higher_is_better"] == "False"
    assert ("ppl_answer", "long") not in lines(compared)
    mean = one(compared, "ent", "mean acc")
    assert float(mean["value"]) == pytest.approx(30 / N) and mean["tasks"] == "one two"


def test_the_best_is_first_and_what_one_lacks_is_not_ranked_on(compared):
    """Ranks on "one" and "two", where ppl_answer has numbers; equal ones share a rank."""
    ranked = {"ppl": (2.5, 4), "ent": (2.5, 1), "gate": (1, 2), "ppl_answer": (5, 4)}
    ranked["small_cpt"] = (4, 4)
    for name, its in ranked.items():
        assert float(one(compared, name)["mean_rank"]) == pytest.approx(sum(its) / 2), name
    text = compared.files[0].read_text(encoding="utf-8")
    rows = re.findall(r"^\| (?!policy)(\w[^|]*?) +\|", text, flags=re.M)
    assert rows[:2] == ["TriMix gate", "TriMix ent"] and rows[5] == "Upper bound, each task"
    assert "Not ranked on: long, of which TriMix ppl\\_answer has no number" in text


def naive_p(ours, theirs, task):
    """The paired bootstrap of two rows, draw by draw."""
    ours, theirs = np.array(ours), np.array(theirs)
    draws = bootstrap.generator(task).integers(N, size=(bootstrap.RESAMPLES, N))
    differences = (ours[draws] - theirs[draws]).mean(1)
    differences[abs(differences) < 1e-12] = 0
    low, high = (1 + (differences <= 0).sum()), (1 + (differences >= 0).sum())
    return min(1.0, 2 * min(low, high) / (1 + len(differences))), differences


def test_tests_against_the_baseline(compared):
    others = [name for name in RIGHT if name != "ppl"]
    draws = {}
    for task in ("one", "two"):
        base = documents(RIGHT["ppl"][task], f"ppl {task}")
        found = {}
        for name in others:
            ours = documents(RIGHT[name][task], f"{name} {task}")
            found[name], draws[name, task] = naive_p(ours, base, task)
            assert float(one(compared, name, task)["p"]) == pytest.approx(found[name])
        ordered = sorted(others, key=found.get)
        largest = 0.0
        for place, name in enumerate(ordered):
            largest = max(largest, min(1.0, found[name] * (len(others) - place)))
            assert float(one(compared, name, task)["p_holm"]) == pytest.approx(largest)
    mean = (draws["gate", "one"] + draws["gate", "two"]) / 2
    above = (1 + (mean <= 0).sum()) / (1 + len(mean))
    assert float(one(compared, "gate", "mean acc")["p"]) == pytest.approx(2 * above)
    assert one(compared, "ppl")["p"] == "" and one(compared, "ppl")["baseline"] == "True"
    untested = one(compared, "ent", "long")
    assert untested["p"] == "" and untested["not_tested"] == "no samples"


def test_the_share_of_the_gap(compared):
    """Upper bounds: 43 and 25 right, 0.8 bits; ppl has 30, 20 and 1.0."""
    share = {
        "ent": (0, 10 / 5, -0.1 / 0.2),
        "gate": (28 / 13, 1 / 5, 0.1 / 0.2),
        "small_cpt": (-1 / 13, 0, -0.4 / 0.2),
        "ppl": (0, 0, 0),
    }
    for name, its in share.items():
        told = [float(one(compared, name, c)["gap_closed"]) for c in ("one", "two", "long")]
        assert told == pytest.approx(its), name
        assert float(one(compared, name)["mean_gap_closed"]) == pytest.approx(sum(its) / 3)
    assert one(compared, "ppl_answer")["mean_gap_closed"] == "", "it lacks a task"
    assert float(one(compared, "oracle by task", "long")["value"]) == pytest.approx(0.8)


def test_points_and_bounds_are_not_ranked(compared):
    found = lines(compared)
    assert not any(name.startswith("fixed") for name, _ in found), "they make the upper bound"
    bounds = [line for line in found.values() if line["honesty"] == "oracle"]
    assert bounds and all(it["ranked"] == "False" and it["mean_rank"] == "" for it in bounds)
    assert all(it["p"] == "" for it in bounds)
    assert "oracle of 4 points" in compared.files[0].read_text(encoding="utf-8")


def test_costs_are_the_parameters_of_the_sources(compared):
    for name, cost in {"ppl": 9, "gate": 8, "small_cpt": 1}.items():
        assert float(one(compared, name)["cost"]) == cost
    assert one(compared, "gate")["sources"] == "large_ins small_cpt"
    text = compared.files[0].read_text(encoding="utf-8")
    assert re.search(r"li\+sc \| +8.00 \| +label-free", text)
    assert re.search(r"li\+sc\+sb \| +9.00 \| +needs exemplars", text)
    assert "* TriMix gate: two sources, no grid" in text


def test_a_policy_that_leaves_questions_open_is_not_ranked(results, tmp_path):
    """Of four options none has any probability: lm-eval takes the first. One in 60 is no matter."""
    for name, many in {"contrastive": 20, "gate": 1}.items():
        told = policy(name, label="Told", honesty="label_free")
        told["plausibility"] = 0.1
        path = write_run(tmp_path / name, {"one": documents(60, "x")}, trimix=told, date=1.8e9)
        (samples,) = path.parent.glob("samples_*")
        made = [json.loads(line) for line in samples.read_text().splitlines()]
        for place, sample in enumerate(made):
            value = "-inf" if place < many else "-1.5"
            sample["filtered_resps"] = [["-inf", "False"], [value, "False"]]
        samples.write_text("".join(json.dumps(sample) + "\n" for sample in made))
    found = compare.write([results, tmp_path], tmp_path / "out", "ppl")
    open_one = one(found, "contrastive")
    assert open_one["ranked"] == "False" and open_one["p"] == "" and open_one["value"] == "1.0"
    assert one(found, "gate (plausibility 0.1)")["ranked"] == "True"
    text = found.files[0].read_text(encoding="utf-8")
    assert "no option has any probability in 20 of 60 documents of one," in text
    assert text.count("is not ranked:") == 1


def test_the_newest_run_counts(results, tmp_path):
    right = {"one": [1.0] * N}
    config = policy("ppl")
    write_run(tmp_path / "new", right, trimix=config, date=1.8e9)
    found = compare.write([results, tmp_path / "new"], tmp_path / "out", "ppl")
    assert float(one(found, "ppl")["value"]) == 1
    assert "the newest counts: 1 number left out" in found.files[0].read_text(encoding="utf-8")


def test_tasks_of_ours_with_other_metrics_have_a_mean_of_scores(tmp_path):
    """Of `score`, from 0 to 1, as the groups of MiLiC-Eval have it."""
    reading, title = "trimix_milic_bo_reading_comprehension", "trimix_milic_bo_title_generation"
    assert {reading, title} <= shipped().keys()
    for name, values in {"ppl": (0.25, 0.5), "ent": (0.75, 0.25)}.items():
        given = dict(zip((reading, title), values, strict=True))
        documents = {task: [value] * 4 for task, value in given.items()}
        path = write_run(tmp_path / name, documents, trimix=trimix_config(name))
        whole = json.loads(path.read_text())
        other = json.loads(path.read_text().replace('"acc', '"rouge_l'))
        for part in ("results", "configs"):
            whole[part][title] = other[part][title]
        for task, value in given.items():
            whole["results"][task]["score,none"] = value
        path.write_text(json.dumps(whole))
    found = compare.write([tmp_path], tmp_path / "out", "ppl")
    assert float(one(found, "ppl", "Avg")["value"]) == pytest.approx(0.375)
    assert float(one(found, "ent", "Avg")["value"]) == pytest.approx(0.5)
    assert {column for _, column in lines(found)} == {
        "reading_comprehension",
        "title_generation",
        "Avg",
    }


# ---------------------------------------------------------------- files


def test_the_marks_say_which_way_a_difference_goes(compared):
    text, tex = (file.read_text(encoding="utf-8") for file in compared.files[:2])
    assert "**96.7** ▲▲▲" in text and "1.7 ▼▼▼" in text
    assert "\\textbf{96.7}$^{+++}$" in tex and "1.7$^{---}$" in tex
    assert "1.100 °" in text and "1.100$^{\\circ}$" in tex, "no samples"


def test_latex_is_whole(compared):
    """As many columns in each row as are declared, and every brace closed."""
    tex = compared.files[1].read_text(encoding="utf-8")
    shown = [line for line in tex.splitlines() if not line.startswith("%")]
    plain = "\n".join(shown).replace(r"\{", "").replace(r"\}", "")
    assert plain.count("{") == plain.count("}") and plain.count("$") % 2 == 0
    assert not re.search(r"(?<!\\)[_#]", re.sub(r"\$[^$]*\$", "", plain))
    for table in plain.split(r"\begin{tabular}")[1:]:
        columns = len(re.match(r"\{(l?r+)\}", table)[1])
        rows = [line for line in table.splitlines() if line.endswith(r"\\")]
        assert rows and all(len(re.split(r"(?<!\\)&", row)) == columns for row in rows)
    for rule in ("toprule", "midrule", "bottomrule"):
        assert tex.count(f"\\{rule}") >= 2


def test_without_points_there_is_no_gap(results, tmp_path):
    places = [results / name for name in RIGHT]
    found = compare.write(places, tmp_path / "out", "small_cpt")
    text = found.files[0].read_text(encoding="utf-8")
    assert "gap closed |" not in text and "No share of the gap" in text
    assert one(found, "ppl")["delta"] != "" and one(found, "small_cpt")["delta"] == ""


def test_a_baseline_that_is_not_there(results, tmp_path):
    with pytest.raises(TrimixError, match="No results are of the baseline 'pll'. Did you mean"):
        compare.write([results], tmp_path / "out", "pll")
    assert not list(tmp_path.rglob("compare.*"))


def test_the_usual_baseline_is_what_its_fusion_has(results, tmp_path):
    token = compare.write([results / "ppl", results / "ent"], tmp_path / "token", None)
    assert one(token, "ppl")["baseline"] == "True"
    for name in ("large_ins", "small_cpt"):
        done = {"one": documents(30, f"{name} one"), "two": documents(20, f"{name} two")}
        write_run(tmp_path / name, done, trimix=policy(name) | {"fusion": "sequence"}, of=N)
    places = [tmp_path / name for name in ("large_ins", "small_cpt")]
    sequence = compare.write(places, tmp_path / "sequence", None)
    baseline = {name for (name, _), line in lines(sequence).items() if line["baseline"] == "True"}
    assert baseline == {"large_ins (fusion sequence)"}
    with pytest.raises(TrimixError, match="baseline 'large_ins'"):
        compare.write(places[1:], tmp_path / "out", None)


def test_points_of_a_grid_are_no_policies(results, tmp_path):
    points = list(results.glob("fixed*"))
    with pytest.raises(TrimixError, match="points of a grid alone are not compared"):
        compare.write(points, tmp_path / "out", None)


def test_runs_with_a_limit_are_a_table_of_their_own(results, tmp_path):
    few = tmp_path / "few"
    for name in ("ppl", "ent"):
        done = {task: documents(9, f"{name} {task}", 19) for task in ("one", "two")}
        write_run(few / name, done, trimix=policy(name), of=N, limit=19)
    found = compare.write([results, few], tmp_path / "out", "ppl")
    text = found.files[0].read_text(encoding="utf-8")
    assert text.count("\n## ") == 2 and "(limit 19)" in text
    assert " 47.4 °" in text, "fewer than 20 documents are not tested"


def test_files_of_others_are_left_alone(results, tmp_path):
    out = tmp_path / "out"
    compare.write([results], out, "ppl")
    compare.write([results], out, "ppl")
    (out / "compare.md").write_text("mine")
    with pytest.raises(TrimixError, match="is there already, and trimix compare did not write it"):
        compare.write([results], out, "ppl")


def test_the_command(results, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["compare", str(results)]) == 0
    out = capsys.readouterr().out
    assert "| TriMix ppl (baseline) " in out and "wrote compare/compare.tex" in out
    for wrong in (
        [],
        ["--model_args", "pretrained=demo"],
        ["x", "--tasks", "t"],
        ["x", "--grid=1"],
    ):
        assert cli.main(["compare", *wrong]) == 1
        assert "Give either results or a sweep's file" in capsys.readouterr().err
