"""One point per task: prompts are drawn, a policy chooses by them, and the point is kept.

Only policies whose scope is a task need this. A response cache keeps a point by the prompts that it
was chosen from, before any request is answered with it, and a resumed run reads it again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from lm_eval.api.instance import Instance

from trimix_lm_eval.fusion.weights import Weights
from trimix_lm_eval.harness.response_cache import ResponseCache, TaskPoint
from trimix_lm_eval.llm import Points, TriMix
from trimix_lm_eval.loading.codec import seed_for
from trimix_lm_eval.loading.provenance import text_digest
from trimix_lm_eval.utils import distributed


def prompts(requests: Sequence[Instance], seed: int) -> dict[str, dict[int, str]]:
    """The prompts of each task by their place in the draw, which the seed alone decides.

    Of a document whose options differ in context, the first; an empty context, with which some
    metrics ask for the answer alone, only if there is no other.
    """
    found: dict[str, dict[int, str]] = {}
    for request in sorted(requests, key=lambda r: (bool(r.args[0]), -r.idx)):
        task, doc = str(request.task_name), int(request.doc_id or 0)
        found.setdefault(task, {})[seed_for(seed, task, doc)] = request.args[0]
    return found


def drawn(
    arrived: Mapping[str, Mapping[int, str]], most: int, world: int
) -> dict[str, dict[int, str]]:
    """The first `most` prompts of each task over all processes, which all must call this."""
    mine = {task: dict(sorted(found.items())[:most]) for task, found in arrived.items()}
    together: dict[str, dict[int, str]] = {}
    for part in distributed.exchanged(mine, world):
        for task, found in part.items():
            together.setdefault(task, {}).update(found)
    return {t: dict(sorted(found.items())[:most]) for t, found in sorted(together.items())}


class TaskWeights(NamedTuple):
    """The points of one run, by task; the model has the one fusion whose policy chooses."""

    model: TriMix
    rank: int
    world: int
    points: dict[str, TaskPoint]

    def of(self, requests: Sequence[Instance], cache: ResponseCache | None) -> list[Points]:
        """The point of each request's task; chosen now, or read from a cache, if there is none."""
        most = self.model.fuser.configs[0].policy.task_prompts
        arrived = prompts(requests, self.model.settings.seed)
        for task, found in arrived.items():
            point = self.points.get(task)
            if point and not all(point.fits(p, t, most) for p, t in found.items()):
                del self.points[task]
        if set(arrived) - set(self.points):
            self._choose(arrived, most, cache)
        return [(self.points[str(request.task_name)].weights,) for request in requests]

    def _choose(
        self, arrived: dict[str, dict[int, str]], most: int, cache: ResponseCache | None
    ) -> None:
        """Draw prompts over all processes, choose on each of them alike, and keep the point."""
        self.model.fuser.ensemble.kept.clear()  # the prompts of tasks before
        new = {task: found for task, found in arrived.items() if task not in self.points}
        texts = drawn(new, most, self.world)
        read = {t: {p: text_digest(x) for p, x in some.items()} for t, some in texts.items()}
        known: dict[str, Weights] = {}
        if cache is not None:
            mine = {task: cache.point(task, some) for task, some in read.items()}
            for part in distributed.exchanged(mine, self.world):  # one may have lost its file
                known |= {task: weights for task, weights in part.items() if weights is not None}
        for task, some in texts.items():
            weights = known.get(task)
            if weights is None:
                title = None if self.rank else f"trimix {task}: weights"
                # A run with a cache may be taken up again, when the choice is known and nothing is
                # kept: its answers are to be the same to the last bit.
                made = self.model.choose_for_task(
                    list(some.values()), title=title, keeping=cache is None
                )
                weights = made.weights
            self.points[task] = point = TaskPoint(weights, read[task])
            if cache is not None:
                cache.keep_point(task, point)
