"""Damaged results and samples: a number is the file's own, or the damage is named; no traceback."""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.analysis.test_export import submittable
from tests.support.fuzzing import Damage, budget, command, damaged_bytes, inside, mutated, no_hang
from tests.support.results_files import aggregate, trimix_config, write_run
from trimix_lm_eval.analysis import results
from trimix_lm_eval.analysis.explain.samples import read_sample
from trimix_lm_eval.analysis.report import csv_files, model, page
from trimix_lm_eval.utils.errors import TrimixError

TASKS = {"trimix_sib200_bod_Tibt": [1, 0, 1, 1], "trimix_sib200_tel_Telu": [0, 0, 1]}
ONE = next(iter(TASKS))


@pytest.fixture(scope="module", autouse=True)
def no_pictures():
    """They take a second, and what they show is in the tables."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "pictures", lambda plane: ())
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a sound run and one to be damaged, each with samples and a group."""
    with inside(tmp_path_factory.mktemp("results")) as folder:
        write_run(folder / "in" / "sound", TASKS, trimix=trimix_config("ent"), date=1.78e9)
        chosen = {task: {"0.3:0.9": 2, "1:1": 1} for task in TASKS}
        config = trimix_config("ppl", grid=[[0.3, 0.9], [1, 1]], weights_chosen=chosen)
        damaged = write_run(folder / "in" / "damaged", TASKS, trimix=config)
        for path in (damaged, *(folder / "in" / "sound").glob("results*")):
            aggregate(path, "trimix_sib200", list(TASKS))
        shutil.copytree(folder / "in" / "damaged", folder / "kept")
        yield folder


@pytest.fixture(scope="module")
def file(place):
    return next((place / "in" / "damaged").glob("results*"))


@pytest.fixture(scope="module")
def whole(file):
    return json.loads(file.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def sound(place):
    """The lines of the sound run in the tables of a report, whatever lies beside it."""
    return scores(place)["sound"]


def scores(place: Path) -> dict[str, list[dict[str, str]]]:
    """The lines of a report's table of scores, by the run whose they are; and its problems."""
    found: dict[str, list[dict[str, str]]] = {"sound": [], "damaged": [], "problems": []}
    with no_hang():
        runs, problems = results.read([place / "in"])
        report = model.assemble(runs, problems)
        page.render(report, "page.html.j2", generator="")
        page.render(report, "page.md.j2", {})
        tables = csv_files.csv_files(report)
    for line in csv.DictReader(io.StringIO(tables["scores.csv"])):
        for name in ("sound", "damaged"):
            if line["files"].count(".json") == line["files"].count(f"/{name}/"):
                found[name].append(line)
    found["problems"] = list(csv.DictReader(io.StringIO(tables.get("problems.csv", ""))))
    return found


def plain_scores(text: bytes) -> list[float]:
    """All numbers in what may be the scores of a results file, read without any care."""
    found: list[float] = []

    def look(value: Any) -> None:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            found.append(float(value) if abs(value) < 1e300 else math.inf)
        for one in (
            value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        ):
            look(one)

    try:
        raw = json.loads(text)
        look({key: raw.get(key) for key in ("results", "groups")} if isinstance(raw, dict) else {})
    except (ValueError, RecursionError, UnicodeError):
        pass
    return found


def check_report(place: Path, file: Path, sound: list[dict[str, str]]) -> None:
    """The sound run's numbers are as ever; each of the damaged one is in its file."""
    found = scores(place)
    assert set(map(values, found["sound"])) == set(map(values, sound))
    known = plain_scores(file.read_bytes())
    for line in found["damaged"]:
        if len(line["tasks"].split()) == 1:
            assert any(math.isclose(float(line["value"]), one) for one in known), line
    if not found["damaged"]:
        assert any("damaged" in line["file"] for line in found["problems"]), "lost without a word"


def values(line: dict[str, str]) -> tuple[str, ...]:
    return line["tasks"], line["metric"], line["value"], line["n"]


@budget(25)
@given(data=st.data())
def test_changed_entries_of_results(place, file, whole, sound, data):
    changed = data.draw(mutated(whole))
    file.write_text(json.dumps(changed), encoding="utf-8")
    check_report(place, file, sound)


@budget(25)
@given(damage=damaged_bytes())
def test_damaged_bytes_of_results(place, file, whole, sound, damage: Damage):
    file.write_bytes(damage(json.dumps(whole, indent=2).encode()))
    check_report(place, file, sound)


class Sent(NamedTuple):
    whole: dict[str, Any]
    csv: bytes


@pytest.fixture(scope="module")
def sent(place):
    """What may be submitted: a results file, and the CSV of it."""
    file = submittable(place / "submittable", "ppl")
    assert command(["export", "submittable", "--to", "csv", "--output", "csv"]).code == 0
    return Sent(json.loads(file.read_text()), Path("csv/results.csv").read_bytes())


FORMATS = ("eval-results", "model-index", "card", "csv")
WAYS = [
    ["report", "submittable", "--output", "out/report", "--force"],
    *(["export", "submittable", "--to", to, "--output", "out/export"] for to in FORMATS),
    ["leaderboard", "submittable", "--output", "out/site"],
    ["compare", "submittable", "--output", "out/compare"],
]


@budget(20)
@given(way=st.sampled_from(WAYS), damage=damaged_bytes(), data=st.data())
def test_commands_that_read_results(sent, way, damage: Damage, data):
    shutil.rmtree("out", ignore_errors=True)
    file, whole = next(Path("submittable").glob("results*")), sent.whole
    if data.draw(st.booleans()):
        file.write_bytes(damage(json.dumps(whole).encode()))
    else:
        file.write_text(json.dumps(data.draw(mutated(whole))), encoding="utf-8")
    command(way)


@budget(20)
@given(damage=damaged_bytes(), data=st.data())
def test_a_leaderboard_of_damaged_csv(sent, damage: Damage, data):
    shutil.rmtree("out", ignore_errors=True)
    text = damage(sent.csv)
    if data.draw(st.booleans()):
        rows = data.draw(mutated(list(csv.reader(io.StringIO(sent.csv.decode())))))
        made = io.StringIO()
        csv.writer(made).writerows(row if isinstance(row, list) else [row] for row in rows)
        text = made.getvalue().encode("utf-8", "surrogatepass")
    Path("csv/results.csv").write_bytes(text)
    command(["leaderboard", "csv", "--output", "out/site"])


# ---------------------------------------------------------------- samples

SAMPLE = {
    "doc_id": 0,
    "doc": {"q": "a"},
    "target": "1",
    "arguments": {"gen_args_0": {"arg_0": "the hen", "arg_1": " ran"}},
    "resps": [[["-1.5", "False"]]],
    "filtered_resps": [["-1.5", "False"]],
    "filter": "none",
    "metrics": ["acc"],
    "acc": 1.0,
}
TEXT = {
    **SAMPLE,
    "doc_id": 1,
    "arguments": {
        "gen_args_0": {"arg_0": "the hen", "arg_1": "{'until': ['x'], 'temperature': 0}"}
    },
    "resps": [["and so"]],
}


@budget(40)
@given(damage=damaged_bytes(), data=st.data())
def test_samples_to_be_explained(place, damage: Damage, data):
    path = Path("samples_t_2026-11-01T00-00-00.000000.jsonl")
    lines = data.draw(mutated([SAMPLE, TEXT])) if data.draw(st.booleans()) else [SAMPLE, TEXT]
    text = "".join(json.dumps(line) + "\n" for line in lines).encode()
    path.write_bytes(damage(text) if lines == [SAMPLE, TEXT] else text)
    for doc in (0, 1):
        try:
            with no_hang():
                read_sample(path, doc)
        except TrimixError as error:
            assert path.name in str(error)


@budget(12)
@given(damage=damaged_bytes(), data=st.data())
def test_damaged_samples_change_no_score(place, file, whole, damage: Damage, data):
    """What is tested and averaged with them may be gone; then a reason is in its place."""
    file.write_text(json.dumps(whole), encoding="utf-8")
    name = next(path.name for path in (place / "kept").glob(f"samples_{ONE}*"))
    samples, kept = file.with_name(name), (place / "kept" / name).read_bytes()
    try:
        samples.write_bytes(kept)
        before = scores(place)
        if data.draw(st.booleans()):
            samples.write_bytes(damage(kept))
        else:
            lines = data.draw(mutated([json.loads(line) for line in kept.splitlines()]))
            samples.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        after = scores(place)
    finally:
        samples.write_bytes(kept)
    for old, new in zip(before["damaged"], after["damaged"], strict=True):
        assert values(old) == values(new)
        if old["p"] != new["p"]:
            assert new["p"] == "" and new["significance"], (old, new)
