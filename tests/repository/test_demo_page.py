"""What one sees of the demo: in a log, on a terminal, as a page; and what is published of it."""

from __future__ import annotations

import fcntl
import json
import math
import os
import pty
import re
import shlex
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from tests.support.examples import importable
from tests.support.running import ROOT
from trimix_lm_eval.utils.errors import TrimixError

HERE = ROOT / "examples" / "demo"
#: The demo twice: to where the output goes, and then to the terminal that standard input is.
TWICE = """
import os, sys
sys.path.insert(0, sys.argv.pop(1))
import run

run.main()
for stream in (1, 2):
    os.dup2(0, stream)
run.main()
"""
METHODS = ("large_ins alone", "small_base alone", "small_cpt alone", "Proxy Tuning", "TriMix (ppl)")
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class Shown(NamedTuple):
    """What two runs in one process show: standard output and error of a log, and a terminal."""

    output: str
    errors: str
    terminal: str
    page: str
    folder: Path


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """The demo in an interpreter of its own, first into a log, then on a terminal."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("TQDM_")}
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    folder = tmp_path_factory.mktemp("log")
    with (folder / "out").open("wb") as output, (folder / "err").open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", TWICE, str(HERE), "--limit", "3"],
            stdin=theirs,
            stdout=output,
            stderr=errors,
            env={**env, "TERM": "xterm-256color", "OMP_NUM_THREADS": "1"},
            cwd=folder,
        )
    os.close(theirs)
    drawn = b""
    try:
        while chunk := os.read(ours, 4096):
            drawn += chunk
    except OSError:  # what Linux says when nobody writes to a terminal any more
        pass
    os.close(ours)
    assert process.wait() == 0, (folder / "err").read_text()
    page = folder / "results/demo/limit3/demo.html"
    told = [(folder / name).read_text(encoding="utf-8") for name in ("out", "err")]
    return Shown(*told, drawn.decode(), page.read_text(encoding="utf-8"), folder)


def rows(text: str) -> dict[str, list[str]]:
    """By method, the numbers of the table, wherever it stands in a text."""
    found = {}
    for line in COLOURS.sub("", text).splitlines():
        name = next((name for name in METHODS if f"│ {name}" in line), None)
        if name:
            found[name] = [cell.strip() for cell in line.split("│")[2:-1]]
    return found


def test_a_log_holds_the_page_and_no_colours(shown):
    assert not re.search(r"[\r\x1b]", shown.output)
    found = rows(shown.output)
    assert tuple(found) == METHODS
    for numbers in found.values():
        assert re.fullmatch(r"\d\.\d{3}[*°]?", numbers[0])
        assert all(re.fullmatch(r"\d+\.\d[*°]?", number) for number in numbers[1:])
    assert shown.output.count("n = 3") == 5 and "What to do next" in shown.output
    assert re.search(r"results/demo/limit3/demo.html shows the same. \(\d+ s\)", shown.output)


def test_a_terminal_shows_the_same_in_colours_without_running_anything_again(shown):
    assert rows(shown.terminal) == rows(shown.output)
    assert "\x1b[1;34mlarge_ins" in shown.terminal
    table = COLOURS.sub("", shown.terminal).split("The table")[1].split("*: best")[0]
    assert "…" not in table and "bits/byte" in table, "all of it has room in 80 columns"
    assert "answer/s" in shown.errors and "answer/s" not in shown.terminal


def test_a_terminal_without_tibetan_and_a_reader_who_leaves(shown):
    env = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    process = subprocess.Popen(
        [sys.executable, str(HERE / "run.py"), "--limit", "3"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**env, "OMP_NUM_THREADS": "1"},
        cwd=shown.folder,
    )
    assert b"TriMix: three models" in process.stdout.readline()
    process.stdout.close()
    errors = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait() == 0 and "Traceback" not in errors, errors


def test_the_page_shows_the_same_and_loads_nothing(shown):
    text = re.sub(r"<[^>]+>", "", shown.page)
    assert rows(text) == rows(shown.output)
    assert "<title>TriMix: the demo</title>" in shown.page
    assert not re.search(r"<(script|link|img)|url\(|@import", shown.page)


def test_an_answer_is_told_in_colours_or_in_signs():
    with importable(HERE):
        import page
        from answers import Answers
        from rich.console import Console

        one = Answers(
            "say",
            "Ruth: a b\nOnce more, Ruth:",
            "a b",
            {"large_ins": "a c", "small_cpt": ""},
            [("a", "small_cpt"), (" b", "large_ins"), ("c", None)],
            won=3,
            lost=1,
            n=40,
        )
        console = Console(width=100, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
        console.print(page._answers(one, colours=False))
        text = " ".join(console.export_text().replace("│", " ").split())
        assert "a[C] b[L]c[-]" in text and "small_cpt [C]" in text and "small_base" not in text
        assert "only TriMix has 3 of 40 questions right, of which this is the first" in text
        assert "all models alone have right it has 1 wrong" in text
        assert "large_ins alone a c small_cpt alone (nothing) TriMix" in text
        spans = page._fused(one, colours=True).spans
        assert [span.style for span in spans] == ["bold red", "bold blue", "dim"]


def test_the_commands_that_it_ends_with_work(tmp_path, monkeypatch, capsys):
    from trimix_lm_eval import cli

    with importable(HERE):
        from page import COMMANDS
    run, why, language = (shlex.split(command, comments=True) for _, command in COMMANDS)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert shlex.join(run) in readme, "where a test runs it"
    monkeypatch.chdir(tmp_path)
    assert why[0] == language[0] == "trimix"
    assert cli.main(why[1:]) == 0 and (tmp_path / "why.html").stat().st_size > 10_000
    with pytest.raises(SystemExit) as ended:
        cli.main(language[1:])
    assert ended.value.code == 0 and "--text" in capsys.readouterr().out


# ---------------------------------------------------------------------------- what is published


@pytest.fixture(scope="module")
def measured():
    path = ROOT / "trimix_lm_eval" / "loading" / "demo" / "measured.json"
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_readme_shows_the_table_that_was_measured(measured):
    with importable(HERE):
        import table

        text = table.markdown(table.loaded(json.dumps(measured)))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"<!-- demo-table -->\n{text}\n<!-- /demo-table -->" in readme
    told = " ".join(readme.split())
    assert f"Standard errors: {table.errors(table.loaded(json.dumps(measured)))}." in told
    assert f"paired bootstrap, p ≥ {table.SURE:g} by Holm" in told


def sign_test(better: int, worse: int) -> float:
    """Two-sided p of McNemar's exact test."""
    n, k = better + worse, min(better, worse)
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n) if n else 1.0


def against(ours: str, theirs: str) -> tuple[int, int]:
    """Questions that only we, and that only they have right."""
    pairs = list(zip(ours, theirs, strict=True))
    return pairs.count(("1", "0")), pairs.count(("0", "1"))


def columns(measured) -> dict[str, dict[str, np.ndarray]]:
    """By column and policy, what each document adds to a number's numerator and denominator."""
    found = {}
    for task, rows in measured["right"].items():
        found[task] = {p: np.array([[100 * int(one), 1] for one in row]) for p, row in rows.items()}
    for task, rows in measured["nats"].items():
        file = ROOT / "tasks" / "demo" / "data" / f"{task.removeprefix('trimix_demo_')}.jsonl"
        texts = [json.loads(line)["text"] for line in file.read_text("utf-8").splitlines()]
        sizes = [math.log(2) * len(text.encode()) for text in texts]
        found[task] = {p: np.column_stack([row, sizes]) for p, row in rows.items()}
    return {task.removeprefix("trimix_demo_"): rows for task, rows in found.items()}


def resampled(rows: np.ndarray, column: str) -> np.ndarray:
    """A number on 4,000 resamples of its documents, the same for all methods of a column."""
    draws = np.random.default_rng(list(column.encode())).multinomial(
        len(rows), [1 / len(rows)] * len(rows), 4000
    )
    numerator, denominator = (draws @ rows).T
    return numerator / denominator


def test_the_table_follows_from_the_documents(measured):
    """Values, errors and marks, by a bootstrap of the test's own."""
    found = columns(measured)
    titles = {"rolling": "text"}
    asked = [column for column in found if column != "rolling"]
    assert asked == ["finish", "follow", "say", "gloss_to"]
    for column in [*found, "mean"]:
        many = asked if column == "mean" else [column]
        values, draws = {}, {}
        for policy, number in (
            (policy, row[titles.get(column, column)]) for policy, row in measured["table"].items()
        ):
            parts = [found[one][policy] for one in many]
            values[policy] = np.mean([a.sum() / b.sum() for a, b in (part.T for part in parts)])
            draws[policy] = np.mean(
                [resampled(part, one) for part, one in zip(parts, many, strict=True)], axis=0
            )
            assert number["n"] == sum(map(len, parts))
            assert {len(part) for part in parts} == {100 if column == "rolling" else 400}
            assert number["value"] == pytest.approx(values[policy], rel=1e-5)
            assert number["stderr"] == pytest.approx(draws[policy].std(), rel=0.06)
            if column in asked:  # of shares there is a formula, too
                p, n = values[policy] / 100, number["n"]
                assert number["value"] == pytest.approx(values[policy])
                assert number["stderr"] == pytest.approx(100 * (p * (1 - p) / (n - 1)) ** 0.5)
        check_marks(measured, titles.get(column, column), values, draws)


def check_marks(measured, title, values, draws):
    sign = -1 if title == "text" else 1
    best = max(values, key=lambda policy: sign * values[policy])
    p = {}
    for policy, its in draws.items():
        if policy != best:
            lost = np.mean(sign * (draws[best] - its) <= 0)
            p[policy] = min(1.0, 2 * lost)
    ranked = sorted(p, key=p.__getitem__)
    corrected = np.maximum.accumulate([(len(p) - i) * p[one] for i, one in enumerate(ranked)])
    for policy, value in zip(ranked, corrected, strict=True):
        if not 0.03 < value < 0.08:  # where two bootstraps may differ
            expected = "level" if value >= 0.05 else ""
            assert measured["table"][policy][title]["mark"] == expected, (title, policy, value)
    assert measured["table"][best][title]["mark"] == "best"


def test_what_the_readme_claims_holds(measured):
    table, right = measured["table"], measured["right"]
    assert all(number["mark"] for number in table["ppl"].values()), "best or level everywhere"
    means = {policy: row["mean"]["value"] for policy, row in table.items()}
    assert means["ppl"] > means["proxy_tuning"]
    singles = ("large_ins", "small_cpt", "small_base")
    surely = table["ppl"]["text"]["mark"] == "best" and not any(
        table[policy]["text"]["mark"] for policy in singles
    )
    above = ["text"] if surely else []
    for task, answers in right.items():
        best = max(singles, key=lambda policy: answers[policy].count("1"))
        better, worse = against(answers["ppl"], answers[best])
        if better > worse and sign_test(better, worse) < 0.05:
            above.append(task)
    assert len(above) >= 2, above


def test_the_first_answers_come_out_as_they_were_measured(measured, tmp_path):
    with importable(HERE):
        import table

        runs = table.evaluate(tmp_path, limit=16)
        same = total = 0
        for task, answers in measured["right"].items():
            for policy, row in table.right(runs, task).items():
                expected = [one == "1" for one in answers[policy][:16]]
                same += sum(a == b for a, b in zip(row, expected, strict=True))
                total += len(row)
    assert total == 16 * 5 * 4 and same >= total - 2  # processors round differently


@pytest.mark.parametrize(
    ("raised", "says"),
    [
        (TrimixError("The results are of other models.", "delete them"), "error: The.*delete them"),
        (IsADirectoryError(21, "Is a directory", "d.html"), "error: cannot use d.html: Is a dir"),
        (KeyboardInterrupt(), "stopped; the same command goes on"),
    ],
)
def test_what_goes_wrong_is_said_in_words(raised, says, tmp_path, monkeypatch):
    def evaluate(*_):
        raise raised

    with importable(HERE):
        import run
        import table

        monkeypatch.setattr(table, "evaluate", evaluate)
        monkeypatch.setattr(sys, "argv", ["run.py", "--output", str(tmp_path)])
        with pytest.raises(SystemExit, match=re.compile(says, re.S)):
            run.main()
