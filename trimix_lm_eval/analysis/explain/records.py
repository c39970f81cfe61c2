"""What is found out about a text: plain dataclasses, which become the JSON as they are.

Probabilities are between 0 and 1; logits, margins and contributions are natural logarithms (a
margin of 0.7 makes a token twice as probable as the runner-up). Ranks count from 1. The text of a
token is its label: bytes that are no character of their own are in hexadecimal, as ``⟨E0 BD⟩``.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Candidate:
    """A token that could come, with its probability in the distribution that is spoken of."""

    id: int
    text: str
    probability: float


@dataclass(frozen=True)
class Share:
    """What one source has to do with a token's place; rank, probability and favourites are its own.

    Attributes:
        weight: The weight in force at this token.
        lead: The source's own logit of the token minus that of the runner-up.
        contribution: ``weight * lead``; where probabilities are mixed, the weight times how much
            more probable the token is here, on the margin's scale. They sum to the margin.
        top: The source's favourites, best first.
    """

    source: str
    weight: float
    lead: float
    contribution: float
    rank: int
    probability: float
    top: tuple[Candidate, ...]


@dataclass(frozen=True)
class Cutoff:
    """What the plausibility mask did at a position.

    Attributes:
        kept: How many tokens it left.
        plausible: Whether the explained token is one of them.
        removed: The token that would be the most probable one without the mask, if it was removed.
        alone: The mask left nothing but the token: the runner-up is one that it removed.
    """

    kept: int
    plausible: bool
    removed: Candidate | None
    alone: bool


@dataclass(frozen=True)
class Draft:
    """What became of small_cpt's draft for a position: it stood, or was refused for the token."""

    stood: bool
    refused: Candidate | None


@dataclass(frozen=True)
class Token:
    """One token of the text; rank, probability and favourites are of the fused distribution.

    Attributes:
        owner: The source that contributes most to its lead; None if none speaks for it.
        margin: Fused logit of the token minus that of the runner-up (without the mask); negative
            where another token was more probable.
        runner_up: The most probable other token.
        shares: One per source.
        cutoff: None without a plausibility mask.
        draft: None where nothing was drafted.
    """

    id: int
    text: str
    owner: str | None
    margin: float
    runner_up: Candidate
    rank: int
    probability: float
    top: tuple[Candidate, ...]
    shares: tuple[Share, ...]
    cutoff: Cutoff | None = None
    draft: Draft | None = None


@dataclass(frozen=True)
class Group:
    """Tokens, from ``first`` to before ``end``, that make up a character together."""

    text: str
    first: int
    end: int


@dataclass(frozen=True)
class Drafting:
    """The account of the drafts of one text; those behind a refused one count as neither."""

    tried: int
    stood: int
    refused: int


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """A text and why it reads as it does.

    Attributes:
        prompt: What it follows.
        text: The text, without what a stop string cut off.
        kind: ``greedy``, ``sampled`` or ``given``.
        finish_reason: Why a generated text ends: ``eos`` (an end-of-text or other stop token),
            ``stop`` (a stop string) or ``length``; None if it was given.
        alpha: Chosen weights, as are beta and gamma (None if it is alpha); None where they are per
            token.
        prompt_nll: Mean NLL of the scored prompt tokens at that point, in nats; None if none was.
        prompt_tokens: How many prompt tokens were scored.
        log_likelihood: Sum of the tokens' log-probabilities; None if one has probability 0.
        tokens: The tokens in order, the one that ended the text included.
        groups: Over all tokens, in order.
        drafting: None if nothing was generated, or no draft made.
        notes: What a reader should know before believing the numbers.
    """

    prompt: str = ""
    text: str
    kind: str = "given"
    finish_reason: str | None = None
    alpha: float | None
    beta: float | None
    gamma: float | None
    prompt_nll: float | None
    prompt_tokens: int
    log_likelihood: float | None
    tokens: tuple[Token, ...]
    groups: tuple[Group, ...]
    drafting: Drafting | None = None
    notes: tuple[str, ...]
