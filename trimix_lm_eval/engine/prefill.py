"""Prompts through all sources, once: for the policy's choice and for what comes after.

A prompt runs in chunks, all sources in step; while it does, the policies' collectors see the
prediction of each of its tokens, so that a choice costs no forward pass of its own (invariant 4:
hidden states of a chunk, never logits of a whole prompt).

Prompts that share a prefix run it once. The prompts of a run form a tree: the exemplars of a task,
below them the questions, sometimes several on one text. A walk down the tree runs each segment that
is worth it as one row per source; the rows below share its cache, and their collectors start from
what its collectors have seen. Only the segments above the current place are held, within
`HELD_BYTES`. When memory runs out all the same, what is held is evicted, and the prompts below are
run whole.

Longer than most modules: running prompts and the tree of their prefixes share one loop, which
feeds a segment to all sources and shows its logits to the collectors.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from trimix_lm_eval.engine.input_batch import InputBatch
from trimix_lm_eval.engine.memory import release_memory
from trimix_lm_eval.engine.model_runner import (
    Ensemble,
    Fuser,
    LogitView,
    always,
    blame,
    called,
    choice_of,
)
from trimix_lm_eval.engine.not_finite import explain_not_finite
from trimix_lm_eval.engine.request import Prompt
from trimix_lm_eval.fusion.collectors import Choice, PromptCollector
from trimix_lm_eval.fusion.logits import to_device
from trimix_lm_eval.fusion.policies import Policy
from trimix_lm_eval.utils.errors import is_out_of_memory

#: A segment is run by itself if it is this long and saves this share of the tokens below it, or so
#: many: what is split off runs in smaller batches.
SHORTEST, SHARE, ENOUGH = 32, 0.25, 256
#: Padding that a batch may have: so many tokens, or this share of those that are not.
PADDING, PADDING_SHARE = 32, 1 / 12
#: What shared segments may take at any time, over all sources.
HELD_BYTES = 4 * 2**30


class PromptCollectors:
    """The collectors of several policies, side by side on one prompt: logits are made once.

    Args:
        collectors: By index of the fusion config.
        masked: Those of them that see only the tokens of the prompt's mask.
        policies: Whose they are, for errors.
        own: The sources that each is shown, by index; those that are not named are shown all.
    """

    def __init__(
        self,
        collectors: Mapping[int, PromptCollector],
        masked: Collection[int] = (),
        policies: Mapping[int, Policy] | None = None,
        own: Mapping[int, Sequence[int]] | None = None,
    ) -> None:
        self.collectors, self.policies = dict(collectors), policies or {}
        self.own = own or {}
        #: Those that are shown tokens, and whether each sees only the prompt's mask.
        self.reading = {i: i in masked for i, c in collectors.items() if not c.next_only}

    def absorb(self, other: PromptCollectors) -> None:
        """Take over what others have seen of the first tokens of the same prompt."""
        for i, collector in self.collectors.items():
            if not collector.next_only:
                called(self.policies.get(i), collector.absorb, other.collectors[i])

    def shown(self, inside: Tensor) -> Tensor:
        """Which positions any collector is shown, ``[n]``, of which ``inside`` are in the mask."""
        if all(self.reading.values()):
            return inside if self.reading else torch.zeros_like(inside)
        return torch.ones_like(inside)

    def read(self, view: LogitView, targets: Tensor, inside: Tensor) -> None:
        """Show each collector its part of some tokens of the prompt.

        Args:
            view: N positions.
            targets: ``[N]``, the prompt tokens that follow those positions.
            inside: ``[N]`` (on the CPU) which of those tokens are in the prompt's mask.
        """
        for where, logits in view.chunks() if self.reading else ():
            for i, masked in self.reading.items():
                keep = inside[where].nonzero()[:, 0] if masked else None
                if keep is None or len(keep) == len(logits[0]):
                    part, mine = view.part(where, None, logits), targets[where]
                elif not len(keep):
                    continue
                else:
                    part = view.part(where, keep, logits)
                    mine = targets[where][to_device(keep, targets.device)]
                if i in self.own:
                    part = part.of(self.own[i])
                called(self.policies.get(i), self.collectors[i].read, part, mine)
                del part
            del logits  # before the next chunk's are made

    def read_next(self, view: LogitView) -> None:
        """Show the last position of the prompt to those that look at it."""
        for i, collector in self.collectors.items():
            if collector.next_only:
                mine = view.of(self.own[i]) if i in self.own else view
                called(self.policies.get(i), collector.read_next, mine)


def settle(
    ensemble: Ensemble, prompts: Sequence[Prompt], collectors: Sequence[PromptCollectors | None]
) -> None:
    """Bring what the collectors of a batch have computed to the CPU, in one transfer.

    Raises:
        NotFinite: Some of it is not finite, because a source's logits are not.
        TrimixError: Some of it is not, though all logits are.
    """
    found = [
        (row, mine.policies.get(i), collector, values)
        for row, mine in enumerate(collectors)
        if mine is not None
        for i, collector in mine.collectors.items()
        if (values := called(mine.policies.get(i), collector.unsettled)) is not None
    ]
    if not found:
        return
    whole = torch.cat([values.double() for *_, values in found]).cpu()
    parts = whole.split([len(values) for *_, values in found])
    for (row, policy, collector, _), part in zip(found, parts, strict=True):
        if not bool(part.isfinite().all()):
            with blame(always(row)):
                explain_not_finite(ensemble, prompts[row].ids)
        called(policy, collector.settle, part)


def collectors_for(fuser: Fuser, prompts: Sequence[Prompt]) -> list[PromptCollectors | None]:
    """Fresh collectors for every prompt, of the policies that still need a choice."""
    policies = {i: fuser.configs[i].policy for i in fuser.collecting}
    masked = [i for i, policy in policies.items() if policy.answers_only]
    own = {i: fuser.own(policy) for i, policy in policies.items()}
    fewer = {i: which for i, (which, names) in own.items() if names != fuser.ensemble.names}
    made: list[PromptCollectors | None] = []
    for prompt in prompts:
        mine = {
            i: collector
            for i, policy in policies.items()
            if (prompt.points is None or prompt.points[i] is None)
            and (collector := called(policy, policy.collector, own[i][1])) is not None
        }
        made.append(PromptCollectors(mine, masked, policies, fewer) if mine else None)
    return made


def choices_of(
    fuser: Fuser, prompt: Prompt, collectors: PromptCollectors | None
) -> tuple[Choice | None, ...]:
    """What the policy of each fusion config chooses for a prompt; None: weights per token.

    ``collectors`` hold what its policies have seen of it.
    """
    chosen: list[Choice | None] = []
    for i, config in enumerate(fuser.configs):
        given = prompt.points[i] if prompt.points else None
        if config.policy.scope == "token":
            chosen.append(None)
        elif given is not None:
            chosen.append(Choice(given))
        elif fuser.constants[i] is not None:
            chosen.append(fuser.constants[i])
        elif fuser.choosers[i] < i:
            chosen.append(chosen[fuser.choosers[i]])
        else:
            mine = collectors.collectors.get(i) if collectors else None
            seen = [mine] if mine else []
            chosen.append(choice_of(config.policy, seen, fuser.ensemble.names))
    return tuple(chosen)


def cut(prompt: Prompt, length: int) -> Prompt:
    """The last ``length`` tokens of a prompt; where none of them is in its mask, without a mask."""
    if len(prompt.ids) <= length:
        return prompt
    mask = prompt.prompt_mask[-length:] if prompt.prompt_mask else None
    return prompt._replace(
        ids=prompt.ids[-length:], prompt_mask=mask if mask and any(mask[1:]) else None
    )


def padded(sequences: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Token lists as ``[B, T]`` ids, padded on the right, and ``[B, T]`` which of them are real."""
    rows = [torch.tensor(tokens, dtype=torch.long) for tokens in sequences]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    lengths = torch.tensor([len(tokens) for tokens in sequences])
    return ids, torch.arange(ids.shape[1]) < lengths[:, None]


def evenly(lengths: Sequence[int]) -> list[list[int]]:
    """Rows of some lengths as padded batches: the indices of each, the longest first.

    A batch ends where its padding would cost more than another batch does: what is run stays near
    to what must be, however uneven the lengths are.
    """
    found: list[list[int]] = []
    padding = real = 0
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        real += lengths[row]
        padding += lengths[found[-1][0]] - lengths[row] if found else 0
        if not found or padding > max(PADDING, PADDING_SHARE * real):
            found.append([])
            padding, real = 0, lengths[row]
        found[-1].append(row)
    return found


def prefill(
    ensemble: Ensemble,
    prompts: Sequence[Prompt],
    collectors: Sequence[PromptCollectors | None],
    batch: InputBatch | None = None,
    settled: bool = True,
    keeping: bool = False,
) -> tuple[InputBatch, list[Tensor]]:
    """Run prompts through all sources, showing each to its collectors on the way.

    Args:
        ensemble: The sources.
        prompts: B prompts.
        collectors: One set per prompt; None where no policy looks at it.
        batch: What the prompts continue, one row each; None starts them empty.
        settled: Whether to `settle` the collectors; else that is left to the caller.
        keeping: Whether the last token of each prompt will be taken back, and run again.

    Returns:
        The batch, ready to be continued, and one ``[B, H]`` tensor per source: the hidden states
        at each prompt's last token.
    """
    ids, valid = padded([prompt.ids for prompt in prompts])
    ends = valid.sum(dim=1) - 1
    after, inside, shown = _predicted(prompts, collectors, ids)
    wanted = shown.clone()
    wanted[torch.arange(len(prompts)), ends] = True

    batch = batch or InputBatch.empty(ensemble, len(prompts))
    last: dict[int, list[Tensor]] = {}
    apart = keeping and any(source.row_bytes for source in ensemble.sources)
    fed = _last_apart(batch, ids, valid, wanted, ends) if apart else batch.feed(ids, valid, wanted)
    for row, slots, hidden in fed:
        if slots[-1] == ends[row]:  # a copy, or one position would keep its whole chunk
            last[row] = [h[-1:].clone() for h in hidden]
        mine, keep = collectors[row], shown[row, slots]
        if mine is not None and bool(keep.any()):
            at = slots[keep]
            view = LogitView(ensemble, hidden)
            if len(at) < len(slots):
                view = view.part(slice(0, len(slots)), keep.nonzero()[:, 0])
            with blame(always(row)):
                mine.read(view, to_device(after[row, at], ensemble.device), inside[row, at])
    for row, (prompt, mine) in enumerate(zip(prompts, collectors, strict=True)):
        if mine is not None and prompt.tail is None:
            with blame(always(row)):
                mine.read_next(LogitView(ensemble, last[row]))
    if settled:
        settle(ensemble, prompts, collectors)
    order = range(len(prompts))
    return batch, [torch.cat([last[r][s] for r in order]) for s in range(len(ensemble.sources))]


def _last_apart(
    batch: InputBatch, ids: Tensor, valid: Tensor, wanted: Tensor, ends: Tensor
) -> Iterator[tuple[int, Tensor, list[Tensor]]]:
    """What `InputBatch.feed` does, the last tokens by themselves: states can go back before them.

    Args as of `feed`; ``ends`` are the columns ``[B]`` of the last tokens.
    """
    last = ends[:, None]
    before = valid.scatter(1, last, False)
    most = int(ends.max())
    yield from batch.feed(ids[:, :most], before[:, :most], (wanted & before)[:, :most])
    batch.begin_draft()
    all_of_them = torch.ones_like(last, dtype=torch.bool)
    for row, _, hidden in batch.feed(ids.gather(1, last), all_of_them, all_of_them):
        yield row, last[row], hidden
    batch.end_draft()


def _predicted(
    prompts: Sequence[Prompt], collectors: Sequence[PromptCollectors | None], ids: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The token that each position predicts, and what collectors are shown of them.

    Args as of `prefill`; ``ids`` are the prompts' tokens ``[B, T]``, padded.

    Returns:
        ``[B, T]`` tokens, ``[B, T]`` which of them are in their prompt's mask, and ``[B, T]`` which
        of them any collector is shown.
    """
    after = torch.zeros_like(ids)
    after[:, :-1] = ids[:, 1:]
    inside = torch.zeros_like(ids, dtype=torch.bool)
    shown = torch.zeros_like(inside)
    for row, (prompt, mine) in enumerate(zip(prompts, collectors, strict=True)):
        if mine is None:
            continue
        length = len(prompt.ids) + (prompt.tail is not None)
        if prompt.tail is not None:
            after[row, length - 2] = prompt.tail
        mask = prompt.prompt_mask[1:length] if prompt.prompt_mask else (True,) * (length - 1)
        inside[row, : length - 1] = torch.tensor(mask, dtype=torch.bool)
        shown[row, : length - 1] = mine.shown(inside[row, : length - 1])
    return after, inside, shown


@dataclass(eq=False)
class PrefixNode:
    """A prefix that several prompts share, as far as it has been run.

    Attributes:
        parent: The prefix that it continues.
        length: Its tokens, from the beginning of the prompts; 0 for the root.
        batch: One row, whose shared prefix it is; None if nothing is.
        collectors: What policies have seen of it; None if none looks.
        prompts: Those below it that share nothing more worth a segment: they run from it at last.
        evicted: Whether memory ran out: then prompts below it are run whole.
    """

    parent: PrefixNode | None = None
    length: int = 0
    batch: InputBatch | None = None
    collectors: PromptCollectors | None = None
    prompts: list[int] = field(default_factory=list)
    evicted: bool = False

    @property
    def held(self) -> int:
        """Tokens in the caches of this node and of those above it."""
        return self.length + (self.parent.held if self.parent else 0)

    def evict(self) -> bool:
        """Free these caches; from now on prompts are run whole. Returns whether there were any."""
        held = self.held > 0
        node: PrefixNode | None = self
        while node:
            node.length, node.batch, node.collectors, node.evicted = 0, None, None, True
            node = node.parent
        return held

    def start(
        self, prompts: Sequence[Prompt], collectors: Sequence[PromptCollectors | None]
    ) -> InputBatch | None:
        """A batch to go on from, one row per prompt; collectors learn what was seen so far."""
        for mine in collectors:
            if mine is not None and self.collectors is not None:
                mine.absorb(self.collectors)
        return self.batch.fork([0] * len(prompts)) if self.batch else None

    def rest(self, prompt: Prompt) -> Prompt:
        """What is left of a prompt behind the prefix."""
        mask = prompt.prompt_mask[self.length :] if prompt.prompt_mask else None
        return prompt._replace(ids=prompt.ids[self.length :], prompt_mask=mask)


class _Subtree(NamedTuple):
    """Prompts still to be looked at."""

    order: list[int]  # their indices, sorted by their tokens
    shared: list[int]  # how many tokens each of them shares with the next
    node: PrefixNode  # the prefix of all of them, as far as it was run


class PrefixTree(NamedTuple):
    """Prompts by the prefixes that they share.

    Attributes:
        fuser: The sources and the fusion configs.
        prompts: The prompts, in any order.
        request_of: From the index of a prompt to the index that errors are to name.
    """

    fuser: Fuser
    prompts: Sequence[Prompt]
    request_of: Callable[[int], int] = int

    def walk(self, anew: bool = False) -> Iterator[tuple[PrefixNode, list[int]]]:
        """Walk through all prompts, depth first.

        Args:
            anew: Whether what is kept of prompts that were run before is left for others.

        Yields:
            A node, and the indices of prompts to be run from it, longest first. Each index once.
        """
        prompts, done = self.prompts, set[int]()
        for kept, some in () if anew else self.run_before():
            done.update(some)
            yield kept, some
        left = [i for i in range(len(prompts)) if i not in done]
        order = sorted(left, key=lambda i: prompts[i].ids)
        pairs = zip(order, order[1:], strict=False)
        shared = [_shared(prompts[a], prompts[b]) for a, b in pairs]
        root = PrefixNode()
        todo: list[PrefixNode | _Subtree] = [root, _Subtree(order, shared, root)]
        while todo:
            place = todo.pop()
            if isinstance(place, PrefixNode):
                if place.prompts:
                    yield place, sorted(place.prompts, key=lambda i: -len(prompts[i].ids))
                continue
            length = min(place.shared, default=0)
            if self.worth(place.order, length, place.node):
                # The new node gets no variable of its own, which would keep its caches alive.
                place = place._replace(node=self.extend(place.node, place.order[0], length))
                if place.node.batch is not None:
                    todo.append(place.node)
            todo += reversed(list(self.branches(place, length)))

    def run_before(self) -> Iterator[tuple[PrefixNode, list[int]]]:
        """Prompts that were run for a choice already, and what is kept of them, for the last time.

        Only those at which no policy wants to look, as it could not.
        """
        kept, places = self.fuser.ensemble.kept, dict[tuple[int, ...], list[int]]()
        if not kept:
            return
        for i, mine in enumerate(collectors_for(self.fuser, self.prompts)):
            places.setdefault(self.prompts[i].ids, []).extend([i] if mine is None else [])
        if not any(ids in places for node in kept for ids in node.rows):
            return
        while kept:
            node = kept[0]
            found = [i for ids in node.rows for i in places.get(ids, ())]
            if found:
                yield node, sorted(found, key=lambda i: -len(self.prompts[i].ids))
            if kept and kept[0] is node:
                kept.pop(0)

    def branches(self, tree: _Subtree, length: int) -> Iterator[_Subtree]:
        """The parts of a subtree whose prompts share more than ``length`` tokens."""
        order, shared, node = tree
        start = 0
        for end in range(1, len(order) + 1):
            if end < len(order) and shared[end - 1] > length:
                continue
            some, inside = order[start:end], shared[start : end - 1]
            start = end
            if max(inside, default=0) - node.length < SHORTEST:
                node.prompts += some
            else:
                yield _Subtree(some, inside, node)

    def worth(self, some: Sequence[int], length: int, node: PrefixNode) -> bool:
        """Whether what some prompts share beyond a node is to be run by itself."""
        done = node.length
        left = sum(len(self.prompts[i].ids) - done for i in some)
        saved = (len(some) - 1) * (length - done)
        room = (node.held + length) * self.fuser.ensemble.token_bytes <= HELD_BYTES
        enough = length - done >= SHORTEST and saved >= min(SHARE * left, ENOUGH)
        return enough and room and not node.evicted

    def extend(self, node: PrefixNode, index: int, length: int) -> PrefixNode:
        """Run a prompt from the end of a node up to ``length`` tokens, if memory allows."""
        prompt, ensemble = self.prompts[index], self.fuser.ensemble
        mask = prompt.prompt_mask[node.length : length + 1] if prompt.prompt_mask else None
        ids, tail = prompt.ids[node.length : length], prompt.ids[length]
        segment = Prompt(ids, mask, prompt.points, tail)
        collectors = collectors_for(self.fuser, [segment])
        try:
            with blame(always(self.request_of(index))):
                start = node.start([segment], collectors)
                batch, _ = prefill(ensemble, [segment], collectors, start)
            # To be shared by all below it, however often some of them begin.
            return PrefixNode(node, length, batch.fork_shared([0]), collectors[0])
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            node.evict()
        release_memory()
        return node


def _shared(a: Prompt, b: Prompt) -> int:
    """How many leading tokens two prompts can have run for both.

    One less than they have in common: a collector is shown the token after the segment, too.
    """
    needs = [[w is None for w in p.points] if p.points else None for p in (a, b)]
    if needs[0] != needs[1] or (a.prompt_mask is None) != (b.prompt_mask is None):
        return 0
    same = shared_length(a.ids, b.ids)
    if a.prompt_mask and b.prompt_mask:
        same = min(same, shared_length(a.prompt_mask, b.prompt_mask))
    return max(0, same - 1)


def shared_length(a: Sequence[int], b: Sequence[int]) -> int:
    """How many leading elements two sequences have in common, by bisection."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
