"""What must not be submitted, and why.

The rules are the same for every format, and all reasons of all files are told at once:

* all documents of every task, under the published protocol;
* nothing chosen by its score on the test split: no upper bound, and no point of a grid, be it a
  sweep's or run after run, for a reader cannot tell the one picked before from the best of 36;
* every source that the numbers depend on at a known commit, or with a digest of its files;
* a run of ours, in a file that can be read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from trimix_lm_eval.analysis.export.benchmarks import benchmark
from trimix_lm_eval.analysis.export.origins import relative, sources_of, used
from trimix_lm_eval.analysis.results import Problem, Run
from trimix_lm_eval.fusion.weights import Weights
from trimix_lm_eval.utils.errors import TrimixError

#: So many points of the same models are a grid.
_GRID = 4

#: What a result that was chosen by its score is called.
_ORACLES = ("upper bound", "oracle")


def accept(runs: Sequence[Run], problems: Sequence[Problem]) -> None:
    """Let the runs pass, or none of them.

    Args:
        runs: What was read.
        problems: What could not be.

    Raises:
        TrimixError: With every reason, by file.
    """
    refused = [(problem.path, [problem.what]) for problem in problems]
    passed = []
    for run, why in assessed(runs):
        if why:
            refused.append((run.path, why))
        else:
            passed.append(run.path)
    if refused:
        lines = ("\n    - ".join([relative(path), *why]) for path, why in refused)
        named = " ".join(relative(path) for path in passed)
        raise TrimixError(
            f"Nothing was exported: {len(refused)} of {len(refused) + len(passed)} results cannot "
            "be submitted.\n  " + "\n  ".join(lines),
            f"the others can, if you name them: {named}"
            if passed
            else "run the tasks in full, unchanged, with models at a known commit and a policy "
            "that does not see the test split's scores",
        )
    if not runs:
        raise TrimixError(
            "There is nothing to export: no results file was given.",
            "name results*.json files of lm_eval, or folders with some",
        )


def assessed(runs: Sequence[Run]) -> list[tuple[Run, list[str]]]:
    """Of each run why it must not be submitted beside the others; empty if it may."""
    found = [(run, reasons(run)) for run in runs]
    fixed = [(run, why) for run, why in found if not why and run.policy == "fixed"]
    tried: dict[tuple[str, ...], set[Weights | None]] = {}
    for run, _ in fixed:
        for subject in _subjects(run):
            tried.setdefault(subject, set()).add(run.weights)
    for run, why in fixed:
        points = max(len(tried[subject]) for subject in _subjects(run))
        if points >= _GRID:
            why.append(
                f"the point {run.label.removeprefix('fixed ')} is one of {points} of the same "
                "models that are given: a grid, and picking a point of it by its score is tuning "
                "on the test split"
            )
    return found


def _subjects(run: Run) -> Iterator[tuple[str, ...]]:
    """Of which models, and on which task, a run tries its point."""
    sources = sources_of(run).items()  # small_base is not there where its weight is 0
    models = [f"{it.name}@{it.revision}" for role, it in sources if role != "small_base"]
    for task in run.scores:
        yield (*models, task)


def reasons(run: Run) -> list[str]:
    """Why a run by itself must not be submitted; empty if it may."""
    if not run.trimix:
        return [f"not a run of TriMix: model {run.config.get('model')!r}"]
    sources = run.trimix.get("sources")
    if not isinstance(sources, dict) or not all(isinstance(s, dict) for s in sources.values()):
        return ["damaged: it does not say which sources were used"]
    if not isinstance(run.policy, str):
        return ["damaged: it does not say which policy was used"]
    return list(dict.fromkeys([*_tuned(run), *_unfinished(run), *_unknown(run)]))


def _tuned(run: Run) -> Iterator[str]:
    """Chosen by, or with sight of, scores on the test split."""
    texts = (run.policy, run.label, run.config.get("model"), run.raw.get("model_name"))
    named = [str(t) for t in texts if any(o in _plain(str(t)) for o in _ORACLES)]
    if named:
        yield f"{named[0]}: an upper bound is chosen by its score on the test split"
    elif run.honesty == "oracle":
        yield f"policy {run.policy}: an oracle, which sees answers or scores of the test split"
    elif not run.honesty:
        yield (
            f"policy {run.policy}: not known to be honest, that is, to choose without the test "
            "split's answers"
        )
    sweep = run.trimix.get("sweep")
    if sweep and run.policy == "fixed":
        yield (
            f"the point {run.label.removeprefix('fixed ')} of {_grid(sweep)}: picking a point by "
            "its score is tuning on the test split (a policy's run, or a corner's, may be exported)"
        )
    if sweep and run.trimix.get("plausibility"):
        yield (
            f"plausibility {run.trimix['plausibility']} is a point of {_grid(sweep)}; fix it "
            "beforehand and run it alone"
        )
    if run.honesty == "needs_exemplars":
        for task in run.scores:
            data = benchmark(run, task)
            if data.shots and data.exemplars == data.split:
                yield (
                    f"{task}: {run.policy} reads the exemplars' answers, and these come from the "
                    f"split that is scored ({data.split})"
                )


def _grid(sweep: object) -> str:
    """A sweep's grid in words."""
    told = sweep if isinstance(sweep, dict) else {}
    points = told.get("points")
    many = f" with {len(points)} points" if isinstance(points, list) else ""
    return f"the sweep {told.get('name', '')!s}{many}"


def _plain(text: str) -> str:
    return text.casefold().replace("_", " ").replace("-", " ")


def _unfinished(run: Run) -> Iterator[str]:
    """Not all documents, or another protocol."""
    if run.config.get("limit") is not None:
        yield f"limited to a part of the documents (--limit {run.config['limit']})"
    if run.config.get("samples"):
        yield "limited to chosen documents (--samples)"
    yield from run.lost
    for task, scores in run.scores.items():
        for deviation in run.deviations(task):
            yield f"{task}: {deviation}, which is not the published protocol"
        if not all(score.n and score.of for score in scores):
            yield f"{task}: how many of its documents were scored is not known"


def _unknown(run: Run) -> Iterator[str]:
    """Sources of which nobody can tell what they were."""
    found = sources_of(run)
    for role, origin in found.items():
        if not origin.name:
            yield f"damaged: it does not say which {role} was used"
        elif not origin.revision:
            yield (
                f"{role} ({origin.name}): unknown revision, neither a commit of the Hub nor a "
                "digest of local files"
            )
    if not used(run):
        yield "damaged: it names no source"
