"""Which languages SIB-200 and Belebele have, and what they are called in English.

Sources of `flores.tsv`: names and codes from the README of FLORES-200 (facebookresearch/flores)
and, for the romanized ones, of Belebele (facebookresearch/belebele); the 205 codes of SIB-200 from
the folders of its authors' repository (dadelani/sib-200 at e7a1721), which has sat_Olck where that
README has sat_Beng, and nqo_Nkoo; the 122 codes of Belebele from the splits of facebook/belebele
on the Hub, as lm-eval lists them. Names are as short as prompts want them.
"""

from __future__ import annotations

import csv
import functools
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

_FILE = Path(__file__).with_name("flores.tsv")


class Language(NamedTuple):
    """A language of FLORES-200, or one that Belebele adds: code (``swh_Latn``) and English name.

    ``benchmarks`` are those that have it, of ``sib200`` and ``belebele``.
    """

    code: str
    name: str
    benchmarks: tuple[str, ...]


@functools.cache
def known() -> dict[str, Language]:
    """All languages, by code."""
    with _FILE.open(encoding="utf-8", newline="") as stream:
        rows = csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
        return {
            row["code"]: Language(row["code"], row["name"], tuple(row["benchmarks"].split()))
            for row in rows
        }


def near(code: str) -> list[Language]:
    """Languages that a code may mean which is not known: another case, or the language alone."""
    by_lower = {one.lower(): language for one, language in known().items()}
    start = code.lower().replace("-", "_").partition("_")[0]
    same = [language for one, language in by_lower.items() if one.partition("_")[0] == start]
    close = get_close_matches(code.lower().replace("-", "_"), by_lower, n=3, cutoff=0.8)
    return list(dict.fromkeys([*same, *(by_lower[one] for one in close)]))[:3]
