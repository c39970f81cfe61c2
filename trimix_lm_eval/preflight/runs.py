"""``trimix check``: ordinary lm-eval run configs, checked one by one without loading a weight."""

from __future__ import annotations

import copy
import dataclasses
import functools
import glob
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trimix_lm_eval import policies, settings
from trimix_lm_eval.catalog import shipped, tasks_of
from trimix_lm_eval.errors import TrimixError, unknown
from trimix_lm_eval.preflight.report import check
from trimix_lm_eval.settings import Settings
from trimix_lm_eval.tasklib.reach import reach


def main(
    config_paths: list[str],
    model_args: str | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> int:
    """Check run configs and print what was found.

    Args:
        config_paths: Files as for ``lm_eval run --config``.
        model_args: As for ``lm_eval --model_args``. Given with files it takes the place of
            theirs, as in lm-eval; given alone it is checked by itself.
        metadata: As for ``lm_eval --metadata``. If there is any it takes the place of the files'.

    Returns:
        0 if all is well, else 1.
    """
    runs: list[str | None] = [*config_paths] if config_paths else [None]
    if not config_paths and not model_args:
        print("error: nothing to check\n  -> give --config FILE or --model_args a=b,c=d")
        return 1
    failed = 0
    for path in runs:
        name = path or f"--model_args {model_args}"
        try:
            lines = _check_run(path, model_args, metadata)
        except TrimixError as error:
            failed += 1
            print(f"FAIL  {name}", *_indented(str(error).splitlines()), sep="\n")
        else:
            print(f"OK    {name}", *_indented(lines), sep="\n")
    return 1 if failed else 0


def _indented(lines: list[str]) -> list[str]:
    return [f"      {line}" for line in lines]


def _check_run(
    path: str | None, model_args: str | None, metadata: Mapping[str, Any] | None
) -> list[str]:
    """Check one run; return the lines to print."""
    run = _read(path) if path else {"model": "trimix"}
    if run.get("model") != "trimix":
        raise TrimixError(
            f"model is {run.get('model')!r}, not 'trimix'.", "write `model: trimix` in the file"
        )
    given = model_arguments(run, model_args)
    wanted = settings.parse(given)
    report = check(wanted, _needed(wanted))
    lines = report.lines()
    tasks = _check_tasks(run)
    if not tasks:
        return lines
    return [*lines, f"tasks: {', '.join(tasks)}", *_check_data(tasks, metadata or _metadata(run))]


def _needed(wanted: Settings) -> tuple[str, ...]:
    """The sources that the policy will have loaded."""
    policy = policies.build(wanted.policy, **wanted.policy_options)
    return policy.sources(wanted.sources)


def _read(path: str) -> dict[str, Any]:
    """Read a run config with lm-eval's own reader and checks."""
    run = load(path)
    if "sweep" in run:
        raise TrimixError(f"{path} is a sweep.", f"check it with `trimix sweep {path} --check`")
    configured(run, path)
    return run


def load(path: str) -> dict[str, Any]:
    """Read the YAML of a run config.

    Raises:
        TrimixError: It cannot be read, or is no mapping.
    """
    from lm_eval.config.evaluate_config import EvaluatorConfig

    try:
        return dict(EvaluatorConfig.load_yaml_config(path))
    except (OSError, TypeError, ValueError) as error:
        raise TrimixError(str(error), "give a YAML file as for `lm_eval run --config`") from error


def configured(run: Mapping[str, Any], where: str) -> Any:
    """What lm-eval makes of a run config, an ``EvaluatorConfig``.

    Args:
        run: The config, which is not changed.
        where: Where it comes from, for messages.

    Raises:
        TrimixError: lm-eval would refuse it, or not know a key.
    """
    from lm_eval.config.evaluate_config import EvaluatorConfig

    accepted = [field.name for field in dataclasses.fields(EvaluatorConfig)]
    for key in run:
        if key not in accepted:
            raise unknown(f"key in {where}", str(key), accepted)
    if not isinstance(run.get("model_args") or {}, dict | str):
        raise TrimixError(
            f"model_args is {run['model_args']!r}.", "write name=value,name=value, or a mapping"
        )
    try:
        return EvaluatorConfig(**copy.deepcopy(dict(run)))._configure()
    except (TypeError, ValueError) as error:
        raise TrimixError(f"lm-eval refuses {where}: {error}", "correct the file") from error


def model_arguments(run: Mapping[str, Any], model_args: str | None) -> dict[str, Any]:
    """The model's arguments, as lm-eval would pass them.

    Args:
        run: A run config, or part of it.
        model_args: As for ``lm_eval --model_args``; given, it takes the place of the config's.

    Raises:
        TrimixError: They cannot be read, or one is given twice.
    """
    from lm_eval.utils import simple_parse_args_string

    given: Any = model_args or run.get("model_args") or {}
    if isinstance(given, str):
        try:
            given = json.loads(given) if given.lstrip().startswith("{") else given
            given = simple_parse_args_string(given) if isinstance(given, str) else given
        except ValueError as error:
            raise TrimixError(
                f"model_args cannot be read: {error}", "write them as name=value,name=value"
            ) from error
    beside = {
        k: run[k] for k in ("batch_size", "max_batch_size", "device") if run.get(k) is not None
    }
    for key in beside.keys() & given.keys():
        raise TrimixError(
            f"{key} is given twice, beside model_args and in it.", "keep the one beside model_args"
        )
    return {**beside, **given}


def _check_tasks(run: dict[str, Any]) -> list[str]:
    """Check that the tasks of a run exist; return their names."""
    names = task_names(run.get("tasks"))
    for name in names:
        if name.endswith(".yaml"):
            found = bool(glob.glob(name))
        else:
            found = bool(_task_manager(run.get("include_path")).match_tasks([name]))
            found = found or (len(names) == 1 and any(Path(name).glob("*.yaml")))
        if not found:
            raise no_task(name, _task_manager(run.get("include_path")).all_tasks)
    return names


def task_names(given: Any) -> list[str]:
    """The names under ``tasks`` in a run config, whether they exist or not.

    Raises:
        TrimixError: One of them is no text.
    """
    entries = [given] if isinstance(given, str) else list(given or [])
    for entry in entries:
        if not isinstance(entry, str):
            raise TrimixError(
                f"tasks has {entry!r} in it.", "list names of tasks, or paths to YAML"
            )
    return [name.strip() for entry in entries for name in entry.split(",")]


def no_task(name: str, known: list[str]) -> TrimixError:
    """The error for a task that does not exist.

    Args:
        name: What was asked for.
        known: What there is.
    """
    return TrimixError(
        f"There is no task {name!r}.{_nearest(name, known)}",
        "list them with `lm_eval ls tasks`; a folder of your own is named by include_path",
    )


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


def _nearest(name: str, accepted: list[str]) -> str:
    """A guess at what a name was meant to be."""
    from difflib import get_close_matches

    near = get_close_matches(name, accepted, n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


@functools.cache
def _task_manager(include_path: str | None) -> Any:
    """lm-eval's index of tasks, built once per folder: it takes seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=include_path)
