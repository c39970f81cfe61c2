"""Whole texts in, log-likelihoods out: rolling windows, each token predicted once.

There is no prompt to choose weights by, so a policy that chooses by a prompt is prequential: token
t gets the weights that suit the tokens of the document before t (invariant 5).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from trimix_lm_eval import fusion, grid
from trimix_lm_eval.ensemble import LogitView
from trimix_lm_eval.errors import always, blame, warn_once
from trimix_lm_eval.fuser import Fuser, judge
from trimix_lm_eval.prefill import Prompt, halving, prefill
from trimix_lm_eval.readers import Choice, NewtonReader, Reader, View, prequential
from trimix_lm_eval.scoring import Request, Score, score, together
from trimix_lm_eval.weights import PRIOR


class _PrequentialReader(Reader):
    """Keeps the NLL of every single token under every point.

    ``nll`` is what points are chosen by; ``scores`` what the text is scored with, the plausibility
    mask applied where there is one (it may give a token no probability at all).
    """

    def __init__(self, fuser: Fuser) -> None:
        super().__init__(fuser.ensemble.names)
        self.fuser = fuser
        self.vectors = torch.tensor([p.vector(self.names) for p in fuser.policy.points()])  # [P, S]
        self.nll: list[Tensor] = []
        self.scores: list[Tensor] = []

    def read(self, view: View, targets: Tensor) -> None:
        """Add ``[P, n]`` values."""
        for where, logits in view.chunks():
            vectors = self.vectors.to(logits[0].device)
            nll = grid.grid_nll(logits, targets[where], vectors).cpu()
            view.check(nll.isfinite())
            self.nll.append(nll)
            if self.fuser.plausibility is None:
                self.scores.append(nll)
                continue
            each = [v.expand(nll.shape[1], -1) for v in vectors]
            masked = [
                -fusion.log_prob(self.fuser.fused(logits, v)[0], targets[where]) for v in each
            ]
            self.scores.append(torch.stack(masked).cpu())


Window = tuple[tuple[int, ...], tuple[int, ...]]


def score_rolling(
    fuser: Fuser, documents: Sequence[Sequence[Window]], batch_size: int, max_length: int
) -> Iterator[tuple[int, Score]]:
    """Score whole documents, given as windows of (context, tokens to be predicted).

    Fixed weights and the gate score each window as a request. A policy that chooses by a prompt
    is prequential here: token t gets the weights that suit the document's tokens before t, over
    all its windows (see `policies.prequential`).

    Args:
        fuser: The sources and the policy.
        documents: Windows in order; every token is predicted once.
        batch_size: Rows per forward pass.
        max_length: Context length.

    Yields:
        (index of the document, score), each when its last window is done.
    """
    if fuser.plausibility is not None:
        warn_once(
            "The plausibility mask gives some tokens no probability at all: a text that holds one "
            "has log-likelihood minus infinity."
        )
    windows = [(doc, w) for doc, parts in enumerate(documents) for w in parts]
    left = [len(parts) for parts in documents]
    for doc, parts in enumerate(documents):
        if not parts:
            yield doc, Score(0.0, True, None)
    if fuser.policy.scope in ("run", "token"):
        requests = [Request(Prompt(context), target) for _, (context, target) in windows]
        found: dict[int, list[Score]] = {}
        with blame(lambda window: windows[window][0]):
            for index, one in score(fuser, requests, batch_size, max_length):
                doc = windows[index][0]
                found.setdefault(doc, []).append(one)
                left[doc] -= 1
                if not left[doc]:
                    yield doc, together(found.pop(doc))
        return

    if fuser.policy.name != "ppl":
        warn_once(
            f"Rolling log-likelihood has no prompt: policy={fuser.policy.name} weights each token "
            "by the NLL of those before it, as policy=ppl does there."
        )

    def work(docs: Sequence[int], size: int) -> list[tuple[int, Score]]:
        return _prequential(fuser, documents, docs, size)

    for group in halving(fuser.ensemble, range(len(documents)), batch_size, work):
        yield from group


def _prequential(
    fuser: Fuser, documents: Sequence[Sequence[Window]], docs: Sequence[int], size: int
) -> list[tuple[int, Score]]:
    """Score some documents prequentially, their windows side by side."""
    names = fuser.ensemble.names
    newton = fuser.policy.continuous
    jobs = [(doc, w) for doc in docs for w in documents[doc]]
    jobs.sort(key=lambda job: -len(job[1][0]) - len(job[1][1]))
    readers: dict[Window, Reader] = {}
    for start in range(0, len(jobs), size):
        batch = jobs[start : start + size]
        prompts, mine = [], []
        for _, (context, target) in batch:
            judged = (False,) * len(context) + (True,) * (len(target) - 1)
            prompts.append(Prompt(context + target[:-1], judged, tail=target[-1]))
            mine.append(NewtonReader(names) if newton else _PrequentialReader(fuser))
            readers[context, target] = mine[-1]
        with blame([doc for doc, _ in batch].__getitem__):
            prefill(fuser.ensemble, prompts, mine)
    scores = []
    for doc in docs:
        read = [readers[w] for w in documents[doc]]
        if not read:
            continue
        if newton:
            with blame(always(doc)):
                scores.append((doc, _newton_document(fuser, [r for r in read if r.count])))
        else:
            scores.append((doc, _grid_document(fuser, read)))
    return scores


def _grid_document(fuser: Fuser, read: Sequence[Reader]) -> Score:
    """Prequential score over the grid; the choice reported is that after the last token."""
    points = fuser.policy.points()
    grids = [r for r in read if isinstance(r, _PrequentialReader)]
    nll = torch.cat([n for r in grids for n in r.nll], dim=1)  # [P, T]
    scores = torch.cat([n for r in grids for n in r.scores], dim=1)  # [P, T]
    chosen = prequential(nll, points)
    total = scores.gather(0, chosen.unsqueeze(0)).double().sum()
    best = fusion.best_point(nll.double().sum(dim=1), nll.shape[1], points)
    mean = float(nll[best].double().mean())
    return Score(-float(total), False, Choice(points[best], mean, nll.shape[1]))


def _newton_document(fuser: Fuser, read: Sequence[Reader]) -> Score:
    """Prequential score with Newton's optimum, solved anew whenever the past has doubled."""
    ensemble = fuser.ensemble
    seen = [pair for r in read if isinstance(r, NewtonReader) for pair in r.seen]
    parts = [view.hidden for view, _ in seen if isinstance(view, LogitView)]
    hidden = [torch.cat([p[s] for p in parts]) for s in range(len(ensemble.sources))]  # [T, H]
    targets = torch.cat([t for _, t in seen])
    total, done, point = 0.0, 0, PRIOR
    while done < len(targets):
        end = min(len(targets), max(8, 2 * done))
        if done:
            past = NewtonReader(ensemble.names)
            past.read(LogitView(ensemble, [h[:done] for h in hidden]), targets[:done])
            point = fuser.policy.choose([past]).weights
        view = LogitView(ensemble, [h[done:end] for h in hidden])
        vectors = torch.tensor([point.vector(ensemble.names)], device=ensemble.device)
        log_p, _, _ = judge(fuser, view, targets[done:end], vectors.expand(end - done, -1))
        total += float(log_p.double().sum())
        done = end
    return Score(total, False, Choice(point, -total / len(targets), len(targets)))
