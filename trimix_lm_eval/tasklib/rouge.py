"""Multilingual ROUGE-L: the scoring of XL-Sum (Hasan et al. 2021) over kept libraries.

Stock `rouge-score` keeps [a-z0-9] only, which leaves nothing of Tibetan or Odia. XL-Sum's fork
tokenizes by Unicode instead; the longest common subsequence is the library's own.
"""

from __future__ import annotations

import functools
import unicodedata
from typing import Any

from trimix_lm_eval.utils.errors import TrimixError

#: Symbols of ASCII that Unicode does not count as punctuation; XL-Sum, after BERT, does.
_SYMBOLS = frozenset("$+<=>^`|~")
#: Blocks of Chinese characters, first and last code point.
_CJK = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)


def rouge_l(reference: str, hypothesis: str) -> float:
    """ROUGE-L as XL-Sum computes it without a stemmer, the measure of MiLiC-Eval's titles.

    Args:
        reference: The true title.
        hypothesis: The generated one.

    Returns:
        The F measure, from 0 to 1.

    Raises:
        TrimixError: pyonmttok is not installed.
    """
    return float(_scorer().score(reference, hypothesis)["rougeL"].fmeasure)


class RougeTokenizer:
    """Cuts text of any script into words.

    Lower case; characters of category C dropped, except line ends and tabs; cut at white space and
    at punctuation, which is dropped (a Tibetan tsheg is punctuation, so syllables are the words);
    then OpenNMT's `aggressive` cut, which parts letters from digits; Chinese characters alone.
    Variation selectors and vowel signs stay with their letters.
    """

    def __init__(self) -> None:
        self._opennmt = _opennmt()

    def tokenize(self, text: str) -> list[str]:
        """Return the words of a text."""
        words = "".join(_plain(char) for char in text.lower()).split()
        cut, _ = self._opennmt.tokenize(" ".join(words))
        return "".join(f" {c} " if _is_cjk(c) else c for c in " ".join(cut)).split()


def _plain(char: str) -> str:
    """A character as the tokenizer sees it: itself, a space, or nothing."""
    if char in "\t\n\r":
        return " "
    category = unicodedata.category(char)
    if category[0] == "C" or char == "\ufffd":
        return ""
    return " " if category == "Zs" or category[0] == "P" or char in _SYMBOLS else char


def _is_cjk(char: str) -> bool:
    return any(first <= ord(char) <= last for first, last in _CJK)


@functools.cache
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], tokenizer=RougeTokenizer())


def _opennmt() -> Any:
    try:
        import pyonmttok
    except ImportError as error:
        raise TrimixError(
            "ROUGE-L of titles needs pyonmttok, which is not installed.",
            "pip install pyonmttok (it has packages for Python 3.10 to 3.12)",
        ) from error
    return pyonmttok.Tokenizer("aggressive")
