"""`explain`, `explain_given`, `explain_text`: the ordinary way, then the numbers in one more pass.

The text is the one that generation or scoring gives; nothing is decoded differently in order to be
explained. One pass over prompt and text then looks at all positions, and what it finds is compared
with what was decoded: where the two differ, by rounding, the explanation says so.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch

from trimix_lm_eval.analysis.explain.measure import measure, text_weights
from trimix_lm_eval.analysis.explain.pieces import Pieces
from trimix_lm_eval.analysis.explain.records import Candidate, Draft, Drafting, Explanation, Token
from trimix_lm_eval.engine import scheduler
from trimix_lm_eval.engine.request import Score
from trimix_lm_eval.engine.sampler import SamplingParams
from trimix_lm_eval.engine.sequence import NewTokens
from trimix_lm_eval.fusion.collectors import Choice
from trimix_lm_eval.fusion.config import LogitsProcessor
from trimix_lm_eval.fusion.weights import Weights
from trimix_lm_eval.llm import TriMix
from trimix_lm_eval.utils.errors import TrimixError
from trimix_lm_eval.utils.progress import progress_bar
from trimix_lm_eval.utils.windows import Window, continuation_windows

#: How far two ways to the same log-likelihood may be apart, per token, in fp32.
_ROUNDING = 1e-4


def explain(
    model: TriMix,
    prompt: str,
    how: SamplingParams | None = None,
    point: Weights | None = None,
    progress: bool = False,
) -> Explanation:
    """Continue a text and explain each token of the continuation.

    Args:
        model: The sources and the policy.
        prompt: The text.
        how: How to continue it; None is greedy, at most 256 tokens.
        point: Weights chosen elsewhere (for a whole task); None lets the policy choose.
        progress: Whether to show bars.

    Raises:
        TrimixError: The prompt is empty, or leaves no room.
    """
    if not prompt:
        raise TrimixError("The prompt is empty: there is nothing to continue.", "give some text")
    how = how or SamplingParams()
    request = model.request(prompt, how, (point,))
    with progress_bar(None, "generate", total=how.max_new_tokens, off=not progress) as bar:
        record = _Record(bar)
        with torch.inference_mode():
            generated = scheduler.generate(model.fuser, [request], 1, model.speculation, record)
            ((_, _, made),) = generated
    tokens = list(made.token_ids)
    if made.finish_reason == "eos":  # the token that ended the text is explained, too
        tokens = record.tokens[: len(tokens) + 1]

    drafts = record.drafts[: len(tokens)]
    parts = [(request.prompt.ids, tuple(tokens))]
    vectors = [_vector(model, made.choice)] * len(tokens)
    noted, processor = [refused for _, refused in drafts], model.fuser.decoding[0]
    measured = _measured(model, parts, vectors, noted, processor, progress)
    explained = tuple(
        dataclasses.replace(token, draft=Draft(stood, other) if stood or other else None)
        for (token, other), (stood, _) in zip(measured, drafts, strict=True)
    )
    cut = len(model.codec.prompt(prompt).ids) - len(request.prompt.ids)
    notes = [*_circumstances(model, point, cut), *_compared(explained, how.temperature)]
    if made.answer is None:
        notes.append("The text ended before its thinking did: it has no answer.")
    return _explanation(
        model,
        explained,
        made.choice,
        notes,
        prompt=prompt,
        text=model.codec.completion(made.token_ids, how.stop, made.answer),
        kind="sampled" if how.temperature else "greedy",
        finish_reason=made.finish_reason,
        log_likelihood=_log_likelihood(explained),
        drafting=record.account(explained),
    )


def explain_given(
    model: TriMix,
    pairs: Sequence[tuple[str, str]],
    point: Weights | None = None,
    progress: bool = False,
) -> list[Explanation]:
    """Explain the tokens of given continuations, the options of one question.

    Args:
        model: The sources and the policy.
        pairs: (context, continuation), as for `TriMix.loglikelihood`.
        point: Weights chosen elsewhere (for a whole task); None lets the policy choose.
        progress: Whether to show a bar.

    Raises:
        TrimixError: A continuation is empty.
    """
    encoded = [model.codec.pair(context, continuation) for context, continuation in pairs]
    if not all(target for _, target in encoded):
        raise TrimixError("A continuation is empty: it has no tokens to explain.")
    one_question = [0] * len(pairs)
    scored = model.iter_loglikelihood(pairs, [(point,)] * len(pairs), one_question)
    scores = {i: score for i, _, score in scored}
    explanations = []
    for i, (prompt, target) in enumerate(encoded):
        parts = continuation_windows(prompt.ids, target, model.max_length)
        cut = len(prompt.ids) - len(parts[0][0]) if len(parts) == 1 else 0
        notes = [*_circumstances(model, point, cut), *_in_windows(model, parts)]
        vectors = [_vector(model, scores[i].choice)] * len(target)
        explanations.append(_given(model, pairs[i], parts, vectors, scores[i], notes, progress))
    return explanations


def explain_text(model: TriMix, text: str, progress: bool = False) -> Explanation:
    """Explain the tokens of a text without a prompt, as rolling log-likelihood scores it.

    Raises:
        TrimixError: The text is empty, or the policy's weights are not known at each token.
    """
    parts = model.codec.windows(text, model.max_length)
    if not parts:
        raise TrimixError("The text is empty: it has no tokens to explain.")
    (score,) = model.loglikelihood_rolling([text])
    vectors, choice = text_weights(model.fuser, parts, score.choice)
    notes = _in_windows(model, parts)
    if choice is None and model.fuser.configs[0].policy.scope != "token":
        notes.append("There is no prompt: each token has the weights that suit those before it.")
    score = score._replace(choice=choice)
    return _given(model, ("", text), parts, vectors, score, notes, progress)


def _given(
    model: TriMix,
    pair: tuple[str, str],
    parts: Sequence[Window],
    vectors: Sequence[Sequence[float]],
    score: Score,
    notes: list[str],
    progress: bool,
) -> Explanation:
    """Explain the tokens of windows, and compare them with what scoring said."""
    nothing, processor = [None] * len(vectors), model.fuser.scoring[0]
    found = _measured(model, parts, vectors, nothing, processor, progress)
    explained = tuple(token for token, _ in found)
    total, likelihood = _log_likelihood(explained), score.log_likelihood
    if total is not None and abs(total - likelihood) > _ROUNDING * len(vectors):
        notes.append(
            f"Scoring gave the text a log-likelihood of {likelihood:.4f}, the single pass that "
            f"these numbers come from {total:.4f}: rounding at these sources' precision."
        )
    told: dict[str, Any] = {"prompt": pair[0], "text": pair[1]}
    told["log_likelihood"] = likelihood if math.isfinite(likelihood) else None
    return _explanation(model, explained, score.choice, notes, **told)


class _Record:
    """What was drafted for each token of one text, as it is written; ``bar`` shows how far."""

    def __init__(self, bar: Any) -> None:
        self.bar = bar
        self.tokens: list[int] = []
        #: Of each token whether a draft stood, and the draft that was refused in its place.
        self.drafts: list[tuple[bool, int | None]] = []
        self.tried: dict[int, int] = {}

    def __call__(self, index: int, place: int, new: NewTokens) -> None:
        """See `scheduler.Observer`; a text that is started anew begins again at 0."""
        del self.tokens[place:], self.drafts[place:]
        self.tried = {at: tried for at, tried in self.tried.items() if at < place}
        self.tried[place] = new.num_draft_tokens
        for i, token in enumerate(new.token_ids):
            stood, refused = i < new.num_accepted_tokens, i == new.num_accepted_tokens
            self.tokens.append(token)
            self.drafts.append((stood, new.rejected if refused else None))
        self.bar.update(len(self.tokens) - self.bar.n)

    def account(self, tokens: Sequence[Token]) -> Drafting | None:
        """The drafts of the whole text; None if there were none."""
        tried = sum(self.tried.values())
        if not tried:
            return None
        drafts = [token.draft for token in tokens if token.draft]
        stood = sum(draft.stood for draft in drafts)
        return Drafting(tried, stood, len(drafts) - stood)


def _vector(model: TriMix, choice: Choice | None) -> list[float]:
    """One weight per source; of a policy per token none is known beforehand."""
    return model.fuser.vector(None if model.fuser.configs[0].policy.scope == "token" else choice)


def _measured(
    model: TriMix,
    parts: Sequence[Window],
    vectors: Sequence[Sequence[float]],
    noted: Sequence[int | None],
    processor: LogitsProcessor,
    progress: bool,
) -> list[tuple[Token, Candidate | None]]:
    """Each token with its numbers, and the noted token of its position."""
    label = Pieces(model.tokenizer).label
    made: list[tuple[Token, Candidate | None]] = []
    with progress_bar(None, "explain", total=len(vectors), off=not progress) as bar:
        for window in parts:
            here = slice(len(made), len(made) + len(window[1]))
            for token, p in measure(
                model.fuser, window, vectors[here], noted[here], label, processor
            ):
                other = noted[len(made)]
                known = None if other is None or p is None else Candidate(other, label(other), p)
                made.append((token, known))
                bar.update()
    return made


def _explanation(
    model: TriMix,
    tokens: tuple[Token, ...],
    choice: Choice | None,
    notes: Sequence[str],
    **told: Any,
) -> Explanation:
    """What explanations of given and of generated texts have in common."""
    chosen = None if model.fuser.configs[0].policy.scope == "token" else choice
    alpha, beta, gamma = chosen.weights if chosen else (None, None, None)
    return Explanation(
        alpha=alpha,
        beta=beta,
        gamma=gamma,
        prompt_nll=chosen.nll if chosen else None,
        prompt_tokens=chosen.tokens if chosen else 0,
        tokens=tokens,
        groups=Pieces(model.tokenizer).groups([token.id for token in tokens]),
        notes=tuple(notes),
        **told,
    )


def _circumstances(model: TriMix, point: Weights | None, cut: int) -> list[str]:
    """What is to be known of the circumstances."""
    notes = []
    if cut > 0:
        notes.append(
            f"The context length of {model.max_length} tokens leaves no room for the first {cut} "
            "tokens of the prompt: the sources did not see them."
        )
    policy = model.fuser.configs[0].policy
    if policy.scope == "task" and point is None:
        notes.append(
            f"policy={policy.name} chose its point from this one prompt; a run chooses one point "
            "for a whole task, which may be another."
        )
    return notes


def _in_windows(model: TriMix, parts: Sequence[Window]) -> list[str]:
    """Whether a text was read in several pieces."""
    if len(parts) == 1:
        return []
    return [
        f"The text is longer than the context length of {model.max_length} tokens: it was read in "
        f"{len(parts)} windows, and the sources did not see what lies before a window."
    ]


def _compared(tokens: Sequence[Token], temperature: float) -> list[str]:
    """Whether the tokens are what the distribution asks for."""
    off = [i for i, token in enumerate(tokens, start=1) if token.rank != 1]
    if not off:
        return []
    places = ", ".join(map(str, off[:8])) + (" …" if len(off) > 8 else "")
    if temperature:
        return [
            f"The text was sampled: at {len(off)} of {len(tokens)} tokens ({places}) another token "
            "was more probable, and the margin is negative."
        ]
    return [
        f"At {len(off)} of {len(tokens)} tokens ({places}) decoding, token by token, and the "
        "single pass that these numbers come from disagree which token is the most probable: the "
        "two are nearly equal, and rounding at these sources' precision decides."
    ]


def _log_likelihood(tokens: Sequence[Token]) -> float | None:
    """Sum of the log-probabilities; None if one of them is 0."""
    probabilities = [token.probability for token in tokens]
    return sum(map(math.log, probabilities)) if all(probabilities) else None
