"""Cells that spreadsheets would run: none in what we write, all there again when read back."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trimix_lm_eval.utils import csv_text

STARTS = "=+-@\t\r\n＝＋－＠"


@pytest.mark.parametrize("start", STARTS)
def test_no_text_starts_a_formula(start):
    cell = csv_text.escaped(f"{start}cmd|' /C calc'!A0")
    assert cell[0] == "'" and cell[1] == start


@pytest.mark.parametrize("text", ["-1", "+1.5e-3", "-inf", "acc", "", "a=b", "'quoted'", "–"])
def test_numbers_and_other_texts_stay(text):
    assert csv_text.escaped(text) == csv_text.plain(text) == text


@example("'=1")
@example("''-1")
@example("\r\n=1")
@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from("'=+-@\t\r\n1e. ,\"a\ufeff")))
def test_reading_undoes_writing(text):
    (_, (cell, number, empty)) = csv.reader(
        io.StringIO(csv_text.text("abc", [[text, -1.5, None]]), newline="")
    )
    assert (csv_text.plain(cell), number, empty) == (text, "-1.5", "")
    if cell[:1] and cell[0] in STARTS:
        float(cell)


@pytest.mark.parametrize("cell", ["\ud800", "\0"])
def test_what_no_file_can_hold_is_a_question_mark(cell):
    assert csv_text.text(["a"], [[cell]]) == "a\n?\n"
