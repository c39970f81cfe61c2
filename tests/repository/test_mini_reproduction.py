"""The example that repeats the paper's experiment: its steps, texts, items and claims."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from tests.support.examples import importable, sentences
from tests.support.running import ROOT, program

pytestmark = pytest.mark.slow

HERE = ROOT / "examples" / "mini_reproduction"


@pytest.fixture(scope="module", autouse=True)
def modules():
    with importable(HERE):
        yield


# ------------------------------------------------------------------------------ made-up texts


def write_texts(folder: Path) -> Path:
    rng = random.Random(0)

    def write(name: str, lines: list[str]) -> None:
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")

    write("kjv.txt", [f"{line}." for line in sentences("en", 3000, 9, rng)])
    clauses = sentences("bo", 220 * 20, 7, rng)
    documents = [" ། ".join(clauses[i : i + 20]) for i in range(0, len(clauses), 20)]
    write("bo_nanhai.txt", documents)
    topics = [f"{i}\tgeography\t{line}." for i, line in enumerate(sentences("ug", 80, 9, rng))]
    write("sib200_uig_Arab_train.tsv", ["index_id\tcategory\ttext", *topics])
    write("ug_udt_train.txt", [f"{line}." for line in sentences("ug", 400, 7, rng)])
    write("ug_udt_test.txt", [f"{line}." for line in sentences("ug", 120, 7, rng)])
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_texts(tmp_path_factory.mktemp("texts"))


# ----------------------------------------------------------------------------------- the whole


def test_all_of_it_at_toy_size(folder, tmp_path):
    command = (str(HERE / "run.py"), "--smoke", "--threads", "1")
    command += ("--texts", str(folder), "--out", str(tmp_path / "out"))
    done = program(*command, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    found = json.loads((tmp_path / "out" / "claims_test" / "claims.json").read_text())
    tasks = {(one["language"], one["task"]) for one in found}
    assert len(tasks) == 10 and len(found) == 4 * 10
    assert (tmp_path / "out" / "report_test" / "report.html").stat().st_size > 10_000
    # A second run has nothing to do; a mark that is not there means that a step was killed.
    (tmp_path / "out" / "claims_test" / "step.json").unlink()
    again = program(*command, timeout=100)
    assert [line.split(":")[0] for line in again.stdout.splitlines()] == [
        "claims_test …",
        "claims_test",
    ]


# ------------------------------------------------------------------------------------- its parts


def test_steps_are_done_once_and_another_recipe_is_refused(tmp_path):
    import steps

    made: list[str] = []

    def step(name, needs=(), size=1, fails=False, resumes=False):
        def make(folder):
            made.append(f"{name} {sorted(f.name for f in folder.iterdir())}")
            (folder / "half").touch()
            if fails:
                raise KeyboardInterrupt

        return steps.Step(name, needs, {"size": size}, make, resumes)

    with pytest.raises(KeyboardInterrupt):
        steps.run([step("a"), step("b", ("a",), fails=True)], tmp_path)
    assert made == ["a []", "b []"]
    with pytest.raises(KeyboardInterrupt):  # b begins anew
        steps.run([step("a"), step("b", ("a",), fails=True)], tmp_path)
    steps.run([step("a"), step("b", ("a",), resumes=True)], tmp_path)  # b goes on
    assert made[2:] == ["b []", "b ['half']"]
    steps.run([step("a"), step("b", ("a",))], tmp_path)
    assert len(made) == 4
    with pytest.raises(SystemExit, match="another recipe .size is 2, was 1"):
        steps.run([step("a", size=2), step("b", ("a",))], tmp_path)
    (tmp_path / "a" / "step.json").unlink()
    with pytest.raises(SystemExit, match="b was made by another recipe .a is"):
        steps.run([step("a", size=2), step("b", ("a",))], tmp_path)
    with pytest.raises(SystemExit, match="no step is called c; there are: a, b"):
        steps.run([step("a"), step("b", ("a",))], tmp_path, "c")
    with pytest.raises(SystemExit, match="c needs d, not done yet"):
        steps.run([step("d"), step("c", ("d",))], tmp_path, "c")
    assert set(steps.seconds(tmp_path)["a"]) == {"wall", "cpu"}


def test_nothing_held_out_is_trained_on(folder):
    import texts

    for language, corpus in texts.load(folder).items():
        assert all(corpus), language
        read = "\n".join(corpus.base + corpus.cpt)
        for document in corpus.dev + corpus.test:
            runs = [document[i : i + 60] for i in range(0, len(document) - 60, 60)]
            assert not [run for run in runs if run in read]
    lines = texts.read_lines(folder / "ug_udt_test.txt")
    assert texts.without_overlap([lines[5], "another line"], lines) == ["another line"]
    quoted = texts.without_overlap(["ab" * 40, "x" + "འགྲོ་བ" * 12, "c" * 80], ["འགྲོ བ " * 20])
    assert quoted == ["ab" * 40, "c" * 80]


def test_items_ask_what_they_say(folder):
    import items
    import texts

    corpus = texts.load(folder)
    for language in ("en", "bo", "ug"):
        made = {
            name: make(corpus[language].test, 40, random.Random(3))
            for name, make in items.MAKERS.items()
        }
        assert made == {
            name: make(corpus[language].test, 40, random.Random(3))
            for name, make in items.MAKERS.items()
        }
        whole = " ".join("\n".join(corpus[language].test).split())
        for item in made["choice"]:
            right, wrong = sorted(
                {"".join(filter(items.SIGNS.__contains__, option)) for option in item["choices"]},
                key=lambda signs: signs[0] not in item["prompt"].split("\n")[0],
            )
            assert item["choices"][item["label"]] == item["answer"]
            assert right == right[0] * 3 and wrong == wrong[0] * 3 and right != wrong
            words = [word for word in item["answer"].split() if word not in items.SIGNS]
            assert " ".join([*item["prompt"].split("\n")[1].split(), *words]) in whole
            for option in item["choices"]:
                assert sorted(set(option.split()) - items.SIGNS.keys()) == sorted(set(words))
        for item in made["sign"]:
            (sign,) = set(item["prompt"].split()) & items.SIGNS.keys()
            assert items.SIGNS[sign] == item["answer"] == item["choices"][item["label"]]


def test_nonsense_is_made_of_words_that_were_read():
    import items

    read = [["a b c", "d"], ["x y"]]
    made = items.nonsense(read, 6, random.Random(0))
    assert len(made) == 6 and all(len(text.split()) == items.PIECE for text in made)
    assert {word for text in made for word in text.split()} <= set("abcdxy")
    assert not {"a", "b", "c", "d"} & set(made[1].split()) or not {"x", "y"} & set(made[1].split())


def table(ppl: float, beta: float) -> dict:
    """Scores of three seeds in one place; the point 0.1:beta is the best of the grid."""
    import check

    def cell(noise: float) -> dict:
        points = {f"{a:g}:{b:g}": 40.0 for a, b in check.GRID if (a, b) != (1.0, 1.0)}
        points[f"0.1:{beta:g}"] = 60.0 + noise
        singles = {"large_ins": 50.0, "small_cpt": 45.0, "small_base": 30.0}
        return {**points, **singles, "proxy_tuning": 48.0, "ppl": ppl + noise}

    return {seed: {("bo", "choice"): cell(noise)} for seed, noise in enumerate((-0.5, 0.0, 0.5))}


@pytest.mark.parametrize(
    ("ppl", "beta", "wanted"),
    [
        (58.0, 0.9, ["holds", "holds", "holds", "holds"]),
        (52.0, 0.1, ["holds", "holds", "cannot be told", "does not hold"]),
        (50.0, 0.9, ["cannot be told", "holds", "holds", "does not hold"]),
        (47.0, 0.9, ["does not hold", "does not hold", "holds", "does not hold"]),
    ],
)
def test_claims_are_judged_by_their_errors(ppl, beta, wanted):
    import check

    found = check.claim_results(table(ppl, beta))
    assert [one.verdict for one in found] == wanted
    assert found[0].mean == pytest.approx(ppl - 50)
    assert found[0].error == pytest.approx(0.5 / 3**0.5)
    assert "| 58.0 ± 0.3 |" in check.scores_table(table(58.0, 0.9), "bo")


def test_of_equally_good_points_the_middle_counts():
    import check

    cell = table(58.0, 0.9)[0]["bo", "choice"]
    cell["0.9:0.1"] = cell["0.1:0.9"]
    assert check.claims(cell)["best beta above best alpha"] == pytest.approx(0.0)
