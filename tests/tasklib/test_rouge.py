"""The cut of words for ROUGE-L is OpenNMT's: by hand on every Python, beside it where it is.

`pyonmttok` has packages up to Python 3.12; it is needed by tests only.
"""

from __future__ import annotations

import random
import sys
import unicodedata

import pytest

from tests.support.running import ROOT
from trimix_lm_eval.tasklib import rouge

#: What OpenNMT's Tokenizer 1.38.1 makes of words between spaces.
CUTS = {
    "letters and digits": ("a1b22 ½Ⅷ٣", ["a", "1", "b", "22", "½Ⅷ٣"]),
    # A change of script is no cut, nor is a change of case.
    "scripts": ("Abاب中文བོд", ["Abاب中文བོд"]),
    # Marks stay with what they follow: letters, digits, symbols.
    "marks": ("ཡིག1\u0f72\u03012a€\u0301b", ["ཡིག", "1\u0f72\u03012", "a", "€\u0301", "b"]),
    "a mark at the beginning": ("\u0f72\u0f74ཀ", ["\u0f72\u0f74", "ཀ"]),
    "a mark at the beginning, digit": ("\u0f721", ["\u0f72", "1"]),
    # A space is then their letter, and is written by its code.
    "marks after a space": ("ཀ \u0f72\u0f74ཀ 1", ["ཀ", "％0020\u0f72\u0f74", "ཀ", "1"]),
    "symbols one by one": ("a€€1™b", ["a", "€", "€", "1", "™", "b"]),
    # What OpenNMT writes joiners, spaces and features with is substituted.
    "its own signs": ("▁a￭￨\u0301", ["_", "a", "■", "│\u0301"]),
    "nothing": ("", []),
}


@pytest.mark.parametrize("case", CUTS)
def test_aggressive_mode_by_hand(case):
    text, expected = CUTS[case]
    assert rouge.aggressive(text) == expected


def test_marks_without_letters_are_words_of_a_title():
    # A vowel sign after a tsheg has lost its letter; the words beside it are whole all the same.
    assert rouge.RougeTokenizer().tokenize("བོད་\u0f72ཡིག") == ["བོད", "％0020\u0f72", "ཡིག"]


def test_nothing_but_tests_asks_for_pyonmttok(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyonmttok", None)
    rouge._scorer.cache_clear()
    assert rouge.rouge_l("བོད་ཡིག 2", "བོད་ཡིག") == pytest.approx(2 * 2 / 5)
    tomllib = pytest.importorskip("tomllib", reason="Python >= 3.11 reads pyproject.toml")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert not [one for one in project["dependencies"] if "pyonmttok" in one]
    # Where it has no packages the extra must install all the same.
    (asked,) = [one for one in project["optional-dependencies"]["dev"] if "pyonmttok" in one]
    assert asked.endswith("; python_version < '3.13'")


# ---------------------------------------------------------------- beside pyonmttok


@pytest.fixture(scope="module")
def opennmt():
    tokenizer = pytest.importorskip("pyonmttok").Tokenizer("aggressive")
    return lambda text: tokenizer.tokenize(text)[0]


@pytest.mark.parametrize("case", CUTS)
def test_cuts_by_hand_are_opennmts(opennmt, case):
    text, expected = CUTS[case]
    assert opennmt(text) == expected


def random_texts(number: int) -> list[str]:
    """Texts of characters that Unicode has had since 3.2: any, by category, and difficult ones."""
    rng = random.Random(20)
    known = [
        char
        for char in map(chr, range(0x110000))
        if unicodedata.ucd_3_2_0.category(char) not in ("Cn", "Co", "Cs")
    ]
    kinds: dict[str, list[str]] = {}
    for char in known:
        kinds.setdefault(unicodedata.category(char), []).append(char)
    difficult = "a1 ་།བ\u0674،ب\u180b\u180e\u202fᠮ\u09cdকத\u0bcd\u200c\u200d字༢$|"
    difficult += "￭￨▁％\ufffd\u0f72ΣİŁ½Ⅷ"
    draws = (
        lambda: rng.choice(known),
        lambda: rng.choice(kinds[rng.choice(list(kinds))]),
        lambda: rng.choice(difficult),
    )
    return [
        "".join(rng.choice(draws)() for _ in range(rng.randrange(1, 24))) for _ in range(number)
    ]


def spaced(text: str) -> str:
    """The text as OpenNMT gets it, by Python's table of Unicode."""
    chars = []
    for char in text.lower().replace("\ufffd", ""):
        kind = unicodedata.category(char)
        if char in "\t\r\n$+<=>^`|~" or kind[0] in "PZ":
            chars.append(" ")
        elif kind[0] != "C":
            chars.append(char)
    return " ".join("".join(chars).split())


def test_random_text_is_cut_as_opennmt_cuts_it(opennmt):
    for text in map(spaced, random_texts(2000)):
        assert rouge.aggressive(text) == opennmt(text)


def test_no_category_hides_from_the_cut():
    """Words of random text hold nothing that was to be dropped, whatever this Python's Unicode."""
    tokenizer = rouge.RougeTokenizer()
    for text in random_texts(2000):
        expected = rouge.aggressive(spaced(text))
        found = tokenizer.tokenize(text)
        assert "".join(found) == "".join(expected)
        assert all(word.split() == [word] for word in found)
