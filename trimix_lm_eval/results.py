"""Results files read back: those of sweeps, of plain `lm_eval` runs, and of other models.

Everything after a run (report, export, leaderboard) starts here and reads JSON only, no models. A
file that cannot be read is a `Problem` and never the end of what reads the others.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from trimix_lm_eval.catalog import read_all
from trimix_lm_eval.paths import tasks_dir
from trimix_lm_eval.weights import PAPER_GRID, Weights

#: The points that have names of their own, and the policies that are one point.
NAMED = {
    (1.0, 0.0): "large_ins",
    (0.0, 1.0): "small_cpt",
    (0.0, 0.0): "small_base",
    (1.0, 1.0): "proxy_tuning",
}
SINGLE = ("large_ins", "small_cpt", "small_base")

#: What a policy's options, and the seed, are if nobody says otherwise: not worth a mention.
_USUAL = {
    "grid": [list(point) for point in PAPER_GRID],
    "optimum": "grid",
    "prompts": 50,
    "host": "large_ins",
    "scorer": "small_cpt",
    "floor": 0.0,
}
_USUAL_SEED = 1234


class Problem(NamedTuple):
    """A file that could not be used.

    Attributes:
        path: The file.
        what: What is wrong, in a sentence.
    """

    path: Path
    what: str


class Score(NamedTuple):
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
class Run:
    """One results file.

    Attributes:
        path: The file.
        raw: All of it, as lm-eval wrote it.
        scores: Of every task (not group) its metrics, in the order of the file.
    """

    path: Path
    raw: dict[str, Any]
    scores: dict[str, list[Score]]

    @property
    def config(self) -> dict[str, Any]:
        """lm-eval's ``config``: model, arguments, limit, seeds."""
        return _dict(self.raw.get("config"))

    @property
    def trimix(self) -> dict[str, Any]:
        """What our model records about a run; empty for other models."""
        return _dict(self.config.get("trimix"))

    @property
    def sources(self) -> dict[str, dict[str, Any]]:
        """By role, where each model came from; empty for other models."""
        found = self.trimix.get("sources") or {}
        return {str(role): dict(source) for role, source in found.items()}

    @property
    def policy(self) -> str | None:
        """The policy, with the named points by their names; None for other models."""
        name = _dict(self.trimix.get("policy")).get("name")
        if name == "fixed" and self.weights is not None and self.weights.gamma is None:
            return NAMED.get((self.weights.alpha, self.weights.beta), "fixed")
        return None if name is None else str(name)

    @property
    def weights(self) -> Weights | None:
        """The point of ``policy=fixed`` and of the named points; None for everything else."""
        policy = _dict(self.trimix.get("policy"))
        if policy.get("name") != "fixed":
            named = {name: Weights(*point) for point, name in NAMED.items()}
            return named.get(str(policy.get("name")))
        gamma = policy.get("gamma")
        gamma = None if gamma in (None, policy["alpha"]) else float(gamma)
        return Weights(float(policy["alpha"]), float(policy["beta"]), gamma)

    @property
    def label(self) -> str:
        """What to call it in a table: the policy or point, or the model's name."""
        if not self.trimix:
            return str(self.raw.get("model_name") or self.config.get("model") or self.path.stem)
        name = str(self.policy)
        if self.policy == "fixed" and self.weights is not None:
            name = f"fixed {self.weights.label()}"
        extra = list(_options(self.trimix))
        return f"{name} ({', '.join(extra)})" if extra else name

    @property
    def variant(self) -> str:
        """How the whole run departs from the published protocol; empty if it does not.

        Runs of one label with different variants are different rows of a table.
        """
        limit = self.config.get("limit")
        parts = [f"limit {limit:g}"] if limit else []
        if not limit and any(list(_documents(self, task)) for task in self.scores):
            parts.append("part of the documents")
        for task in self.scores:
            parts += _protocol(self, task)
        return ", ".join(dict.fromkeys(parts))

    def main(self, task: str) -> Score | None:
        """The number a task is known by: the first metric that its YAML lists."""
        found = self.scores.get(task) or []
        listed = _dict(_dict(self.raw.get("configs")).get(task)).get("metric_list") or []
        first = _dict(listed[0]).get("metric") if listed else None
        return next((s for s in found if s.metric == first), found[0] if found else None)

    def samples(self, task: str) -> list[dict[str, Any]] | None:
        """The logged samples of a task, by document; None if there are none beside the file.

        Raises:
            OSError: They cannot be read.
            ValueError: They are no samples, or not all of them are there (so do `KeyError` and
                `TypeError`, of lines that are JSON but no samples).
        """
        date = self.path.stem.removeprefix("results_")
        file = self.path.parent / f"samples_{task}_{date}.jsonl"
        if "/" in task or not file.is_file():
            return None
        # Not splitlines(): texts may hold the other line ends that Unicode knows.
        lines = file.read_text(encoding="utf-8").split("\n")
        found = [json.loads(line) for line in lines if line.strip()]
        return sorted(found, key=lambda sample: int(sample["doc_id"]))

    def deviations(self, task: str) -> list[str]:
        """Why a task's numbers are not comparable with those of the published protocol.

        Returns:
            Short phrases for a footnote; empty if nothing was changed. Of tasks that are not ours
            only what lm-eval itself records is known.
        """
        return [*_documents(self, task), *_protocol(self, task)]


def _options(trimix: dict[str, Any]) -> Iterator[str]:
    """What distinguishes a policy from the same with its usual options."""
    policy = _dict(trimix.get("policy"))
    for option, usual in _USUAL.items():
        value = policy.get(option, usual)
        if value == usual or (option == "grid" and policy.get("optimum") == "newton"):
            continue
        if option == "grid":
            yield f"grid of {len(value)}"
        elif option == "optimum":
            yield str(value)
        else:
            yield f"{option} {value}"
    if trimix.get("plausibility"):
        yield f"plausibility {trimix['plausibility']:g}"
    if trimix.get("seed", _USUAL_SEED) != _USUAL_SEED:
        yield f"seed {trimix['seed']}"


def _documents(run: Run, task: str) -> Iterator[str]:
    score = run.main(task)
    if score and score.of and score.n < score.of:
        yield f"{score.n} of {score.of} documents"
    elif run.config.get("limit") and not (score and score.of):
        limit = run.config["limit"]
        yield f"limit {limit:g}" if _number(limit) else f"limit {limit}"


def _protocol(run: Run, task: str) -> Iterator[str]:
    if run.config.get("gen_kwargs"):
        yield "gen_kwargs changed"
    if run.raw.get("chat_template"):
        yield "chat template"
    if run.raw.get("system_instruction"):
        yield "system instruction"
    config = _dict(_dict(run.raw.get("configs")).get(task))
    exemplars = _dict(config.get("metadata")).get("exemplars")
    if exemplars not in (None, "train_1"):
        yield f"exemplars {exemplars}"
    shipped = _shipped().get(task)
    if shipped is None:
        return
    shots = _dict(run.raw.get("n-shot")).get(task)
    if shots is not None and shots != (shipped.get("num_fewshot") or 0):
        yield f"{shots} shots in place of {shipped.get('num_fewshot') or 0}"
    if shipped.get("generation_kwargs") != config.get("generation_kwargs"):
        yield "generation_kwargs changed"


_SHIPPED: dict[str, dict[str, Any]] = {}


def _shipped() -> dict[str, dict[str, Any]]:
    """Our own tasks' YAML, read once."""
    if not _SHIPPED:
        _SHIPPED.update(read_all(tasks_dir()))
    return _SHIPPED


def read(places: Sequence[Path]) -> tuple[list[Run], list[Problem]]:
    """Read results files.

    Args:
        places: Files, or folders that are searched for ``results*.json``.

    Returns:
        The runs, oldest first, and what could not be used.
    """
    runs, problems = [], []
    for path in dict.fromkeys(_files(places)):
        found = _read(path)
        if isinstance(found, Problem):
            problems.append(found)
        else:
            runs.append(found)
    problems += [
        Problem(place, "no results*.json below this folder")
        for place in places
        if place.is_dir() and not any(place.rglob("results*.json"))
    ]
    return sorted(runs, key=lambda r: (str(r.raw.get("date")), str(r.path))), problems


def _files(places: Sequence[Path]) -> Iterator[Path]:
    for place in places:
        if place.is_dir():
            yield from sorted(place.rglob("results*.json"))
        else:
            yield place


def _read(path: Path) -> Run | Problem:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        return Problem(path, f"cannot be read: {error.strerror or error}")
    except UnicodeDecodeError:
        return Problem(path, "is not text")
    except ValueError as error:
        if not path.stat().st_size:
            return Problem(path, "is empty")
        return Problem(path, f"is not JSON, or not all of it is there ({error})")
    if not isinstance(raw, dict) or not isinstance(raw.get("results"), dict):
        return Problem(path, "is JSON, but no results file of lm-eval: it has no 'results'")
    try:
        return _run(path, raw)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        return Problem(path, f"has damaged entries ({type(error).__name__}: {error})")


def _run(path: Path, raw: dict[str, Any]) -> Run | Problem:
    groups = _dict(raw.get("groups"))
    scores = {}
    for task, values in raw["results"].items():
        # A group repeats what its tasks have; one that aggregates is listed under `groups`, too.
        if isinstance(values, dict) and task not in groups:
            found = list(_scores(raw, str(task), values))
            if found:
                scores[str(task)] = found
    if not scores:
        return Problem(path, "holds no numbers of any task")
    run = Run(path, raw, scores)
    # Whatever a damaged file would let fail later fails here, where it has a name.
    _ = run.label, run.sources, run.variant, [run.deviations(task) for task in scores]
    return run


def _scores(raw: dict[str, Any], task: str, values: dict[str, Any]) -> Iterator[Score]:
    """The metrics of one task: lm-eval writes them as ``metric,filter``."""
    counts = _dict(_dict(raw.get("n-samples")).get(task))
    better = _dict(_dict(raw.get("higher_is_better")).get(task))
    for key, value in values.items():
        metric, comma, name = key.partition(",")
        if not comma or metric.endswith("_stderr") or not _number(value):
            continue
        stderr: Any = values.get(f"{metric}_stderr,{name}")
        yield Score(
            task,
            metric,
            name,
            float(value),
            float(stderr) if _number(stderr) else None,
            better.get(metric) is not False,
            int(counts.get("effective") or 0),
            int(counts.get("original") or 0),
        )


def _number(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _dict(value: Any) -> dict[str, Any]:
    """A part of a foreign file that should be an object."""
    return value if isinstance(value, dict) else {}
