"""`trimix export`: results as files to submit, after a look at whether they may be.

    refusals.py                 what must not be submitted, and why
    origins.py                  the models and the data behind a number
    table.py                    rows, one for each task and metric; the CSV
    eval_results.py  model_index.py  card.py (recipe.py, card.md)   the other formats
    push.py                     to the Hub

Imported by `cli` and `analysis.leaderboard`; imports `analysis.results`, `tasklib`, `loading`,
`fusion` and `utils`. Reads JSON only, no models. Nothing is written before everything has been
checked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from trimix_lm_eval.analysis.export import card, eval_results, model_index, refusals, table
from trimix_lm_eval.analysis.export import push as upload
from trimix_lm_eval.analysis.export.origins import relative, short, sources_of
from trimix_lm_eval.analysis.results import Run, read
from trimix_lm_eval.utils import io, outputs
from trimix_lm_eval.utils.errors import TrimixError, unknown
from trimix_lm_eval.utils.paths import printable

FORMATS = ("eval-results", "model-index", "card", "csv")


def main(
    places: Sequence[Path],
    to: str,
    output: Path,
    *,
    repo: str | None = None,
    push: bool = False,
    yes: bool = False,
    pull_request: bool = False,
    say: Callable[[str], None] = print,
) -> list[Path]:
    """Export results.

    Args:
        places: Results files, or folders with some.
        to: One of `FORMATS`.
        output: The folder to write to; made if it is not there.
        repo: ``owner/name`` on the Hub: the name in cards, and where `push` uploads to.
        push: Upload what was written.
        yes: Upload without asking.
        pull_request: Upload as a pull request.
        say: Is told what was written.

    Raises:
        TrimixError: Something must not be exported, or cannot be written or uploaded.
    """
    if to not in FORMATS:
        raise unknown("format", to, FORMATS)
    if (push or pull_request) and not repo:
        raise TrimixError("--push needs to know where to.", "name it: --repo owner/name")
    if repo is not None:
        upload.ready(repo, push)
    runs, problems = read(places)
    refusals.accept(runs, problems)
    files = _files(runs, to, repo, say)
    written = {output / name: text for name, text in files.items()}
    outputs.keep_others(written)
    for path, text in written.items():
        io.write(path, text, "give another --output")
        say(f"wrote {relative(path)}")
    if push and repo:
        say(f"uploaded: {upload.push(files, repo, yes=yes, pull_request=pull_request)}")
    return list(written)


def _files(
    runs: Sequence[Run], to: str, repo: str | None, say: Callable[[str], None]
) -> Mapping[str, str]:
    rows = table.rows_of(runs)
    if to == "csv":
        return {"results.csv": table.write_csv(rows)}
    _one_model(runs)
    if to == "eval-results":
        texts, left_out = eval_results.files(rows)
        if left_out:
            names = printable(", ".join(left_out))
            say(f"left out, for their data is no data set of the Hub: {names}")
        if told := eval_results.filters_left_out(rows):
            say(f"an entry has one number; submitted: {printable('; '.join(told))}")
        return texts
    large, *_ = (origin.name for run in runs for origin in sources_of(run).values())
    name = (repo or f"TriMix-{large.rpartition('/')[2]}").rpartition("/")[2]
    if to == "model-index":
        return model_index.files(rows, name)
    return card.files(runs, name)


def _one_model(runs: Sequence[Run]) -> None:
    """Make sure that runs can stand on one page: one combination, each number once."""
    seen: dict[str, tuple[str, Path]] = {}
    tasks: dict[tuple[str, str], Path] = {}
    for run in runs:
        for role, origin in sources_of(run).items():
            told = f"{origin.name}@{short(origin.revision)}"
            before, path = seen.setdefault(role, (told, run.path))
            if before != told:
                raise TrimixError(
                    f"These results are of several models: {role} is {before} in "
                    f"{relative(path)} and {told} in {relative(run.path)}.",
                    "a card describes one: export them one by one, or --to csv",
                )
        for task in run.scores:
            path = tasks.setdefault((task, run.label), run.path)
            if path != run.path:
                raise TrimixError(
                    f"{task} with {run.label} is in two files: {relative(path)} and "
                    f"{relative(run.path)}.",
                    "name one of them",
                )
