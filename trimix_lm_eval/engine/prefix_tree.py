"""Prompts that begin alike run their beginning once.

The prompts of a run form a tree: the exemplars of a task, below them the questions, sometimes
several on one text. A walk down the tree runs each stretch that is worth it as one row per source;
the rows below start from copies of its cache, and their readers from what its reader has seen. At
any time only the stretches above the current place are held. They may take `HELD_BYTES`; a stretch
beyond that is not shared. When memory runs out all the same, what is held is given up, and the
prompts below are run whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from trimix_lm_eval.engine.fuser import Fuser
from trimix_lm_eval.engine.input_batch import InputBatch
from trimix_lm_eval.engine.prefill import (
    OUT_OF_MEMORY,
    Prompt,
    free,
    halving,
    prefill,
    readers_for,
)
from trimix_lm_eval.fusion.collectors import PromptCollectors
from trimix_lm_eval.utils.errors import always, blame

#: A stretch is run by itself if it is this long and saves this share of the tokens below it: what
#: is split off runs in smaller batches.
SHORTEST, SHARE = 32, 0.25
#: What shared stretches may take at any time, over all sources.
HELD_BYTES = 4 * 2**30


class PrefixNode:
    """What several prompts begin with, as far as it has been run.

    Args:
        above: What it continues.
        length: Its tokens, from the beginning.
        rows: One row, to be copied; None if nothing is shared.
        readers: What policies have seen of it; None if nobody looks.
    """

    def __init__(
        self,
        above: PrefixNode | None = None,
        length: int = 0,
        rows: InputBatch | None = None,
        readers: PromptCollectors | None = None,
    ) -> None:
        self.above, self.length, self.rows, self.readers = above, length, rows, readers
        self.evicted = False

    @property
    def held(self) -> int:
        """Tokens in the caches of this trunk and of those above it."""
        return self.length + (self.above.held if self.above else 0)

    def evict(self) -> bool:
        """Free these caches; from now on prompts are run whole. Returns whether there were any."""
        held = self.held > 0
        trunk: PrefixNode | None = self
        while trunk:
            trunk.length, trunk.rows, trunk.readers, trunk.evicted = 0, None, None, True
            trunk = trunk.above
        return held

    def start(
        self, prompts: Sequence[Prompt], readers: Sequence[PromptCollectors | None]
    ) -> InputBatch | None:
        """Rows to go on from, one per prompt; their readers learn what was seen so far."""
        for mine in readers:
            if mine is not None and self.readers is not None:
                mine.absorb(self.readers)
        return self.rows.branch([0] * len(prompts)) if self.rows else None

    def rest(self, prompt: Prompt) -> Prompt:
        """What is left of a prompt."""
        judged = prompt.judged[self.length :] if prompt.judged else None
        return prompt._replace(ids=prompt.ids[self.length :], judged=judged)


def walk(
    fuser: Fuser, prompts: Sequence[Prompt], request_of: Callable[[int], int] = int
) -> Iterator[tuple[PrefixNode, list[int]]]:
    """Go through prompts by what they begin with.

    Args:
        fuser: The sources and the fusion configs.
        prompts: In any order.
        request_of: From the index of a prompt to what errors are to name.

    Yields:
        A trunk, and the indices of prompts to be run from it, longest first. Each index once.
    """
    order = sorted(range(len(prompts)), key=lambda i: prompts[i].ids)
    common = [_common(prompts[a], prompts[b]) for a, b in zip(order, order[1:], strict=False)]
    tree = PrefixTree(fuser, prompts, request_of)
    yield from tree.walk(order, common)


def read_prompts(
    fuser: Fuser,
    prompts: Sequence[Prompt],
    batch_size: int,
    request_of: Callable[[int], int] = int,
) -> Iterator[tuple[int, PromptCollectors | None]]:
    """Show prompts to readers and drop their caches (for choices made apart from any scoring).

    Yields:
        The index of a prompt, and its readers; None if no policy reads prompts.
    """
    for trunk, some in walk(fuser, prompts, request_of):

        def work(
            batch: Sequence[int], _: int, trunk: PrefixNode = trunk
        ) -> list[tuple[int, PromptCollectors | None]]:
            mine = [prompts[i] for i in batch]
            readers = readers_for(fuser, mine)
            rows = trunk.start(mine, readers)
            with blame(lambda row: request_of(batch[row])):
                prefill(fuser.ensemble, [trunk.rest(p) for p in mine], readers, rows)
            return list(zip(batch, readers, strict=True))

        for read in halving(fuser.ensemble, some, batch_size, work, trunk.evict):
            yield from read


class _Subtree(NamedTuple):
    """Prompts still to be looked at.

    Attributes:
        order: Their indices, sorted by their tokens.
        common: What each of them shares with the next.
        trunk: What all of them begin with, as far as it was run.
        alone: Takes those that are to be run from the trunk as they are.
    """

    order: list[int]
    common: list[int]
    trunk: PrefixNode
    alone: list[int]


class _Stand(NamedTuple):
    """Prompts to be run from a trunk, once all below it has been looked at."""

    trunk: PrefixNode
    alone: list[int]


class PrefixTree(NamedTuple):
    """The prompts to walk through."""

    fuser: Fuser
    prompts: Sequence[Prompt]
    request_of: Callable[[int], int]

    def walk(self, order: list[int], common: list[int]) -> Iterator[tuple[PrefixNode, list[int]]]:
        """Walk through all prompts, depth first.

        Args:
            order: Their indices, sorted by their tokens.
            common: What each of them shares with the next.
        """
        # Prompts that share nothing worth a stretch of its own run from the trunk above them, all
        # in one group, wherever they are below it: that group comes last.
        alone: list[int] = []
        todo: list[_Stand | _Subtree] = [
            _Stand(PrefixNode(), alone),
            _Subtree(order, common, PrefixNode(), alone),
        ]
        while todo:
            place = todo.pop()
            if isinstance(place, _Stand):
                if place.alone:
                    yield place.trunk, sorted(place.alone, key=lambda i: -len(self.prompts[i].ids))
                continue
            shared = min(place.common, default=0)
            if self.worth(place.order, shared, place.trunk):
                # No name of its own for the new trunk: it would outlive it, caches and all.
                place = place._replace(
                    trunk=self.extend(place.trunk, place.order[0], shared), alone=[]
                )
                todo.append(_Stand(place.trunk, place.alone))
            todo += reversed(list(self.branches(place, shared)))

    def branches(self, tree: _Subtree, shared: int) -> Iterator[_Subtree]:
        """The parts of a subtree whose prompts have more than ``shared`` tokens in common."""
        order, common, trunk, alone = tree
        start = 0
        for end in range(1, len(order) + 1):
            if end < len(order) and common[end - 1] > shared:
                continue
            some, inside = order[start:end], common[start : end - 1]
            start = end
            if max(inside, default=0) - trunk.length < SHORTEST:
                alone += some
            else:
                yield _Subtree(some, inside, trunk, alone)

    def worth(self, some: Sequence[int], shared: int, trunk: PrefixNode) -> bool:
        """Whether what some prompts share beyond a trunk is to be run by itself."""
        done = trunk.length
        left = sum(len(self.prompts[i].ids) - done for i in some)
        saved = (len(some) - 1) * (shared - done)
        room = (trunk.held + shared) * self.fuser.ensemble.token_bytes <= HELD_BYTES
        return shared - done >= SHORTEST and saved >= SHARE * left and room and not trunk.evicted

    def extend(self, trunk: PrefixNode, index: int, length: int) -> PrefixNode:
        """Run a prompt from the end of a trunk up to `length` tokens, if memory allows."""
        prompt, ensemble = self.prompts[index], self.fuser.ensemble
        judged = prompt.judged[trunk.length : length + 1] if prompt.judged else None
        tail = prompt.ids[length] if judged is None or judged[-1] else None
        stretch = Prompt(prompt.ids[trunk.length : length], judged, prompt.weights, tail)
        readers = readers_for(self.fuser, [stretch])
        try:
            with blame(always(self.request_of(index))):
                start = trunk.start([stretch], readers)
                rows, _ = prefill(ensemble, [stretch], readers, start)
            return PrefixNode(trunk, length, rows, readers[0])
        except OUT_OF_MEMORY:
            trunk.evict()
        free()
        return trunk


def _common(a: Prompt, b: Prompt) -> int:
    """How many leading tokens two prompts can have run for both.

    One less than they have in common: a reader is shown the token that follows the stretch, too.
    """
    if _needs(a) != _needs(b) or (a.judged is None) != (b.judged is None):
        return 0
    same = _same(a.ids, b.ids)
    if a.judged and b.judged:
        same = min(same, _same(a.judged, b.judged))
    return max(0, same - 1)


def _needs(prompt: Prompt) -> list[bool] | None:
    """Which fusion configs' policies have still to choose, where somebody has chosen for some."""
    return [point is None for point in prompt.weights] if prompt.weights else None


def _same(a: Sequence[int], b: Sequence[int]) -> int:
    """The length of the common beginning of two sequences, by bisection."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
