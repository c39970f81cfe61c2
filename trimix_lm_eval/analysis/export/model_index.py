"""Rows as the ``model-index`` of a model card, through huggingface_hub's own classes.

huggingface_hub puts numbers together that agree in task type and data set, and keeps one name for
all of them. So that no task loses its own, the name of the task stands as the data set's
configuration: it tells language, split and form of the question, which the data set's does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from trimix_lm_eval.analysis.export.table import ResultRow

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

NAME = "model-index.yaml"


def files(rows: Sequence[ResultRow], model_name: str) -> dict[str, str]:
    """Rows of one combination of models as a block of metadata for a model card, by path."""
    import yaml
    from huggingface_hub.repocard_data import eval_results_to_model_index

    index = {"model-index": eval_results_to_model_index(model_name, results(rows))}
    return {NAME: yaml.safe_dump(index, sort_keys=False, allow_unicode=True)}


def results(rows: Sequence[ResultRow]) -> list[EvalResult]:
    """The rows as the library's own objects."""
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type="text-generation",
            task_name=row.task,
            dataset_type=row.dataset or row.task,
            dataset_name=f"{row.task} ({row.language})" if row.language else row.task,
            dataset_config=row.task,
            dataset_split=row.split or None,
            dataset_revision=row.dataset_revision or None,
            metric_type=row.metric,
            metric_name=f"{_metric(row)} ({row.setting})",
            metric_value=row.value,
            metric_args=_arguments(row),
        )
        for row in rows
    ]


def _metric(row: ResultRow) -> str:
    """The metric with its filter: by its name huggingface_hub tells a number from others."""
    return row.metric if row.filter == "none" else f"{row.metric}, {row.filter}"


def _arguments(row: ResultRow) -> dict[str, Any]:
    told = {
        "setting": row.setting,
        "filter": row.filter,
        "stderr": row.stderr,
        "n": row.n,
        "num_fewshot": row.shots,
        "higher_is_better": row.higher_is_better,
        "lm_eval": row.lm_eval,
    }
    return {name: value for name, value in told.items() if value is not None}
