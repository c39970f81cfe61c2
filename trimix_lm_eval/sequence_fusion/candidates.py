"""Texts that may be the answer: what one source writes, and how likely it finds what was written.

The score of a candidate counts its end: it is the log-probability that a source ends there, by any
of its end-of-text tokens or any of the stop strings, whichever of them ended it where it was
written. A candidate that was cut at the limit of new tokens has no end: it is the log-probability
of what is there. Scores are compared per byte, since by its whole score the shortest text wins.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from trimix_lm_eval.engine import scheduler, scorer
from trimix_lm_eval.engine.model_runner import blame
from trimix_lm_eval.engine.request import Prompt, ScoringRequest
from trimix_lm_eval.engine.sampler import SamplingParams
from trimix_lm_eval.engine.sequence import FinishReason
from trimix_lm_eval.llm import TriMix
from trimix_lm_eval.loading.codec import seed_for
from trimix_lm_eval.utils.errors import TrimixError

#: What a tokenizer makes of a character that was cut.
_CUT = "\ufffd"


class Event(NamedTuple):
    """What is scored: that a text ends where it does, or, if it was cut, that it begins so."""

    text: str
    cut: bool


class CandidateText(NamedTuple):
    """A text that may be the answer, why it ended, and the source that wrote it."""

    text: str
    finish_reason: FinishReason
    writer: str

    @property
    def event(self) -> Event:
        """Equal texts are one, whoever wrote them; the rest of a cut character is left out."""
        cut = self.finish_reason == "length"
        return Event(self.text.rstrip(_CUT) if cut else self.text, cut)

    def rank(self, score: float) -> tuple[bool, float]:
        """What the best candidate has most of.

        The score per byte, the end being one, too: with its end or without, a text of three
        characters is likelier than a sentence, though no source would write it by itself. What was
        cut comes last: it goes in circles, often, which is likely per byte; and of that, what has
        no whole character.
        """
        text, cut = self.event
        if cut and not text:
            score = -math.inf
        return not cut, score / (len(text.encode()) + 1)


def write(
    member: TriMix, name: str, prompts: Sequence[tuple[str, SamplingParams]], more: int
) -> tuple[list[list[CandidateText]], int]:
    """What a source writes after each prompt.

    Args:
        member: The source by itself.
        name: Its role.
        prompts: Texts, each with how it is to be continued.
        more: How many further texts are sampled beside the one that it writes as it is asked to.

    Returns:
        Of each prompt its candidates, and how many tokens were written.
    """
    requests, of = [], []
    for i, (text, params) in enumerate(prompts):
        try:
            first = member.request(text, params)
        except TrimixError as error:  # the context is this source's
            raise TrimixError(f"{name}: {error}") from None
        draws = [params, *(_drawn(params, name, number) for number in range(more))]
        requests += [first._replace(params=how) for how in draws]
        of += [i] * len(draws)
    member.warn_truncated()
    found: dict[int, CandidateText] = {}
    tokens = 0
    with blame(of.__getitem__):
        outputs = scheduler.generate(member.fuser, requests, member.batch_size, member.speculation)
        for at, _, output in outputs:
            stop = requests[at].params.stop
            text = member.codec.completion(output.token_ids, stop, output.answer)
            found[at] = CandidateText(text, output.finish_reason, name)
            tokens += len(output.token_ids)
    made: list[list[CandidateText]] = [[] for _ in prompts]
    for at, i in enumerate(of):
        made[i].append(found[at])
    return made, tokens


def _drawn(params: SamplingParams, name: str, number: int) -> SamplingParams:
    """The same with noise of its own: at the temperature that is asked for, 1 if that is greedy."""
    seed = seed_for(params.seed, "candidate", name, number)
    return dataclasses.replace(params, temperature=params.temperature or 1.0, seed=seed)


def likelihoods(
    member: TriMix,
    prompts: Sequence[tuple[str, SamplingParams]],
    events: Sequence[Iterable[Event]],
) -> tuple[list[dict[Event, float]], int]:
    """How likely a source finds what others, or itself, have written.

    Args:
        member: The source by itself.
        prompts: Texts, each with how it was continued.
        events: Of each prompt, what is scored.

    Returns:
        Of each prompt the log-likelihood of each event, and how many tokens were scored.
    """
    requests: list[ScoringRequest] = []
    of: list[tuple[int, Event]] = []
    tokens = 0
    for i, (text, params) in enumerate(prompts):
        for event in events[i]:
            ways = _ways(member, text, event, params.stop)
            requests += ways
            of += [(i, event)] * len(ways)
            tokens += max((len(way.continuation) for way in ways), default=0)
    parts: dict[tuple[int, Event], list[float]] = {}
    with blame(lambda at: of[at][0]):
        scores = scorer.score(member.fuser, requests, member.batch_size, member.max_length)
        for at, _, score in scores:
            parts.setdefault(of[at], []).append(score.log_likelihood)
    found = [
        {event: _any_of(parts.get((i, event), [0.0])) for event in some}
        for i, some in enumerate(events)
    ]
    return found, tokens


def _ways(member: TriMix, context: str, event: Event, stop: Sequence[str]) -> list[ScoringRequest]:
    """The continuations whose probabilities add up to that of an event, for a source.

    Of a text that was cut only itself.
    """
    pair = member.codec.pair
    if event.cut:
        ways = [pair(context, event.text)]
    else:
        prompt, target = pair(context, event.text)
        ways = [(prompt, (*target, end)) for end in sorted(member.stop_token_ids[0])]
        ways += [pair(context, event.text + end) for end in stop if end]
    # A stop string may be the text of an end-of-text token, which counts once.
    distinct = dict.fromkeys(way for way in ways if way[1])
    return [ScoringRequest(Prompt(*prompt), target) for prompt, target in distinct]


def _any_of(log_likelihoods: Sequence[float]) -> float:
    """The logarithm of a sum of probabilities, from their logarithms."""
    most = max(log_likelihoods)
    if most == -math.inf:
        return most
    return most + math.log(math.fsum(math.exp(one - most) for one in log_likelihoods))
