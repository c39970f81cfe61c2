"""Which of the paper's claims hold, from results files alone: by seed, with tests over documents.

Reads lm-eval's JSON with a few lines of its own, so that neither the sweep's tables nor the report
are taken at their word. A claim is a number that is positive where it is right: a difference of two
methods, or of two such differences. It is measured on each document, averaged over the seeds, which
share their documents, and resampled over documents. It holds if it is positive in every seed and
in 97.5 % of the resamples, fails if both are the other way, and cannot be told otherwise.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from steps import MARK

POINTS = (0.1, 0.3, 0.5, 0.7, 0.9, 1.0)  # the values of alpha, and of beta
GRID = tuple((a, b) for a in POINTS for b in POINTS)
SINGLES = ("large_ins", "small_cpt", "small_base")
#: Tasks that the mean is over, each kind once: written where it is, else chosen.
AVERAGED = ("follow", "say", "who", "gloss_to", "gloss_from", "finish_ll")
#: What is judged: each task, their mean, and running text.
COLUMNS = {**{task: (task,) for task in AVERAGED}, "mean": AVERAGED, "rolling": ("rolling",)}
RESAMPLES = 10_000

Scores = dict[str, np.ndarray]  # by method, of each document of a task; more is better
Seed = dict[tuple[str, str], Scores]  # by language and task
Chosen = dict[tuple[str, str], dict[str, int]]  # by language and task: how often which point
Read = tuple[Seed, Chosen]
Claim = Callable[[Scores], np.ndarray]  # a number of each document


class Verdict(NamedTuple):
    """What became of a claim in one place.

    Attributes:
        values: Its mean over documents, by seed.
        low: Of the 95 % interval over documents, of the mean over seeds; `high` is its other end.
        verdict: "holds", "fails", "cannot be told", or "measured" of what no test can tell.
    """

    values: list[float]
    low: float
    high: float
    verdict: str

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return sum(self.values) / len(self.values)


def method(config: dict) -> str:
    """Names what weighted the sources: a policy, or a point as alpha:beta."""
    policy = config["trimix"]["policy"]
    name = str(policy["name"])
    if name == "fixed":
        return f"{policy['alpha']:g}:{policy['beta']:g}"
    return f"{name} {policy['refine']}" if policy.get("refine") else name


def read(place: Path) -> tuple[Seed, Chosen]:
    """Reads all results files below a folder.

    Returns:
        Scores, and by language and task which points `ppl` has chosen how often.
    """
    seed: Seed = {}
    chosen: Chosen = {}
    for file in sorted(place.rglob("results_*.json")):
        content = json.loads(file.read_text(encoding="utf-8"))
        name = method(content["config"])
        for task in content["results"]:
            if task not in content["configs"]:
                continue  # a group
            _, language, kind = task.split("_", 2)
            date = file.stem.removeprefix("results_")
            samples = file.parent / f"samples_{task}_{date}.jsonl"
            seed.setdefault((language, kind), {})[name] = np.array(_documents(samples))
            if name == "ppl":
                counts = content["config"]["trimix"]["weights_chosen"]
                chosen[language, kind] = counts.get(task, {})
    return seed, chosen


def _documents(file: Path) -> list[float]:
    """A number per document, in their order: points, or the bits of a byte below 0."""
    found = {}
    for line in file.read_text(encoding="utf-8").split("\n"):
        if line:
            sample = json.loads(line)
            found[sample["doc_id"]] = _points(sample)
    return [found[i] for i in sorted(found)]


def _points(sample: dict) -> float:
    for metric in ("exact_match", "acc"):
        if metric in sample:
            return 100.0 * sample[metric]
    nats, size = sample["bits_per_byte"]
    return nats / size / math.log(2)


def at(scores: Scores, point: tuple[float, float]) -> np.ndarray:
    """The scores of a point of the grid; (1, 1) is run under its name."""
    return scores["proxy_tuning" if point == (1.0, 1.0) else f"{point[0]:g}:{point[1]:g}"]


def oracle(scores: Scores) -> tuple[tuple[float, float], ...]:
    """The best points of the grid on the very documents that they are judged on."""
    means = {point: float(at(scores, point).mean()) for point in GRID}
    top = max(means.values())
    return tuple(point for point in GRID if means[point] >= top - 1e-12)


def best_single(scores: Scores) -> str:
    """The best model alone on these documents."""
    return max(SINGLES, key=lambda name: scores[name].mean())


#: What is chosen on the very documents: its distance is too large, and no test tells by how much.
UPPER_BOUND = "the upper bound above TriMix"
#: What the paper says of two methods, each document's difference; and what an independent
#: reproduction says of a gate for each token. The best single model is chosen on the documents,
#: too, which speaks against TriMix.
CLAIMS: dict[str, Claim] = {
    "TriMix above Proxy Tuning": lambda s: s["ppl"] - s["proxy_tuning"],
    "Proxy Tuning above large_ins": lambda s: s["proxy_tuning"] - s["large_ins"],
    "TriMix above large_ins": lambda s: s["ppl"] - s["large_ins"],
    "TriMix above the best single model": lambda s: s["ppl"] - s[best_single(s)],
    "small_cpt above large_ins": lambda s: s["small_cpt"] - s["large_ins"],
    "TriMix above large_ins with small_base (0.5, 0)": lambda s: s["ppl"] - s["0.5:0"],
    UPPER_BOUND: lambda s: at(s, oracle(s)[0]) - s["ppl"],
    "the gate above TriMix": lambda s: s["gate"] - s["ppl"],
}


@functools.lru_cache(maxsize=16)
def resamples(documents: int, which: int) -> np.ndarray:
    """How much each document weighs in each resample, ``[RESAMPLES, documents]``; `which` seeds."""
    rng = np.random.default_rng([1234, which])
    counts = rng.multinomial(documents, [1 / documents] * documents, RESAMPLES)
    return (counts / documents).astype(np.float32)


def judged(by_seed: list[list[np.ndarray]]) -> Verdict:
    """Judges a claim.

    Args:
        by_seed: Of each seed and each task of a mean (one, if it is none), the claim on each
            document ``[N]``; tasks have as many documents in all seeds.
    """
    values = [float(np.mean([task.mean() for task in tasks])) for tasks in by_seed]
    drawn = np.zeros(RESAMPLES)
    for i in range(len(by_seed[0])):
        documents = np.mean([tasks[i] for tasks in by_seed], axis=0)  # [N]
        drawn += resamples(len(documents), i) @ documents / len(by_seed[0])
    low, high = (float(one) for one in np.percentile(drawn, [2.5, 97.5]))
    if low > 0 and min(values) > 0:
        verdict = "holds"
    elif high < 0 and max(values) < 0:
        verdict = "fails"
    else:
        verdict = "cannot be told"
    return Verdict(values, low, high, verdict)


def _of(name: str, by_seed: list[list[np.ndarray]]) -> Verdict:
    """Judges a claim by its name."""
    found = judged(by_seed)
    return found._replace(verdict="measured") if name == UPPER_BOUND else found


def verdicts(seeds: list[Seed], language: str) -> dict[str, dict[str, Verdict]]:
    """By claim, and by task, ``mean`` or ``rolling``, what became of it."""
    return {
        name: {
            column: _of(name, [[claim(seed[language, task]) for task in tasks] for seed in seeds])
            for column, tasks in COLUMNS.items()
        }
        for name, claim in CLAIMS.items()
    }


#: What is said of two large models: a number of each document from the scores with the larger one
#: and from those with the smaller one.
SIZES: dict[str, Callable[[Scores, Scores], np.ndarray]] = {
    "the smaller large model gains more": lambda large, medium: (
        (medium["ppl"] - medium["large_ins"]) - (large["ppl"] - large["large_ins"])
    ),
    "large_ins above the smaller one": lambda large, medium: (
        large["large_ins"] - medium["large_ins"]
    ),
    "TriMix above TriMix with the smaller one": lambda large, medium: large["ppl"] - medium["ppl"],
}


def of_sizes(
    larger: list[Seed], smaller: list[Seed], language: str
) -> dict[str, dict[str, Verdict]]:
    """By claim of `SIZES`, and by task, ``mean`` or ``rolling``, what became of it."""
    pairs = list(zip(larger, smaller, strict=True))
    return {
        name: {
            column: judged(
                [[claim(a[language, task], b[language, task]) for task in tasks] for a, b in pairs]
            )
            for column, tasks in COLUMNS.items()
        }
        for name, claim in SIZES.items()
    }


def read_all(out: Path, part: str, pairs: tuple[str, ...]) -> dict[str, dict[str, Read]]:
    """Reads the finished results by the size of the large model, and by seed.

    Args:
        out: Folder of the steps.
        part: "test" or "dev".
        pairs: Sizes of the large models; one of which there are no results is left out.
    """
    found = {}
    for pair in pairs:
        marks = sorted(out.glob(f"seed*/results_{part}_{pair}/{MARK}"))
        if marks:
            found[pair] = {mark.parent.parent.name: read(mark.parent) for mark in marks}
    return found
