"""Multilingual ROUGE-L: the scoring of XL-Sum (Hasan et al. 2021) over kept libraries.

Stock `rouge-score` keeps [a-z0-9] only, which leaves nothing of Tibetan or Odia. XL-Sum's fork
tokenizes by Unicode instead; the longest common subsequence is the library's own.

Categories of characters are those of the `regex` library, so that every Python counts alike. XL-Sum
takes them from Python and from ICU: letters that Unicode has only added after 14.0 are words here,
and are dropped or stand alone there, by their version.
"""

from __future__ import annotations

import functools
from typing import Any

import regex

#: What no word is made of: category C, and the character for bytes that no decoder could read.
_DROPPED = regex.compile(r"[\p{C}--[\t\n\r]]|\ufffd", regex.VERSION1)
#: White space, punctuation, and the symbols of ASCII that only XL-Sum, after BERT, counts as such.
_BLANK = regex.compile(r"[\t\n\r\p{Z}\p{P}$+<=>^`|~]+")
#: The words of OpenNMT's `aggressive` mode: letters, numbers, and all else one by one, each with
#: the marks that follow it. Marks after a space have the space for their letter.
_WORD = regex.compile(r"(?:\p{L}\p{M}*)+|(?:\p{N}\p{M}*)+|\ \p{M}+|[^\ ]\p{M}*")
#: How OpenNMT writes what it needs for itself.
_SUBSTITUTES = str.maketrans("▁￭￨", "_■│")
_SPACE = "％0020"
#: A Chinese character, by BERT's blocks.
_CJK = regex.compile(
    r"[\u4e00-\u9fff\u3400-\u4dbf\U00020000-\U0002a6df\U0002a700-\U0002ceaf"
    r"\uf900-\ufaff\U0002f800-\U0002fa1f]"
)


def rouge_l(reference: str, hypothesis: str) -> float:
    """ROUGE-L as XL-Sum computes it without a stemmer, the measure of MiLiC-Eval's titles.

    The F measure, from 0 to 1.
    """
    return float(_scorer().score(reference, hypothesis)["rougeL"].fmeasure)


class RougeTokenizer:
    """Cuts text of any script into words.

    Lower case; characters of category C dropped, except line ends and tabs; cut at white space and
    at punctuation, which is dropped (a Tibetan tsheg is punctuation, so syllables are the words);
    then OpenNMT's `aggressive` cut, which parts letters from digits; Chinese characters alone.
    Variation selectors and vowel signs stay with their letters.
    """

    def tokenize(self, text: str) -> list[str]:
        """Return the words of a text."""
        text = _BLANK.sub(" ", _DROPPED.sub("", text.lower())).strip(" ")
        return _CJK.sub(r" \g<0> ", " ".join(aggressive(text))).split()


def aggressive(text: str) -> list[str]:
    """The tokens of OpenNMT's Tokenizer in its mode `aggressive`, without its options.

    The text is words between single spaces. Placeholders, other separators and the full-width signs
    that it substitutes are left out: they are punctuation or white space, of which `RougeTokenizer`
    leaves nothing but spaces.
    """
    words = _WORD.findall(text.translate(_SUBSTITUTES))
    return [_SPACE + word[1:] if word[0] == " " else word for word in words]


@functools.cache
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], tokenizer=RougeTokenizer())
