"""A round of speculative decoding on GPUs: drafts, passes, verdict, as a few CUDA graphs.

Everything that a round reads and writes lies at fixed addresses (`static_batch`). The host replays
graphs and reads one small buffer; it sends nothing unless rows come or fork.

    draft    on small_cpt's GPU: it runs k + 1 times over one token of each row, k of them proposed
    passes   on each GPU with other sources: these run once over the k + 1 tokens
    verdict  on the first source's GPU: for each branch of each row, the fused distribution at each
             token says which one follows; drafts are accepted as far as the row's leading branch
             says so, and last token, position and step of the row move on by as many

Between GPUs go the drafts, the logits of sources that are elsewhere, and where rows stand then: a
copy each, which CUDA orders behind the work on the one side and before that on the other. What a
round does with a row is `spec_decode.DecodingStep`, tensor by tensor: the same tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trimix_lm_eval.engine.model_runner import Fuser
from trimix_lm_eval.engine.sampler import RowParams
from trimix_lm_eval.engine.static_batch import MOST_DRAFTS, Lane, StaticBatch
from trimix_lm_eval.engine.static_cache import StepMasks, run_static
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


class Verdict(NamedTuple):
    """What a round gives, on the CPU, of B rows with L lanes.

    Attributes:
        tokens: ``[L, k + 1]`` the tokens that the fused distributions say.
        drafts: ``[B, k]`` what was proposed.
        accepted: ``[B]`` how many drafts stand by the leading lane.
        finite: ``[L, k + 1]`` whether the fused logits are numbers.
        weights: ``[L, k + 1, S]`` the source weights in force.
    """

    tokens: Tensor
    drafts: Tensor
    accepted: Tensor
    finite: Tensor
    weights: Tensor


class _Part(NamedTuple):
    """A part of a round that can be captured: its GPU, and what it does there."""

    device: torch.device
    work: Callable[[], None]


class Round:
    """A round of one kind, which is captured when it is needed again.

    Args:
        fuser: The sources, each on one GPU.
        drafter: Index of the source that drafts.
        batch: The rows; the round is of use as long as their addresses stay (`version`).
        kind: What is fixed.
        pools: By GPU, the memory pool of all graphs of the run.
    """

    def __init__(
        self,
        fuser: Fuser,
        drafter: int,
        batch: StaticBatch,
        kind: RoundKind,
        pools: Mapping[torch.device, Any],
    ) -> None:
        self.fuser, self.drafter, self.batch, self.kind = fuser, drafter, batch, kind
        ensemble, shape = fuser.ensemble, batch.shape
        self.here = ensemble.device
        self.devices = [source.device for source in ensemble.sources]
        positions = shape.rows * (kind.k + 1)
        #: Whether the drafter's logits are kept for the verdict.
        self.keep = positions <= ensemble.logit_positions or self.devices[drafter] != self.here
        # What comes from other GPUs: the logits of their sources; there, the drafts.
        self.ready = {
            s: torch.zeros(positions, ensemble.vocab_size, device=self.here)
            for s, device in enumerate(self.devices)
            if device != self.here
        }
        ids = torch.zeros(shape.rows, kind.k + 1, dtype=torch.long)
        self.blocks = {d: ids.to(d) for d in batch.states if d != self.devices[drafter]}
        self.hidden: dict[int, Tensor] = {}  # [B * (k + 1), H] by source
        self.logits: dict[int, Tensor] = {}  # [B * (k + 1), V] of some, on their GPUs
        self.masks: dict[Any, StepMasks] = {}
        lanes = sum(len(group.rows) for group in batch.lanes.groups)
        self.sizes = [
            (lanes, kind.k + 1),
            (shape.rows, kind.k),
            (shape.rows,),
            (lanes, kind.k + 1),
            (lanes, kind.k + 1, len(ensemble.names)),  # the bits of fp32
        ]
        size = sum(torch.Size(one).numel() for one in self.sizes)
        self.out = torch.zeros(size, dtype=torch.int32, device=self.here)
        # Two, since a round begins before what the last one gave is read.
        self._on_host = [torch.zeros(size, dtype=torch.int32, pin_memory=True) for _ in range(2)]
        others = dict.fromkeys(d for s, d in enumerate(self.devices) if s != drafter)
        self.parts = [
            _Part(self.devices[drafter], self._draft),
            *(_Part(device, partial(self._pass, device)) for device in others),
            _Part(self.here, self._verdict),
        ]
        self.pools, self.count, self.may_capture = pools, 0, True
        self.graphs: list[Any] = []

    def begin(self, events: list[Any]) -> Tensor:
        """Begin a round.

        Args:
            events: Four, recorded before and after the drafts, and before and after the rest.

        Returns:
            What `read` takes, once the last event is over.
        """
        self.count += 1
        if self.count > _EAGER and not self.graphs and self.may_capture:
            self._capture()
        draft, *passes, verdict = [g.replay for g in self.graphs] or [p.work for p in self.parts]
        on_host = self._on_host[0]
        self._on_host.reverse()
        there, here = (torch.cuda.current_stream(d) for d in (self.parts[0].device, self.here))
        events[0].record(there)
        draft()
        events[1].record(there)
        for block in self.blocks.values():
            block.copy_(self.block, non_blocking=True)
        events[2].record(here)
        for run in passes:
            run()
        for s, logits in self.ready.items():
            logits.copy_(self.logits[s], non_blocking=True)
        verdict()
        for device, state in self.batch.states.items():
            if device != self.here:
                state.now.copy_(self.batch.states[self.here].now, non_blocking=True)
        on_host.copy_(self.out, non_blocking=True)
        events[3].record(here)
        return on_host

    def _capture(self) -> None:
        """Record all parts as graphs; what cannot be captured goes on operation by operation."""
        graphs = []
        try:
            for device, work in self.parts:
                graph = torch.cuda.CUDAGraph()
                # PyTorch's own stream for captures is of the GPU on which it was first needed.
                stream = torch.cuda.Stream(device)
                recorded = torch.cuda.graph(graph, pool=self.pools[device], stream=stream)
                with torch.cuda.device(device), recorded:
                    work()
                graphs.append(graph)
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
            self.graphs = graphs
            self.fuser.ensemble.graphs_captured += len(graphs)

    def read(self, on_host: Tensor) -> Verdict:
        """What a round gave, from what `begin` returned."""
        parts = on_host.split([torch.Size(size).numel() for size in self.sizes])
        tokens, drafts, accepted, finite, bits = (
            part.view(size) for part, size in zip(parts, self.sizes, strict=True)
        )
        return Verdict(tokens, drafts, accepted, finite.bool(), bits.view(torch.float32))

    # ---------------------------------------------------------------- on a GPU

    def _masks(self, which: int) -> StepMasks:
        """Of a source; sources on one GPU that want the same share them."""
        runner = self.fuser.ensemble.sources[which]
        key = (runner.device, runner.dtype, tuple(runner.mask_kinds().items()))
        if key not in self.masks:
            places = self.batch.states[runner.device].places(self.kind.k + 1)
            self.masks[key] = StepMasks(runner, places, self.batch.shape)
        return self.masks[key]

    def _draft(self) -> None:
        """Propose k tokens, and run the drafter over the last of them, too."""
        s, k, ensemble = self.drafter, self.kind.k, self.fuser.ensemble
        runner, cache = ensemble.sources[s], self.batch.caches[s]
        self.masks = {}
        state = self.batch.states[runner.device]
        last, _, step = state.now
        places, masks = state.places(k + 1), self._masks(s)
        token, tokens = last, [last]
        hidden, logits = [], []
        for j in range(k + 1):
            h = run_static(runner, token[:, None], places.at(j), cache, masks.of(runner, j))[:, 0]
            hidden.append(h)
            if j < k or self.keep:
                mine = ensemble.local_logits(s, h)
                logits.append(mine)
            if j < k:
                token = self._pick(mine, state.params, step + j)
                tokens.append(token)
        self.block = torch.stack(tokens, dim=1)  # [B, k + 1]
        self.hidden[s] = torch.stack(hidden, dim=1).flatten(0, 1)  # [B * (k + 1), H]
        if self.keep:
            self.logits[s] = torch.stack(logits, dim=1).flatten(0, 1)

    def _pass(self, device: torch.device) -> None:
        """Run the sources of one GPU, but for the drafter, over the tokens."""
        block = self.blocks.get(device, self.block)
        for s, runner in enumerate(self.fuser.ensemble.sources):
            if runner.device != device or s == self.drafter:
                continue
            masks = self._masks(s)
            places = self.batch.states[device].places(self.kind.k + 1)
            h = run_static(runner, block, places, self.batch.caches[s], masks.of(runner))
            self.hidden[s] = h.flatten(0, 1)
            if device != self.here:
                self.logits[s] = self.fuser.ensemble.local_logits(s, self.hidden[s])

    def _verdict(self) -> None:
        """Draw from the fused distributions, count what was accepted, move on."""
        ensemble, lanes, width = self.fuser.ensemble, self.batch.lanes, self.kind.k + 1
        state = self.batch.states[self.here]
        block = self.blocks.get(self.here, self.block)
        ready = dict(self.ready)
        if self.keep and self.drafter not in ready:
            ready[self.drafter] = self.logits[self.drafter]
        if not lanes.by_row and len(block) * width <= ensemble.logit_positions:
            # Several lanes of a row take its logits.
            for s in range(len(ensemble.sources)):
                if s not in ready:
                    ready[s] = ensemble.compute_logits(s, self.hidden[s])
        steps = (state.now[2][:, None] + torch.arange(width, device=self.here)).flatten()
        drawn = [self._draw(group, ready, steps) for group in lanes.groups]
        tokens, finite, weights = (torch.cat(parts) for parts in zip(*drawn, strict=True))
        tokens = tokens.view(-1, width)  # [L, k + 1]
        leading = tokens if lanes.by_row else tokens[lanes.lead]  # [B, k + 1]
        stands = (block[:, 1:] == leading[:, :-1]).long().cumprod(dim=1)
        accepted = stands.sum(dim=1)  # [B]
        bits = weights.contiguous().view(torch.int32)
        parts = [tokens, block[:, 1:], accepted, finite, bits]
        self.out.copy_(torch.cat([part.to(torch.int32).flatten() for part in parts]))
        state.now[0].copy_(leading.gather(1, accepted[:, None])[:, 0])
        state.now[1:].add_(accepted + 1)
        # A row that is over runs on until another takes its place, and must stay in its slots.
        state.now[1].clamp_(max=state.lengths + (self.batch.shape.slots - MOST_DRAFTS - 1))

    def _draw(
        self, lane: Lane, ready: Mapping[int, Tensor], steps: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Draw for some lanes at each of the k + 1 tokens.

        Args:
            lane: L of them.
            ready: ``[B * (k + 1), V]`` logits that are computed already, by source.
            steps: ``[B * (k + 1)]`` which token of its text each is.

        Returns:
            ``[L * (k + 1)]`` tokens, whether the fused logits are numbers, and ``[*, S]`` weights.
        """
        ensemble, width = self.fuser.ensemble, self.kind.k + 1
        count, by_row = len(lane.rows) * width, self.batch.lanes.by_row
        vectors = lane.vectors.repeat_interleave(width, dim=0, output_size=count)
        ahead = torch.arange(count, device=self.here)
        # Of which position, counted through all rows, each token of a lane is.
        of = ahead if by_row else lane.rows[ahead // width] * width + ahead % width
        tokens, finite, used = [], [], []
        for start in range(0, count, ensemble.logit_positions):
            where = slice(start, min(start + ensemble.logit_positions, count))
            at = where if by_row else of[where]
            logits = [
                ready[s][at] if s in ready else ensemble.compute_logits(s, self.hidden[s][at])
                for s in range(len(ensemble.sources))
            ]
            fused, weights = self.fuser.fused(logits, vectors[where], lane.processor)
            params = self.batch.states[self.here].params
            if self.kind.drawn:
                params = RowParams(*(x[of[where] // width] for x in params))
            tokens.append(self._pick(fused, params, steps[at]))
            finite.append(fused.amax(dim=-1).isfinite())
            used.append(weights.float())
        return torch.cat(tokens), torch.cat(finite), torch.cat(used)

    def _pick(self, logits: Tensor, params: RowParams, steps: Tensor) -> Tensor:
        return params.pick(logits, steps, self.kind.drawn, self.kind.cut)
