"""Texts in the making: what is to be continued, how far it is, which branches share it, its end.

All of stopping is here. A text ends at the first token for which one of these holds; where several
hold for one token, the first in this order is the ``finish_reason``. The order is vLLM's; what vLLM
reports as ``stop`` is told apart here, a stop token being ``eos``:

    eos     an end-of-text or other stop token came; it is not part of the text
    stop    the token completed a stop string
    length  ``max_new_tokens`` tokens are there, or the context is full

Of a model that thinks before it answers, stop strings count in the answer only (see `thinking`).

Longer than most modules: requests, texts in the making and finished ones share what stopping needs.
"""

from __future__ import annotations

import collections.abc as abc
import dataclasses
from typing import Any, Literal, NamedTuple

from torch import Tensor

from trimix_lm_eval.engine.input_batch import InputBatch
from trimix_lm_eval.engine.prefill import cut
from trimix_lm_eval.engine.request import Prompt
from trimix_lm_eval.engine.sampler import Draw, SamplingParams
from trimix_lm_eval.engine.thinking import AnswerStart, ThinkingCriteria
from trimix_lm_eval.fusion.collectors import Choice
from trimix_lm_eval.fusion.config import ResolvedFusion
from trimix_lm_eval.utils.errors import TrimixError

#: Why a text ended.
FinishReason = Literal["stop", "eos", "length"]
#: Behind the reason, where the text ended before its thinking did.
_UNFINISHED = "/thinking"


class StopStringCriteria:
    """Tells whether one of some strings has appeared in a text.

    Args:
        tokenizer: Turns ids into text; special tokens are kept, as they may be stop strings.
        stop: The strings.
    """

    def __init__(self, tokenizer: Any, stop: abc.Sequence[str]) -> None:
        self.tokenizer, self.stop = tokenizer, [s for s in stop if s]
        # A token holds at least one byte, so this many tokens hold any stop string that ends here.
        self.tail = max((len(s.encode()) for s in self.stop), default=0) + 4

    def __call__(self, token_ids: list[int], answer: AnswerStart | None = None) -> bool:
        """Whether the last token completed a stop string.

        Args:
            token_ids: All new tokens.
            answer: Where the answer begins behind the thinking; None where there is none.
        """
        if not self.stop:
            return False
        start = max(0, len(token_ids) - self.tail)
        if answer is not None and start <= answer.start:
            text = self.tokenizer.decode(token_ids[answer.start :], skip_special_tokens=False)
            text = text[answer.skip :].lstrip()
        else:
            text = self.tokenizer.decode(token_ids[start:], skip_special_tokens=False)
        return any(s in text for s in self.stop)


class GenerationRequest(NamedTuple):
    """One prompt to be continued.

    Attributes:
        prompt: The context.
        params: How it is continued.
        stop_token_ids: By fusion config, the token ids that end its text.
        stop_strings: Told all new tokens after each one; True ends the text (see
            `StopStringCriteria`). The default looks for none.
        max_length: Context length, which prompt and new tokens fill at most; None knows no limit.
        thinking: Of a model that thinks before it answers, what tells where the answer begins.
        answer: Where the answer begins, as far as the prompt says; None if thinking comes first.
    """

    prompt: Prompt
    params: SamplingParams
    stop_token_ids: tuple[frozenset[int], ...]
    stop_strings: abc.Callable[..., bool] = StopStringCriteria(None, ())
    max_length: int | None = None
    thinking: ThinkingCriteria | None = None
    answer: AnswerStart | None = AnswerStart()

    @property
    def max_new_tokens(self) -> int:
        """New tokens at most: ``params.max_new_tokens``, capped by what the context can hold."""
        most = self.params.max_new_tokens
        if self.max_length is None:
            return most
        return max(1, min(most, self.max_length - len(self.prompt.ids)))

    @classmethod
    def fitted(
        cls,
        prompt: Prompt,
        params: SamplingParams,
        stop_token_ids: tuple[frozenset[int], ...],
        tokenizer: Any,
        max_length: int,
        thinking: ThinkingCriteria | None = None,
    ) -> GenerationRequest:
        """A request whose prompt leaves room for all new tokens: it is cut from the left.

        Args:
            prompt: The whole context.
            params: How it is continued; its stop strings are looked for.
            stop_token_ids: By fusion config, the token ids that end its text.
            tokenizer: Turns ids into text.
            max_length: Context length in tokens.
            thinking: Of a model that thinks before it answers.

        Raises:
            TrimixError: The new tokens leave no room for a prompt.
        """
        room = max_length - params.max_new_tokens
        if room < 1:
            raise TrimixError(
                f"{params.max_new_tokens} new tokens leave no room for a prompt: the context "
                f"length is {max_length}.",
                "lower max_gen_toks (--gen_kwargs max_gen_toks=N), or raise max_length if the "
                "models allow it",
            )
        stop_strings = StopStringCriteria(tokenizer, params.stop)
        answer = AnswerStart() if thinking is None or thinking.over(prompt.ids) else None
        prompt = cut(prompt, room)
        return cls(prompt, params, stop_token_ids, stop_strings, max_length, thinking, answer)


class CompletionOutput(NamedTuple):
    """A finished text.

    Attributes:
        token_ids: The new tokens, without the stop token.
        choice: The weights that were used; where they are per token, their mean.
        finish_reason: Why it ended: ``eos``, ``stop`` or ``length``.
        answer: Where the answer begins in it; None if it ended before its thinking did.
    """

    token_ids: list[int]
    choice: Choice
    finish_reason: FinishReason
    answer: AnswerStart | None = AnswerStart()


class NewTokens(NamedTuple):
    """What a sequence gains in a step, by the branches that agree on it.

    Attributes:
        token_ids: At least one.
        weights: Of each branch ``[n, S]``, in force for each token; where weights follow the text,
            those for the token after it.
        num_draft_tokens: Drafts that were of use to this sequence.
        num_accepted_tokens: How many of them were accepted.
        rejected: The first draft that was not accepted; None if there is none.
        branches: Which of the sequence's branches.
    """

    token_ids: list[int]
    weights: list[Tensor]
    num_draft_tokens: int
    num_accepted_tokens: int
    rejected: int | None = None
    branches: tuple[int, ...] = (0,)

    def up_to(self, drawn: int) -> NewTokens:
        """What is left of it in a text that ends after so many of its tokens."""
        most = max(drawn - 1, 0) if drawn < len(self.token_ids) else self.num_draft_tokens
        return self._replace(
            token_ids=self.token_ids[:drawn],
            num_draft_tokens=min(self.num_draft_tokens, most),
            num_accepted_tokens=min(self.num_accepted_tokens, most),
        )


def followed(fusion: ResolvedFusion, weights: abc.Sequence[Tensor]) -> ResolvedFusion:
    """A fusion after some more tokens.

    Args:
        fusion: As it was for the first of them.
        weights: What came with each, ``[S]``, see `NewTokens`.
    """
    if fusion.processor.updates is None or not len(weights):
        return fusion
    return fusion._replace(vector=tuple(weights[-1].tolist()))


@dataclasses.dataclass(eq=False)
class Branch:
    """Fusion configs that continue one prompt alike: their distributions and stop tokens are equal.

    Attributes:
        fusion: How the distribution of the next token is made, with the weights in force for it.
        stop_token_ids: Tokens that end the text.
        choices: By index of the config, what its policy chose; None where weights are per token.
        used: ``[S]`` sum of the weights in force.
        drawn: Tokens in that sum.
        answer: Where the answer begins in its text, once that is finished; None if nowhere.
    """

    fusion: ResolvedFusion
    stop_token_ids: frozenset[int]
    choices: dict[int, Choice | None]
    used: Tensor
    drawn: int = 0
    answer: AnswerStart | None = AnswerStart()

    def note(self, weights: Tensor) -> None:
        """Take the weights ``[S]`` that came with a token, see `NewTokens`."""
        self.fusion = followed(self.fusion, [weights])
        if self.fusion.processor.per_token is not None:
            self.used = self.used + weights
            self.drawn += 1


class ForkPoint(NamedTuple):
    """Where a text can be taken up again: a row of a batch that ends with its prompt."""

    batch: InputBatch
    row: int


@dataclasses.dataclass(eq=False)
class Sequence:
    """A text in the making, and the branches that have agreed on it so far.

    Attributes:
        index: Of the request.
        request: What is continued.
        branches: At least one while the text is not finished.
        token_ids: New tokens so far.
        fork_point: Where it can be taken up again; None if it will not have to be.
        answer: Where the answer begins; None as long as the thinking goes on.
    """

    index: int
    request: GenerationRequest
    branches: list[Branch]
    token_ids: list[int] = dataclasses.field(default_factory=list)
    fork_point: ForkPoint | None = None
    answer: AnswerStart | None = None

    def __post_init__(self) -> None:
        if not self.token_ids:
            self.answer = self.request.answer

    @property
    def num_cached(self) -> int:
        """Tokens that the sources have seen: the last one is still to be fed."""
        return len(self.request.prompt.ids) + len(self.token_ids) - 1

    @property
    def remaining_tokens(self) -> int:
        """New tokens that may still come."""
        return self.request.max_new_tokens - len(self.token_ids)

    @property
    def fusions(self) -> tuple[ResolvedFusion, ...]:
        """Of its branches."""
        return tuple(branch.fusion for branch in self.branches)

    def draw(self, ahead: int = 0) -> Draw:
        """How the token after ``ahead`` more is drawn."""
        return Draw(self.request.params, len(self.token_ids) + ahead)

    def fork(self, branches: abc.Sequence[int]) -> Sequence:
        """The text as some of its branches, given by their indices, go on."""
        mine = [self.branches[i] for i in branches]
        return dataclasses.replace(self, branches=mine, token_ids=list(self.token_ids))

    def append(self, new: NewTokens) -> tuple[list[tuple[Branch, list[int], FinishReason]], int]:
        """Take tokens until no branch goes on.

        Args:
            new: The tokens, of all of its branches.

        Returns:
            The branches that are finished, each with its text and why it ended, and how many
            tokens were drawn. Branches that are finished are no longer the sequence's.
        """
        finished: list[tuple[Branch, list[int], FinishReason]] = []
        weights = {id(b): x for b, x in zip(self.branches, new.weights, strict=True)}
        for drawn, token in enumerate(new.token_ids, start=1):
            for branch in self.branches:
                branch.note(weights[id(branch)][drawn - 1])
            ended = [b for b in self.branches if token in b.stop_token_ids]
            if ended:
                finished += self._finished(ended, "eos")
                self.branches = [b for b in self.branches if token not in b.stop_token_ids]
            if not self.branches:
                return finished, drawn
            self.token_ids.append(token)
            reason = self._finish_reason()
            if reason is not None:
                finished += self._finished(self.branches, reason)
                self.branches = []
                return finished, drawn
        return finished, len(new.token_ids)

    def _finished(
        self, branches: abc.Sequence[Branch], reason: FinishReason
    ) -> list[tuple[Branch, list[int], FinishReason]]:
        for branch in branches:
            branch.answer = self.answer
        return [(branch, list(self.token_ids), reason) for branch in branches]

    def _finish_reason(self) -> FinishReason | None:
        """Why the text ends with its last token; None if it goes on."""
        thinking, stops = self.request.thinking, self.request.stop_strings
        if thinking is None:
            stopped = stops(self.token_ids)
        else:
            self.answer = thinking.advance(self.token_ids, self.answer)
            stopped = self.answer is not None and stops(self.token_ids, self.answer)
        if stopped:
            return "stop"
        return "length" if self.remaining_tokens <= 0 else None


def recorded(finish_reason: FinishReason, unfinished_thought: bool) -> str:
    """Why a text ended, and whether before its thinking did, in the one word kept for counting."""
    return finish_reason + (_UNFINISHED if unfinished_thought else "")


def told(word: str) -> tuple[str, bool]:
    """The ``finish_reason`` in what `recorded` wrote, and whether the thinking was unfinished."""
    return word.removesuffix(_UNFINISHED), word.endswith(_UNFINISHED)


def grouped(texts: abc.Sequence[abc.Sequence[int]]) -> list[tuple[list[int], list[int]]]:
    """Some branches' tokens, equal ones once, with the branches that have them."""
    forks: dict[tuple[int, ...], list[int]] = {}
    for branch, tokens in enumerate(texts):
        forks.setdefault(tuple(tokens), []).append(branch)
    return [(list(tokens), branches) for tokens, branches in forks.items()]
