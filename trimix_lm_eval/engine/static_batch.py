"""Rows at fixed addresses: which sequence runs in which, its prefix, its branches, where it stands.

The host decides who comes, goes and forks; the device alone counts how far each row is, since it
may be a round ahead. So what the host sends concerns rows that are new, and who belongs to whom:

    row     a sequence: last token, position, how tokens are drawn (`RowState`, on each device)
    family  a prefix that rows share, held once (`static_cache`)
    lane    a branch of a row, with source weights of its own (`Lanes`): it says which token follows

All of these are powers of two in number, and slots multiples of 128, so that a run needs few
graphs. When something no longer fits, caches are made anew, and rows copied to the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Sequences
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trimix_lm_eval.engine.input_batch import InputBatch
from trimix_lm_eval.engine.kv_cache import Prefix
from trimix_lm_eval.engine.model_runner import Fuser
from trimix_lm_eval.engine.noise import seed_words
from trimix_lm_eval.engine.sampler import RowParams
from trimix_lm_eval.engine.sequence import Branch, Sequence
from trimix_lm_eval.engine.static_cache import Places, StaticCache, StaticShape
from trimix_lm_eval.fusion.config import LogitsProcessor
from trimix_lm_eval.fusion.logits import to_device

#: Slots of a row, and of a prefix, are a multiple of this.
_SLOTS = 128
#: Rows of a run of several fusion configs, at least.
_LEAST_ROWS = 8
#: Drafts of a round at most.
MOST_DRAFTS = 8


class RowState(NamedTuple):
    """Where B rows stand, on one device.

    Attributes:
        now: ``[3, B]`` int64, of each row its last token, which no source has seen yet, the
            position of that, and which token of its text comes next.
        lengths: ``[B]`` int64, tokens of its shared prefix.
        ends: ``[B]`` int64, the last position that its text may need.
        family: ``[B]`` int64, see `static_cache.Places`.
        seat: ``[B]`` int64, likewise.
        members: ``[F, W]`` int64, likewise.
        params: How tokens are drawn.
        numbers: 0, 1, 2, …: as many as anything here has to be counted.
    """

    now: Tensor
    lengths: Tensor
    ends: Tensor
    family: Tensor
    seat: Tensor
    members: Tensor
    params: RowParams
    numbers: Tensor

    @classmethod
    def empty(cls, shape: StaticShape, vocab: int, device: torch.device) -> RowState:
        """Rows that are not in use."""

        def whole(*size: int) -> Tensor:
            return torch.zeros(*size, dtype=torch.long, device=device)

        rows = shape.rows
        params = RowParams(
            torch.zeros(rows, 2, dtype=torch.int32, device=device),
            torch.zeros(rows, device=device),
            torch.full((rows,), vocab, device=device),
            torch.ones(rows, dtype=torch.float64, device=device),
        )
        members = whole(shape.families, shape.seats)
        numbers = torch.arange(max(shape.slots, shape.shared), device=device)
        lengths, ends, family, seat = (whole(rows) for _ in range(4))
        return cls(whole(3, rows), lengths, ends, family, seat, members, params, numbers)

    def columns(self) -> list[Tensor]:
        """What each row has for itself alone, ``[B, *]`` each."""
        return [self.now.T, self.lengths, self.ends, *self.params]

    def places(self, count: int) -> Places:
        """Where the next tokens are, so many of each row."""
        positions = self.now[1][:, None] + self.numbers[:count]
        slots = positions - self.lengths[:, None]
        # Beyond its end, where nothing is asked for, a model may have no position to give.
        positions = positions.minimum(self.ends[:, None])
        return Places(positions, slots, self.lengths, self.family, self.seat, self.members)


class Lane(NamedTuple):
    """The lanes of one logits processor, on the device.

    Attributes:
        processor: What is made of logits and weights.
        rows: ``[L]`` int64, the row of each.
        vectors: ``[L, S]`` fp32 source weights; a round brings those that follow the text up to
            date.
    """

    processor: LogitsProcessor
    rows: Tensor
    vectors: Tensor


class Lanes:
    """Who is drawn for: the branches of all rows, by logits processor.

    In a run of one fusion config each row has one branch, and lane i is of row i.

    Args:
        fuser: The sources and fusion configs.

    Attributes:
        groups: The lanes of each processor.
        lead: ``[B]`` int64, the lane of the branch whose tokens a row goes on with.
        of: The lane of each branch, counted through all groups.
        lead_of: The lead lane of each row.
        written: The groups as they were told last, which may since have been resized.
        stays: For each branch, row and stay there for which its lane was told.
    """

    def __init__(self, fuser: Fuser) -> None:
        self.fuser, self.by_row = fuser, len(fuser.configs) == 1
        self.processors = list(dict.fromkeys(fuser.decoding))
        self.groups: list[Lane] = []
        self.lead = torch.empty(0)
        self.of: dict[Branch, int] = {}
        self.lead_of: dict[int, int] = {}
        self.written: list[Lane] = []
        self.stays: dict[Branch, tuple[int, int]] = {}

    def sizes(self, sequences: Iterable[Sequence], rows: int) -> list[int]:
        """Lanes of each group for so many rows, never fewer than there are."""
        count = dict.fromkeys(self.processors, 0)
        for one in sequences:
            for branch in one.branches:
                count[branch.fusion.processor] += 1
        had = [len(group.rows) for group in self.groups] or [0] * len(count)
        new = [rows if self.by_row else power_of_two(n) for n in count.values()]
        return [max(pair) for pair in zip(had, new, strict=True)]

    def resize(self, sizes: Sequences[int], rows: int) -> None:
        """Make room for so many lanes and rows."""
        device, sources = self.fuser.ensemble.device, len(self.fuser.ensemble.names)
        self.lead = torch.zeros(rows, dtype=torch.long, device=device)
        self.groups = [
            Lane(
                processor,
                torch.zeros(size, dtype=torch.long, device=device),
                torch.zeros(size, sources, device=device),
            )
            for processor, size in zip(self.processors, sizes, strict=True)
        ]

    def write(self, sequences: Mapping[int, Sequence], stays: Mapping[int, int]) -> None:
        """Tell the device which branches the rows have.

        Weights that follow the text stay what the device has made of them, where a branch stays in
        its row: a round may be on its way of which the host knows nothing yet.

        Args:
            sequences: By row.
            stays: How many sequences have been in each row so far.
        """
        before, self.of, self.lead_of = self.of, {}, {}
        held, self.stays = self.stays, {}
        start = 0
        for which, group in enumerate(self.groups):
            size, sources = group.vectors.shape
            first = sum(len(one.rows) for one in self.written[:which])
            new, old = list[int](), list[int]()
            rows, vectors = [0] * size, [(0.0,) * sources] * size
            mine = (
                (row, branch)
                for row, one in sequences.items()
                for branch in one.branches
                if branch.fusion.processor == group.processor
            )
            for i, (row, branch) in enumerate(mine):
                at = row if self.by_row else i
                rows[at], vectors[at] = row, branch.fusion.vector
                self.of[branch] = start + at
                self.lead_of.setdefault(row, start + at)
                self.stays[branch] = row, stays[row]
                if group.processor.updates and held.get(branch) == self.stays[branch]:
                    new.append(at)
                    old.append(before[branch] - first)
            group.rows.copy_(to_device(torch.tensor(rows), group.rows.device))
            told = to_device(torch.tensor(vectors), group.vectors.device)
            if new:
                come, into = to_device(torch.tensor([old, new]), told.device)
                told[into] = self.written[which].vectors[come]
            group.vectors.copy_(told)
            start += size
        self.written = self.groups
        lead = [self.lead_of.get(row, 0) for row in range(len(self.lead))]
        self.lead.copy_(to_device(torch.tensor(lead), self.lead.device))


class StaticBatch:
    """Sequences that run on GPUs at fixed addresses.

    Args:
        fuser: The sources, each on one GPU.
        drafter: Index of the source that drafts.

    Attributes:
        sequences: By row.
        stays: How many sequences have been in each row so far, by which a round that runs while
            they change can tell whose tokens it gives.
        shape: How large the caches are.
        states: Where the rows stand, by device.
        caches: One per source.
        lanes: The branches of the rows.
        version: Grows when addresses change.
    """

    def __init__(self, fuser: Fuser, drafter: int) -> None:
        self.fuser, self.drafter = fuser, drafter
        self.sequences: dict[int, Sequence] = {}
        self.stays: dict[int, int] = {}
        self.shape = StaticShape(0, 0, 0, 0, 0)
        self.states: dict[torch.device, RowState] = {}
        self.caches: list[StaticCache] = []
        self.lanes = Lanes(fuser)
        self.version = 0
        #: By family, what tells its prefix from others: the first keys of the first source.
        self._prefixes: dict[int, Tensor] = {}
        self._family_of: dict[int, int] = {}  # by row

    # ---------------------------------------------------------------- sequences come and go

    def admit(self, batch: InputBatch, sequences: Sequences[Sequence]) -> None:
        """Let sequences in that have run in a batch, a row each; their slots there are packed."""
        shared = batch.caches[0].shared
        prefixes = [] if shared is None else shared.prefixes
        families, fresh = self._assign(prefixes)
        family_of = [None] * len(sequences) if shared is None else shared.prefix_of
        rows = self._free_rows(len(sequences))
        for row, one, at in zip(rows, sequences, family_of, strict=True):
            self._seat(row, one, None if at is None else families[at])
        self._make_room(batch.caches)
        where = torch.tensor([rows, [one.num_cached for one in sequences]])
        for cache, theirs in zip(self.caches, batch.caches, strict=True):
            cache.take_rows(theirs, *to_device(where, cache.step.rows.device))
            for i in fresh:
                cache.take_prefix(theirs.shared.prefixes[i], families[i])
        self._tell(rows)

    def fork(self, forks: Sequences[tuple[int, Sequence]]) -> None:
        """Let forks go on, each given with the row whose tokens up to its last it has.

        A row whose own sequence is gone is taken over by one of its forks.
        """
        if not forks:
            return
        rows: list[int] = []
        family_of = dict(self._family_of)
        taken = {row for row, _ in forks}
        for parent, one in forks:
            free = parent not in self.sequences
            row = parent if free else self._free_rows(1, besides=taken)[0]
            self._seat(row, one, family_of.get(parent))
            rows.append(row)
        self._make_room(self.caches)
        moved = [(parent, row) for (parent, _), row in zip(forks, rows, strict=True)]
        moved = [pair for pair in moved if pair[0] != pair[1]]
        for cache in self.caches if moved else []:
            device = cache.step.rows.device
            come, into = (torch.tensor(column) for column in zip(*moved, strict=True))
            cache.copy_rows(to_device(come, device), to_device(into, device))
        self._tell(rows)

    def leave(self, row: int) -> None:
        """Let the sequence of a row go."""
        del self.sequences[row]

    def _free_rows(self, count: int, besides: Iterable[int] = ()) -> list[int]:
        """The first rows that no sequence has."""
        most = max(self.sequences, default=-1) + count + 1 + len(set(besides))
        taken = {*self.sequences, *besides}
        return [row for row in range(most) if row not in taken][:count]

    def _seat(self, row: int, one: Sequence, family: int | None) -> None:
        self.sequences[row] = one
        self.stays[row] = self.stays.get(row, 0) + 1
        self._family_of.pop(row, None)
        if family is not None:
            self._family_of[row] = family

    def _assign(self, prefixes: Sequences[Prefix]) -> tuple[list[int], list[int]]:
        """The family of each prefix, and which of the prefixes are not there yet."""
        used = {family for row, family in self._family_of.items() if row in self.sequences}
        self._prefixes = {f: keys for f, keys in self._prefixes.items() if f in used}
        families, fresh = [], []
        for i, prefix in enumerate(prefixes):
            first = prefix[0][0]
            found = [family for family, keys in self._prefixes.items() if keys is first]
            if not found:
                found = [next(f for f in range(len(used) + i + 1) if f not in self._prefixes)]
                self._prefixes[found[0]] = first
                fresh.append(i)
            families.append(found[0])
        return families, fresh

    # ---------------------------------------------------------------- addresses

    def _shared(self, row: int) -> int:
        """Tokens of a row's shared prefix."""
        family = self._family_of.get(row)
        return 0 if family is None else self._prefixes[family].shape[1]

    def _needed(self) -> StaticShape:
        """What the sequences need, and no less than there is."""
        had = self.shape
        # Texts of a sweep fork within a few tokens: captured for one row, a round is of little use.
        least = _LEAST_ROWS if len(self.fuser.configs) > 1 else 1
        rows = max(had.rows, least, power_of_two(max(self.sequences) + 1))
        slots = max(slots_of(one) - self._shared(row) for row, one in self.sequences.items())
        families = max(had.families, power_of_two(max(self._prefixes, default=0) + 1))
        members = [len(rows) for rows in self._members().values()]
        seats = max([-(-rows // families), *members])
        seats = rows if families == 1 else max(had.seats, power_of_two(seats))
        shared = max((keys.shape[1] for keys in self._prefixes.values()), default=0)
        slots, shared = (-(-n // _SLOTS) * _SLOTS for n in (slots, shared))
        return StaticShape(rows, max(had.slots, slots), families, seats, max(had.shared, shared))

    def _members(self) -> dict[int, list[int]]:
        """The rows of each family."""
        members: dict[int, list[int]] = {}
        for row in self.sequences:
            if row in self._family_of:
                members.setdefault(self._family_of[row], []).append(row)
        return members

    def _make_room(self, like: Sequences[Any]) -> None:
        """Larger caches, states and lanes, where what there is does not suffice.

        Args:
            like: A cache of each source that holds something.
        """
        shape, states, caches = self._needed(), self.states, self.caches
        sizes = self.lanes.sizes(self.sequences.values(), shape.rows)
        grown = shape != self.shape
        if grown or sizes != [len(group.rows) for group in self.lanes.groups]:
            self.version += 1
            self.lanes.resize(sizes, shape.rows)
        if not grown:
            return
        before, self.shape = self.shape, shape
        ensemble = self.fuser.ensemble
        devices = dict.fromkeys([ensemble.device, *(s.device for s in ensemble.sources)])
        self.states = {d: RowState.empty(shape, ensemble.vocab_size, d) for d in devices}
        self.caches = [
            StaticCache(
                cache, shape, 1 + most_drafts(self.fuser, self.drafter) * (s == self.drafter)
            )
            for s, cache in enumerate(like)
        ]
        for mine, theirs in zip(self.caches, caches, strict=False):
            mine.take_all(theirs)
        for device, state in states.items():
            for new, old in zip(self.states[device].columns(), state.columns(), strict=True):
                new[: before.rows] = old

    def _tell(self, new: Sequences[int]) -> None:
        """Tell the devices where new rows stand, and who belongs to whom."""
        vocab = self.fuser.ensemble.vocab_size
        sequences = [self.sequences[row] for row in new]
        params = [one.request.params for one in sequences]
        stand = [(one.token_ids[-1], one.num_cached, len(one.token_ids)) for one in sequences]
        columns: list[Tensor] = [
            torch.tensor(stand),
            torch.tensor([self._shared(row) for row in new]),
            torch.tensor([one.num_cached + one.remaining_tokens - 1 for one in sequences]),
            torch.tensor([seed_words(how.seed) for how in params], dtype=torch.int32),
            torch.tensor([how.temperature for how in params]),
            torch.tensor([how.top_k or vocab for how in params]).clamp_max(vocab),
            torch.tensor([how.top_p for how in params], dtype=torch.float64),
        ]
        belong = self._seating()
        for device, state in self.states.items():
            index = to_device(torch.tensor(new), device)
            for held, column in zip(state.columns(), columns, strict=True):
                held[index] = to_device(column, device).to(held.dtype)
            for held, whole in zip(state[3:6], belong, strict=True):
                held.copy_(to_device(whole, device))
        self.lanes.write(self.sequences, self.stays)

    def _seating(self) -> list[Tensor]:
        """Family and seat of each row, and the members of each family, as `Places` has them.

        A row without a prefix has a seat, too, in any family: what it finds there is nothing, as
        its mask says, and must not be what another row finds.
        """
        shape = self.shape
        members = [self._members().get(which, []) for which in range(shape.families)]
        seated = {row for rows in members for row in rows}
        others = [row for row in range(shape.rows) if row not in seated]
        family, seat = [0] * shape.rows, [0] * shape.rows
        for which, rows in enumerate(members):
            while others and len(rows) < shape.seats:
                rows.append(others.pop())
            for at, row in enumerate(rows):
                family[row], seat[row] = which, at
            rows += [0] * (shape.seats - len(rows))
        return [torch.tensor(family), torch.tensor(seat), torch.tensor(members)]


def most_drafts(fuser: Fuser, drafter: int) -> int:
    """Drafts that a captured round may have.

    None if a source that verifies keeps states: it would have to run over them one by one, so as to
    go on from the states behind those that stand.
    """
    others = [s for i, s in enumerate(fuser.ensemble.sources) if i != drafter]
    return 0 if any(source.row_bytes for source in others) else MOST_DRAFTS


def slots_of(one: Sequence) -> int:
    """Slots for a sequence: all its tokens, and two rounds that may run beyond its end."""
    return len(one.request.prompt.ids) + one.request.max_new_tokens + 2 * (MOST_DRAFTS + 1)


def power_of_two(count: int) -> int:
    """The first that is no smaller."""
    return 1 << max(count - 1, 0).bit_length()
