"""One answer of a model -> numbers: the `process_results` of the tasks.

Each takes a document and lm-eval's list of results for it, and returns a value per metric. Besides
the benchmark's own metric each gives ``score``, from 0 to 1, so that groups can average over tasks.

Answers to be generated are cut as TriMix's authors do: the first line, stripped.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from trimix_lm_eval.tasklib.rouge import rouge_l

Doc = dict[str, Any]
#: Of each option, its log-likelihood and whether it is what greedy decoding would say.
Likelihoods = Sequence[tuple[float, bool]]


def choice(doc: Doc, results: Sequence[str]) -> dict[str, Any]:
    """Score a generated letter: the first character if it is one of A to E, else the whole line."""
    line = answer_line(results[0])
    answer = line[0] if line[:1] in ("A", "B", "C", "D", "E") else line
    return _hit(answer == doc["answer"])


def label(doc: Doc, results: Sequence[str]) -> dict[str, Any]:
    """Score a generated label: the first line, compared without regard to case."""
    gold, answer = doc["label"].lower(), answer_line(results[0]).lower()
    return {**_hit(gold == answer), **_f1(gold, answer)}


def number(doc: Doc, results: Sequence[str]) -> dict[str, Any]:
    """Score the last number in a generated solution, compared as floats."""
    answer = last_number(answer_line(results[0]))
    return _hit(answer is not None and answer == float(doc["answer"]))


def title(doc: Doc, results: Sequence[str]) -> dict[str, Any]:
    """Score a generated title by ROUGE-L."""
    value = rouge_l(doc["title"], answer_line(results[0]))
    return {"rouge_l": value, "score": value}


def translation(doc: Doc, results: Sequence[str]) -> dict[str, Any]:
    """Pair a generated translation with the true one, for corpus chrF++."""
    pair = (doc["target"], answer_line(results[0]))
    # An error comes after its metric: lm-eval writes N/A under that name first.
    return dict.fromkeys(("chrf++", "chrf++_stderr", "score", "score_stderr"), pair)


def choice_ll(doc: Doc, results: Likelihoods) -> dict[str, Any]:
    """Score the likeliest letter."""
    return _hit(_best(results) == doc["gold"])


def label_ll(doc: Doc, results: Likelihoods) -> dict[str, Any]:
    """Score the likeliest label; for ``acc_norm``, the likeliest per character (as lm-eval)."""
    answer = _best(results)
    normed = _best(results, doc["labels"])
    return {
        **_hit(answer == doc["gold"]),
        "acc_norm": float(normed == doc["gold"]),
        **_f1(doc["label"].lower(), doc["labels"][answer].lower()),
    }


def answer_line(text: str) -> str:
    """The first line of a generated text, stripped."""
    return text.strip().partition("\n")[0].strip()


def last_number(line: str) -> float | None:
    r"""The last number in a line, or None: commas are dropped, signs ignored.

    Digits of all scripts count, as in Python's ``\d``. A full stop at the end is not part of it.
    """
    found = re.findall(r"\d+\.\d+|\d+", line.replace(",", ""))
    return float(found[-1]) if found else None


def _hit(right: bool) -> dict[str, float]:
    return {"acc": float(right), "score": float(right)}


def _f1(gold: str, answer: str) -> dict[str, tuple[str, str]]:
    return dict.fromkeys(("f1", "f1_stderr"), (gold, answer))


def _best(likelihoods: Likelihoods, texts: Sequence[str] | None = None) -> int:
    """The index of the likeliest option, per character of its text if texts are given."""
    lengths = [len(text) for text in texts] if texts else [1] * len(likelihoods)
    values = [value / n for (value, _), n in zip(likelihoods, lengths, strict=True)]
    return values.index(max(values))
