"""Texts in the making: what is to be continued, how far it is, and who has agreed on it so far."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from trimix_lm_eval.engine.drafting import Gain, Pending
from trimix_lm_eval.engine.input_batch import InputBatch
from trimix_lm_eval.engine.request import Prompt
from trimix_lm_eval.engine.sampler import Sampling
from trimix_lm_eval.fusion.collectors import Choice
from trimix_lm_eval.fusion.config import ResolvedFusion


class GenerationRequest(NamedTuple):
    """One prompt to be continued.

    Attributes:
        prompt: The context.
        max_new_tokens: Stop after so many, at least 1.
        ends: By fusion config, the token ids that end its text; they are not part of the result.
        stop: Told all tokens so far after each one; True stops the row.
        sampling: Greedy by default.
    """

    prompt: Prompt
    max_new_tokens: int
    ends: tuple[frozenset[int], ...]
    stop: Callable[[list[int]], bool]
    sampling: Sampling = Sampling()


class CompletionOutput(NamedTuple):
    """A finished text.

    Attributes:
        ids: The new tokens, without an end token.
        choice: The weights that were used; where they are per token, their mean.
    """

    ids: list[int]
    choice: Choice


@dataclasses.dataclass(eq=False)
class Branch:
    """Fusion configs that write the same text after one prompt: their voices and ends are equal.

    Attributes:
        voice: How the next token is weighted.
        ends: Tokens that end the text.
        choices: By fusion config, what was chosen; None where weights are per token.
        used: ``[S]`` sum of the weights in force.
        drawn: Tokens in that sum.
    """

    voice: ResolvedFusion
    ends: frozenset[int]
    choices: dict[int, Choice | None]
    used: Tensor
    drawn: int = 0

    def note(self, weights: Tensor) -> None:
        """Count the weights ``[S]`` of a token, where they are the token's own."""
        if self.voice.rule.per_token is not None:
            self.used = self.used + weights
            self.drawn += 1


class ForkPoint(NamedTuple):
    """Where a text can be taken up again: a row that ends with its prompt."""

    state: InputBatch
    place: int


@dataclasses.dataclass(eq=False)
class Row:
    """A text in the making, and who has agreed on it so far.

    Attributes:
        index: Of the job.
        job: The job.
        writers: At least one.
        tokens: So far.
        stem: Where it can be taken up again; None if it will not have to be.
    """

    index: int
    job: GenerationRequest
    writers: list[Branch]
    tokens: list[int] = dataclasses.field(default_factory=list)
    stem: ForkPoint | None = None

    @property
    def cached(self) -> int:
        """Tokens that the sources have seen: the last one is still to be fed."""
        return len(self.job.prompt.ids) + len(self.tokens) - 1

    @property
    def room(self) -> int:
        """Tokens that may still come."""
        return self.job.max_new_tokens - len(self.tokens)

    @property
    def voices(self) -> tuple[ResolvedFusion, ...]:
        """Of its writers."""
        return tuple(writer.voice for writer in self.writers)

    @property
    def pending(self) -> Pending:
        """Where it stands."""
        last, place = self.tokens[-1], len(self.tokens)
        return Pending(last, place, self.room, self.job.sampling, self.voices)

    def way(self, gain: Gain) -> Row:
        """The text as some of its writers go on."""
        writers = [self.writers[voice] for voice in gain.voices]
        return dataclasses.replace(self, writers=writers, tokens=list(self.tokens))

    def take(self, gain: Gain) -> tuple[list[tuple[Branch, list[int]]], int]:
        """Take tokens until nobody goes on.

        Returns:
            The writers that have come to an end, with their texts, and how many tokens were drawn.
        """
        landed: list[tuple[Branch, list[int]]] = []
        weights = {id(w): x for w, x in zip(self.writers, gain.weights, strict=True)}
        for drawn, token in enumerate(gain.tokens, start=1):
            for writer in self.writers:
                writer.note(weights[id(writer)][drawn - 1])
            landed += [(w, list(self.tokens)) for w in self.writers if token in w.ends]
            self.writers = [w for w in self.writers if token not in w.ends]
            if not self.writers:
                return landed, drawn
            self.tokens.append(token)
            if self.room == 0 or self.job.stop(self.tokens):
                landed += [(writer, self.tokens) for writer in self.writers]
                self.writers = []
                return landed, drawn
        return landed, len(gain.tokens)
