"""What the numbers of a task are about: data set, split, language.

Of our own tasks the shipped YAML tells; of others what lm-eval wrote beside the results. A task of
anybody's may name its language in its YAML, as ``metadata: {language: bo}``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from trimix_lm_eval.analysis.export.origins import is_hub_id
from trimix_lm_eval.analysis.results import Run
from trimix_lm_eval.analysis.results.results_file import mapping
from trimix_lm_eval.tasklib.catalog import shipped
from trimix_lm_eval.tasklib.languages import ENGLISH

#: In place of a language, of groups over more than one.
SEVERAL = "several"


class TaskData(NamedTuple):
    """The data behind a task; of a group what all of its tasks have in common.

    Attributes:
        dataset: Its id on the Hub; empty if it is not there.
        revision: The commit that was read; empty if the results do not tell.
        split: Whose documents were scored.
        exemplars: The split that exemplars come from; empty if there are none.
        language: Its code, e.g. ``bo`` or ``ben_Beng``; empty if unknown, `SEVERAL` of a group.
        shots: Exemplars in each prompt; None of a group whose tasks differ.
        version: Of the task's YAML.
    """

    dataset: str
    revision: str
    split: str
    exemplars: str
    language: str
    shots: int | None
    version: str

    @property
    def language_name(self) -> str:
        """In English; the code of a language that no task of ours is in."""
        return ENGLISH.get(self.language, self.language)


def benchmark(run: Run, task: str) -> TaskData:
    """Look up what a task or group of a run measures."""
    if task in run.groups:
        return _common(run, task)
    ours = task in shipped()
    config = run.task_config(task)
    merged = {**config, **shipped().get(task, {})}
    dataset = str(merged.get("dataset_path") or "")
    dataset = dataset if is_hub_id(dataset) else ""
    shots = run.shots(task) or 0
    data = mapping(merged.get("dataset_kwargs"))
    select = mapping(data.get("select")) if ours else {}
    told = select.get("language") or mapping(merged.get("metadata")).get("language")
    return TaskData(
        dataset,
        _revision(run, dataset) or str(data.get("revision") or ""),
        str(merged.get("test_split") or merged.get("validation_split") or ""),
        _exemplars(merged) if shots else "",
        str(told or ""),
        shots,
        str(mapping(run.raw.get("versions")).get(task, "")),
    )


def _common(run: Run, group: str) -> TaskData:
    parts = [benchmark(run, task) for task in run.leaves(group)]
    shots = {part.shots for part in parts}

    def same(name: str, otherwise: str = "") -> str:
        found = {str(getattr(part, name)) for part in parts}
        return found.pop() if len(found) == 1 else otherwise

    return TaskData(
        same("dataset"),
        same("revision"),
        same("split"),
        same("exemplars"),
        same("language", SEVERAL),
        shots.pop() if len(shots) == 1 else None,
        str(mapping(run.raw.get("versions")).get(group, "")),
    )


def _exemplars(config: dict[str, Any]) -> str:
    """The split that lm-eval draws exemplars from: its own rule, in its order."""
    chosen = mapping(config.get("fewshot_config")).get("split") or config.get("fewshot_split")
    others = (config.get(f"{name}_split") for name in ("training", "validation", "test"))
    return str(chosen or next(filter(None, others), ""))


def _revision(run: Run, dataset: str) -> str:
    """The commit of a data set: our loaders note where each file came from."""
    places = (str(file.get("from") or "") for file in run.data.values())
    commits = {
        rest.partition("/")[0]
        for repository, _, rest in (place.partition("@") for place in places)
        if dataset and repository == dataset
    }
    return commits.pop() if len(commits) == 1 else ""
