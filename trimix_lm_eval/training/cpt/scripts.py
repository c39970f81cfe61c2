"""Which scripts a text is written in, by the Unicode property Script.

Only letters and marks count: digits, punctuation and spaces belong to all scripts.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping

import regex

#: Scripts in living use, by ISO 15924 code. Others are counted as `OTHER`.
NAMES = {
    "Adlm": "Adlam",
    "Arab": "Arabic",
    "Armn": "Armenian",
    "Bali": "Balinese",
    "Beng": "Bengali",
    "Bopo": "Bopomofo",
    "Cakm": "Chakma",
    "Cans": "Canadian Aboriginal",
    "Cham": "Cham",
    "Cher": "Cherokee",
    "Copt": "Coptic",
    "Cyrl": "Cyrillic",
    "Deva": "Devanagari",
    "Ethi": "Ethiopic",
    "Geor": "Georgian",
    "Grek": "Greek",
    "Gujr": "Gujarati",
    "Guru": "Gurmukhi",
    "Hang": "Hangul",
    "Hani": "Han",
    "Hebr": "Hebrew",
    "Hira": "Hiragana",
    "Java": "Javanese",
    "Kana": "Katakana",
    "Khmr": "Khmer",
    "Knda": "Kannada",
    "Lana": "Tai Tham",
    "Laoo": "Lao",
    "Latn": "Latin",
    "Lepc": "Lepcha",
    "Limb": "Limbu",
    "Lisu": "Lisu",
    "Mlym": "Malayalam",
    "Mong": "Mongolian",
    "Mtei": "Meetei Mayek",
    "Mymr": "Myanmar",
    "Nkoo": "N'Ko",
    "Olck": "Ol Chiki",
    "Orya": "Odia",
    "Rohg": "Hanifi Rohingya",
    "Sinh": "Sinhala",
    "Sund": "Sundanese",
    "Syrc": "Syriac",
    "Tale": "Tai Le",
    "Talu": "New Tai Lue",
    "Taml": "Tamil",
    "Telu": "Telugu",
    "Tfng": "Tifinagh",
    "Thaa": "Thaana",
    "Thai": "Thai",
    "Tibt": "Tibetan",
    "Vaii": "Vai",
    "Yiii": "Yi",
}
#: Letters of no script in particular (modifier letters, combining accents), and of scripts that
#: are not in `NAMES`.
COMMON, OTHER = "Zyyy", "other"

#: Codes of languages may name a way of writing that uses several scripts.
_SEVERAL = {
    "Hans": ("Hani",),
    "Hant": ("Hani", "Bopo"),
    "Jpan": ("Hani", "Hira", "Kana"),
    "Kore": ("Hang", "Hani"),
}
_ANY = regex.compile("|".join(rf"(\p{{Script={code}}})" for code in (*NAMES, COMMON, "Zinh")))
_LETTER = regex.compile(r"[\p{L}\p{M}]")


@functools.lru_cache(maxsize=65_536)
def script_of(character: str) -> str:
    """The script of a letter: a key of `NAMES`, `COMMON` or `OTHER`; nothing if it is no letter."""
    if not _LETTER.match(character):
        return ""
    found = _ANY.match(character)
    if not found:
        return OTHER
    return [*NAMES, COMMON, COMMON][found.lastindex - 1]


def histogram(characters: Mapping[str, int]) -> dict[str, int]:
    """Count letters by script, the most frequent first, from how often each character occurs."""
    counts: Counter[str] = Counter()
    for character, count in characters.items():
        script = script_of(character)
        if script and script != COMMON:
            counts[script] += count
    return dict(counts.most_common())


def expected(language: str) -> tuple[str, ...]:
    """The scripts that a language's code names (``swh_Latn``); none if it names none we know."""
    code = language.partition("_")[2]
    return _SEVERAL.get(code, (code,) if code in NAMES else ())
