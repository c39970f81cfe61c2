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

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trimix_lm_eval.engine.model_runner import Fuser
from trimix_lm_eval.engine.sampler import RowParams
from trimix_lm_eval.engine.static_batch import Lane, StaticBatch
from trimix_lm_eval.engine.static_cache import Places, StepMasks, run_static
from trimix_lm_eval.fusion.mixture import logprobs_by_source
from trimix_lm_eval.utils.errors import first_line, is_out_of_memory, warn_once

#: Rounds of a kind that are run operation by operation before it is captured: in the first, kernels
#: are chosen and compiled, which must not be captured; what is needed only twice does not repay it.
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
        tokens: ``[L, k + 1]`` the tokens that the fused distributions say; -1 where the fused
            logits are no numbers.
        drafts: ``[B, k]`` what was proposed.
        accepted: ``[B]`` how many drafts stand by the leading lane.
        weights: ``[L, k + 1, S]`` the source weights in force, or, where they follow the text,
            those for the token after each; None where all are the lane's own.
    """

    tokens: Tensor
    drafts: Tensor
    accepted: Tensor
    weights: Tensor | None


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

    Attributes:
        pool: The memory pool of graphs that are captured from now on, one on each GPU.
    """

    def __init__(
        self,
        fuser: Fuser,
        drafter: int,
        batch: StaticBatch,
        kind: RoundKind,
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
        self.places: dict[torch.device, Places] = {}
        self.masks: dict[Any, StepMasks] = {}
        lanes = sum(len(group.rows) for group in batch.lanes.groups)
        changing = any(g.processor.per_token or g.processor.updates for g in batch.lanes.groups)
        width, sources = kind.k + 1, len(ensemble.names) if changing else 0
        self.sizes = [(lanes, width), (shape.rows, kind.k), (shape.rows,)]
        size = sum(torch.Size(one).numel() for one in self.sizes)
        self.out = torch.zeros(size, dtype=torch.long, device=self.here)
        self.weights = torch.zeros(lanes * width, sources, device=self.here)
        # Two, since a round begins before what the last one gave is read.
        self._on_host = [
            [torch.zeros(x.shape, dtype=x.dtype, pin_memory=True) for x in (self.out, self.weights)]
            for _ in range(2)
        ]
        self.pool: Any = None
        self.count = 0
        self.graphs: list[Any] = []

    @property
    def may_capture(self) -> bool:
        """Not once a capture of any round has failed: PyTorch believes it is still running."""
        return self.fuser.ensemble.not_captured is None

    def _parts(self) -> list[_Part]:
        """In order; not stored, since bound methods would keep the round alive in a cycle."""
        others = dict.fromkeys(d for s, d in enumerate(self.devices) if s != self.drafter)
        passes = [_Part(device, partial(self._pass, device)) for device in others]
        draft = _Part(self.devices[self.drafter], self._draft)
        return [draft, *passes, _Part(self.here, self._verdict)]

    def begin(self, events: list[Any]) -> list[Tensor]:
        """Begin a round.

        Args:
            events: Four, recorded before and after the drafts, and before and after the rest.

        Returns:
            What `read` takes, once the last event is over.
        """
        self.count += 1
        if self.count > _EAGER and not self.graphs and self.may_capture:
            self._capture()
        rehearsed = self.count == _EAGER and self.may_capture
        works = [partial(self._rehearse, p.work) if rehearsed else p.work for p in self._parts()]
        draft, *passes, verdict = [graph.replay for graph in self.graphs] or works
        on_host = self._on_host[0]
        self._on_host.reverse()
        drafting, here = (
            torch.cuda.current_stream(d) for d in (self.devices[self.drafter], self.here)
        )
        events[0].record(drafting)
        draft()
        events[1].record(drafting)
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
        for there, made in zip(on_host, (self.out, self.weights), strict=True):
            there.copy_(made, non_blocking=True)
        events[3].record(here)
        return on_host

    def _rehearse(self, work: Callable[[], None]) -> None:
        """Run a part by the rule of a capture, that nothing in it waits; if it does, run it again.

        A capture that fails leaves PyTorch's allocator in a state of which it does not get out.
        """
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            return work()
        except Exception as error:
            self._give_up(error)
        finally:
            torch.cuda.set_sync_debug_mode(before)
        work()

    def _capture(self) -> None:
        """Record all parts as graphs; what cannot be captured goes on operation by operation."""
        graphs = []
        try:
            for device, work in self._parts():
                graph = torch.cuda.CUDAGraph()
                recorded = torch.cuda.graph(graph, self.pool, _stream(device))
                # Where a capture fails, PyTorch does not go back to the stream of before by itself.
                before = torch.cuda.stream(torch.cuda.current_stream(device))
                with torch.cuda.device(device), before, recorded:
                    work()
                graphs.append(graph)
        except Exception as error:  # a model's or a policy's code may make another of CUDA's
            self._give_up(error)
        else:
            self.graphs = graphs
            self.fuser.ensemble.graphs_captured += len(graphs)

    def _give_up(self, error: Exception) -> None:
        """Capture nothing of these sources any more; memory that runs out is no reason."""
        if is_out_of_memory(error):
            raise error
        self.fuser.ensemble.not_captured = why = first_line(error)
        warn_once(
            "Decoding steps cannot be captured as CUDA graphs, and run operation by operation: "
            f"{why}"
        )

    def read(self, on_host: list[Tensor]) -> Verdict:
        """What a round gave, from what `begin` returned."""
        parts = on_host[0].split([torch.Size(size).numel() for size in self.sizes])
        tokens, drafts, accepted = (
            part.view(size) for part, size in zip(parts, self.sizes, strict=True)
        )
        weights = on_host[1].unflatten(0, tokens.shape) if on_host[1].numel() else None
        return Verdict(tokens, drafts, accepted, weights)

    # ---------------------------------------------------------------- on a GPU

    def _masks(self, which: int) -> StepMasks:
        """Of a source; sources on one GPU that want the same share them."""
        runner = self.fuser.ensemble.sources[which]
        key = (runner.device, runner.dtype, tuple(runner.mask_kinds().items()))
        if key not in self.masks:
            numbers = self.batch.states[runner.device].numbers
            places, shape = self._places(runner.device), self.batch.shape
            self.masks[key] = StepMasks(runner, places, shape, numbers)
        return self.masks[key]

    def _places(self, device: torch.device) -> Places:
        """Where the tokens are, for the sources of one GPU."""
        if device not in self.places:
            self.places[device] = self.batch.states[device].places(self.kind.k + 1)
        return self.places[device]

    def _draft(self) -> None:
        """Propose k tokens, and run the drafter over the last of them, too."""
        s, k, ensemble = self.drafter, self.kind.k, self.fuser.ensemble
        runner, cache = ensemble.sources[s], self.batch.caches[s]
        self.places, self.masks = {}, {}
        state = self.batch.states[runner.device]
        last, _, step = state.now
        steps = step[:, None] + state.numbers[: k + 1]  # [B, k + 1]
        places, masks = self._places(runner.device), self._masks(s)
        token, tokens = last, [last]
        hidden, logits = [], []
        if cache.states is not None:
            cache.states.begin(state.now[1])
        for j in range(k + 1):
            h = run_static(runner, token[:, None], places.at(j), cache, masks.of(runner, j))[:, 0]
            if cache.states is not None:
                cache.states.keep(j)
            hidden.append(h)
            # Of all rows at once where they are few enough to be kept.
            size = len(h) if self.keep else ensemble.logit_positions
            picked = []
            for start in range(0, len(h), size) if j < k or self.keep else ():
                where = slice(start, start + size)
                mine = ensemble.local_logits(s, h[where])
                if self.keep:
                    logits.append(mine)
                if j < k:
                    params = RowParams(*(x[where] for x in state.params))
                    picked.append(self._pick(mine, params, steps[where, j])[0])
            if j < k:
                token = _joined(picked)
                tokens.append(token)
        self.block = torch.stack(tokens, dim=1)  # [B, k + 1]
        if self.keep:
            self.logits[s] = torch.stack(logits, dim=1).flatten(0, 1)
        else:
            self.hidden[s] = torch.stack(hidden, dim=1).flatten(0, 1)

    def _pass(self, device: torch.device) -> None:
        """Run the sources of one GPU, but for the drafter, over the tokens."""
        block = self.blocks.get(device, self.block)
        for s, runner in enumerate(self.fuser.ensemble.sources):
            if runner.device != device or s == self.drafter:
                continue
            masks = self._masks(s).of(runner)
            h = run_static(runner, block, self._places(device), self.batch.caches[s], masks)
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
        drawn = [self._draw(group, ready) for group in lanes.groups]
        tokens, finite, weights = (_joined(parts) for parts in zip(*drawn, strict=True))
        if self.weights.numel():
            self.weights.copy_(weights)
        tokens = tokens.view(-1, width)  # [L, k + 1]
        leading = tokens if lanes.by_row else tokens[lanes.lead]  # [B, k + 1]
        accepted = (block[:, 1:] == leading[:, :-1]).cumprod(dim=1).sum(dim=1)  # [B]
        # A row goes on with a token even so, since the host knows of it a round later.
        told = torch.where(finite, tokens.flatten(), -1)
        torch.cat([told, block[:, 1:].flatten(), accepted], out=self.out)
        last, position, step = state.now
        last.copy_(leading.gather(1, accepted[:, None])[:, 0])
        state.now[1:].add_(accepted).add_(1)
        # A row that is over runs on until another takes its place, and must stay in its slots.
        position.clamp_(max=state.ends)
        for lane, (*_, weights) in zip(lanes.groups, drawn, strict=True):
            if lane.processor.updates is not None:
                at = accepted[lane.rows][:, None, None].expand(-1, 1, weights.shape[1])
                lane.vectors.copy_(weights.unflatten(0, (-1, width)).gather(1, at)[:, 0])

    def _draw(self, lane: Lane, ready: Mapping[int, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Draw for some lanes at each of the k + 1 tokens.

        Args:
            lane: L of them.
            ready: ``[B * (k + 1), V]`` logits that are computed already, by source.

        Returns:
            ``[L * (k + 1)]`` tokens, whether the fused logits are numbers, and ``[*, S]`` weights
            in force; where they follow the text, those for the token after each.
        """
        width, state = self.kind.k + 1, self.batch.states[self.here]
        ahead = state.numbers[:width]
        # Of which position, counted through all rows, each token of a lane is.
        of = lane.rows[:, None] * width + ahead  # [L, k + 1]
        rows = lane.rows[:, None].expand(-1, width)
        if lane.processor.updates is None:
            vectors = lane.vectors[:, None].expand(-1, width, -1).flatten(0, 1)
            return self._draw_at(lane, ready, of.flatten(), rows.flatten(), vectors)
        found, vectors = [], lane.vectors
        for j in range(width):  # of which the token says the weights of the next
            part = self._draw_at(lane, ready, of[:, j], lane.rows, vectors)
            vectors = part[2]
            found.append(part)
        parts = [torch.stack(column, dim=1).flatten(0, 1) for column in zip(*found, strict=True)]
        return parts[0], parts[1], parts[2]

    def _draw_at(
        self, lane: Lane, ready: Mapping[int, Tensor], of: Tensor, rows: Tensor, vectors: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`_draw` at N positions ``of`` all rows', given row and weights ``[N, S]`` of each."""
        ensemble, width = self.fuser.ensemble, self.kind.k + 1
        state, by_row = self.batch.states[self.here], self.batch.lanes.by_row
        whole = by_row and len(of) == self.batch.shape.rows * width
        tokens, finite, used = [], [], []
        for start in range(0, len(vectors), ensemble.logit_positions):
            where = slice(start, start + ensemble.logit_positions)
            at = where if whole else of[where]
            logits = [
                ready[s][at] if s in ready else ensemble.compute_logits(s, self.hidden[s][at])
                for s in range(len(ensemble.sources))
            ]
            fused, weights = self.fuser.fused(logits, vectors[where], lane.processor)
            params, steps = state.params, state.numbers[:width]
            if self.kind.drawn:
                mine = rows[where]
                params = RowParams(*(x[mine] for x in params))
                steps = state.now[2][mine] + of[where] % width
            picked, best = self._pick(fused, params, steps)
            if lane.processor.updates is not None:
                told = logprobs_by_source(logits, picked)
                weights = self.fuser.updated(weights, told, lane.processor)
            tokens.append(picked)
            finite.append((best - best) == 0)  # NaN of what is not
            used.append(weights)
        return _joined(tokens), _joined(finite), _joined(used)

    def _pick(self, logits: Tensor, params: RowParams, steps: Tensor) -> tuple[Tensor, Tensor]:
        return params.pick(logits, steps, self.kind.drawn, self.kind.cut)


@cache
def _stream(device: torch.device) -> Any:
    """Of captures on a GPU: one, since only graphs of one stream share memory in a pool.

    PyTorch's own capture stream belongs to the GPU that captured first.
    """
    return torch.cuda.Stream(device)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """Tensors one below the other; of one, itself."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
