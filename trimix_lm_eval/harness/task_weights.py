"""One point per task: prompts are drawn, a policy chooses by them, and the point is kept.

Only policies whose scope is a task need this. A point is stored before any request is scored with
it, and read again on resume: then only the remaining requests arrive, and their prompts would
choose otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from trimix_lm_eval.harness.response_cache import Guard, TaskPoint
from trimix_lm_eval.llm import Points, TriMix
from trimix_lm_eval.loading.codec import seed_for
from trimix_lm_eval.loading.provenance import text_digest
from trimix_lm_eval.utils import distributed
from trimix_lm_eval.utils.errors import TrimixError

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance


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
    """The first prompts of each task over all processes, the same on each of them.

    Args:
        arrived: See `prompts`; what has arrived on this process.
        most: How many of a task.
        world: Number of processes, all of which must call this.
    """
    mine = {task: dict(sorted(found.items())[:most]) for task, found in arrived.items()}
    together: dict[str, dict[int, str]] = {}
    for part in distributed.exchanged(mine, world):
        for task, found in part.items():
            together.setdefault(task, {}).update(found)
    return {t: dict(sorted(found.items())[:most]) for t, found in sorted(together.items())}


class TaskWeights(NamedTuple):
    """The points of one run, by task.

    Attributes:
        model: With the one fusion whose policy chooses.
        rank: Of this process.
        world: Number of processes.
        points: Those that are chosen.
    """

    model: TriMix
    rank: int
    world: int
    points: dict[str, TaskPoint]

    def of(self, requests: Sequence[Instance], guard: Guard | None) -> list[Points]:
        """The point of each request's task, chosen now where there is none yet.

        Args:
            requests: On every process those that are its own.
            guard: Of the cache file in which points are kept; None without one.

        Raises:
            TrimixError: The cache file's point was chosen from other prompts.
        """
        most = self.model.fuser.configs[0].policy.task_prompts
        arrived = prompts(requests, self.model.settings.seed)
        for task, found in arrived.items():
            point = self.points.get(task)
            if point and not all(point.fits(p, t, most) for p, t in found.items()):
                if guard is not None and guard.is_file:
                    raise TrimixError(
                        f"The cache file's point for {task} was chosen from other prompts (another "
                        "--limit, num_fewshot, chat template or system instruction).",
                        "give this run a --use_cache path of its own",
                    )
                del self.points[task]
        if set(arrived) - set(self.points):  # on every process alike: see set_cache_hook
            self._choose(arrived, most, guard)
        return [(self.points[str(request.task_name)].weights,) for request in requests]

    def _choose(self, arrived: dict[str, dict[int, str]], most: int, guard: Guard | None) -> None:
        """Draw prompts over all processes, choose on each of them alike, and store."""
        new = {task: found for task, found in arrived.items() if task not in self.points}
        for task, some in drawn(new, most, self.world).items():
            title = None if self.rank else f"trimix {task}: weights"
            choice = self.model.choose_for_task(list(some.values()), title=title)
            point = TaskPoint(choice.weights, {p: text_digest(t) for p, t in some.items()})
            self.points[task] = point
            if guard is not None:
                guard.keep_task_point(task, point)
