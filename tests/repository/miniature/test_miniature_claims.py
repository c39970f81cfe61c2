"""What is told of the miniature's results: claims, probes, answers that take no model."""

from __future__ import annotations

import json
import random
import re

import pytest

from tests.support.running import ROOT

pytestmark = pytest.mark.slow

HERE = ROOT / "examples" / "miniature"


def test_the_readme_has_the_claims_of_the_page():
    readme, page = (
        (HERE / name).read_text(encoding="utf-8") for name in ("README.md", "claims.md")
    )
    parts = ("## What came of it", "### Two sizes of the large model")
    found = [rows(readme.split(f"\n{part}\n")[1]) for part in parts]
    wanted = [rows(page), rows(page.split("\n## Two sizes of the large model\n")[1])]
    heads, *claims = [row[1::2] for row in wanted[0]]  # the first of two sizes
    assert heads == ["Tibetan, large", "Uyghur, large"]
    assert [row[1:] for row in found[0][1:]] == claims, "the names of claims are the README's own"
    assert [len(table) for table in found] == [9, 4] and found[1] == wanted[1]


#: Of the README's figures those that are in no table of the page: parameters, a difference of two
#: numbers there, and such in fewer decimals.
ROUNDED = {"3.5", "0.338", "0.07", "0.11", "0.24", "0.39"}


def test_the_readme_s_figures_are_on_the_page():
    readme, page = (
        (HERE / name).read_text(encoding="utf-8") for name in ("README.md", "claims.md")
    )
    told = readme.split("\n## What came of it\n")[1].split("\n## Time\n")[0]
    prose = "\n".join(line for line in told.split("\n") if not line.startswith("|"))
    signed, known = (set(re.findall(r"[+-]\d+\.\d+", text)) for text in (prose, page))
    assert len(signed) > 10 and not signed - known
    plain, known = (set(re.findall(r"\d+\.\d+", text)) for text in (prose, page))
    assert len(plain) > 40 and plain - known == ROUNDED


def test_the_page_s_tables_agree_with_each_other():
    """Claims are differences of scores, and their summary has the means."""
    import claims

    page = (HERE / "claims.md").read_text(encoding="utf-8")
    summary = rows(page)
    parts = re.split(r"\n## (\w+, \w+): 3 seeds\n", page)
    assert parts[1::2] == [f"{a}, {b}" for b in ("large", "medium") for a in ("Tibetan", "Uyghur")]
    for place, part in zip(parts[1::2], parts[2::2], strict=True):
        (head, *lines), differing, *_ = tables(part)
        scores = {name: dict(zip(head[1:], cells, strict=True)) for name, *cells in lines}
        for cells in scores.values():
            mean = sum(float(cells[task]) for task in claims.AVERAGED) / len(claims.AVERAGED)
            assert float(cells["mean"]) == pytest.approx(mean, abs=0.11)
        differences = {
            "TriMix above Proxy Tuning": ("ppl", "proxy_tuning"),
            "Proxy Tuning above large_ins": ("proxy_tuning", "large_ins"),
            "TriMix above large_ins": ("ppl", "large_ins"),
            "small_cpt above large_ins": ("small_cpt", "large_ins"),
            "TriMix above large_ins with small_base (0.5, 0)": ("ppl", "0.5:0"),
            claims.UPPER_BOUND: ("upper bound", "ppl"),
            "the gate above TriMix": ("gate", "ppl"),
        }
        head, *lines = differing
        for name, *cells in lines:
            told = dict(zip(head[1:], cells, strict=True))
            line = next(row for row in summary if row[0] == name)
            cell = line[summary[0].index(place)]
            mean, low, high = (float(x) for x in re.findall(r"[+-]\d+\.\d+", cell))
            assert cell.startswith(f"{told['mean']} (") and low < mean < high
            for column, text in told.items():
                if name in differences:
                    one, other = (float(scores[row][column]) for row in differences[name])
                    gain = other - one if column == "rolling" else one - other
                    rounding = 0.0016 if column == "rolling" else 0.16
                    assert float(text.strip("*")) == pytest.approx(gain, abs=rounding)


def tables(text: str) -> list[list[list[str]]]:
    """The cells of a page's tables, the lines below their heads left out."""
    found = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    return [
        [
            [cell.strip() for cell in line.split("|")[1:-1]]
            for line in table.splitlines()
            if "---" not in line
        ]
        for table in found
    ]


def rows(text: str) -> list[list[str]]:
    """The cells of a page's first table."""
    return tables(text)[0]


def test_claims_are_told_from_results(tmp_path):
    import claims
    import claims_page
    import numpy as np

    rng = random.Random(5)
    for seed in (0, 1):
        write_sweep(tmp_path / f"seed{seed}/results_test_large", rng)
    (tmp_path / "seed2/results_test_large/ppl").mkdir(parents=True)  # is being made
    read_in = claims.read_all(tmp_path, "test", ("large", "medium"))
    assert list(read_in["large"]) == ["seed0", "seed1"]
    echo = dict.fromkeys(claims.AVERAGED, {"end": 1.0, "beginning": 2.5})
    text = claims_page.page(read_in, {"bo": "Tibetan"}, {"bo": echo, "en": echo})
    assert "## Tibetan, large: 2 seeds\n\n200 documents of each task.\n" in text
    assert "Two sizes" not in text
    assert text.count("| no model |" + " 2.5 |" * 6 + " – | 2.5 |") == 2
    english = text.split("## English, large, models alone")[1]
    assert "| large_ins |" in english and "0.5:0 |" not in english
    seeds = [claims.read(tmp_path / f"seed{i}/results_test_large")[0] for i in (0, 1)]
    found = claims.verdicts(seeds, "bo")
    assert found["TriMix above Proxy Tuning"]["mean"].verdict == "holds"
    assert found["the gate above TriMix"]["mean"].verdict == "fails"
    assert found["small_cpt above large_ins"]["follow"].verdict == "cannot be told"
    assert found["the upper bound above TriMix"]["say"].mean == pytest.approx(20, abs=9)
    assert claims_page.best_points(seeds, "bo", "say") == "0.1:0.9, 0.1:0.9"
    assert claims_page.best_points(seeds, "bo", "rolling") == "0.1:0.1 (+35), 0.1:0.1 (+35)"
    assert found["the upper bound above TriMix"]["say"].verdict == "measured"
    assert "| β > α, β ≥ 0.9, % of samples | 75, 75" in text
    import pictures

    assert claims_page.panels(read_in, {"bo": "Tibetan"}) == {"Tibetan, large": found}
    mean = found["TriMix above Proxy Tuning"]["mean"]
    assert f"| **{mean.mean:+.1f}** ({mean.low:+.1f} to {mean.high:+.1f}) |" in text
    pictures.draw({"Tibetan": found, "again": found}, tmp_path / "claims.png")
    assert (tmp_path / "claims.png").stat().st_size > 10_000
    ((scores, shares),) = claims_page.grids(read_in, {"bo": "Tibetan"}).values()
    assert shares[0, 4] == pytest.approx(0.75) and shares[2, 1] == pytest.approx(0.25)
    assert np.unravel_index(scores.argmax(), scores.shape) == (0, 4) and scores.max() > 80
    pictures.draw_grids({"Tibetan": (scores, shares)}, tmp_path / "grids.png")
    assert (tmp_path / "grids.png").stat().st_size > 8_000
    naive = [100 * sum(seed["bo", "say"]["ppl"] > 0) / 200 for seed in seeds]
    assert [float(seed["bo", "say"]["ppl"].mean()) for seed in seeds] == pytest.approx(naive)


def test_two_sizes_are_compared_document_by_document(tmp_path):
    import claims
    import claims_page

    rng = random.Random(6)
    for seed in (0, 1):
        write_sweep(tmp_path / f"seed{seed}/results_test_large", rng)
        write_sweep(tmp_path / f"seed{seed}/results_test_medium", rng, large_ins=0.1)
    read_in = claims.read_all(tmp_path, "test", ("large", "medium"))
    echo = dict.fromkeys(claims.AVERAGED, {"end": 1.0})
    text = claims_page.page(read_in, {"bo": "Tibetan"}, {"bo": echo, "en": echo})
    assert rows(text)[0] == ["", "Tibetan, large", "Tibetan, medium"]
    table = rows(text.split("## Two sizes of the large model\n")[1])
    assert [row[0] for row in table[1:]] == list(claims.SIZES) and table[0][1:] == ["Tibetan"]

    larger, smaller = ([seed for seed, _ in found.values()] for found in read_in.values())
    found = claims.of_sizes(larger, smaller, "bo")
    means = {  # of each method with each size, over seeds and documents
        (name, size): sum(float(seed["bo", "say"][name].mean()) for seed in seeds) / 2
        for name in ("ppl", "large_ins")
        for size, seeds in enumerate((smaller, larger))
    }
    gains = [means["ppl", size] - means["large_ins", size] for size in (0, 1)]
    more, better, fused = (its["say"] for its in found.values())
    assert more.mean == pytest.approx(gains[0] - gains[1]) and more.verdict == "holds"
    assert better.mean == pytest.approx(means["large_ins", 1] - means["large_ins", 0])
    assert better.verdict == "holds" and better.low > 20
    assert fused.mean == pytest.approx(means["ppl", 1] - means["ppl", 0])
    assert found["TriMix above TriMix with the smaller one"]["mean"].verdict == "cannot be told"


def write_sweep(folder, rng, **rates):
    """Results of every method and of two models alone in English; `rates` of being right."""
    import claims

    points = [f"{a:g}:{b:g}" for a, b in claims.GRID if (a, b) != (1, 1)]
    chance = dict.fromkeys([*points, "large_ins", "small_cpt", "small_base", "gate"], 0.4)
    chance |= {"proxy_tuning": 0.3, "0.5:0": 0.4, "0.3:0": 0.4, "0.7:0": 0.4, "0.1:0.9": 0.9}
    for name, right in {**chance, "ppl": 0.7, **rates}.items():
        write_results(folder / name, name, right, rng)
    for name in ("large_ins", "small_base"):
        write_results(folder / "en" / name, name, 0.9, rng, language="en")
    (folder / "step.json").touch()


def write_results(folder, name, right, rng, language="bo"):
    """Results of a method as lm-eval and this package write them, with 200 made-up documents."""
    import claims

    alpha, _, beta = name.partition(":")
    policy = (
        {"name": "fixed", "alpha": float(alpha), "beta": float(beta)} if beta else {"name": name}
    )
    tasks = [f"mini_{language}_{kind}" for kind in (*claims.AVERAGED, "rolling")]
    chosen = {task: {"0.1:0.9": 150, "0.5:0.3": 50} for task in tasks}
    content = {
        "results": {task: {} for task in [*tasks, f"mini_{language}"]},
        "configs": {task: {} for task in tasks},
        "config": {"trimix": {"policy": policy, "weights_chosen": chosen}},
    }
    folder.mkdir(parents=True)
    (folder / "results_1.json").write_text(json.dumps(content))
    for task in tasks:
        metric = "acc" if task.endswith("_ll") else "exact_match"
        rows = [{"doc_id": i, metric: float(rng.random() < right)} for i in range(200)]
        if task.endswith("rolling"):
            rows = [{"doc_id": i, "bits_per_byte": [-100.0, 200]} for i in range(200)]
        rng.shuffle(rows)
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"samples_{task}_1.jsonl").write_text(text)


def test_answers_without_reading_score_nothing(corpora, tmp_path):
    """But for topics, of which one may be usual."""
    import judge
    import recipe
    import trivial

    few = recipe.SMOKE._replace(items={"problems": 150, "passages": 2})
    judge.write_items(few, corpora, "dev", tmp_path)
    found = trivial.scores(tmp_path, "bo")
    assert set(found) == {*judge.WRITTEN, *(f"{kind}_ll" for kind in judge.CHOSEN)}
    for task, scores in found.items():
        for name, value in scores.items():
            if not task.startswith("topic"):
                # Chance is 25 at most, of what is written, too: the first speaker's words in `say`.
                assert value <= (42 if task.endswith("_ll") else 35), (task, name)


def test_an_echo_is_found_out():
    import trivial

    items = [{"prompt": f"Text: a{i} b c", "answer": f"a{i} b"} for i in range(3)]
    assert trivial.written(items)["beginning"] == [item["answer"] for item in items]


def test_a_probe_reads_what_is_in_vectors_and_no_more():
    import numpy as np
    import probe

    rng = np.random.default_rng(3)
    topics = [("a", "b", "c")[i % 3] for i in range(300)]
    told = np.array([[topic == "a", topic == "b"] for topic in topics], dtype=float)
    told = told + rng.normal(scale=0.1, size=(300, 2))
    noise = rng.normal(size=(300, 20))
    half = (topics[:150], topics[150:])
    assert probe.accuracy(told[:150], half[0], told[150:], half[1]) == 100
    assert probe.accuracy(noise[:150], half[0], noise[150:], half[1]) < 50
