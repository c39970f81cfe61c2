"""Requests by what stands for them in the journal, and answers as the journal keeps them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from lm_eval.api.instance import Instance

from trimix_lm_eval.engine.sampler import SamplingParams
from trimix_lm_eval.fusion.collectors import Choice
from trimix_lm_eval.fusion.weights import Weights
from trimix_lm_eval.harness.base_lm import Identity
from trimix_lm_eval.harness.lm import identified, question_of


class KeyedRequest(NamedTuple):
    """A request of lm-eval with its key in the journal; `params` are of generation only."""

    key: bytes
    request: Instance
    name: Identity
    params: SamplingParams | None


def keyed(
    kind: str, requests: Sequence[Instance], params: Sequence[SamplingParams] | None
) -> list[KeyedRequest]:
    """Give requests their keys; repeats of one count as others only if they are drawn."""
    made = []
    for i, (request, name) in enumerate(zip(requests, identified(requests), strict=True)):
        how = params[i] if params else None
        repeat = name[-1] if how and how.temperature > 0 else 0
        made.append(KeyedRequest(key(kind, *name[:-1], repeat, request.args), request, name, how))
    return made


def missing(
    kind: str, asked: Sequence[KeyedRequest], known: Sequence[set[bytes]]
) -> dict[tuple[int, ...], list[list[KeyedRequest]]]:
    """What is asked together, by the variants that lack an answer to it; `known` is what each has.

    What is scored after one context runs together, and the options of a question share the choice
    of its weights: they are asked as a whole or not at all, so that each answer is to the last bit
    what it is in a run that is not interrupted. What occurs twice is returned once.
    """
    first: dict[Any, Any] = {}

    def together(name: Any) -> Any:
        """What stands for all that is asked with it."""
        while first.setdefault(name, name) != name:
            name = first[name]
        return name

    if kind == "loglikelihood":
        for one in asked:
            question, context = question_of(one.request), one.request.args[0]
            if context:  # texts that follow nothing have nothing in common
                first[together(question)] = together(("context", context))
    wholes: dict[Any, dict[bytes, KeyedRequest]] = {}
    for one in asked:
        name = together(question_of(one.request)) if kind == "loglikelihood" else one.key
        wholes.setdefault(name, {})[one.key] = one
    groups: dict[tuple[int, ...], list[list[KeyedRequest]]] = {}
    for whole in wholes.values():
        lacking = tuple(i for i, keys in enumerate(known) if not keys.issuperset(whole))
        if lacking:
            groups.setdefault(lacking, []).append(list(whole.values()))
    return groups


def key(*parts: Any) -> bytes:
    """What stands for something that JSON can write: 16 bytes."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).digest()[:16]


class Answer(NamedTuple):
    """An answer as the journal keeps it: what lm-eval gets (a list where it was a tuple) and more.

    Attributes:
        choice: The weights, and what they were chosen by.
        finish_reason: Why a generated text ended; None for other kinds of request.
    """

    result: Any
    choice: Choice | None
    finish_reason: str | None = None

    def encoded(self) -> str:
        """As text. JSON gives every float back as it was."""
        told = () if self.finish_reason is None else (self.finish_reason,)
        return json.dumps([self.result, self.choice, *told])

    @classmethod
    def decoded(cls, text: str) -> Answer:
        """From text; that of older versions has no ``finish_reason``."""
        result, choice, *told = json.loads(text)
        if choice is not None:
            weights, nll, tokens, nlls = choice
            nlls = None if nlls is None else tuple(nlls)
            choice = Choice(Weights(*weights), nll, tokens, nlls)
        return cls(result, choice, told[0] if told else None)
