"""How a run departs from the published protocol, in short phrases for a footnote."""

from __future__ import annotations

from collections.abc import Iterator

from trimix_lm_eval.analysis.results.results_file import ResultsFile
from trimix_lm_eval.analysis.results.values import is_number, mapping
from trimix_lm_eval.tasklib.catalog import shipped


def documents(run: ResultsFile, task: str) -> Iterator[str]:
    """Say if a task was not measured on all of its documents."""
    score = run.main(task)
    if score and score.of and score.n < score.of:
        yield f"{score.n} of {score.of} documents"
    elif run.config.get("limit") and not (score and score.of):
        limit = run.config["limit"]
        yield f"limit {limit:g}" if is_number(limit) else f"limit {limit}"


def settings(run: ResultsFile, task: str) -> Iterator[str]:
    """Say what else was changed; of tasks that are not ours only what lm-eval itself records."""
    if run.config.get("gen_kwargs"):
        yield "gen_kwargs changed"
    if run.raw.get("chat_template"):
        yield "chat template"
    if run.raw.get("system_instruction"):
        yield "system instruction"
    config = run.task_config(task)
    exemplars = mapping(config.get("metadata")).get("exemplars")
    if exemplars not in (None, "train_1"):
        yield f"exemplars {exemplars}"
    ours = shipped().get(task)
    if ours is None:
        return
    shots = run.shots(task)
    if shots is not None and shots != (ours.get("num_fewshot") or 0):
        unit = "shot" if shots == 1 else "shots"
        yield f"{shots} {unit} in place of {ours.get('num_fewshot') or 0}"
    if ours.get("generation_kwargs") != config.get("generation_kwargs"):
        yield "generation_kwargs changed"
