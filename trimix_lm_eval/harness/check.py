"""An ordinary run config of lm-eval, checked without loading a weight."""

from __future__ import annotations

import functools
import glob
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trimix_lm_eval.fusion import policies
from trimix_lm_eval.fusion.policies import checks
from trimix_lm_eval.loading import run_config, settings
from trimix_lm_eval.loading.preflight.report import check
from trimix_lm_eval.loading.settings import Settings
from trimix_lm_eval.tasklib.benchmarks import reach
from trimix_lm_eval.tasklib.catalog import shipped, tasks_of
from trimix_lm_eval.utils.errors import TrimixError, together


def check_run(
    path: str | None,
    model_args: str | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> list[str]:
    """Check one run without loading a weight.

    Args:
        path: A file as for ``lm_eval run --config``; None checks the arguments by themselves.
        model_args: As for ``lm_eval --model_args``; given, they take the place of the file's, as
            in lm-eval.
        metadata: As for ``lm_eval --metadata``; if there is any, it takes the place of the file's.

    Returns:
        What was found, in lines for reading.

    Raises:
        TrimixError: Something would stop the run; of models and of tasks it says all.
    """
    run = _read(path) if path else {"model": "trimix"}
    if run.get("model") != "trimix":
        raise TrimixError(
            f"model is {run.get('model')!r}, not 'trimix'.", "write `model: trimix` in the file"
        )
    given = run_config.model_arguments(run, model_args)
    lines: list[str] = []
    refused = []
    for look in (lambda: _check_models(given), lambda: _look_at_tasks(run, metadata)):
        try:
            lines += look()
        except TrimixError as error:
            refused.append(error)
    if refused:
        raise together(refused)
    return lines


def _check_models(given: Mapping[str, Any]) -> list[str]:
    """Check the models that the arguments name; say what was found."""
    wanted = settings.parse(given)
    return check(wanted, _needed(wanted)).lines()


def _needed(wanted: Settings) -> tuple[str, ...]:
    """The sources that the policy will have loaded."""
    policy = policies.build(wanted.policy, **wanted.policy_options)
    names = policy.sources(wanted.sources)
    checks.check_collector(policy, names)
    return names


def _read(path: str) -> dict[str, Any]:
    """Read a run config with lm-eval's own reader and checks."""
    run = run_config.load(path)
    if "sweep" in run:
        raise TrimixError(f"{path} is a sweep.", f"check it with `trimix sweep {path} --check`")
    made = run_config.configured(run, path)
    run_config.usable(made.device)
    if made.gen_kwargs:
        from trimix_lm_eval.harness.lm import read_gen_kwargs

        read_gen_kwargs(made.gen_kwargs, "", 0)
    return run


def _check_tasks(run: dict[str, Any]) -> list[str]:
    """Check that the tasks of a run exist; return their names."""
    names = run_config.task_names(run.get("tasks"))
    for name in names:
        if name.endswith(".yaml"):
            found = bool(glob.glob(name))
        else:
            found = bool(_task_manager(run.get("include_path")).match_tasks([name]))
            found = found or (len(names) == 1 and any(Path(name).glob("*.yaml")))
        if not found:
            raise run_config.no_task(name, _task_manager(run.get("include_path")).all_tasks)
    return names


def _look_at_tasks(run: dict[str, Any], metadata: Mapping[str, Any] | None) -> list[str]:
    """Check the tasks of a run and that their data can be had; say what was found."""
    names = _check_tasks(run)
    if not names:
        return []
    return [f"tasks: {', '.join(names)}", *_check_data(names, metadata or _metadata(run))]


def _metadata(run: dict[str, Any]) -> dict[str, Any]:
    """What a run passes on to its tasks."""
    given = run.get("metadata") or {}
    if not isinstance(given, dict):
        raise TrimixError(f"metadata is {given!r}.", "write a mapping, e.g. data_dir: path")
    return given


def _check_data(names: list[str], metadata: Mapping[str, Any]) -> list[str]:
    """Check that the data of those tasks that are ours can be had; say where it is."""
    configs = shipped()
    places: set[str] = set()
    named_by: dict[str, str] = {}
    for name in names:
        for task, config in tasks_of(configs, name):
            if task in named_by:
                raise TrimixError(
                    f"The task {task} is in both {named_by[task]} and {name}; lm-eval refuses to "
                    "run a task twice.",
                    "leave one of the two out",
                )
            named_by[task] = name
            if "dataset_path" in config:
                places.add(f"{config['dataset_path']} ({reach(config, metadata)})")
    return [f"data: {', '.join(sorted(places))}"] if places else []


@functools.cache
def _task_manager(include_path: str | None) -> Any:
    """lm-eval's index of tasks, built once per folder: it takes seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=include_path)
