"""Requests by what stands for them in the journal, and answers as the journal keeps them."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from trimix_lm_eval.fusion.collectors import Choice
from trimix_lm_eval.fusion.weights import Weights
from trimix_lm_eval.harness import instances
from trimix_lm_eval.llm import Generation

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance


class Asked(NamedTuple):
    """A request.

    Attributes:
        key: Stands for it in the journal.
        request: lm-eval's.
        job: Of a text to be generated, how.
    """

    key: bytes
    request: Instance
    job: tuple[str, Generation] | None


def identified(
    kind: str, requests: Sequence[Instance], jobs: Sequence[tuple[str, Generation]] | None
) -> list[Asked]:
    """Give requests their keys; repeats of one count as others only if they are drawn.

    Args:
        kind: Of request: the name of lm-eval's method.
        requests: All of this kind.
        jobs: How each text is to be generated; None for other kinds.
    """
    seen: Counter[tuple[Any, ...]] = Counter()
    made = []
    for i, request in enumerate(requests):
        where = (request.task_name, request.doc_id, request.idx)
        job = jobs[i] if jobs else None
        repeat = seen[where] if job and job[1].temperature > 0 else 0
        seen[where] += 1
        made.append(Asked(key(kind, *where, repeat, request.args), request, job))
    return made


def missing(
    kind: str, asked: Sequence[Asked], known: Sequence[set[bytes]]
) -> dict[tuple[int, ...], list[Asked]]:
    """Requests by the variants that lack an answer to them.

    Options of a question that differ in context share the weights of what their contexts have in
    common: such a question is asked as a whole or not at all.

    Args:
        kind: Of request.
        asked: All of this kind; what occurs twice is returned once.
        known: What is answered, for each variant.
    """
    contexts: dict[Any, set[str]] = {}
    for one in asked:
        question = instances.question_of(one.request)
        contexts.setdefault(question, set()).add(one.request.args[0])
    wholes: dict[Any, dict[bytes, Asked]] = {}
    for one in asked:
        question = instances.question_of(one.request)
        several = kind == "loglikelihood" and len(contexts[question]) > 1
        wholes.setdefault(question if several else one.key, {})[one.key] = one
    groups: dict[tuple[int, ...], list[Asked]] = {}
    for whole in wholes.values():
        lacking = tuple(i for i, keys in enumerate(known) if not keys.issuperset(whole))
        if lacking:
            groups.setdefault(lacking, []).extend(whole.values())
    return groups


def key(*parts: Any) -> bytes:
    """What stands for something that JSON can write: 16 bytes."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).digest()[:16]


def encoded(result: Any, choice: Choice | None) -> str:
    """An answer as the journal keeps it. JSON gives every float back as it was."""
    return json.dumps([result, choice])


def decoded(text: str) -> tuple[Any, Choice | None]:
    """Result and choice of an answer; a result that was a tuple is a list."""
    result, choice = json.loads(text)
    if choice is None:
        return result, None
    weights, nll, tokens, nlls = choice
    return result, Choice(Weights(*weights), nll, tokens, None if nlls is None else tuple(nlls))
