"""All positions of a text through all sources once: whose logits speak for which token.

Hidden states and logits exist for one chunk of positions at a time (invariant 4). Logits are those
that scoring and decoding fuse: fp32, the tokenizer's vocabulary only (invariant 3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from trimix_lm_eval.analysis.explain.records import Candidate, Cutoff, Share, Token
from trimix_lm_eval.engine.input_batch import InputBatch
from trimix_lm_eval.engine.model_runner import Fuser, LogitView, choice_of
from trimix_lm_eval.fusion.collectors import Choice, prequential
from trimix_lm_eval.fusion.config import LogitsProcessor
from trimix_lm_eval.fusion.logits import grid_nll, log_prob, plausible
from trimix_lm_eval.fusion.mixture import logprobs_by_source
from trimix_lm_eval.utils.windows import Window

#: Favourites that are named of each source.
TOP = 5


@torch.inference_mode()
def measure(
    fuser: Fuser,
    window: Window,
    vectors: Sequence[Sequence[float]],
    noted: Sequence[int | None],
    label: Callable[[int], str],
    processor: LogitsProcessor,
) -> Iterator[tuple[Token, float | None]]:
    """Explain each token of a text; gives it, and the fused probability of the noted one, in order.

    Args:
        fuser: The sources and the policy.
        window: Token ids before the text, at least one, and the text's own.
        vectors: Of each token one weight per source; a policy per token replaces them, and of
            weights that follow the text the first token's count.
        noted: Of each position a token whose fused probability is wanted, too.
        label: What to call a token.
        processor: What was made of logits and weights.
    """
    follows = processor.updates is not None
    last = torch.tensor(vectors[:1], dtype=torch.float64)
    for here, logits, targets in chunks(fuser, window):
        mine = torch.tensor(vectors[here], device=targets.device)
        if follows:
            followed, last = _followed(fuser, last, logits, targets)
            mine = followed.to(mine)
        chunk = _Chunk(fuser, logits, targets, mine, processor)
        yield from zip(chunk.tokens(label), chunk.noted(noted[here]), strict=True)


@torch.inference_mode()
def chunks(fuser: Fuser, window: Window) -> Iterator[tuple[slice, list[Tensor], Tensor]]:
    """Run a window through all sources, and give the logits that score its tokens bit by bit.

    Yields:
        Which tokens, one ``[n, V]`` tensor of logits per source, and the tokens ``[n]``.
    """
    context, tokens = window
    ids = torch.tensor([[*context, *tokens[:-1]]])
    wanted = torch.arange(ids.shape[1])[None] >= len(context) - 1
    done = 0
    batch = InputBatch.empty(fuser.ensemble, 1)
    for _, _, hidden in batch.feed(ids, torch.ones_like(wanted), wanted):
        view = LogitView(fuser.ensemble, hidden)
        for where, logits in view.chunks():
            view.check(_finite(logits, where, len(view)))
            here = slice(done, done + where.stop - where.start)
            yield here, logits, torch.tensor(tokens[here], device=fuser.ensemble.device)
            done = here.stop


def _followed(
    fuser: Fuser, first: Tensor, logits: Sequence[Tensor], targets: Tensor
) -> tuple[Tensor, Tensor]:
    """Weights that follow a text, of tokens ``[n]`` from the first one's: ``[n, S]``, and the next.

    Those of the first token, and of the one after the last, are ``[1, S]``.
    """
    found = [first]
    for one in logprobs_by_source(logits, targets).double().cpu()[:, None]:  # [1, S]
        found.append(fuser.updated(found[-1], one, fuser.scoring[0]))
    return torch.cat(found[:-1]), found[-1]


def text_weights(
    fuser: Fuser, windows: Sequence[Window], choice: Choice | None
) -> tuple[list[list[float]], Choice | None]:
    """The weights that the tokens of a text without a prompt were scored with.

    Returns:
        One weight per source for each token, and the choice, if it was one for all tokens.
    """
    policy, names = fuser.configs[0].policy, fuser.ensemble.names
    if policy.scope in ("run", "token"):
        chosen = choice if policy.scope == "run" else None
        return [fuser.vector(chosen)] * sum(len(tokens) for _, tokens in windows), chosen
    if fuser.scoring[0].updates is not None:
        last = torch.tensor([fuser.vector(choice_of(policy, [], names))], dtype=torch.float64)
        weights: list[list[float]] = []
        for window in windows:
            for _, logits, targets in chunks(fuser, window):
                followed, last = _followed(fuser, last, logits, targets)
                weights += followed.tolist()
        return weights, None
    points = policy.points()
    vectors = torch.tensor([point.vector(names) for point in points], device=fuser.ensemble.device)
    nll = [
        grid_nll(logits, targets, vectors).cpu()
        for window in windows
        for _, logits, targets in chunks(fuser, window)
    ]
    at = prequential(torch.cat(nll, dim=1), points).tolist()
    return [points[i].vector(names) for i in at], None


def _finite(logits: Sequence[Tensor], where: slice, size: int) -> Tensor:
    """``[size]`` whether the logits are numbers, for `LogitView.check`."""
    finite = torch.ones(size, dtype=torch.bool)
    finite[where] = torch.stack([z.isfinite().all(dim=1) for z in logits]).all(dim=0).cpu()
    return finite


def owner(contributions: Mapping[str, float]) -> str | None:
    """The source that gives a token the most; None if none gives it anything."""
    best = max(contributions, key=lambda name: contributions[name])
    return best if contributions[best] > 0 else None


class _Chunk:
    """Some positions: logits ``[n, V]`` of each source, tokens ``[n]``, weights ``[n, S]``."""

    def __init__(
        self,
        fuser: Fuser,
        logits: Sequence[Tensor],
        targets: Tensor,
        vectors: Tensor,
        processor: LogitsProcessor,
    ) -> None:
        self.fuser, self.logits, self.targets, self.processor = fuser, logits, targets, processor
        self.bare, self.weights = fuser.fused(
            logits, vectors, processor._replace(plausibility=None)
        )
        self.fused = self.bare
        if processor.plausibility is not None:
            reference = logits[fuser.ensemble.names.index(processor.reference)]
            self.fused = plausible(self.bare.clone(), reference, processor.plausibility)
        rival, lead = _runner_up(self.fused, targets)
        # Where the mask leaves one token only, the runner-up is the best of those it removed.
        self.alone = lead.isneginf()  # [n]
        self.rival = torch.where(self.alone, _runner_up(self.bare, targets)[0], rival)

    def tokens(self, label: Callable[[int], str]) -> Iterator[Token]:
        """What is found out about each position."""
        names = self.fuser.ensemble.names
        lead = torch.stack([_at(z, self.targets) - _at(z, self.rival) for z in self.logits], dim=1)
        of_logits = self.processor.fuses is None
        shares = (self.weights.double() * lead.double() if of_logits else self._mixed()).tolist()
        leads, weights = lead.tolist(), self.weights.tolist()
        own = [_Distribution(z, self.targets, label) for z in self.logits]
        fused = _Distribution(self.fused, self.targets, label)
        cutoffs = self._cutoffs(label)
        rivals = fused.candidates(self.rival)
        for i, target in enumerate(self.targets.tolist()):
            parts = tuple(
                Share(
                    name,
                    weights[i][s],
                    leads[i][s],
                    shares[i][s],
                    own[s].ranks[i],
                    own[s].probabilities[i],
                    own[s].top[i],
                )
                for s, name in enumerate(names)
            )
            yield Token(
                id=target,
                text=label(target),
                owner=owner({share.source: share.contribution for share in parts}),
                margin=sum(share.contribution for share in parts),
                runner_up=rivals[i],
                rank=fused.ranks[i],
                probability=fused.probabilities[i],
                top=fused.top[i],
                shares=parts,
                cutoff=cutoffs[i],
            )

    def _mixed(self) -> Tensor:
        """What each source adds to the margin, ``[n, S]``, where probabilities are mixed.

        They add up in P = sum_s w_s p_s, and so do (w_s p_s(token) - w_s p_s(runner-up)) / m, where
        m = (P(token) - P(runner-up)) / margin, their logarithmic mean: to the margin itself. Of a
        rule that is no mixture, these are shares of its margin all the same.
        """
        both = [self.targets, self.rival]
        p = [
            torch.stack([log_prob(z, tokens).exp() for z in self.logits], dim=1).double()
            for tokens in both
        ]
        apart = self.weights.double() * (p[0] - p[1])  # [n, S]
        total = apart.sum(dim=1, keepdim=True)
        margin = (_at(self.bare, both[0]) - _at(self.bare, both[1])).double()[:, None]
        return torch.where(total * margin > 0, apart * margin / total, apart)

    def noted(self, tokens: Sequence[int | None]) -> list[float | None]:
        """Fused probabilities of one further token per position, where there is one."""
        some = torch.tensor([t or 0 for t in tokens], device=self.targets.device)
        found = log_prob(self.fused, some).exp().tolist()
        return [None if t is None else p for t, p in zip(tokens, found, strict=True)]

    def _cutoffs(self, label: Callable[[int], str]) -> list[Cutoff | None]:
        """What the mask did, None where there is none."""
        if self.processor.plausibility is None:
            return [None] * len(self.targets)
        kept = ~self.fused.isneginf()  # [n, V]
        favourite = self.bare.argmax(dim=1)
        named = _Distribution(self.bare, favourite, label).candidates(favourite)
        inside = _at(kept, favourite).tolist()
        columns = (kept.sum(dim=1), _at(kept, self.targets), self.alone)
        return [
            Cutoff(count, plausible, None if stays else one, alone)
            for count, plausible, alone, stays, one in zip(
                *(column.tolist() for column in columns), inside, named, strict=True
            )
        ]


class _Distribution:
    """One source's, or the fused, logits ``[n, V]``, and the place of tokens ``[n]`` in them."""

    def __init__(self, logits: Tensor, targets: Tensor, label: Callable[[int], str]) -> None:
        self.logits, self.label = logits, label
        self.mass = logits.logsumexp(dim=1)  # [n]
        mine = _at(logits, targets)
        self.ranks = ((logits > mine[:, None]).sum(dim=1) + 1).tolist()
        self.probabilities = (mine - self.mass).exp().tolist()
        best = logits.topk(min(TOP, logits.shape[1]), dim=1)
        p = (best.values - self.mass[:, None]).exp().tolist()
        self.top = [
            tuple(Candidate(t, label(t), q) for t, q in zip(tokens, row, strict=True) if q > 0)
            for tokens, row in zip(best.indices.tolist(), p, strict=True)
        ]

    def candidates(self, tokens: Tensor) -> list[Candidate]:
        """One token per position, ``[n]``, with its probability."""
        p = (_at(self.logits, tokens) - self.mass).exp().tolist()
        return [Candidate(t, self.label(t), q) for t, q in zip(tokens.tolist(), p, strict=True)]


def _at(table: Tensor, columns: Tensor) -> Tensor:
    """``[n]`` of a ``[n, V]`` table."""
    return table.gather(1, columns[:, None]).squeeze(1)


def _runner_up(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The best token that is not the target, and its logit: ``[n]`` each."""
    best = logits.topk(2, dim=1)
    second = (best.indices[:, 0] == targets).long()[:, None]
    return best.indices.gather(1, second).squeeze(1), best.values.gather(1, second).squeeze(1)
