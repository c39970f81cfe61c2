"""Whole texts in, log-likelihoods out: rolling windows, each token predicted once.

Invariant 5: there is no prompt to choose weights by, so a policy that chooses by a prompt is
prequential: token t gets the weights that suit the tokens of the document before t.

The sources run once for all fusion configs that are one point or weighted per token, and once for
all that choose among points.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from trimix_lm_eval.engine.memory import find_executable_batch_size
from trimix_lm_eval.engine.model_runner import Fuser, always, blame
from trimix_lm_eval.engine.prefill import PrefixNode, PromptCollectors
from trimix_lm_eval.engine.request import Prompt, Score, ScoringRequest
from trimix_lm_eval.engine.scorer import Scored, prefill_uneven, score, sum_scores
from trimix_lm_eval.fusion.collectors import (
    Choice,
    PromptCollector,
    View,
    prequential,
)
from trimix_lm_eval.fusion.config import LogitsProcessor
from trimix_lm_eval.fusion.logits import best_point, grid_nll, log_prob, to_device
from trimix_lm_eval.fusion.weights import Weights, source_vector
from trimix_lm_eval.utils.errors import warn_once
from trimix_lm_eval.utils.windows import Window

#: An NLL of so much stands for infinity.
_INFINITE = torch.finfo(torch.float32).max


def score_rolling(
    fuser: Fuser, documents: Sequence[Sequence[Window]], batch_size: int, max_length: int
) -> Iterator[Scored]:
    """Score whole documents, given as windows.

    Fixed weights and the gate score each window as a request. A policy that chooses by a prompt
    is prequential here: token t gets the weights that suit the document's tokens before t, over
    all its windows (see `collectors.prequential`).

    Args:
        fuser: The sources and the fusion configs.
        documents: The windows of each document in order (see `windows.rolling_windows`).
        batch_size: Rows per forward pass.
        max_length: Context length in tokens.

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
    documents = [tuple(parts) for parts in documents]
    full = [doc for doc, parts in enumerate(documents) if parts]
    for configs, score_pass in _passes(fuser):
        some = Fuser(fuser.ensemble, tuple(fuser.configs[i] for i in configs))
        found = score_pass(some, [documents[doc] for doc in full], batch_size, max_length)
        with blame(full.__getitem__):
            yield from ((full[doc], configs[which], one) for doc, which, one in found)


_Pass = Callable[[Fuser, Sequence[Sequence[Window]], int, int], Iterator[Scored]]


def _passes(fuser: Fuser) -> list[tuple[list[int], _Pass]]:
    """The fusion configs by the pass that scores them."""
    windows, grids = list[int](), list[int]()
    for i, config in enumerate(fuser.configs):
        policy = config.policy
        if policy.scope in ("run", "token"):
            windows.append(i)
            continue
        grids.append(i)
    policies = [fuser.configs[i].policy for i in grids]
    told = {policy.name for policy in policies if not policy.prompt_nll}
    if told:
        warn_once(
            f"Rolling log-likelihood has no prompt: policy={', '.join(sorted(told))} weights each "
            "token by the NLL of those before it, as policy=ppl does there."
        )
    passes: list[tuple[list[int], _Pass]] = [
        (windows, _by_windows),
        (grids, _by_grids),
    ]
    return [(configs, score_pass) for configs, score_pass in passes if configs]


def _by_windows(
    fuser: Fuser, documents: Sequence[Sequence[Window]], batch_size: int, max_length: int
) -> Iterator[Scored]:
    """Score every window as a request of its own."""
    windows = [(doc, window) for doc, parts in enumerate(documents) for window in parts]
    requests = [ScoringRequest(Prompt(context), target) for _, (context, target) in windows]
    parts: dict[tuple[int, int], dict[int, Score]] = {}
    with blame(lambda window: windows[window][0]):
        for index, which, one in score(fuser, requests, batch_size, max_length):
            doc = windows[index][0]
            done = parts.setdefault((doc, which), {})
            done[index] = one
            if len(done) == len(documents[doc]):
                whole = parts.pop((doc, which))
                yield doc, which, sum_scores([whole[i] for i in sorted(whole)])


class _Grid(NamedTuple):
    """What a choosing fusion config comes to where there is no prompt: equal ones score alike."""

    points: tuple[Weights, ...]
    processor: LogitsProcessor


class _TokenCollector(PromptCollector):
    """Keeps the NLL of every single token under every point of some grids.

    Args:
        fuser: The sources.
        points: The P points of all grids, each once.
        grids: The grids.

    Attributes:
        nll: ``[P, n]`` tensors in the order of the tokens, by which points are chosen.
        masked: For each grid with a plausibility mask the same, for its own points: what the text
            is scored with, since the mask may give a token no probability at all.
    """

    def __init__(self, fuser: Fuser, points: Sequence[Weights], grids: Sequence[_Grid]) -> None:
        self.fuser, names = fuser, fuser.ensemble.names
        self.vectors = torch.tensor([source_vector(p, names) for p in points])  # [P, S]
        self.nll: list[Tensor] = []
        self.masked: dict[_Grid, list[Tensor]] = {
            g: [] for g in grids if g.processor != LogitsProcessor()
        }
        self._new: list[tuple[list[Tensor], Tensor]] = []  # the list that each tensor is for

    def read(self, view: View, targets: Tensor) -> None:
        """Add ``[P, n]`` values."""
        for where, logits in view.chunks():
            nll = grid_nll(logits, targets[where], self.vectors)
            self._new.append((self.nll, nll))
            for one, kept in self.masked.items():
                names = self.fuser.ensemble.names
                vectors = torch.tensor([source_vector(p, names) for p in one.points])
                found = torch.stack(
                    [
                        -log_prob(self._masked(logits, vector, one.processor), targets[where])
                        for vector in to_device(vectors, nll.device)
                    ]
                )
                # What must be finite is told apart from what the mask makes infinite.
                self._new.append((kept, found.clamp_max_(_INFINITE)))

    def _masked(self, logits: list[Tensor], vector: Tensor, processor: LogitsProcessor) -> Tensor:
        """The fused logits ``[n, V]`` under one point, masked: those of one are there at a time."""
        return self.fuser.fused(logits, vector.expand(len(logits[0]), -1), processor)[0]

    def unsettled(self) -> Tensor | None:
        """All that is new, side by side."""
        return torch.cat([x.flatten() for _, x in self._new]) if self._new else None

    def settle(self, values: Tensor) -> None:
        """Take the new values apart again."""
        parts = values.float().split([x.numel() for _, x in self._new])
        for (kept, like), part in zip(self._new, parts, strict=True):
            kept.append(part.masked_fill(part >= _INFINITE, torch.inf).view(like.shape))
        self._new = []


def _by_grids(
    fuser: Fuser, documents: Sequence[Sequence[Window]], batch_size: int, _: int
) -> Iterator[Scored]:
    """Score prequentially over each fusion config's grid."""
    pairs = zip(fuser.configs, fuser.processors, strict=True)
    grids = [_Grid(config.policy.points(), processor) for config, processor in pairs]
    points = list(dict.fromkeys(point for one in grids for point in one.points))

    def collector() -> PromptCollector:
        return _TokenCollector(fuser, points, grids)

    def finish(seen: Sequence[PromptCollector]) -> list[Score]:
        mine = [c for c in seen if isinstance(c, _TokenCollector)]
        scores = {one: _of_grid(one, points, mine) for one in dict.fromkeys(grids)}
        return [scores[one] for one in grids]

    return _collect(fuser, documents, batch_size, collector, finish)


def _of_grid(one: _Grid, points: Sequence[Weights], seen: Sequence[_TokenCollector]) -> Score:
    """Prequential score over a grid; the choice reported is that after the last token."""
    rows = [points.index(point) for point in one.points]
    nll = torch.cat([n for c in seen for n in c.nll], dim=1)[rows]  # [P, T]
    scores = nll
    if one.processor != LogitsProcessor():
        scores = torch.cat([n for c in seen for n in c.masked[one]], dim=1)  # [P, T]
    chosen = prequential(nll, one.points)
    total = scores.gather(0, chosen.unsqueeze(0)).double().sum()
    best = best_point(nll.double().sum(dim=1), nll.shape[1], one.points)
    means = nll.double().mean(dim=1)
    choice = Choice(one.points[best], float(means[best]), nll.shape[1], tuple(means.tolist()))
    return Score(-float(total), False, choice)


def _collect(
    fuser: Fuser,
    documents: Sequence[Sequence[Window]],
    batch_size: int,
    collector: Callable[[], PromptCollector],
    finish: Callable[[Sequence[PromptCollector]], list[Score]],
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
                prefill_uneven(fuser.ensemble, PrefixNode(), prompts, shown)
        found = []
        for doc in docs:
            with blame(always(doc)):
                found += [(doc, which, one) for which, one in enumerate(finish(collectors[doc]))]
        return found

    indices = range(len(documents))
    for group in find_executable_batch_size(fuser.ensemble, indices, batch_size, work):
        yield from group
