"""What is asked of the engine and what it answers, as data: token ids in, numbers out."""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from trimix_lm_eval.fusion.collectors import Choice
from trimix_lm_eval.fusion.weights import Weights


class Tokens(Protocol):
    """What a forward pass needs of a token table: see `input_batch.TokenTable`."""

    ids: Tensor
    positions: Tensor  # on the CPU
    valid: Tensor  # on the CPU
    branches: TreePlaces | None

    @property
    def slots(self) -> int:
        """Columns so far."""

    def path(self, row: int, slot: int) -> Tensor:
        """The slots that a token of a row sees."""

    def mask(
        self,
        start: int,
        window: int | None,
        block: int | None,
        dtype: torch.dtype,
        device: torch.device,
    ) -> Tensor:
        """The additive mask of the tokens from slot ``start`` on."""


class TreePlaces(NamedTuple):
    """Where tokens stand that branch: several texts after one beginning, held in one row.

    The tokens of a row are those of a tree, each before what follows it and all that follows it
    side by side (in preorder), so that one number says who sees a token.

    Attributes:
        positions: ``[B, n]`` positions.
        until: ``[B, n]`` the slot from which on a token is hidden: where what follows it ends.
    """

    positions: Tensor
    until: Tensor


class Prompt(NamedTuple):
    """A context, and what the policies may see of it.

    Attributes:
        ids: The token ids of the context, at least one.
        prompt_mask: For each token (and for ``tail``, if there is one) whether policies that choose
            by a part of the prompt only (`Policy.answers_only`) see it; None shows them all of it.
            Other policies see every token. The first token has no prediction and is never shown.
        points: For each fusion config a point chosen elsewhere (for a whole task), or None, which
            lets its policy choose; None for all of them lets every policy choose.
        tail: A token after the last that is shown to policies, but not run (the end of a rolling
            window, or the token after a shared prefix).
    """

    ids: tuple[int, ...]
    prompt_mask: tuple[bool, ...] | None = None
    points: tuple[Weights | None, ...] | None = None
    tail: int | None = None


class ScoringRequest(NamedTuple):
    """One continuation of a prompt, to be scored.

    Attributes:
        prompt: The context, untruncated; requests with equal prompts share its forward passes.
        continuation: The token ids to be scored.
        question: What the continuation is an option of. Options of one question that differ in
            context share the weights of the part that their contexts have in common. None: a
            question is a context.
    """

    prompt: Prompt
    continuation: tuple[int, ...]
    question: Hashable | None = None


class Score(NamedTuple):
    """A request scored under one fusion config.

    Attributes:
        log_likelihood: Sum over the continuation's tokens, natural logarithm.
        is_greedy: Whether every token is the most probable one.
        choice: The weights that were used; where they are per token, their mean; None if there was
            nothing to score.
    """

    log_likelihood: float
    is_greedy: bool
    choice: Choice | None
