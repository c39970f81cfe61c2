"""Decoding by captured rounds: what the host does while GPUs work.

The host begins round r + 1 before it looks at what round r gave: while a GPU works it turns tokens
into text, looks for stop strings, lets sequences in and lets them fork. A sequence that ended in
round r has then run one round too many, whose tokens are dropped.

A row goes on with the tokens of one of its branches, the leading one. Branches that agree with it
stay; those that do not gain what they have in common with it and the first token of their own, and
go on in a row that copies what the sources have seen of it.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Sequences
from typing import Any, NamedTuple

import torch

from trimix_lm_eval.engine.graph_round import Round, RoundKind, Verdict
from trimix_lm_eval.engine.input_batch import InputBatch
from trimix_lm_eval.engine.model_runner import LOGIT_BYTES, Fuser, always, blame
from trimix_lm_eval.engine.not_finite import explain_not_finite
from trimix_lm_eval.engine.sequence import NewTokens, Sequence, grouped
from trimix_lm_eval.engine.spec_decode import Cost
from trimix_lm_eval.engine.static_batch import StaticBatch, most_drafts

#: Kinds of rounds that are held captured.
_MOST_KINDS = 8


def why_eager(fuser: Fuser) -> str | None:
    """Why rounds may not be captured; None if each source lies on one GPU and keeps a cache.

    The texts of a sweep fork behind a token from which a source's states have gone on already.
    """
    ensemble, sources = fuser.ensemble, fuser.ensemble.sources
    spread = [
        source.name
        for source in sources
        if any(weight.device != source.device for weight in source.model.parameters())
    ]
    plain = [s.name for s in sources if s.plain]
    states = [s.name for s in sources if s.row_bytes and (len(fuser.configs) > 1 or not s.masked)]
    several = [s.name for s in sources if s.never_one]
    reasons = {
        "cuda_graphs=off": not ensemble.cuda_graphs,
        "not on a GPU": any(source.device.type != "cuda" for source in sources),
        f"spread over several devices: {', '.join(spread)}": bool(spread),
        f"run without a cache: {', '.join(plain)}": bool(plain),
        f"goes on by several tokens only: {', '.join(several)}": bool(several),
        f"keeps nothing but states, or forks them: {', '.join(states)}": bool(states),
    }
    return next((why for why, holds in reasons.items() if holds), None)


def can_capture(fuser: Fuser) -> bool:
    """Whether rounds may be captured."""
    return why_eager(fuser) is None


def told(fuser: Fuser) -> dict[str, Any]:
    """What results record: graphs captured so far, and why none, or not of every kind of round."""
    graphs, why = fuser.ensemble.graphs_captured, fuser.ensemble.not_captured
    if why is None and not graphs:
        why = why_eager(fuser) or "no kind of decoding step was needed often enough"
    return {"captured": graphs, "reason": why}


class Stepped(NamedTuple):
    """What a round came to.

    Attributes:
        k: Drafts of each row.
        rows: Rows that gained tokens.
        kept: What was of use of these, once for each fork.
        cost: What the round took.
        going: The sequences that go on, each with the row whose tokens up to its last it has:
            those that stay in their rows first.
    """

    k: int
    rows: int
    kept: list[NewTokens]
    cost: Cost
    going: list[tuple[int, Sequence]]


class _Running:
    """A round that was begun: whose rows and lanes they are."""

    def __init__(self, work: Round, batch: StaticBatch) -> None:
        self.work = work
        self.stays = {row: batch.stays[row] for row in batch.sequences}
        self.lane_of, self.lead_of = batch.lanes.of, batch.lanes.lead_of
        self.events = [torch.cuda.Event(enable_timing=True) for _ in range(4)]
        self.on_host = work.begin(self.events)
        #: Whether it was run as the same round will be later: captured, or never to be.
        self.lasting = bool(work.graphs) or not work.may_capture


class GraphDecoder:
    """The rows of a run on GPUs.

    Args:
        fuser: The sources, each on one GPU, and the fusion configs.
        drafter: Index of the source that drafts.
    """

    def __init__(self, fuser: Fuser, drafter: int) -> None:
        self.fuser, self.drafter = fuser, drafter
        self.batch = StaticBatch(fuser, drafter)
        self.rounds: dict[RoundKind, Round] = {}
        self.version = 0
        self.running: _Running | None = None
        devices = {source.device for source in fuser.ensemble.sources}
        self.several_gpus = len(devices) > 1
        self._pool = torch.cuda.graph_pool_handle()

    def admit(self, batch: InputBatch, sequences: Sequences[Sequence]) -> None:
        """Let sequences in that have run in a batch, a row each; their slots there are packed."""
        self.batch.admit(batch, sequences)

    def keep(self, going: Sequences[tuple[int, Sequence]]) -> list[Sequence]:
        """Go on with some of the sequences that `step` gave, and with no other; returns them."""
        stay = {row: one for row, one in going if self.batch.sequences.get(row) is one}
        for row in [row for row in self.batch.sequences if row not in stay]:
            self.batch.leave(row)
        self.batch.fork([(row, one) for row, one in going if stay.get(row) is not one])
        return list(self.batch.sequences.values())

    def step(
        self, k: int, append: Callable[[Sequence, NewTokens], tuple[Sequence, int]]
    ) -> Stepped | None:
        """Begin a round with k drafts, and take account of the one before while the GPU works.

        Args:
            k: Drafts of each row.
            append: Gives a sequence's branches their new tokens; returns it as they go on, without
                branches if none does, and how many of the tokens were of use.

        Returns:
            What the round before came to; None if there was none.
        """
        begun = self.begin(k)
        if begun is None:
            return None
        rows = self.batch.sequences
        gained, cost = self.finish(begun)
        kept, stay, forks = [], [], []
        for row, sequence, news in gained:
            del rows[row]
            for new, goes_on in news:
                one, drawn = append(sequence, new)
                kept.append(new.up_to(drawn))
                if one.branches and goes_on:
                    rows[row] = one
                elif one.branches:
                    forks.append((row, one))
        stay = list(rows.items())
        return Stepped(begun.work.kind.k, len(gained), kept, cost, [*stay, *forks])

    def begin(self, k: int) -> _Running | None:
        """Begin a round with k drafts; returns the one that was begun before, if there is one."""
        before, self.running = self.running, None
        sequences = self.batch.sequences.values()
        if sequences:
            drawn = [one.request.params for one in sequences if one.request.params.temperature > 0]
            cut = any(how.top_k or how.top_p < 1 for how in drawn)
            kind = RoundKind(min(k, self.most_drafts()), bool(drawn), cut)
            self.running = _Running(self._round(kind), self.batch)
        return before

    def most_drafts(self) -> int:
        """Drafts at most; logits that come from other GPUs are all there at once."""
        most = most_drafts(self.fuser, self.drafter)
        if not self.several_gpus:
            return most
        positions = LOGIT_BYTES // (4 * self.fuser.ensemble.vocab_size)
        return max(0, min(most, positions // self.batch.shape.rows - 1))

    def _round(self, kind: RoundKind) -> Round:
        """The round of a kind; of too many, the one that was needed least lately goes."""
        if self.version != self.batch.version:
            self.rounds.clear()
            self.version = self.batch.version
            self._pool = torch.cuda.graph_pool_handle()
        found = self.rounds.pop(kind, None)
        if found is None:
            if len(self.rounds) >= _MOST_KINDS:
                del self.rounds[next(iter(self.rounds))]
            if not any(work.graphs for work in self.rounds.values()):
                # PyTorch refuses a pool all of whose graphs are gone while its memory is held.
                self._pool = torch.cuda.graph_pool_handle()
            found = Round(self.fuser, self.drafter, self.batch, kind)
        self.rounds[kind] = found  # the last is the latest
        found.pool = self._pool
        return found

    def finish(
        self, begun: _Running
    ) -> tuple[list[tuple[int, Sequence, list[tuple[NewTokens, bool]]]], Cost]:
        """Wait for a round.

        Returns:
            (row, sequence, what its branches gain and whether with the row) of the rows that are
            still those of their sequences, and what the round took.

        Raises:
            NotFinite: A source's logits are not numbers.
        """
        start, drafted, passing, verified = begun.events
        verified.synchronize()
        verdict, k = begun.work.read(begun.on_host), begun.work.kind.k
        gained = []
        for row, stay in begun.stays.items():
            one = self.batch.sequences.get(row)
            if one is None or self.batch.stays[row] != stay:
                continue
            lanes = [begun.lane_of[branch] for branch in one.branches]
            news = _gained(verdict, row, begun.lead_of[row], lanes, one, k)
            for new, _ in news:
                if -1 in new.token_ids:
                    with blame(always(one.index)):
                        before = new.token_ids[: new.token_ids.index(-1)]
                        ids = (*one.request.prompt.ids, *one.token_ids, *before)
                        explain_not_finite(self.fuser.ensemble, ids)
            gained.append((row, one, news))
        drafting, verifying = start.elapsed_time(drafted), passing.elapsed_time(verified)
        return gained, Cost(drafting / 1e3, k + 1, verifying / 1e3, begun.lasting)


def _gained(
    verdict: Verdict, row: int, lead: int, lanes: Sequences[int], one: Sequence, k: int
) -> list[tuple[NewTokens, bool]]:
    """What a round gives the branches of a sequence, and whether they go on with the row.

    Args:
        verdict: Of the round.
        row: Of the sequence.
        lead: The lane with which the row went on.
        lanes: Of each branch.
        one: The sequence.
        k: Drafts of each row.
    """
    limit = min(k, one.remaining_tokens - 1)
    drafts = verdict.drafts[row, :limit].tolist()
    led = verdict.tokens[lead, : min(int(verdict.accepted[row]), limit) + 1].tolist()
    texts = []
    for lane in lanes:
        mine = verdict.tokens[lane, : len(led)].tolist()
        same = 0
        while same < len(led) - 1 and mine[same] == led[same]:
            same += 1
        texts.append(mine[: same + 1])
    found = []
    for tokens, branches in grouped(texts):
        accepted = min(len(tokens) - 1, limit)
        rejected = drafts[accepted] if accepted < limit else None
        if rejected == tokens[-1]:  # of another branch than the leading one
            rejected = None
        weights = [
            torch.tensor([one.branches[branch].fusion.vector] * len(tokens))
            if verdict.weights is None
            else verdict.weights[lanes[branch], : len(tokens)]
            for branch in branches
        ]
        new = NewTokens(tokens, weights, limit, accepted, rejected, tuple(branches))
        found.append((new, tokens == led))
    return found
