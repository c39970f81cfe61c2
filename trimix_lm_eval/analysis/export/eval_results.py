"""Rows as ``.eval_results/*.yaml`` of the Hub, through huggingface_hub's own classes.

The Hub shows such an entry on a model's page, and on the leaderboard of a data set whose
``eval.yaml`` knows the entry's task id; here that is lm-eval's name of the task. An entry has one
number and no name for it, so each task gives the number it is known by; the notes tell which.

Format: https://huggingface.co/docs/hub/eval-results
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from trimix_lm_eval.analysis.export.origins import short, slug
from trimix_lm_eval.analysis.export.table import ResultRow
from trimix_lm_eval.utils.errors import TrimixError
from trimix_lm_eval.utils.paths import printable

if TYPE_CHECKING:
    from huggingface_hub import EvalResultEntry


def files(rows: Sequence[ResultRow]) -> tuple[dict[str, str], list[str]]:
    """Lay rows of one combination of models out as files: one for each data set and setting.

    Returns:
        Content by path; and the tasks left out, because their data is no data set of the Hub.

    Raises:
        TrimixError: All tasks would be left out, or huggingface_hub is too old.
    """
    import yaml

    try:
        from huggingface_hub import eval_result_entries_to_yaml
    except ImportError as error:
        raise TrimixError(
            "This huggingface_hub is too old for .eval_results.",
            "pip install 'huggingface_hub>=1.4'",
        ) from error

    known = [row for row in rows if row.main]
    left_out = list(dict.fromkeys(row.task for row in known if not row.dataset))
    grouped: dict[str, list[EvalResultEntry]] = {}
    for row in known:
        if row.dataset:
            name = f".eval_results/{slug(row.dataset)}_{slug(row.setting)}.yaml"
            grouped.setdefault(name, []).append(_entry(row))
    if not grouped:
        raise TrimixError(
            f"Nothing to write: {printable(', '.join(left_out))} measure no data set of the Hub, "
            "and an entry of .eval_results must name one.",
            "choose another format: --to model-index, card or csv",
        )
    texts = {
        name: yaml.safe_dump(
            eval_result_entries_to_yaml(entries), sort_keys=False, allow_unicode=True
        )
        for name, entries in grouped.items()
    }
    return texts, left_out


def filters_left_out(rows: Sequence[ResultRow]) -> list[str]:
    """Of tasks with several filters, which one is submitted and which are not, a phrase each."""
    told = []
    for row in (row for row in rows if row.main and row.dataset):
        measure = (row.task, row.metric, row.setting, row.run)
        alike = [it for it in rows if (it.task, it.metric, it.setting, it.run) == measure]
        others = dict.fromkeys(it.filter for it in alike if it.filter != row.filter)
        if others:
            told.append(f"{row.task} by its filter {row.filter}, not {', '.join(others)}")
    return list(dict.fromkeys(told))


def _entry(row: ResultRow) -> EvalResultEntry:
    from huggingface_hub import EvalResultEntry

    return EvalResultEntry(
        dataset_id=row.dataset,
        task_id=row.task,
        value=row.value,
        dataset_revision=row.dataset_revision or None,
        date=row.date or None,
        notes=_notes(row),
    )


def _notes(row: ResultRow) -> str:
    """What a reader must know to compare the number."""
    metric = row.metric if row.filter == "none" else f"{row.metric} ({row.filter})"
    error = "" if row.stderr is None else f", standard error {row.stderr:.4g}"
    sources = ", ".join(f"{role}={name}@{short(at)}" for role, name, at in row.sources())
    shots = "shots of each task" if row.shots is None else f"{row.shots}-shot"
    return (
        f"{metric}, n={row.n}{error}, {shots}; TriMix logit fusion, {row.setting}, "
        f"of {sources}; lm-eval {row.lm_eval}"
    )
