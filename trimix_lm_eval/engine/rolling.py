"""Whole texts in, log-likelihoods out: rolling windows, each token predicted once.

Invariant 5: there is no prompt to choose weights by, so a policy that chooses by a prompt is
prequential: token t gets the weights that suit the tokens of the document before t.

The sources run once for all fusion configs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from trimix_lm_eval.engine.memory import find_executable_batch_size
from trimix_lm_eval.engine.model_runner import Fuser, always, blame, choice_of, mean_choice
from trimix_lm_eval.engine.not_finite import FusedNotFinite
from trimix_lm_eval.engine.prefill import PrefixNode, PromptCollectors
from trimix_lm_eval.engine.request import Prompt, Score
from trimix_lm_eval.engine.scorer import Scored, prefill_uneven
from trimix_lm_eval.fusion.collectors import (
    Choice,
    PromptCollector,
    View,
    prequential,
)
from trimix_lm_eval.fusion.config import LogitsProcessor
from trimix_lm_eval.fusion.logits import best_point, grid_nll, log_prob, to_device
from trimix_lm_eval.fusion.policies import Policy, checks
from trimix_lm_eval.fusion.weights import Weights, source_vector
from trimix_lm_eval.utils.errors import warn_once
from trimix_lm_eval.utils.windows import Window

#: An NLL of so much stands for infinity.
_INFINITE = torch.finfo(torch.float32).max


def score_rolling(
    fuser: Fuser, documents: Sequence[Sequence[Window]], batch_size: int
) -> Iterator[Scored]:
    """Score whole documents, given as windows.

    A policy that chooses by a prompt is prequential here: token t gets the weights that suit the
    document's tokens before t, over all its windows (see `collectors.prequential`).

    Args:
        fuser: The sources and the fusion configs.
        documents: The windows of each document in order (see `windows.rolling_windows`).
        batch_size: Rows per forward pass.

    Yields:
        (index of the document, index of the config, score), each when its last window is done.
    """
    if any(config.plausibility is not None for config in fuser.configs):
        warn_once(
            "The plausibility mask gives some tokens no probability at all: a text that holds one "
            "has log-likelihood minus infinity."
        )
    for doc, parts in enumerate(documents):
        if not parts:
            yield from ((doc, which, Score(0.0, True, None)) for which in range(len(fuser.configs)))
    full = [doc for doc, parts in enumerate(documents) if parts]
    _tell_of_rule(fuser)
    with blame(full.__getitem__):
        found = _scored(fuser, [tuple(documents[doc]) for doc in full], batch_size)
        yield from ((full[doc], which, one) for doc, which, one in found)


def by_length(documents: Sequence[Sequence[Window]]) -> list[int]:
    """The order in which documents are run, those with long windows first: rows of like length."""
    longest = [max(len(a) + len(b) for a, b in windows) for windows in documents]
    return sorted(range(len(documents)), key=lambda doc: -longest[doc])


def _tell_of_rule(fuser: Fuser) -> None:
    """Name the policies that choose by something else than the NLL of a whole prompt."""
    told = {
        config.policy.name
        for config, processor in zip(fuser.configs, fuser.scoring, strict=True)
        if config.policy.scope in ("sample", "task")
        and not config.policy.prompt_nll
        and processor.updates is None
    }
    if told:
        warn_once(
            f"Rolling log-likelihood has no prompt: policy={', '.join(sorted(told))} weights each "
            "token by the NLL of those before it, as policy=ppl does there."
        )


class _Rule(NamedTuple):
    """What a fusion config comes to where there is no prompt: equal ones score alike.

    Attributes:
        points: What it chooses among; one, if it never chooses; none, if it weighs every token;
            each source alone, if its weights follow the text.
        processor: What is made of them.
    """

    points: tuple[Weights, ...]
    processor: LogitsProcessor

    @property
    def is_special(self) -> bool:
        """Whether it needs more of a token than its NLL under each point."""
        masked = self.processor.plausibility is not None
        return self.processor != LogitsProcessor() and (masked or not self.processor.updates)


class _TokenCollector(PromptCollector):
    """Keeps the NLL of every single token under every point of some rules.

    Args:
        fuser: The sources.
        points: The P points of all rules, each once.
        rules: The rules.

    Attributes:
        nll: ``[P, n]`` tensors in the order of the tokens, by which points are chosen.
        processed: For each rule with a mask or weights of every token, its own points' NLL, or the
            one there is, ``[P, n]``: what the text is scored with, since a mask may give a token no
            probability at all.
        weights: For each of these, the sums of the weights in force, ``[S, 1]``.
    """

    def __init__(self, fuser: Fuser, points: Sequence[Weights], rules: Sequence[_Rule]) -> None:
        self.fuser, self.vectors = fuser, _vectors(fuser, points)
        self.nll: list[Tensor] = []
        special = [rule for rule in rules if rule.is_special]
        self.processed: dict[_Rule, list[Tensor]] = {rule: [] for rule in special}
        self.weights: dict[_Rule, list[Tensor]] = {rule: [] for rule in special}
        self._new: list[tuple[list[Tensor], Tensor]] = []  # the list that each tensor is for

    def read(self, view: View, targets: Tensor) -> None:
        """Add ``[P, n]`` values."""
        for where, logits in view.chunks():
            if len(self.vectors):
                self._new.append((self.nll, grid_nll(logits, targets[where], self.vectors)))
            for rule, kept in self.processed.items():
                vectors = to_device(_vectors(self.fuser, rule.points), targets.device)
                if not len(vectors):  # all of them are replaced
                    vectors = vectors.new_zeros(1, len(logits))
                found = []
                for vector in vectors:  # the fused logits of one are there at a time
                    every = vector.expand(len(logits[0]), -1)
                    fused, used = self.fuser.fused(logits, every, rule.processor)
                    found.append(-log_prob(fused, targets[where]))
                nll = torch.stack(found)
                if rule.processor.may_exclude:
                    # What must be finite is told apart from what the mask makes infinite.
                    nll.clamp_max_(_INFINITE)
                self._new.append((kept, nll))
                self._new.append((self.weights[rule], used.sum(dim=0)[:, None]))

    def blamed(self) -> Policy | None:
        """The policy whose weights, of the tokens just read, are not finite; None if none is."""
        for rule, kept in self.weights.items():
            mine = [values for where, values in self._new if where is kept]
            if not all(bool(values.isfinite().all()) for values in mine):
                return rule.processor.per_token
        return None

    def unsettled(self) -> Tensor | None:
        """All that is new, side by side."""
        return torch.cat([x.flatten() for _, x in self._new]) if self._new else None

    def settle(self, values: Tensor) -> None:
        """Take the new values apart again."""
        parts = values.float().split([x.numel() for _, x in self._new])
        for (kept, like), part in zip(self._new, parts, strict=True):
            kept.append(part.masked_fill(part >= _INFINITE, torch.inf).view(like.shape))
        self._new = []


def _vectors(fuser: Fuser, points: Sequence[Weights]) -> Tensor:
    """``[P, S]`` source weights of some points."""
    names = fuser.ensemble.names
    return torch.tensor([source_vector(p, names) for p in points]).view(len(points), len(names))


def _scored(
    fuser: Fuser, documents: Sequence[Sequence[Window]], batch_size: int
) -> Iterator[Scored]:
    """Score documents under each fusion config's rule."""
    pairs = zip(fuser.configs, fuser.scoring, strict=True)
    rules = [
        _Rule(
            _alone(fuser, config.policy) if processor.updates else config.policy.points(), processor
        )
        for config, processor in pairs
    ]
    points = list(dict.fromkeys(point for rule in rules for point in rule.points))

    def collector() -> _TokenCollector:
        return _TokenCollector(fuser, points, rules)

    def finish(mine: Sequence[_TokenCollector]) -> list[Score]:
        scores: dict[_Rule, Score] = {}
        for config, rule in enumerate(rules):
            if rule not in scores and rule.processor.updates:
                scores[rule] = _of_updates(fuser, config, rule, points, mine)
            elif rule not in scores and rule.points:
                scores[rule] = _of_points(rule, points, mine)
            elif rule not in scores:
                scores[rule] = _of_tokens(fuser, config, rule, mine)
        pairs = zip(rules, fuser.constants, strict=True)
        return [
            scores[rule] if constant is None else scores[rule]._replace(choice=constant)
            for rule, constant in pairs
        ]

    return _collect(fuser, documents, batch_size, collector, finish)


def _of_tokens(fuser: Fuser, config: int, rule: _Rule, seen: Sequence[_TokenCollector]) -> Score:
    """The score of a config that weighs every token, with the mean of its weights."""
    nll = torch.cat([n for c in seen for n in c.processed[rule]], dim=1)  # [1, T]
    used = torch.stack([w for c in seen for w in c.weights[rule]]).double().sum(dim=0)  # [S, 1]
    choice = mean_choice(fuser, config, used.T / nll.shape[1])
    return Score(-float(nll.double().sum()), False, choice)


def _alone(fuser: Fuser, policy: Policy) -> tuple[Weights, ...]:
    """The points at which each source of a policy is alone."""
    return tuple(Weights.of_sources({name: 1.0}) for name in fuser.own(policy)[1])


def _of_updates(
    fuser: Fuser,
    config: int,
    rule: _Rule,
    points: Sequence[Weights],
    seen: Sequence[_TokenCollector],
) -> Score:
    """The score of a mixture whose weights follow the text; the choice is that after its end.

    sum_s w_s p_s of the token, over what the mask leaves, sum_s w_s m_s: m_s is the mass that it
    leaves source s, which has the token at p_s / m_s under it.
    """
    own, _ = fuser.own(fuser.configs[config].policy)
    nll = torch.cat([n for c in seen for n in c.nll], dim=1)  # [P, T]
    logprobs = nll.new_zeros(nll.shape[1], len(fuser.ensemble.names)).double()  # [T, S]
    masses = torch.zeros_like(logprobs)  # of sources that are not its own, which have no weight, 0
    logprobs[:, list(own)] = -nll[[points.index(point) for point in rule.points]].T.double()
    if rule.is_special:
        masked = -torch.cat([n for c in seen for n in c.processed[rule]], dim=1).T.double()
        masses[:, list(own)] = (
            logprobs[:, list(own)] - masked
        )  # infinite where the token is excluded
    first = choice_of(fuser.configs[config].policy, [], fuser.ensemble.names)
    vectors = torch.tensor([fuser.vector(first)], dtype=torch.float64)  # [1, S]
    total = 0.0
    for one, mass in zip(logprobs[:, None], masses[:, None], strict=True):  # [1, S] each
        # Of a source with weight 0 nothing counts, whatever it says: 0 times infinity is no number.
        logs = [(vectors.log() + x).masked_fill(vectors == 0, -torch.inf) for x in (one, mass)]
        scores = [float(x.logsumexp(dim=1)) for x in logs]
        total += scores[0] - scores[1]
        vectors = fuser.updated(vectors, one, rule.processor)
    return Score(total, False, mean_choice(fuser, config, vectors))


def _of_points(rule: _Rule, points: Sequence[Weights], seen: Sequence[_TokenCollector]) -> Score:
    """Prequential score over points; the choice reported is that after the last token."""
    rows = [points.index(point) for point in rule.points]
    nll = torch.cat([n for c in seen for n in c.nll], dim=1)[rows]  # [P, T]
    scores = nll
    if rule.is_special:
        scores = torch.cat([n for c in seen for n in c.processed[rule]], dim=1)  # [P, T]
    chosen = prequential(nll, rule.points)
    total = scores.gather(0, chosen.unsqueeze(0)).double().sum()
    best = best_point(nll.double().sum(dim=1), nll.shape[1], rule.points)
    means = nll.double().mean(dim=1)
    choice = Choice(rule.points[best], float(means[best]), nll.shape[1], tuple(means.tolist()))
    return Score(-float(total), False, choice)


def _collect(
    fuser: Fuser,
    documents: Sequence[Sequence[Window]],
    batch_size: int,
    collector: Callable[[], _TokenCollector],
    finish: Callable[[Sequence[_TokenCollector]], list[Score]],
) -> Iterator[Scored]:
    """Show every token of the documents to collectors, one for each window, side by side.

    Args:
        fuser: The sources and the fusion configs.
        documents: Their windows.
        batch_size: Rows per forward pass.
        collector: Makes a collector.
        finish: From the collectors of a document to a score for each fusion config.
    """

    def work(docs: Sequence[int], size: int) -> list[Scored]:
        collectors = {doc: [collector() for _ in documents[doc]] for doc in docs}
        todo = [
            (doc, window, one)
            for doc in docs
            for window, one in zip(documents[doc], collectors[doc], strict=True)
        ]
        todo.sort(key=lambda item: -len(item[1][0]) - len(item[1][1]))
        for start in range(0, len(todo), size):
            batch = todo[start : start + size]
            prompts = []
            for _, (context, target), _ in batch:
                mask = (False,) * len(context) + (True,) * len(target)
                prompts.append(Prompt(context + target[:-1], mask, tail=target[-1]))
            shown = [PromptCollectors({0: one}, masked=(0,)) for _, _, one in batch]
            with blame([doc for doc, _, _ in batch].__getitem__):
                try:
                    prefill_uneven(fuser.ensemble, PrefixNode(), prompts, shown)
                except FusedNotFinite as error:
                    for _, _, one in batch:
                        if policy := one.blamed():
                            raise checks.not_finite(policy) from error
                    raise
        found = []
        for doc in docs:
            with blame(always(doc)):
                found += [(doc, which, one) for which, one in enumerate(finish(collectors[doc]))]
        return found

    order = by_length(documents)
    for group in find_executable_batch_size(fuser.ensemble, order, batch_size, work):
        yield from group
