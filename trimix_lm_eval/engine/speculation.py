"""How many tokens small_cpt drafts: from what drafts have been worth and what they cost so far.

A round drafts k tokens, one by one, and lets the other sources judge k + 1 positions in one pass.
If a draft stands with probability a, whatever stood before it, a row gains

    tokens(k) = (1 - a^(k+1)) / (1 - a)

tokens (Leviathan et al. 2023, "Fast Inference from Transformers via Speculative Decoding", equation
1). What a pass over n tokens costs is measured, round by round; the k with the most tokens per
second is taken, 0 among them: then every source runs on one token, as without speculation. Which k
is taken changes the time, never the tokens (see `sampling`).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any, NamedTuple

from trimix_lm_eval.engine.drafting import Cost, Gain

#: Draft lengths to choose from.
LENGTHS = (0, 1, 2, 3, 4, 5, 6, 8, 10)
#: Rounds after which half of what was seen is forgotten.
_HALF_LIFE = 64
#: One round in so many tries a neighbour of the best length, to see whether things have changed.
_TRY_EVERY = 24
#: Rounds without drafts before several rows try some.
_TRY_LATE = 10
#: How much faster drafting must look before it is done, if rows are several. They gain different
#: numbers of tokens, and the time is that of the slowest: little is lost by it where prompts wait
#: to take the place of those that are done, and much where none does.
_MARGIN_WAITING, _MARGIN_LAST = 1.05, 1.3


class _Costs:
    """Seconds of a pass by its number of tokens: measured, and between measurements a line."""

    def __init__(self) -> None:
        self.seen: dict[int, list[float]] = {}

    def add(self, tokens: int, seconds: float) -> None:
        """One more measurement; the median of the last five counts."""
        self.seen.setdefault(tokens, []).append(seconds)
        del self.seen[tokens][:-5]

    def __call__(self, tokens: int) -> float:
        known = sorted(self.seen)
        if tokens in self.seen or len(known) < 2:
            nearest = tokens if tokens in self.seen else known[0]
            return self._median(nearest)
        at = min(max(bisect_left(known, tokens), 1), len(known) - 1)
        low, high = known[at - 1], known[at]
        slope = max(0.0, (self._median(high) - self._median(low)) / (high - low))
        return max(0.0, self._median(low) + slope * (tokens - low))

    def _median(self, tokens: int) -> float:
        values = sorted(self.seen[tokens])
        return values[(len(values) - 1) // 2]


class SpecDecodingStats(NamedTuple):
    """What came of drafting so far.

    Attributes:
        rounds: Rounds of decoding.
        rows: Rows in them, counted anew in each round; one that splits counts once for each way.
        drafted: Tokens drafted.
        accepted: Drafts that stood.
        judged: Drafts up to the first in a row that did not stand.
    """

    rounds: int = 0
    rows: int = 0
    drafted: int = 0
    accepted: int = 0
    judged: int = 0

    def plus(self, other: SpecDecodingStats) -> SpecDecodingStats:
        """Both together."""
        return SpecDecodingStats(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))


class Speculation:
    """Chooses draft lengths and keeps the account.

    Args:
        mode: ``auto``, ``off``, or a fixed number of drafts.
    """

    def __init__(self, mode: str | int = "auto") -> None:
        self.mode = mode
        self.account = SpecDecodingStats()
        self._hits, self._trials = 4.0, 5.0  # as good as most drafters are, until known better
        self._draft, self._verify = _Costs(), _Costs()

    def length(self, rows: int, most: int, waiting: bool = True) -> int:
        """How many tokens to draft.

        Args:
            rows: For how many rows.
            most: At most so many for each.
            waiting: Whether prompts wait to take the place of rows that are done.
        """
        if self.mode == "off" or most < 1:
            return 0
        if self.mode != "auto":
            return min(int(self.mode), most)
        possible = [k for k in LENGTHS if k <= most]
        # Some of the first rounds find out what a pass with drafts and one without cost; two each,
        # since the first time something new is run costs more. One row has most to gain, and tries
        # at once; several try later, since short texts may be done before it is made up for.
        trial, first = (0, 4) if rows == 1 else (_TRY_LATE, 2)
        if self.account.rounds < trial + 4:
            return min(possible[-1], first) if trial <= self.account.rounds < trial + 2 else 0
        best = max(possible, key=lambda k: self.rate(k, rows))
        margin = 1.0 if rows == 1 else _MARGIN_WAITING if waiting else _MARGIN_LAST
        if self.rate(best, rows) < margin * self.rate(0, rows):
            best = 0
        if self.account.rounds % _TRY_EVERY == 0:
            step = 1 if (self.account.rounds // _TRY_EVERY) % 2 else -1
            return possible[min(max(possible.index(best) + step, 0), len(possible) - 1)]
        return best

    def rate(self, k: int, rows: int) -> float:
        """Expected tokens per second with k drafts."""
        a = self._hits / self._trials
        gained = sum(a**i for i in range(k + 1))
        # The drafter runs on the last draft only if that stands in some row.
        steps = k + 1 - (1 - a**k) ** rows
        seconds = steps * self._draft(rows) + self._verify(rows * (k + 1))
        return rows * gained / max(seconds, 1e-9)

    def learn(self, k: int, rows: int, gains: Sequence[Gain], cost: Cost) -> None:
        """Take account of a round of k drafts per row.

        Args:
            k: Drafts.
            rows: Rows in the batch.
            gains: What they gained; of a row that split several.
            cost: What it took.
        """
        tried, stood = sum(gain.tried for gain in gains), sum(gain.accepted for gain in gains)
        # Behind the first draft that fell nobody knows: it counts as no trial.
        trials = sum(min(gain.accepted + 1, gain.tried) for gain in gains)
        self.account = self.account.plus(SpecDecodingStats(1, len(gains), tried, stood, trials))
        fade = 0.5 ** (1 / _HALF_LIFE) if trials else 1.0
        self._hits = self._hits * fade + stood
        self._trials = self._trials * fade + trials
        if cost.passes:
            self._draft.add(rows, cost.drafting / cost.passes)
        self._verify.add(rows * (k + 1), cost.judging)

    def summary(self, account: SpecDecodingStats | None = None) -> dict[str, Any]:
        """What a run's results tell of it.

        Args:
            account: Of all processes; None is this one's own.

        Returns:
            ``acceptance``: share of the drafts that stood among those judged (None without
            drafts); ``draft_length``: drafts per row and round, on average; ``rounds``;
            ``tokens_per_round``: tokens that a row gained per round.
        """
        rounds, rows, drafted, accepted, judged = account or self.account
        return {
            "mode": self.mode,
            "rounds": rounds,
            "draft_length": round(drafted / rows, 3) if rows else 0.0,
            "acceptance": round(accepted / judged, 4) if judged else None,
            "tokens_per_round": round(1 + accepted / rows, 3) if rows else None,
        }
