"""One results file, as its keys are read; `run.py` says what to call it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from trimix_lm_eval.analysis.results.files import FILE_PARTS, json_of, text_of
from trimix_lm_eval.fusion.policies.fixed import Fixed, name_of, point_of
from trimix_lm_eval.fusion.weights import Weights, parse
from trimix_lm_eval.utils import paths

#: In the year 5138; what is later is no date.
_LATEST = 1e11


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value is a finite number, and no more than a float can hold."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def mapping(value: Any) -> dict[str, Any]:
    """What should be an object in a file that anybody may have written; empty if it is not."""
    return value if isinstance(value, dict) else {}


class MetricValue(NamedTuple):
    """One number of one task.

    Attributes:
        task: Name of the task or group.
        metric: Without its filter.
        filter: lm-eval's, mostly ``none``.
        value: In the metric's own unit.
        stderr: Its standard error; None where lm-eval gives none.
        higher_is_better: Which way is up.
        n: Documents it was measured on; 0 if unknown.
        of: Documents that the task has; 0 if unknown.
    """

    task: str
    metric: str
    filter: str
    value: float
    stderr: float | None
    higher_is_better: bool
    n: int
    of: int


@dataclass(frozen=True, eq=False)
class ResultsFile:
    """One results file.

    Attributes:
        path: The file.
        raw: All of it, as lm-eval wrote it.
        scores: Of every task (not group) its metrics, in the order of the file.
        groups: The same of every group that lm-eval aggregates; its documents are its tasks'.
        lost: What stands in the place of a score and is none, a phrase each.
    """

    path: Path
    raw: dict[str, Any]
    scores: dict[str, list[MetricValue]]
    groups: dict[str, list[MetricValue]]
    lost: tuple[str, ...] = ()

    @property
    def config(self) -> dict[str, Any]:
        """lm-eval's ``config``: model, arguments, limit, seeds."""
        return mapping(self.raw.get("config"))

    @property
    def trimix(self) -> dict[str, Any]:
        """What our model records about a run; empty for other models."""
        return mapping(self.config.get("trimix"))

    @property
    def sources(self) -> dict[str, dict[str, Any]]:
        """By role, where each model came from; empty for other models."""
        found = {str(role): dict(it) for role, it in (self.trimix.get("sources") or {}).items()}
        for source in found.values():
            if source.get("path") is not None:
                source["path"] = paths.named(str(source["path"]))
        return found

    @property
    def date(self) -> float | None:
        """When it ran, in seconds since 1970; None if the file does not tell, or tells no time."""
        date = self.raw.get("date")
        return float(date) if is_number(date) and 0 <= date < _LATEST else None

    @property
    def file(self) -> str:
        """The file, as pages and tables show it."""
        return paths.shown(self.path, FILE_PARTS)

    @property
    def policy(self) -> str | None:
        """The policy, with the named points by their names; None for other models."""
        name = mapping(self.trimix.get("policy")).get("name")
        if name == Fixed.name and self.weights is not None:
            return name_of(self.weights)
        return None if name is None else str(name)

    @property
    def weights(self) -> Weights | None:
        """The point of ``policy=fixed`` and of the named points; None for everything else."""
        policy = mapping(self.trimix.get("policy"))
        if policy.get("name") != Fixed.name:
            return point_of(str(policy.get("name")))
        gamma = policy.get("gamma")
        gamma = None if gamma in (None, policy["alpha"]) else float(gamma)
        return Weights(float(policy["alpha"]), float(policy["beta"]), gamma)

    @property
    def grid(self) -> list[Weights]:
        """The points that a policy chose from; empty if there is no grid."""
        points = mapping(self.trimix.get("policy")).get("grid") or []
        return [_point(*point) for point in points]

    @property
    def model_args(self) -> dict[str, Any]:
        """``--model_args``, which lm-eval records as an object or as the text that was given."""
        given = self.config.get("model_args")
        if isinstance(given, str):
            given = dict(part.partition("=")[::2] for part in given.split(",") if part)
        return mapping(given)

    @property
    def data(self) -> dict[str, dict[str, Any]]:
        """The benchmarks' files, each with where it is from and its SHA-256."""
        return {name: mapping(file) for name, file in mapping(self.trimix.get("data")).items()}

    @property
    def task_points(self) -> dict[str, Weights]:
        """The points that a policy chose for whole tasks."""
        told = mapping(self.trimix.get("task_points"))
        found = {task: parse(label) for task, label in told.items()}
        return {task: weights for task, weights in found.items() if weights}

    def chosen(self, task: str) -> dict[str, int]:
        """How often a policy chose each point on a task, by the point's label."""
        counts = mapping(mapping(self.trimix.get("weights_chosen")).get(task))
        return {label: n for label, n in counts.items() if isinstance(n, int) and n > 0}

    def finish_reasons(self, task: str) -> dict[str, int]:
        """How many generated texts of a task ended by ``stop``, ``eos`` or ``length``.

        Empty for other tasks, for other models, and for runs of before it was recorded.
        """
        counts = mapping(mapping(self.trimix.get("finish_reasons")).get(task))
        return {name: n for name, n in counts.items() if isinstance(n, int) and n > 0}

    def prompt_nll(self, task: str) -> dict[str, float]:
        """The mean NLL per prompt token of a task under each point, if a sweep recorded it."""
        values = mapping(mapping(self.trimix.get("prompt_nll")).get(task))
        return {label: float(nll) for label, nll in values.items() if is_number(nll)}

    def task_config(self, task: str) -> dict[str, Any]:
        """A task's YAML, as lm-eval recorded it."""
        return mapping(mapping(self.raw.get("configs")).get(task))

    def shots(self, task: str) -> int | None:
        """Exemplars in each prompt; None if the file does not tell."""
        shots = mapping(self.raw.get("n-shot")).get(task)
        return None if shots is None else int(shots)

    def below(self, group: str) -> list[str]:
        """All tasks and groups below a group, in order; empty for a task."""
        members = mapping(self.raw.get("group_subtasks"))
        found: list[str] = []
        waiting = [group]
        while waiting:
            name = waiting.pop(0)
            if name not in found:
                found.append(name)
                below = members.get(name)
                waiting = [*map(str, below if isinstance(below, list) else []), *waiting]
        return found[1:]

    def leaves(self, group: str) -> list[str]:
        """The tasks below a group that have numbers."""
        return [name for name in self.below(group) if name in self.scores]

    def main(self, task: str) -> MetricValue | None:
        """The number a task is known by: the first metric that its YAML lists, or of a group."""
        found = self.scores.get(task) or self.groups.get(task) or []
        listed = self.task_config(task).get("metric_list") or []
        first = mapping(listed[0]).get("metric") if listed else None
        return next((s for s in found if s.metric == first), found[0] if found else None)

    def filtered(self, task: str) -> list[MetricValue]:
        """The number a task is known by under each filter of lm-eval's, `main` first."""
        main = self.main(task)
        found = self.scores.get(task) or self.groups.get(task) or []
        others = [s for s in found if main and s.metric == main.metric and s != main]
        return [main, *others] if main else []

    def samples(self, task: str) -> list[dict[str, Any]] | None:
        """The logged samples of a task, by document; None if there are none beside the file.

        Raises:
            OSError: The system cannot look for them.
            ValueError: They cannot be read, or not all of them are there (so do `KeyError` and
                `TypeError`, of lines that are JSON but no samples).
        """
        date = self.path.stem.removeprefix("results_")
        file = self.path.parent / f"samples_{task}_{date}.jsonl"
        if "/" in task or not file.is_file():
            return None
        # Not splitlines(): texts may hold the other line ends that Unicode knows.
        lines = text_of(file).split("\n")
        found = [json_of(line) for line in lines if line.strip()]
        return sorted(found, key=lambda sample: int(sample["doc_id"]))

    @property
    def truncated(self) -> int:
        """Requests that were longer than the context, and cut."""
        found = self.trimix.get("truncated_requests")
        return int(found) if is_number(found) else 0


def _point(alpha: Any, beta: Any, gamma: Any = None) -> Weights:
    return Weights(float(alpha), float(beta), None if gamma is None else float(gamma))
