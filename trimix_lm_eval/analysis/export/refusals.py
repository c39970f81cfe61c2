"""What must not be submitted, and why.

The rules are the same for every format, and all reasons of all files are told at once, each with
the number of results that it holds for:

* all documents of every task, under the published protocol;
* nothing chosen by its score on the test split: no upper bound, and no point of a grid, be it a
  sweep's or run after run, for a reader cannot tell the one picked before from the best of 36;
* every source that the numbers depend on at a known commit, or with a digest of its files;
* a run of ours, in a file that can be read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from trimix_lm_eval.analysis.export.origins import benchmark, relative, sources_of
from trimix_lm_eval.analysis.results import Problem, Run
from trimix_lm_eval.fusion.policies.fixed import Fixed
from trimix_lm_eval.fusion.weights import Weights
from trimix_lm_eval.utils.errors import TrimixError
from trimix_lm_eval.utils.paths import printable

#: So many points of the same models are a grid.
_GRID = 4

#: What a result that was chosen by its score is called.
_ORACLES = ("upper bound", "oracle")

#: So many results are named with a reason; of the others their number is told.
_EXAMPLES = 2


class Reason(NamedTuple):
    """Why a result must not be submitted, the same for all results that it holds for.

    ``subject`` is what it is about in this result, for instance a task; empty for the whole.
    """

    what: str
    subject: str = ""

    def __str__(self) -> str:
        return f"{self.subject}: {self.what}" if self.subject else self.what


class Refused(NamedTuple):
    """A results file, or a line of one, that must not be submitted; at least one reason."""

    path: Path
    reasons: list[Reason]


def accept(runs: Sequence[Run], problems: Sequence[Problem]) -> None:
    """Let the runs pass, or none of them.

    Raises:
        TrimixError: With every reason, by file.
    """
    passed, refused = assessed(runs, problems)
    if refused:
        named = " ".join(relative(run.path) for run in passed)
        raise TrimixError(
            f"Nothing was exported: {len(refused)} of {len(refused) + len(passed)} results cannot "
            "be submitted.\n  - " + "\n  - ".join(lines(refused)),
            f"the others can, if you name them: {named}"
            if passed
            else "name results*.json files of lm_eval, or folders with some"
            if not runs
            else "run the tasks in full, unchanged, with models at a known commit, fusion at every "
            "token, and a policy that does not see the test split's scores",
        )
    if not runs:
        raise TrimixError(
            "There is nothing to export: no results file was given.",
            "name results*.json files of lm_eval, or folders with some",
        )


def unreadable(problems: Sequence[Problem]) -> list[Refused]:
    """Files that could not be read, as those that must not be submitted."""
    return [Refused(problem.path, [Reason(problem.what)]) for problem in problems]


def lines(refused: Sequence[Refused]) -> list[str]:
    """Each reason once, with the number of results that it holds for and two of them.

    Each is a text of two lines, the second one indented; in the order in which reasons come up.
    """
    found: dict[str, list[tuple[Path, str]]] = {}
    for path, why in refused:
        for reason in why:
            found.setdefault(reason.what, []).append((path, reason.subject))
    return [_line(what, places) for what, places in found.items()]


def _line(what: str, places: Sequence[tuple[Path, str]]) -> str:
    """A reason and whom it holds for; a subject of all in front, one of few behind its file."""
    subjects = list(dict.fromkeys(subject for _, subject in places))
    by_path: dict[Path, list[str]] = {}
    for path, subject in places:
        by_path.setdefault(path, []).append(subject)
    shown = []
    for path, own in list(by_path.items())[:_EXAMPLES]:
        more = f" and {len(own) - _EXAMPLES} more" if len(own) > _EXAMPLES else ""
        about = f" ({', '.join(own[:_EXAMPLES])}{more})" if len(subjects) > 1 else ""
        shown.append(f"{relative(path)}{about}")
    count = len(by_path)
    told = f"{count} results, for example " if count > _EXAMPLES else ""
    head = str(Reason(what, subjects[0])) if len(subjects) == 1 else what
    return f"{printable(head)}\n      {told}{printable(', '.join(shown))}"


def assessed(runs: Sequence[Run], problems: Sequence[Problem]) -> tuple[list[Run], list[Refused]]:
    """The runs that may be submitted beside the others, and what must not be."""
    found = [(run, reasons(run)) for run in runs]
    fixed = [(run, why) for run, why in found if not why and run.policy == Fixed.name]
    tried: dict[tuple[str, ...], set[Weights | None]] = {}
    for run, _ in fixed:
        for subject in _subjects(run):
            tried.setdefault(subject, set()).add(run.weights)
    for run, why in fixed:
        points = max(len(tried[subject]) for subject in _subjects(run))
        if points >= _GRID:
            what = (
                f"one of {points} points of the same models that are given, a grid, and picking a "
                "point of it by its score is tuning on the test split"
            )
            why.append(Reason(what, run.label))
    refused = [Refused(run.path, why) for run, why in found if why]
    return [run for run, why in found if not why], unreadable(problems) + refused


def _subjects(run: Run) -> Iterator[tuple[str, ...]]:
    """Of which models, and on which task, a run tries its point."""
    sources = sources_of(run).items()  # small_base is not there where its weight is 0
    models = [f"{it.name}@{it.revision}" for role, it in sources if role != "small_base"]
    for task in run.scores:
        yield (*models, task)


def reasons(run: Run) -> list[Reason]:
    """Why a run by itself must not be submitted; empty if it may."""
    if not run.trimix:
        return [Reason(f"not a run of TriMix: model {run.config.get('model')!r}")]
    sources = run.trimix.get("sources")
    if not isinstance(sources, dict) or not all(isinstance(s, dict) for s in sources.values()):
        return [Reason("damaged: it does not say which sources were used")]
    if not isinstance(run.policy, str):
        return [Reason("damaged: it does not say which policy was used")]
    found = [*_tuned(run), *_unfinished(run), *_unknown(run)]
    if fusion := run.trimix.get("fusion"):
        what = "not fused at every token, which is what a card says of a submitted run"
        found.append(Reason(what, f"fusion {fusion}"))
    return list(dict.fromkeys(found))


def _tuned(run: Run) -> Iterator[Reason]:
    """Chosen by, or with sight of, scores on the test split."""
    texts = (run.policy, run.label, run.config.get("model"), run.raw.get("model_name"))
    named = [str(t) for t in texts if any(o in _plain(str(t)) for o in _ORACLES)]
    policy = f"policy {run.policy}"
    if named:
        yield Reason("an upper bound is chosen by its score on the test split", named[0])
    elif run.honesty == "oracle":
        yield Reason("an oracle, which sees answers or scores of the test split", policy)
    elif not run.honesty:
        what = "not known to be honest, that is, to choose without the test split's answers"
        yield Reason(what, policy)
    sweep = run.trimix.get("sweep")
    if sweep and run.policy == Fixed.name:
        what = (
            f"a point of {_grid(sweep)}, and picking one by its score is tuning on the test split "
            "(a policy's run, or a corner's, may be exported)"
        )
        yield Reason(what, run.label)
    if sweep and run.mask:
        what = f"a point of {_grid(sweep)}; fix it beforehand and run it alone"
        yield Reason(what, f"plausibility {run.mask}")
    if run.honesty == "needs_exemplars":
        for task in run.scores:
            data = benchmark(run, task)
            if data.shots and data.exemplars == data.split:
                what = (
                    f"{run.policy} reads the exemplars' answers, and these come from the split "
                    f"that is scored ({data.split})"
                )
                yield Reason(what, task)


def _grid(sweep: object) -> str:
    told = sweep if isinstance(sweep, dict) else {}
    points = told.get("points")
    many = f" with {len(points)} points" if isinstance(points, list) else ""
    return f"the sweep {told.get('name', '')!s}{many}"


def _plain(text: str) -> str:
    return text.casefold().replace("_", " ").replace("-", " ")


def _unfinished(run: Run) -> Iterator[Reason]:
    """Not all documents, or another protocol."""
    limit, samples = run.config.get("limit"), run.config.get("samples")
    if limit is not None:
        yield Reason(f"limited to a part of the documents (--limit {limit})")
    if samples:
        yield Reason("limited to chosen documents (--samples)")
    yield from map(Reason, run.lost)
    for task, scores in run.scores.items():
        # How many documents of each task a limit leaves is no reason of its own.
        limited = limit is not None or samples
        counted = run.documents(task) if limited else []
        for deviation in run.deviations(task):
            if deviation not in counted:
                yield Reason(f"{deviation}, which is not the published protocol", task)
        if not all(score.n and score.of for score in scores):
            yield Reason("how many of its documents were scored is not known", task)


def _unknown(run: Run) -> Iterator[Reason]:
    """Sources of which nobody can tell what they were."""
    found = sources_of(run)
    for role, origin in found.items():
        if not origin.name:
            yield Reason(f"damaged: it does not say which {role} was used")
        elif not origin.revision:
            what = "unknown revision, neither a commit of the Hub nor a digest of local files"
            yield Reason(what, f"{role} ({origin.name})")
    if not found:
        yield Reason("damaged: it names no source")
