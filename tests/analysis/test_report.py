"""`trimix report`: every number is worked out again from the files by a few lines of its own."""

import csv
import json
import math
import random
import re
import statistics as plain
import subprocess
import sys
import zlib
from html.parser import HTMLParser
from itertools import product
from pathlib import Path

import pytest

from tests.support.results_files import BETTER, aggregate, trimix_config, write_run
from trimix_lm_eval import cli
from trimix_lm_eval.analysis.report import bootstrap, layout, numbers, page, write
from trimix_lm_eval.analysis.report.bootstrap import read_samples, statistics
from trimix_lm_eval.analysis.report.model import assemble
from trimix_lm_eval.analysis.results import read
from trimix_lm_eval.fusion.weights import PAPER_GRID
from trimix_lm_eval.utils.errors import TrimixError

pytest.importorskip("matplotlib", reason="pip install 'trimix-lm-eval[report]'")

ALPHAS = BETAS = (0.1, 0.5, 1.0)
TASKS = ("trimix_sib200_tam_Taml_ll", "trimix_sib200_bod_Tibt_ll")
SHOTS = {"n-shot": dict.fromkeys(TASKS, 7)}


def stamp(number):
    return f"2026-11-01T00-{number // 60:02d}-{number % 60:02d}.000000"


def coins(seed, share, n=60):
    rng = random.Random(seed)
    return [float(rng.random() < share) for _ in range(n)]


def fixed(alpha, beta, **options):
    return trimix_config("fixed", alpha=alpha, beta=beta, gamma=None, **options)


def sweep(folder, first=0, nll=None, **options):
    """Single models, nine points (one is Proxy Tuning) and two policies over two tasks."""
    runs = [(f"{a}:{b}", fixed(a, b)) for a, b in [(1.0, 0.0), (0.0, 1.0), (0.0, 0.0)]]
    runs += [(f"{a}:{b}", fixed(a, b)) for a, b in product(ALPHAS, BETAS)]
    chosen = {task: {"0.1:1": 40, "0.5:0.5": 20} for task in TASKS}
    runs.append(("ppl", trimix_config("ppl", weights_chosen=chosen)))
    runs.append(("ent", trimix_config("ent", weights_chosen=chosen)))
    runs[-2][1]["prompt_nll"] = nll or {}
    for number, (name, config) in enumerate(runs, first):
        documents = {
            task: coins(f"{name} {task}", 0.3 + 0.4 * random.Random(name).random())
            for task in TASKS
        }
        write_run(
            folder,
            documents,
            trimix=config,
            stamp=stamp(number),
            date=1.79e9 + number,
            **{**SHOTS, **options},
        )
    return folder


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A report on a sweep: its folder, and that of the results."""
    folder = tmp_path_factory.mktemp("swept")
    rng = random.Random(1)
    nll = {
        task: {f"{a:g}:{b:g}": 2 + rng.random() for a, b in product(ALPHAS, BETAS)}
        for task in TASKS
    }
    sweep(folder / "results", nll=nll)
    write([folder / "results"], folder / "report")
    return folder / "report", folder / "results", nll


def table(report, name="scores"):
    with (report / f"{name}.csv").open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def raw(results):
    return [json.loads(path.read_text()) for path in sorted(results.glob("results*.json"))]


def of_policy(results, name, **options):
    """The newest results with a policy, straight from the JSON."""
    wanted = {"name": name, **options}
    return [
        whole
        for whole in raw(results)
        if wanted.items() <= whole["config"]["trimix"]["policy"].items()
    ][-1]


def acc(whole, task):
    return whole["results"][task]["acc,none"]


class Page(HTMLParser):
    """The tables of a page as text, and everything that an element could load."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.loads, self.tags, self._cell, self._value = [], [], [], None, False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loads += [v for k, v in attrs if k in ("src", "href", "srcset", "data", "poster")]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self._cell = True

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self._cell = None

    def handle_data(self, data):
        if self._cell:
            self.rows[-1][-1] += data


# ---------------------------------------------------------------- every number


def test_scores_are_those_of_the_files(swept):
    report, results, _ = swept
    names = {"large_ins": (1.0, 0.0), "small_cpt": (0.0, 1.0), "small_base": (0.0, 0.0)}
    names["proxy_tuning"] = (1.0, 1.0)
    seen = set()
    for line in table(report):
        if line["kind"] == "oracle" or " " in line["tasks"]:
            continue
        point = names.get(line["row"])
        policy = {"alpha": point[0], "beta": point[1]} if point else {}
        whole = of_policy(results, "fixed" if point else line["row"], **policy)
        entry = whole["results"][line["tasks"]]
        assert float(line["value"]) == entry["acc,none"]
        assert float(line["stderr"]) == entry["acc_stderr,none"]
        assert int(line["n"]) == whole["n-samples"][line["tasks"]]["effective"]
        seen.add((line["row"], line["tasks"]))
    # The points of a dense grid are in the map only; Proxy Tuning is its corner and a row.
    assert seen == set(product([*names, "ppl", "ent"], TASKS))


def test_differences_and_means(swept):
    report, results, _ = swept
    lines = table(report)
    singles = [of_policy(results, "fixed", alpha=a, beta=b) for a, b in [(1, 0), (0, 1), (0, 0)]]
    ppl = of_policy(results, "ppl")
    for task in TASKS:
        (line,) = [x for x in lines if (x["row"], x["tasks"]) == ("ppl", task)]
        best = max(acc(single, task) for single in singles)
        assert float(line["delta"]) == pytest.approx(acc(ppl, task) - best)
    (line,) = [x for x in lines if x["row"] == "ppl" and " " in x["tasks"]]
    assert float(line["value"]) == pytest.approx(plain.mean(acc(ppl, task) for task in TASKS))
    best = max(plain.mean(acc(single, task) for task in TASKS) for single in singles)
    assert float(line["delta"]) == pytest.approx(float(line["value"]) - best)
    errors = [ppl["results"][task]["acc_stderr,none"] for task in TASKS]
    assert float(line["stderr"]) == pytest.approx(math.hypot(*errors) / 2)


def test_oracle_is_the_best_point_and_says_so(swept):
    report, results, _ = swept
    points = [of_policy(results, "fixed", alpha=a, beta=b) for a, b in product(ALPHAS, BETAS)]
    lines = table(report)
    for task in TASKS:
        (line,) = [x for x in lines if x["row"] == "oracle by task" and x["tasks"] == task]
        assert float(line["value"]) == max(acc(point, task) for point in points)
        assert line["oracle"] == "True" and "chosen on the test" in line["significance"]
    (line,) = [x for x in lines if x["row"] == "oracle by table" and " " in x["tasks"]]
    means = [plain.mean(acc(point, task) for task in TASKS) for point in points]
    assert float(line["value"]) == pytest.approx(max(means))
    text = (report / "report.html").read_text()
    assert text.count("oracle of 9 points, chosen on the test scores") >= 2
    ppl = of_policy(results, "ppl")
    for gap in table(report, "gaps"):
        if gap["row"] == "ppl" and gap["column"] in ("tam_Taml_ll", "bod_Tibt_ll"):
            task = f"trimix_sib200_{gap['column']}"
            best = max(acc(point, task) for point in points)
            assert float(gap["gap"]) == pytest.approx(best - acc(ppl, task))


def test_points_and_rank_correlation(swept):
    report, results, nll = swept
    lines = table(report, "points")
    for line in lines:
        whole = of_policy(results, "fixed", alpha=float(line["alpha"]), beta=float(line["beta"]))
        assert float(line["value"]) == acc(whole, line["task"])
        label = f"{float(line['alpha']):g}:{float(line['beta']):g}"
        assert float(line["prompt_nll"]) == nll[line["task"]][label]
    assert len(lines) == 9 * len(TASKS)

    def ranks(values):
        return [plain.mean(i for i, v in enumerate(sorted(values)) if v == x) for x in values]

    for task in TASKS:
        mine = [line for line in lines if line["task"] == task]
        pairs = [[float(x[key]) for x in mine] for key in ("prompt_nll", "value")]
        rho = plain.correlation(*map(ranks, pairs))
        shown = f"Spearman ρ = {rho:.2f}".replace("-", "−")
        assert shown in (report / "report.html").read_text()


def test_page_and_markdown_say_what_the_csv_says(swept):
    report, _, _ = swept
    rows = Page((report / "report.html").read_text()).rows
    text = (report / "report.md").read_text()
    for line in table(report):
        value = f"{float(line['value']) * 100:.1f}"
        title = {"ppl": "TriMix ppl", "ent": "TriMix ent", "proxy_tuning": "Proxy Tuning"}
        title = title.get(line["row"], line["row"])
        if line["kind"] == "oracle":
            title = {"oracle by task": "Upper bound, each task"}.get(
                line["row"], "Upper bound, one"
            )
        mine = [row for row in rows if row[0].startswith(title) and "±" in " ".join(row)]
        assert any(cell.startswith(value) for row in mine for cell in row[1:]), line
        delta = line["delta"] and f"{float(line['delta']) * 100:+.1f}".replace("-", "−")
        assert any(delta in cell for row in mine for cell in row[1:]), line
        (there,) = [x for x in text.splitlines() if x.startswith("|") and "±" in x and
                    x.lstrip("| *").startswith(page.markdown(title))]  # fmt: skip
        assert value in there and page.markdown(delta) in there
    assert all((report / name).is_file() for name in re.findall(r"\]\((pictures/[^)]+)\)", text))


# ---------------------------------------------------------------- significance


def test_bootstrap_against_a_loop(swept):
    import numpy as np

    report, results, _ = swept
    task = TASKS[0]
    ours, best = of_policy(results, "ppl"), None
    singles = [of_policy(results, "fixed", alpha=a, beta=b) for a, b in [(1, 0), (0, 1), (0, 0)]]
    best = max(singles, key=lambda single: acc(single, task))
    values = []
    for whole in (ours, best):
        number = raw(results).index(whole)
        lines = (results / f"samples_{task}_{stamp(number)}.jsonl").read_text().splitlines()
        values.append([json.loads(line)["acc"] for line in lines])
    n = len(values[0])
    draws = np.random.default_rng([1234, zlib.crc32(task.encode())]).integers(n, size=(10_000, n))
    found = sorted(sum(values[0][i] - values[1][i] for i in draw) / n for draw in draws.tolist())
    found = [round(x, 9) for x in found]
    below, above = sum(x <= 0 for x in found), sum(x >= 0 for x in found)
    (line,) = [x for x in table(report) if (x["row"], x["tasks"]) == ("ppl", task)]
    assert float(line["p"]) == pytest.approx(min(1, 2 * (1 + min(below, above)) / 10_001))
    assert float(line["ci_low"]) == pytest.approx(np.percentile(found, 2.5), abs=1e-8)
    assert float(line["ci_high"]) == pytest.approx(np.percentile(found, 97.5), abs=1e-8)


WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "another", "Cat", "there"]


def pairs(seed, n=30):
    rng = random.Random(seed)
    return [[" ".join(rng.choices(WORDS, k=rng.randint(0, 7))) for _ in "rh"] for _ in range(n)]


def naive_chrf(items):
    from sacrebleu.metrics import CHRF

    references, hypotheses = zip(*items, strict=True)
    return CHRF(word_order=2, lowercase=True).corpus_score(hypotheses, [references]).score


def naive_lm_eval_chrf(items):
    from lm_eval.api.metrics import chrfpp

    return chrfpp(items)


def naive_bits(items):
    return -sum(a for a, _ in items) / sum(b for _, b in items) / math.log(2)


def naive_f1(items):
    from trimix_lm_eval.tasklib.metrics import weighted_f1

    return weighted_f1(items)


LOGS = [[-random.Random(i).uniform(5, 90), 20 + i] for i in range(30)]
LABELS = [[random.Random(i).choice("abc"), random.Random(-i).choice("abcd")] for i in range(30)]
NAMES = {"chrf++": "chrf++", "bits_per_byte": "bits_per_byte", "word_perplexity": "bits_per_byte"}


@pytest.mark.parametrize(
    ("metric", "items", "naive"),
    [
        ("acc", coins("x", 0.5, 30), plain.mean),
        ("rouge_l", [random.Random(i).random() for i in range(30)], plain.mean),
        ("chrf++", pairs(1), naive_chrf),
        ("chrf++", pairs(2), naive_lm_eval_chrf),
        ("score", pairs(3), lambda items: naive_chrf(items) / 100),
        ("bits_per_byte", LOGS, naive_bits),
        ("word_perplexity", LOGS, lambda items: 2 ** naive_bits(items)),
        ("perplexity", [a for a, _ in LOGS], lambda items: math.exp(-plain.mean(items))),
        ("f1", LABELS, naive_f1),
    ],
)
def test_metrics_on_resamples(tmp_path, metric, items, naive):
    """The metric of each resample is what the metric's own code gives for the drawn documents."""
    path = write_run(tmp_path, {"t": [0.5] * len(items)})
    whole = json.loads(path.read_text())
    whole["results"]["t"] = {f"{metric},none": naive(items)}
    path.write_text(json.dumps(whole))
    file = next(tmp_path.glob("samples*"))
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("\n".join(json.dumps({**x, metric: v}) for x, v in zip(lines, items)))  # noqa: B905
    ((run,), _) = read([path])
    found = statistics(read_samples(run, "t"), run.scores["t"][0])
    assert not isinstance(found, str), found
    scores = bootstrap.resample("t", {"row": found, "again": found}, resamples=20)
    draws = bootstrap.generator("t").integers(len(items), size=(20, len(items)))
    for draw, score, again in zip(draws, scores["row"], scores["again"], strict=True):
        assert score == pytest.approx(naive([items[i] for i in draw])) and score == again


def test_draws_do_not_depend_on_how_many_are_held(monkeypatch, tmp_path):
    path = write_run(tmp_path, {"t": coins("x", 0.5)})
    ((run,), _) = read([path])
    found = {"row": statistics(read_samples(run, "t"), run.scores["t"][0])}
    whole = bootstrap.resample("t", found, resamples=101)
    monkeypatch.setattr(bootstrap, "_CHUNK", 300)
    assert (bootstrap.resample("t", found, resamples=101)["row"] == whole["row"]).all()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda file: file.unlink(), "no samples"),
        (lambda file: file.write_text(file.read_text()[:-30]), "cannot be read"),
        (lambda file: file.write_text('{"doc_id": 0}\n'), "hold no acc"),
        (lambda file: file.write_text("[]\n"), "cannot be read"),
        (lambda file: file.write_text(file.read_text().replace(": 1.0", ": 0.0")), "samples give"),
        (lambda file: file.write_text(file.read_text().replace("t-0", "other")), "same documents"),
        # Twice the documents give the same mean, and far too small an error.
        (lambda file: file.write_text(file.read_text() * 2), "120 samples of 60 documents"),
    ],
)
def test_samples_that_do_not_fit_are_no_test(tmp_path, damage, said):
    write_run(tmp_path, {"t": coins(1, 0.5)}, trimix=fixed(1, 0), stamp=stamp(0))
    write_run(tmp_path, {"t": coins(2, 0.5)}, trimix=trimix_config("ppl"), stamp=stamp(1))
    damage(tmp_path / f"samples_t_{stamp(1)}.jsonl")
    write([tmp_path], tmp_path / "out")
    (line,) = [x for x in table(tmp_path / "out") if x["row"] == "ppl"]
    assert said in line["significance"] and not line["p"] and line["delta"]


@pytest.mark.parametrize(("n", "tested"), [(1, False), (2, False), (19, False), (20, True)])
def test_a_few_documents_are_no_test(tmp_path, n, tested):
    """Of documents that all differ one way, no resample ever says otherwise, were it only one."""
    tasks = ("trimix_sib200_tam_Taml_ll", "trimix_sib200_bod_Tibt_ll")
    for number, (name, value) in enumerate([("large_ins", 0.0), ("ppl", 1.0)]):
        documents = {tasks[0]: [value] * n, tasks[1]: coins(name, 0.5)}
        write_run(tmp_path, documents, trimix=trimix_config(name), stamp=stamp(number))
    write([tmp_path], tmp_path / "out")
    lines = [x for x in table(tmp_path / "out") if x["row"].startswith("ppl")]
    for line in lines:
        if tasks[0] in line["tasks"]:
            assert bool(line["p"]) == tested and line["delta"]
            assert tested or line["significance"] == "not tested: fewer than 20 documents"
        else:
            assert line["p"]
    assert len(lines) == 3


def test_lower_is_better(tmp_path):
    documents = {"large_ins": [1.0, 3.0], "small_cpt": [1.0, 2.0], "ppl": [1.0, 1.0]}
    for number, (name, values) in enumerate(documents.items()):
        config = trimix_config(name)
        given = {"metric": "bits_per_byte", "samples": False, "date": 1.79e9 + number}
        write_run(tmp_path, {"t": values}, trimix=config, stamp=stamp(number), **given)
    for number, (a, value) in enumerate([(0.1, 1.25), (0.3, 1.5)], 5):
        given = {"metric": "bits_per_byte", "samples": False}
        write_run(tmp_path, {"t": [value]}, trimix=fixed(a, 0.9), stamp=stamp(number), **given)
    write([tmp_path], tmp_path / "out")
    lines = {x["row"]: x for x in table(tmp_path / "out")}
    assert not BETTER["bits_per_byte"] and lines["ppl"]["reference"] == "small_cpt"
    assert float(lines["ppl"]["delta"]) == -0.5 and float(lines["large_ins"]["delta"]) == 0.5
    assert float(lines["oracle by task"]["value"]) == 1.25
    text = (tmp_path / "out" / "report.html").read_text()
    assert re.search(r'class="d up">−0.500°', text) and re.search(r'class="d down">\+0.500°', text)


# ---------------------------------------------------------------- which runs, which columns


def test_limited_and_changed_runs_are_marked(tmp_path):
    write_run(tmp_path, {"t": coins(1, 0.5)}, trimix=trimix_config("ppl"), stamp=stamp(0), of=100,
              limit=60)  # fmt: skip
    write_run(tmp_path, {"t": coins(1, 0.5)}, trimix=trimix_config("ent"), stamp=stamp(1),
              chat_template="{{ messages }}")  # fmt: skip
    write_run(tmp_path, {"t": coins(1, 0.5)}, trimix=trimix_config("gate"), stamp=stamp(2))
    write([tmp_path], tmp_path / "out")
    reasons = {x["row"]: x["not_comparable"] for x in table(tmp_path / "out")}
    assert reasons == {
        "ppl [limit 60]": "60 of 100 documents",
        "ent [chat template]": "chat template",
        "gate": "",
    }
    for name in ("report.html", "report.md"):
        text = (tmp_path / "out" / name).read_text()
        assert "2 of 3 runs departed" in text and "†a" in text and "†b" in text and "†c" not in text
        assert "60 of 100 documents" in text


def test_newest_wins_and_a_limited_run_replaces_nothing(tmp_path, capsys):
    for number, (share, limit) in enumerate([(0.2, None), (0.8, None), (0.5, 60)]):
        given = {"limit": limit, "of": 60 + (limit or 0), "stamp": stamp(number)}
        write_run(tmp_path, {"t": coins(number, share)}, trimix=trimix_config("ppl"),
                  date=1.79e9 + number, **given)  # fmt: skip
    assert cli.main(["report", str(tmp_path), "--output", str(tmp_path / "out")]) == 0
    values = {x["row"]: float(x["value"]) for x in table(tmp_path / "out")}
    assert values == {
        "ppl": plain.mean(coins(1, 0.8)),
        "ppl [limit 60]": plain.mean(coins(2, 0.5)),
    }
    assert "1 numbers were replaced by newer runs" in capsys.readouterr().out
    assert "Replaced by newer runs" in (tmp_path / "out" / "report.html").read_text()


def test_other_models_and_other_trios_keep_apart(tmp_path):
    config = trimix_config("ppl")
    large = {**config["sources"]["large_ins"], "path": "org/larger", "commit": "9" * 40}
    other = {**config, "sources": {**config["sources"], "large_ins": large}}
    single = trimix_config("small_cpt")
    single["sources"] = {"small_cpt": config["sources"]["small_cpt"]}
    for number, it in enumerate([config, other, single, None]):
        write_run(tmp_path, {"t": coins(number, 0.5)}, trimix=it, stamp=stamp(number), model="hf")
    write([tmp_path], tmp_path / "out")
    rows = {}
    for line in table(tmp_path / "out"):
        rows.setdefault(line["system"], []).append((line["row"], float(line["value"])))
    assert set(rows) == {
        "large_ins + small_cpt + small_base",
        "larger + small_cpt + small_base",
    }
    first, second = (dict(rows[name]) for name in sorted(rows))
    assert first["ppl"] == plain.mean(coins(0, 0.5)) and second["ppl"] == plain.mean(coins(1, 0.5))
    assert first["small_cpt"] == second["small_cpt"] == plain.mean(coins(2, 0.5))
    assert first["hf: org/large_ins"] == plain.mean(coins(3, 0.5))


def test_a_point_is_left_to_the_map_only_where_there_is_one(tmp_path):
    """The middle of a grid was run on one more task, alone: that task's table has to show it."""
    for number, (a, b) in enumerate(product(ALPHAS, BETAS)):
        documents = {"t": coins(number, 0.5)} | ({"u": coins(9, 0.5)} if a == b == 0.5 else {})
        write_run(tmp_path, documents, trimix=fixed(a, b), stamp=stamp(number))
    for number, (a, b) in enumerate(product(ALPHAS, BETAS), 9):
        config = trimix_config("fixed", alpha=a, beta=b, gamma=0.3)
        write_run(tmp_path, {"v": coins(number, 0.5)}, trimix=config, stamp=stamp(number))
    write([tmp_path], tmp_path / "out")
    shown = {}
    for line in table(tmp_path / "out"):
        shown.setdefault(line["tasks"], set()).add(line["row"])
    assert shown["t"] == {"proxy_tuning", "oracle by task"}
    assert shown["u"] == {"fixed 0.5:0.5"}
    # No map has a third axis: points with a gamma of their own stay in the table.
    assert shown["v"] == {f"fixed {a:g}:{b:g}:0.3" for a, b in product(ALPHAS, BETAS)} | {
        "oracle by task"
    }


def test_runs_under_other_circumstances_keep_apart(tmp_path):
    told = [
        ({}, {}, "ppl"),
        ({"plausibility": 0.1, "plausibility_source": "large_ins"}, {}, "ppl (plausibility 0.1)"),
        (
            {"plausibility": 0.1, "plausibility_source": "small_cpt"},
            {},
            "ppl (plausibility 0.1 of small_cpt)",
        ),
        ({"add_bos_token": True}, {}, "ppl (add_bos_token True)"),
        ({}, {"max_length": 512}, "ppl (max_length 512)"),
        ({"seed": 5}, {}, "ppl (seed 5)"),
    ]
    for number, (more, args, _) in enumerate(told):
        path = write_run(tmp_path, {"t": coins(number, 0.5)}, stamp=stamp(number),
                         trimix={**trimix_config("ppl"), **more})  # fmt: skip
        whole = json.loads(path.read_text())
        whole["config"]["model_args"].update(args)
        path.write_text(json.dumps(whole))
    write([tmp_path], tmp_path / "out")
    found = {line["row"]: float(line["value"]) for line in table(tmp_path / "out")}
    assert found == {row: plain.mean(coins(i, 0.5)) for i, (*_, row) in enumerate(told)}


def test_a_masked_sweep_has_a_plane_of_its_own(tmp_path):
    for number, (a, b) in enumerate(product(ALPHAS, BETAS)):
        for masked in (0, 1):
            more = {"plausibility": 0.1, "plausibility_source": "large_ins"} if masked else {}
            write_run(tmp_path, {"t": coins(repr((number, masked)), 0.5)},
                      trimix={**fixed(a, b), **more}, stamp=stamp(2 * number + masked))  # fmt: skip
    write([tmp_path], tmp_path / "out")
    found = {line["row"]: float(line["value"]) for line in table(tmp_path / "out")}
    for masked, key in enumerate(["oracle by task", "oracle by task [plausibility 0.1]"]):
        best = max(plain.mean(coins(repr((number, masked)), 0.5)) for number in range(9))
        assert found.pop(key) == best
    assert set(found) == {"proxy_tuning", "proxy_tuning (plausibility 0.1)"}


def test_a_point_counts_once(tmp_path):
    """The seed is nothing to a fixed point: of two runs of one, the newer is on the plane."""
    shares = [(0.1, 1234, 0.9), (0.3, 1234, 0.4), (0.1, 5, 0.6)]
    for number, (a, seed, share) in enumerate(shares):
        documents = {task: coins(f"{number} {task}", share) for task in TASKS}
        write_run(tmp_path, documents, trimix={**fixed(a, 0.9), "seed": seed}, **SHOTS,
                  stamp=stamp(number), date=1.79e9 + number)  # fmt: skip
    means = [
        plain.mean(plain.mean(coins(f"{number} {task}", share)) for task in TASKS)
        for number, (*_, share) in enumerate(shares)
    ]
    assert means[0] > means[2] > means[1]
    write([tmp_path], tmp_path / "out")
    points = table(tmp_path / "out", "points")
    assert sorted((x["task"], float(x["alpha"])) for x in points) == sorted(
        product(TASKS, (0.1, 0.3))
    )
    lines = [x for x in table(tmp_path / "out") if " " in x["tasks"]]
    found = {x["row"]: float(x["value"]) for x in lines}
    for key in ("oracle by task", "oracle by table"):
        assert found[key] == pytest.approx(means[2])
    assert "oracle of 2 points" in (tmp_path / "out" / "report.html").read_text()


def test_other_models_with_other_arguments_are_other_rows(tmp_path):
    told = ["pretrained=org/large_ins,device=cpu", "pretrained=org/large_ins,load_in_8bit=True",
            {"pretrained": "org/large_ins", "peft": "me/lora", "token": "hf_secret"}]  # fmt: skip
    write_run(tmp_path, {"t": coins(9, 0.5)}, trimix=trimix_config("ppl"), stamp=stamp(9))
    for number, args in enumerate(told):
        path = write_run(tmp_path, {"t": coins(number, 0.9)}, model="hf", stamp=stamp(number))
        whole = json.loads(path.read_text())
        whole["config"]["model_args"] = args
        path.write_text(json.dumps(whole))
    write([tmp_path], tmp_path / "out")
    lines = {line["row"]: line for line in table(tmp_path / "out")}
    names = ["", " (load_in_8bit=True)", " (peft=me/lora)"]
    for number, name in enumerate(names):
        line = lines.pop(f"hf: org/large_ins{name}")
        assert float(line["value"]) == plain.mean(coins(number, 0.9))
        # An adapted or rounded model is not the single model that the others are made of.
        assert line["reference"] == "hf: org/large_ins"
    assert set(lines) == {"ppl"}
    assert not any("hf_secret" in path.read_text() for path in (tmp_path / "out").glob("*.*"))


def test_groups_are_shown_as_lm_eval_aggregates_them(tmp_path):
    """Weighted by size, over groups, and not again where a mean of ours is the same number."""
    sizes = {"a": 80, "b": 20, "c": 40, "d": 40}
    for number, name in enumerate(["large_ins", "ppl", None]):
        documents = {task: coins(f"{name}{task}", 0.5, n) for task, n in sizes.items()}
        path = write_run(tmp_path, documents, trimix=trimix_config(name) if name else None,
                         model="trimix" if name else "hf", stamp=stamp(number))  # fmt: skip
        aggregate(path, "sized", ["a", "b"], weighted=True)
        aggregate(path, "equal", ["c", "d"])
        aggregate(path, "all", ["sized", "equal"])
    write([tmp_path], tmp_path / "out")
    lines = [line for line in table(tmp_path / "out") if line["table"] == "Groups"]
    assert {line["column"] for line in lines} == {"sized", "all"}
    assert {line["row"] for line in lines} == {"large_ins", "ppl", "hf: org/large_ins"}
    for line in lines:
        name = {"large_ins": "large_ins", "ppl": "ppl"}.get(line["row"])
        said = {task: coins(f"{name}{task}", 0.5, n) for task, n in sizes.items()}
        means = {task: plain.mean(values) for task, values in said.items()}
        sized = (80 * means["a"] + 20 * means["b"]) / 100
        value = sized if line["column"] == "sized" else plain.mean(means.values())
        assert float(line["value"]) == pytest.approx(value)
        assert line["tasks"] == ("a b" if line["column"] == "sized" else "a b c d")
        assert int(line["n"]) == (100 if line["column"] == "sized" else 180)
    by = {(line["row"], line["column"]): line for line in table(tmp_path / "out")}
    (row,) = {line["reference"] for line in lines if line["row"] == "ppl"}
    ours, theirs = (by[name, "sized"] for name in ("ppl", row))
    assert float(ours["delta"]) == pytest.approx(float(ours["value"]) - float(theirs["value"]))
    assert 0 < float(ours["p"]) <= 1
    low, high, delta = (float(ours[key]) for key in ("ci_low", "ci_high", "delta"))
    assert low < delta < high
    own = {x["tasks"] for x in table(tmp_path / "out") if x["column"] == "mean of 2"}
    assert own == {"a b", "c d"}, "of equal weight, which `equal` is, too"
    for name in ("report.html", "report.md"):
        assert "as the group has it" in (tmp_path / "out" / name).read_text()


STRICT, FLEXIBLE = "strict-match", "flexible-extract"


def filtered_run(folder, number, config, answers, group=()):
    """A run whose tasks have two filters: by task, what strict and flexible make of its texts."""
    documents = {task: strict for task, (strict, _) in answers.items()}
    ends = {task: {"eos": len(strict)} for task, strict in documents.items()}
    config = {**config, "finish_reasons": ends}
    path = write_run(folder, documents, trimix=config, stamp=stamp(number), date=1.79e9 + number)
    if group:
        aggregate(path, "g", group)
    whole = json.loads(path.read_text())
    flexible = {task: plain.mean(values) for task, (_, values) in answers.items()}
    flexible["g"] = 0.123
    for part in (whole["results"], whole.get("groups", {})):
        for task, values in part.items():
            for key in ("acc,none", "acc_stderr,none"):
                values[key.replace("none", STRICT)] = values.pop(key)
            values[f"acc,{FLEXIBLE}"] = flexible[task]
    path.write_text(json.dumps(whole))
    for task, (_, values) in answers.items():
        file = path.with_name(f"samples_{task}_{stamp(number)}.jsonl")
        strict = [{**json.loads(x), "filter": STRICT} for x in file.read_text().splitlines()]
        both = [*strict, *({**x, "filter": FLEXIBLE, "acc": values[x["doc_id"]]} for x in strict)]
        file.write_text("".join(json.dumps(x) + "\n" for x in both))
    return path


def test_each_filter_of_a_task_is_a_column_with_its_name(tmp_path, monkeypatch):
    """In tables, means, planes, upper bounds and ends; each with the oracle that is its own."""
    monkeypatch.setattr("trimix_lm_eval.analysis.report.model.pictures", lambda plane: [])
    points = {(0.1, 0.1): (0.2, 0.9), (0.1, 0.9): (0.6, 0.4), (0.9, 0.1): (0.4, 0.5)}
    runs = [(trimix_config("large_ins"), (0.5, 0.6)), (trimix_config("ppl"), (0.3, 0.7))]
    runs += [(fixed(*point), shares) for point, shares in points.items()]
    for number, (config, shares) in enumerate(runs):
        answers = {t: [coins(f"{number}{t}{s}", s) for s in shares] for t in ("t", "u")}
        filtered_run(tmp_path / "in", number, config, answers, group=["t", "u"])
    write([tmp_path / "in"], tmp_path / "out")
    lines = table(tmp_path / "out")
    columns = {line["column"]: (line["filter"], line["tasks"]) for line in lines}
    of_tasks = {f"{t} ({name})": (name, t) for t in "tu" for name in (STRICT, FLEXIBLE)}
    means = {f"mean of 2 ({name})": (name, "t u") for name in (STRICT, FLEXIBLE)}
    # The strict mean of the group is that of ours; its flexible number is no mean.
    assert columns == {**of_tasks, **means, f"g ({FLEXIBLE})": (FLEXIBLE, "t u")}
    by = {(line["row"], line["column"]): line for line in lines}
    for run, key in (("large_ins", 0), ("ppl", 1)):
        for place, name in enumerate((STRICT, FLEXIBLE)):
            line = by[run, f"t ({name})"]
            mine = coins(f"{key}t{runs[key][1][place]}", runs[key][1][place])
            assert float(line["value"]) == pytest.approx(plain.mean(mine))
            assert run == "large_ins" or float(line["p"]) > 0, "each is tested on its own samples"
    best = {c: by["oracle by task", c]["point"] for c in of_tasks if c.startswith("t")}
    assert best == {f"t ({STRICT})": "0.1:0.9", f"t ({FLEXIBLE})": "0.1:0.1"}
    for name, point in ((STRICT, "0.1:0.9"), (FLEXIBLE, "0.1:0.1")):
        line = by[f"oracle by table ({name})", f"mean of 2 ({name})"]
        assert line["point"] == point
    found = table(tmp_path / "out", "points")
    assert {(x["task"], x["filter"]) for x in found} == set(product("tu", (STRICT, FLEXIBLE)))
    oracle = {(x["task"], x["filter"]): x["beta"] for x in found if x["oracle"] == "True"}
    assert oracle["t", STRICT] == "0.9" and oracle["t", FLEXIBLE] == "0.1"
    assert len(table(tmp_path / "out", "endings")) == 2 * len(runs)
    assert {x["column"] for x in table(tmp_path / "out", "gaps")} >= set(of_tasks)
    for name in ("report.html", "report.md"):
        text = (tmp_path / "out" / name).read_text()
        assert f"t ({FLEXIBLE})" in text.replace("<wbr>", "") and f"t ({STRICT})" in text


def test_a_filter_that_only_some_runs_have_is_named_too(tmp_path):
    """A newer run of another filter does not hide what the older ones have."""
    filtered_run(tmp_path, 0, trimix_config("ppl"), {"t": [coins(1, 0.4), coins(2, 0.6)]})
    write_run(tmp_path, {"t": coins(3, 0.5)}, trimix=trimix_config("ent"), stamp=stamp(1))
    runs, _ = read([tmp_path])
    (part,) = assemble(runs, []).parts
    (made,) = part.tables
    titles = [f"t ({STRICT})", f"t ({FLEXIBLE})", "t (none)"]
    assert [column.title for column in made.columns] == titles
    shown = {row.key: [cell is not None for cell in cells] for row, cells in made.rows}
    assert shown == {"ppl": [True, True, False], "ent": [False, False, True]}


def test_a_group_that_is_no_mean_is_not_tested(tmp_path):
    for number, name in enumerate(["large_ins", "ppl"]):
        documents = {task: coins(f"{name}{task}", 0.5) for task in "ab"}
        path = write_run(tmp_path, documents, trimix=trimix_config(name), stamp=stamp(number))
        aggregate(path, "g", "ab")
        whole = json.loads(path.read_text())
        whole["groups"]["g"]["acc,none"] = 0.9 - 0.1 * number
        path.write_text(json.dumps(whole))
    write([tmp_path], tmp_path / "out")
    (line,) = [x for x in table(tmp_path / "out") if (x["table"], x["row"]) == ("Groups", "ppl")]
    assert float(line["delta"]) == pytest.approx(-0.1) and not line["p"]
    assert line["significance"] == "not available: it is no mean of its tasks"


def test_a_group_of_other_tasks_in_another_run_has_a_column_of_its_own(tmp_path):
    for number, (name, below) in enumerate([("large_ins", "ab"), ("ppl", "ab"), ("ent", "abc")]):
        documents = {task: coins(f"{name}{task}", 0.5, 40 + 20 * (task == "a")) for task in below}
        path = write_run(tmp_path, documents, trimix=trimix_config(name), stamp=stamp(number))
        aggregate(path, "g", below, weighted=True)
    write([tmp_path], tmp_path / "out")
    found = {x["row"]: x for x in table(tmp_path / "out") if x["table"] == "Groups"}
    told = {row: (line["column"], line["tasks"], line["n"]) for row, line in found.items()}
    small, large = ("g (2 tasks)", "a b", "100"), ("g (3 tasks)", "a b c", "140")
    assert told == {"large_ins": small, "ppl": small, "ent": large}
    assert found["ppl"]["reference"] == "large_ins" and not found["ent"]["reference"]


def test_only_the_best_that_are_comparable_are_bold(tmp_path):
    for number, (name, limit) in enumerate([("ppl", None), ("ent", None), ("gate", 60)]):
        values = coins(1, 0.5) if name != "ent" else coins(1, 0.5)[::-1]
        write_run(tmp_path, {"t": values}, trimix=trimix_config(name), stamp=stamp(number),
                  limit=limit, of=100 if limit else 60)  # fmt: skip
    write([tmp_path], tmp_path / "out")
    bold = re.findall(r"\| TriMix (\w+).*\*\*", (tmp_path / "out" / "report.md").read_text())
    assert bold == ["ppl", "ent"]


def test_like_is_compared_with_like(tmp_path):
    """A single model under another protocol is no reference, however good it is."""
    write_run(tmp_path, {"t": coins(1, 0.4)}, trimix=fixed(1.0, 0.0), stamp=stamp(0))
    chat = {"chat_template": "{{ messages }}"}
    write_run(tmp_path, {"t": coins(2, 0.9)}, trimix=fixed(1.0, 0.0), stamp=stamp(1), **chat)
    write_run(tmp_path, {"t": coins(3, 0.6)}, trimix=trimix_config("ppl"), stamp=stamp(2))
    changed = {"system_instruction": "Be brief."}
    write_run(tmp_path, {"t": coins(4, 0.6)}, trimix=trimix_config("ent"), stamp=stamp(3),
              **changed)  # fmt: skip
    write([tmp_path], tmp_path / "out")
    lines = {line["row"]: line for line in table(tmp_path / "out")}
    assert lines["ppl"]["reference"] == "large_ins"
    assert lines["large_ins [chat template]"]["significance"] == "reference"
    (other,) = [line for row, line in lines.items() if row.startswith("ent")]
    assert not other["delta"] and other["significance"] == (
        "no single model under the same protocol"
    )


def test_a_folder_that_was_moved_is_the_same_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number, folder in enumerate(["/home/a b/", "/mnt/"]):
        config = trimix_config(("ppl", "ent")[number])
        config["sources"] = {
            role: {**it, "path": f"{folder}{role}", "commit": None, "digest": role[-3:] * 4}
            for role, it in config["sources"].items()
        }
        write_run(tmp_path / folder[1:], {"t": coins(number, 0.5)}, trimix=config)
    write([tmp_path], tmp_path / "out")
    lines = table(tmp_path / "out")
    assert {line["row"] for line in lines} == {"ppl", "ent"}
    assert {line["system"] for line in lines} == {"large_ins + small_cpt + small_base"}
    assert all((tmp_path / line["files"]).is_file() for line in lines)


@pytest.mark.parametrize(
    ("differing", "names"),
    [
        ([{"dtype": "bfloat16"}, {"quantization": "int8"}], ["bfloat16", "int8, bfloat16"]),
        ([{"commit": "a" * 40}, {"commit": "b" * 40}], ["aaaaaaa, 2222222, 3333333", "bbbbbbb, "]),
        ([{"revision": "x", "commit": None}, {"revision": "y", "commit": None}], ["1", "2"]),
    ],
)
def test_trios_of_one_name_are_told_apart(tmp_path, differing, names):
    for number, more in enumerate(differing):
        config = trimix_config("ppl")
        large = {**config["sources"]["large_ins"], **more}
        config["sources"] = {**config["sources"], "large_ins": large}
        write_run(tmp_path, {"t": coins(number, 0.5)}, trimix=config, stamp=stamp(number))
    write([tmp_path], tmp_path / "out")
    found = [line["system"] for line in table(tmp_path / "out")]
    for name, title in zip(names, found, strict=True):
        assert title.startswith(f"large_ins + small_cpt + small_base ({name}"), found


def milic(folder, config, number, language, values, limit=None, **more):
    """A run of all seven tasks of a language; every document of a task has the same score."""
    tasks = layout.leaves(f"trimix_milic_{language}")
    documents = {task: [value] * 4 for task, value in zip(tasks, values, strict=True)}
    path = write_run(folder, documents, trimix=config, stamp=stamp(number), limit=limit, **more)
    whole = json.loads(path.read_text())
    for task in tasks:
        entry = whole["results"][task]
        entry["score,none"], entry["score_stderr,none"] = entry["acc,none"], 0.0
        whole["n-shot"][task] = 12 if "classification" in task else 3 if "title" in task else 5
        tokens = 2 if task in tasks[:3] else 200 if "translation" in task else 250
        whole["configs"][task]["generation_kwargs"] = {
            "until": ["\n"], "max_gen_toks": tokens, "do_sample": False}  # fmt: skip
    path.write_text(json.dumps(whole))


def paper_config(language, large="Qwen/Qwen2.5-7B-Instruct"):
    config = json.loads(json.dumps(trimix_config("ppl")))
    paths = {"large_ins": large, "small_base": "Qwen/Qwen2.5-1.5B"}
    paths["small_cpt"] = f"pkupie/Qwen2.5-1.5B-{language}-cpt"
    for role, path in paths.items():
        config["sources"][role]["path"] = path
    return config


def test_columns_of_the_paper_and_its_numbers(tmp_path):
    values = {"bo": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7), "ug": (0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)}
    values |= {"kk": (0.5,) * 7, "mn": (0.25,) * 7}
    for number, (language, scores) in enumerate(values.items()):
        milic(tmp_path, paper_config(language), number, language, scores)
    write([tmp_path], tmp_path / "out")
    lines = table(tmp_path / "out")
    assert not any(line["not_comparable"] for line in lines)
    found = {(x["table"], x["column"]): float(x["value"]) for x in lines}
    means = {}
    for language, scores in values.items():
        parts = {"MC": scores[:3], "ENG-G": scores[3:5], "LRL-G": scores[5:], "Avg": scores}
        for column, numbers_ in parts.items():
            mean = plain.mean(numbers_)
            assert found[f"trimix_milic_{language}", column] == pytest.approx(mean)
            means.setdefault(column, []).append(mean)
    across = "across " + " ".join(f"trimix_milic_{language}" for language in values)
    for column, parts in means.items():
        assert found[across, column] == pytest.approx(plain.mean(parts))
    theirs = {x["what"]: (x["ours"], x["published"]) for x in table(tmp_path / "out", "published")}
    for column, number in {"MC": 53.4, "ENG-G": 19.8, "LRL-G": 15.7, "Avg": 33.0}.items():
        ours, published = map(float, theirs[column])
        assert published == number and ours == pytest.approx(100 * plain.mean(means[column]))
    assert tuple(map(float, theirs["trimix_milic_bo_math"])) == (40.0, 6.0)


@pytest.mark.parametrize("name", ["Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-7B"])
def test_a_baseline_of_lm_eval_has_published_numbers_too(tmp_path, monkeypatch, name):
    monkeypatch.setattr("trimix_lm_eval.analysis.report.model.pictures", lambda plane: [])
    for number, language in enumerate(("bo", "ug", "kk", "mn")):
        milic(tmp_path, None, number, language, [0.5] * 7, model="hf", model_name=name)
    (part,) = assemble(*read([tmp_path])).parts
    found = {it.what: it.published for it in part.published}
    known = {"MC": 49.7, "ENG-G": 20.0, "LRL-G": 12.5, "Avg": 30.6}
    assert found == (known if name.endswith("Instruct") else {})
    assert all(it.note.startswith("ours in unknown precision") for it in part.published)


@pytest.mark.parametrize("points", [PAPER_GRID, PAPER_GRID[:35], PAPER_GRID[30:]])
def test_an_upper_bound_is_the_paper_s_if_its_points_are(tmp_path, monkeypatch, points):
    monkeypatch.setattr("trimix_lm_eval.analysis.report.model.pictures", lambda plane: [])
    for number, (language, point) in enumerate(product(("bo", "ug", "kk", "mn"), points)):
        config = paper_config(language, "Qwen/Qwen2.5-3B-Instruct")
        config["policy"] = {"name": "fixed", **point._asdict()}
        milic(tmp_path, config, number, language, [0.5 + number / 1000] * 7)
    report = assemble(*read([tmp_path]))
    (part,) = report.parts
    found = {it.what: it.published for it in part.published if it.row.kind == "oracle"}
    bound = {"MC": 52.4, "ENG-G": 21.3, "LRL-G": 17.6, "Avg": 33.6}
    assert found == (bound if points == PAPER_GRID else {})
    assert any(f"oracle of {len(points)} points" in row.detail for row, _ in part.tables[0].rows)


@pytest.mark.parametrize("languages", [("bo",), ("bo", "ug", "kk", "mn")])
def test_published_numbers_only_for_the_same_models_and_tasks(tmp_path, languages):
    """Other models have no published numbers; a language alone has no mean over four."""
    large = "Qwen/Qwen2.5-32B-Instruct" if len(languages) == 4 else "Qwen/Qwen2.5-3B-Instruct"
    for number, language in enumerate(languages):
        milic(tmp_path, paper_config(language, large), number, language, [0.5] * 7)
    write([tmp_path], tmp_path / "out")
    assert "None match" in (tmp_path / "out" / "report.html").read_text()
    assert not (tmp_path / "out" / "published.csv").exists()


def test_unlike_metrics_have_no_mean():
    tasks = ("trimix_demo_finish", "trimix_demo_rolling")
    (part,) = layout.layouts(tasks, dict(zip(tasks, ("acc", "bits_per_byte"), strict=True)), {})
    assert not part.means and "not alike" in part.note
    (part,) = layout.layouts(["a", "b"], {"a": "acc", "b": "acc"}, {"both": ["a", "b"]})
    assert [mean.tasks for mean in part.means] == [("a", "b")] and part.name == "both"
    (part,) = layout.layouts(
        [t for t in layout.leaves("trimix_milic_bo") if "title" not in t],
        dict.fromkeys(layout.leaves("trimix_milic_bo"), "acc"),
        {},
    )
    assert [mean.title for mean in part.means] == ["MC", "ENG-G"]
    assert "title_generation" in part.note


@pytest.mark.parametrize(
    ("metric", "values", "text"),
    [
        ("acc", [0.5, 0.25], "50.0"),
        ("f1", [55.5, 3.0], "55.5"),
        ("chrf++", [12.345], "12.3"),
        ("bits_per_byte", [0.91234], "0.912"),
        ("word_perplexity", [3533.9], "3534"),
    ],
)
def test_numbers_are_written_in_their_unit(metric, values, text):
    assert numbers.scale(metric, values).text(values[0]) == text


# ---------------------------------------------------------------- files of all kinds


def test_damaged_files_are_named_and_the_rest_reported(tmp_path, capsys):
    folder = tmp_path / "results"
    good = write_run(folder, {"t": coins(1, 0.5)}, trimix=trimix_config("ppl"))
    text = good.read_text()
    whole = json.loads(text)
    policy = {**whole["config"]["trimix"], "policy": {"name": "fixed"}}
    bad = {
        "empty": b"",
        "half": text[: len(text) // 2].encode(),
        "foreign": b'{"hello": 1}',
        "list": b"[1, 2]",
        "binary": b"\xff\xfe\x00",
        "numberless": b'{"results": {"t": {}}}',
        "strange": json.dumps({**whole, "n-samples": {"t": {"effective": "x"}}}).encode(),
        "pointless": json.dumps(
            {**whole, "config": {**whole["config"], "trimix": policy}}
        ).encode(),
        "endless": json.dumps({**whole, "n-samples": {"t": {"effective": -math.inf}}}).encode(),
        "sourceless": json.dumps(
            {**whole, "config": {"trimix": {**policy, "policy": {"name": "ppl"}, "sources": [1]}}}
        ).encode(),
    }
    for name, content in bad.items():
        (folder / f"results_{name}.json").write_bytes(content)
    missing = folder / "results_missing.json"
    assert cli.main(["report", str(folder), str(missing), "--output", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    for name in [*bad, "missing"]:
        assert f"problem: {folder}/results_{name}.json " in out, name
        assert f"results_{name}.json" in (tmp_path / "out" / "report.html").read_text()
    assert len(table(tmp_path / "out")) == 1
    assert len(table(tmp_path / "out", "problems")) == len(bad) + 1


def test_numbers_that_are_none_are_named(tmp_path, capsys):
    documents = {"t": coins(1, 0.5), "u": coins(2, 0.5), "v": coins(3, 0.5)}
    path = write_run(tmp_path, documents, trimix=trimix_config("ppl"))
    whole = json.loads(path.read_text())
    whole["results"]["u"]["acc,none"] = math.nan
    whole["results"]["v"]["more,none"] = -math.inf
    path.write_text(json.dumps(whole))
    assert cli.main(["report", str(path), "--output", str(tmp_path / "out")]) == 0
    told = "is used but for acc of u is nan; more of v is -inf"
    assert f"problem: {path} {told}" in capsys.readouterr().out
    assert {x["tasks"] for x in table(tmp_path / "out")} == {"t", "v"}
    for name in ("report.html", "report.md", "problems.csv"):
        assert "acc of u is nan" in (tmp_path / "out" / name).read_text(), name


def test_nothing_usable_is_one_message(tmp_path, capsys):
    (tmp_path / "results_x.json").write_text("{")
    assert cli.main(["report", str(tmp_path), "--output", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: None of the files") and "results_x.json is not JSON" in error
    assert not (tmp_path / "out").exists()


def test_output_folder(tmp_path):
    results = write_run(tmp_path / "r", {"t": coins(1, 0.5)}, trimix=trimix_config("ppl"))
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "data.csv").write_text("a\n")
    with pytest.raises(TrimixError, match="holds files, but no report"):
        write([results], mine)
    assert not (mine / "report.html").exists()
    write([results], mine, force=True)
    (mine / "gaps.csv").write_text("of an earlier report\n")
    write([results], mine)
    assert (mine / "data.csv").read_text() == "a\n" and not (mine / "gaps.csv").exists()
    kept = results.read_text()
    (mine / "report.md").unlink()
    (mine / "report.md").symlink_to(results)
    with pytest.raises(TrimixError, match="are the same file"):
        write([results], mine)
    assert results.read_text() == kept
    with pytest.raises(TrimixError, match="is a file"):
        write([results], results)
    with pytest.raises(TrimixError, match="cannot be written: Not a directory"):
        write([results], results / "below")


def test_a_report_html_of_somebody_s_is_no_report(tmp_path):
    results = write_run(tmp_path / "r", {"t": coins(1, 0.5)}, trimix=trimix_config("ppl"))
    mine = tmp_path / "out/report.html"
    mine.parent.mkdir()
    mine.write_text("mine")
    with pytest.raises(TrimixError, match="holds files, but no report"):
        write([results], mine.parent)
    assert mine.read_text() == "mine"


def test_missing_library_has_a_pip_line(tmp_path, monkeypatch):
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "scipy" else found(name)
    )
    with pytest.raises(TrimixError, match=r"scipy.\n.*pip install 'trimix-lm-eval\[report\]'"):
        write([tmp_path], tmp_path / "out")


# ---------------------------------------------------------------- the page


def test_names_from_files_are_text_only(tmp_path):
    evil = "<script>alert(1)</script>\ud800"
    task = 't"><img src=x onerror=y>$\\frac$|*b*'
    config = trimix_config("ppl", weights_chosen={task: {"0.1:0.9": 3}})
    large = {**config["sources"]["large_ins"], "path": evil}
    config["sources"] = {**config["sources"], "large_ins": large}
    for number, it in enumerate([config, None, *(fixed(a, b) for a in (0.1, 0.3) for b in (0, 1))]):
        write_run(tmp_path, {task: coins(1, 0.5)}, trimix=it, stamp=stamp(number),
                  samples=False, model_name=evil)  # fmt: skip
    write([tmp_path], tmp_path / "out")
    text = (tmp_path / "out" / "report.html").read_text()
    found = Page(text)
    assert "script" not in found.tags and found.tags.count("img") == 2
    assert "&lt;script&gt;" in text and "onerror=y&gt;" in text
    rendered = (tmp_path / "out" / "report.md").read_text()
    assert "<script" not in rendered and "<img" not in rendered and r"\|\*b\*" in rendered
    names = [path.name for path in (tmp_path / "out" / "pictures").iterdir()]
    assert len(names) == 2 and all(re.fullmatch(r"[\w.-]+", name) for name in names)


def test_page_loads_nothing(swept):
    report, _, _ = swept
    text = (report / "report.html").read_text()
    found = Page(text)
    assert found.loads and all(
        x.startswith(("#", "data:image/svg+xml;base64,")) for x in found.loads
    )
    assert not {"script", "link", "iframe", "object", "embed"} & set(found.tags)
    assert "@import" not in text and "url(" not in text
    assert "default-src 'none'" in text
    anchors = set(re.findall(r'id="([^"]+)"', text))
    assert {x[1:] for x in found.loads if x.startswith("#")} <= anchors


def test_every_row_leads_to_its_files(swept):
    report, results, _ = swept
    text = (report / "report.html").read_text()
    for file in results.glob("results*.json"):
        assert f"…/{'/'.join(file.parts[-4:])}" in text
    for line in table(report):
        files = [Path(f) for f in line["files"].split("; ")]
        assert files and all((results / f.name).is_file() for f in files)
        assert all(f.parent.name == results.name for f in files)


def test_texts_that_ran_into_the_length_limit(tmp_path):
    """In CSV, page and Markdown; a run of before it was recorded opens and tells nothing."""
    task, other = TASKS
    for number, (name, length) in enumerate([("ppl", 45), ("ent", 0), ("gate", None)]):
        ends = {} if length is None else {task: {"eos": 60 - length, "length": length}}
        config = trimix_config(name) | ({} if length is None else {"finish_reasons": ends})
        documents = {task: coins(name, 0.4), other: coins(name, 0.5)}
        write_run(tmp_path / "runs", documents, trimix=config, stamp=stamp(number), date=number)
    write([tmp_path / "runs"], tmp_path / "out")
    lines = table(tmp_path / "out", "endings")
    told = {line["row"].split()[0]: line for line in lines}
    assert len(lines) == 2 and {line["task"] for line in lines} == {task}
    assert float(told["ppl"]["length_share"]) == 0.75 and told["ppl"]["length"] == "45"
    assert told["ent"]["texts"] == "60" and told["ent"]["stop"] == "0"
    page = (tmp_path / "out/report.html").read_text()
    markdown = (tmp_path / "out/report.md").read_text()
    for text in (page, markdown):
        assert "Texts that ran into the length limit" in text
        assert "75 % of 60" in text and "0 % of 60" in text


def test_without_generated_texts_nothing_is_said_of_their_ends(swept):
    report, _, _ = swept
    assert "length limit" not in (report / "report.html").read_text()
    assert "length limit" not in (report / "report.md").read_text()
    assert not (report / "endings.csv").exists()


def test_pictures(swept):
    report, _, _ = swept
    kinds = [path.stem.rsplit("-", 1)[1] for path in (report / "pictures").iterdir()]
    assert sorted(kinds) == ["choices", "choices", "map", "map", "nll", "nll"]
    text = (report / "report.html").read_text()
    assert "TriMix ppl: most often 0.1:1 (67%)" in text


def test_as_users_type_it(tmp_path):
    sweep(tmp_path / "r")
    command = [sys.executable, "-m", "trimix_lm_eval", "report", "r", "--output", "out"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "wrote out/report.html" in done.stdout
    assert "Traceback" not in done.stderr
