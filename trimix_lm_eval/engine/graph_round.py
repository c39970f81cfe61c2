"""A round of speculative decoding on the GPU: drafts, verdict, bookkeeping, in two CUDA graphs.

Everything that a round reads and writes lies at fixed addresses on the GPU: the last token of each
row and its position, the weights, how tokens are drawn, the caches. The host replays two graphs and
reads one small buffer; it sends nothing unless rows come.

    draft graph   small_cpt runs k + 1 times over one token of each row; k tokens are proposed
    verify graph  the other sources run once over the k + 1 tokens; the fused distribution at each
                  says which token comes; accepted drafts are counted, and last token, position and
                  step of each row move on by as many

What a round does with a row is `spec_decode.DecodingStep`, tensor by tensor: the same tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trimix_lm_eval.engine.model_runner import Fuser, LogitView
from trimix_lm_eval.engine.sampler import RowParams
from trimix_lm_eval.engine.static_cache import (
    Places,
    StaticCache,
    StaticShape,
    StepMasks,
    run_static,
)
from trimix_lm_eval.fusion.config import LogitsProcessor
from trimix_lm_eval.utils.errors import first_line, is_out_of_memory, warn_once

#: Rounds of a kind that are run operation by operation before it is captured: kernels are chosen
#: and compiled in the first, which no graph may hold, and what is needed twice does not repay it.
_EAGER = 2


class RoundKind(NamedTuple):
    """What is fixed when a round is captured.

    Attributes:
        k: Drafts of each row.
        drawn: Whether any row is sampled.
        cut: Whether any sampled row has a top_k or top_p.
    """

    k: int
    drawn: bool
    cut: bool


class RowState(NamedTuple):
    """Where B rows stand, on the device.

    Attributes:
        last: ``[B]`` int64, the last token of each, which no source has seen yet.
        position: ``[B]`` int64, its position.
        step: ``[B]`` int64, which token of its text comes next.
        starts: ``[B]`` int64, where its shared prefix begins among the shared slots.
        lengths: ``[B]`` int64, how long that prefix is.
        vectors: ``[B, S]`` fp32 source weights.
        params: How tokens are drawn.
    """

    last: Tensor
    position: Tensor
    step: Tensor
    starts: Tensor
    lengths: Tensor
    vectors: Tensor
    params: RowParams

    @classmethod
    def empty(cls, rows: int, fuser: Fuser) -> RowState:
        """Rows that are not in use."""
        device, sources = fuser.ensemble.device, len(fuser.ensemble.names)

        def whole() -> Tensor:
            return torch.zeros(rows, dtype=torch.long, device=device)

        params = RowParams(
            torch.zeros(rows, 2, dtype=torch.int32, device=device),
            torch.zeros(rows, device=device),
            torch.full((rows,), fuser.ensemble.vocab_size, device=device),
            torch.ones(rows, dtype=torch.float64, device=device),
        )
        vectors = torch.zeros(rows, sources, device=device)
        return cls(whole(), whole(), whole(), whole(), whole(), vectors, params)

    def tensors(self) -> list[Tensor]:
        """All of them, each with a row per row."""
        return [*self[:-1], *self.params]


class Verdict(NamedTuple):
    """What a round gives, on the CPU.

    Attributes:
        tokens: ``[B, k + 1]`` the tokens that the fused distributions say.
        drafts: ``[B, k]`` what was proposed.
        accepted: ``[B]`` how many drafts stand.
        finite: ``[B, k + 1]`` whether the fused logits are numbers.
        weights: ``[B, k + 1, S]`` the source weights in force.
    """

    tokens: Tensor
    drafts: Tensor
    accepted: Tensor
    finite: Tensor
    weights: Tensor


class Round:
    """A round of B rows, of one kind, which is captured when it is needed again.

    Args:
        fuser: The sources, all on one device.
        drafter: Index of the source that drafts.
        processor: What is made of logits and weights.
        state: Where the rows stand.
        caches: Of each source.
        shape: How large the caches are.
        kind: What is fixed.
        pool: The memory pool of all graphs of the run.
    """

    def __init__(
        self,
        fuser: Fuser,
        drafter: int,
        processor: LogitsProcessor,
        state: RowState,
        caches: Sequence[StaticCache],
        shape: StaticShape,
        kind: RoundKind,
        pool: Any,
    ) -> None:
        self.fuser, self.drafter, self.processor = fuser, drafter, processor
        self.state, self.caches, self.shape, self.kind = state, caches, shape, kind
        rows, width = len(state.last), kind.k + 1
        #: Whether the drafter's logits are few enough to be kept for the verdict.
        self.keep = rows * width <= fuser.ensemble.logit_positions
        sources = len(fuser.ensemble.names)
        # Tokens, drafts, accepted, finite; then the weights, as the bits of fp32.
        self.columns = [width, kind.k, 1, width, width * sources]
        size = (rows, sum(self.columns))
        self.out = torch.zeros(size, dtype=torch.int32, device=state.last.device)
        # Two, since a round begins before what the last one gave is read.
        self._on_host = [torch.zeros(size, dtype=torch.int32, pin_memory=True) for _ in range(2)]
        self.pool, self.count, self.may_capture = pool, 0, True
        self.graphs: tuple[Callable[[], None], Callable[[], None]] | None = None

    def begin(self, events: Sequence[Any]) -> Tensor:
        """Begin a round.

        Args:
            events: Three, recorded before it, between its two parts, and after it.

        Returns:
            What `verdict` reads, once the last event is over.
        """
        self.count += 1
        if self.count > _EAGER and self.graphs is None and self.may_capture:
            self._capture()
        first, second = self.graphs or (self._draft, self._verify)
        on_host = self._on_host[0]
        self._on_host.reverse()
        events[0].record()
        first()
        events[1].record()
        second()
        on_host.copy_(self.out, non_blocking=True)
        events[2].record()
        return on_host

    def _capture(self) -> None:
        """Record both parts as graphs; what cannot be captured goes on operation by operation."""
        graphs = []
        try:
            for work in (self._draft, self._verify):
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, pool=self.pool):
                    work()
                graphs.append(graph.replay)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            self.may_capture = False
            self.fuser.ensemble.not_captured = why = first_line(error)
            warn_once(
                "Decoding steps cannot be captured as CUDA graphs, and run operation by operation: "
                f"{why}"
            )
        else:
            self.graphs = (graphs[0], graphs[1])
            self.fuser.ensemble.graphs_captured += len(graphs)

    def verdict(self, on_host: Tensor) -> Verdict:
        """What a round gave, from what `begin` returned."""
        rows = len(on_host)
        tokens, drafts, accepted, finite, bits = on_host.split(self.columns, dim=1)
        weights = bits.contiguous().view(torch.float32)
        weights = weights.view(rows, self.kind.k + 1, -1)
        return Verdict(tokens, drafts, accepted[:, 0], finite.bool(), weights)

    # ---------------------------------------------------------------- on the device

    def _draft(self) -> None:
        """Propose k tokens, and run the drafter over the last of them, too."""
        state, k, ensemble = self.state, self.kind.k, self.fuser.ensemble
        runner, cache = ensemble.sources[self.drafter], self.caches[self.drafter]
        # A row that is over runs on until another takes its place, and must stay in its slots.
        state.position.copy_(state.position.minimum(state.lengths + (self.shape.slots - k - 1)))
        ahead = torch.arange(k + 1, device=state.position.device)
        self.places = Places(state.position[:, None] + ahead, state.starts, state.lengths)
        self.steps = state.step[:, None] + ahead  # [B, k + 1]
        masks = StepMasks(runner, self.places, self.shape)
        token, tokens = state.last, [state.last]
        hidden, logits = [], []
        for j in range(k + 1):
            at = self.places._replace(positions=self.places.positions[:, j : j + 1])
            h = run_static(runner, token[:, None], at, cache, masks.one(j))[:, 0]
            hidden.append(h)
            if j < k or self.keep:
                mine = ensemble.compute_logits(self.drafter, h)
                logits.append(mine)
            if j < k:
                token = self._pick(mine, self.steps[:, j])
                tokens.append(token)
        self.block = torch.stack(tokens, dim=1)  # [B, k + 1]
        self.drafted_from = torch.stack(hidden, dim=1)  # [B, k + 1, H]
        self.ready = torch.stack(logits, dim=1).flatten(0, 1) if self.keep else None

    def _verify(self) -> None:
        """Run the other sources over the block, draw from the fused distributions, move on."""
        state, k, ensemble = self.state, self.kind.k, self.fuser.ensemble
        hidden = []
        for s, (runner, cache) in enumerate(zip(ensemble.sources, self.caches, strict=True)):
            if s == self.drafter:
                hidden.append(self.drafted_from.flatten(0, 1))
                continue
            masks = StepMasks(runner, self.places, self.shape)
            h = run_static(runner, self.block, self.places, cache, masks.all())
            hidden.append(h.flatten(0, 1))  # [B * (k + 1), H]
        vectors = state.vectors.repeat_interleave(k + 1, dim=0, output_size=len(hidden[0]))
        tokens, finite, used = [], [], []
        ready = {} if self.ready is None else {self.drafter: self.ready}
        for where, logits in LogitView(ensemble, hidden, ready).chunks():
            fused, weights = self.fuser.fused(logits, vectors[where], self.processor)
            rows = torch.arange(where.start, where.stop, device=fused.device) // (k + 1)
            tokens.append(self._pick(fused, self.steps.flatten()[where], rows))
            finite.append(fused.amax(dim=-1).isfinite())
            used.append(weights.float())
        verdict = torch.cat(tokens).view(-1, k + 1)  # [B, k + 1]
        stands = (self.block[:, 1:] == verdict[:, :-1]).long().cumprod(dim=1)
        accepted = stands.sum(dim=1, keepdim=True)  # [B, 1]
        bits = torch.cat(used).contiguous().view(torch.int32).view(len(verdict), -1)
        are_finite = torch.cat(finite).view(-1, k + 1)
        parts = [verdict, self.block[:, 1:], accepted, are_finite, bits]
        self.out.copy_(torch.cat([part.to(torch.int32) for part in parts], dim=1))
        state.last.copy_(verdict.gather(1, accepted)[:, 0])
        state.position.add_(accepted[:, 0] + 1)
        state.step.add_(accepted[:, 0] + 1)

    def _pick(self, logits: Tensor, steps: Tensor, rows: Tensor | None = None) -> Tensor:
        params = self.state.params
        if rows is not None and self.kind.drawn:
            params = RowParams(*(x[rows] for x in params))
        return params.pick(logits, steps, self.kind.drawn, self.kind.cut)
