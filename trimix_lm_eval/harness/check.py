"""An ordinary run config of lm-eval, checked before it is run."""

from __future__ import annotations

import contextlib
import functools
import glob
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trimix_lm_eval.fusion.policies import checks
from trimix_lm_eval.loading import hub, run_config, settings
from trimix_lm_eval.loading.preflight import PreflightReport, check
from trimix_lm_eval.loading.sequence import SEQUENCE, no_rolling
from trimix_lm_eval.loading.settings import Settings
from trimix_lm_eval.tasklib.benchmarks import reach
from trimix_lm_eval.tasklib.catalog import shipped, tasks_of
from trimix_lm_eval.utils.errors import TrimixError, together


def check_run(
    path: str | None,
    model_args: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    load: bool = False,
) -> list[str]:
    """Check one run, and say how much it will do; without loading a weight, unless asked to.

    Args:
        path: A file as for ``lm_eval run --config``; None checks the arguments by themselves.
        model_args: As for ``lm_eval --model_args``; given, they take the place of the file's, as
            in lm-eval.
        metadata: As for ``lm_eval --metadata``; if there is any, it takes the place of the file's.
        load: Load the models, to say how each is run, and answer some requests of the tasks, to
            say how long the run will take.

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
    names: list[str] = []
    lines: list[str] = []
    found: list[tuple[Settings, PreflightReport]] = []
    refused = []

    def look_at_models() -> list[str]:
        found.append(_check_models(given))
        return found[0][1].lines()

    def look_at_tasks() -> list[str]:
        names.extend(_check_tasks(run))
        if given.get("fusion") == SEQUENCE and "loglikelihood_rolling" in _kinds(names):
            raise no_rolling()
        return _look_at_data(names, metadata or _metadata(run))

    for look in (look_at_models, look_at_tasks):
        try:
            lines += look()
        except TrimixError as error:
            refused.append(error)
    if refused:
        raise together(refused)
    if load and not names:
        lines += _loaded(found[0][0])
    if names and path:
        wanted = {**run, "model_args": given, "metadata": dict(metadata or _metadata(run))}
        for key in given.keys() & wanted.keys():  # beside model_args and in it
            del wanted[key]
        lines += _estimate(run_config.configured(wanted, path), names, *found[0], load)
    return lines


def _loaded(asked: Settings) -> list[str]:
    """Load the models, and say how each is run."""
    from trimix_lm_eval.harness import timing
    from trimix_lm_eval.sequence_fusion import class_of

    return timing.verdict(class_of(asked).from_settings(asked))


def _estimate(
    config: Any, names: list[str], asked: Settings, report: PreflightReport, load: bool
) -> list[str]:
    """Say how much a run will do and, with its models loaded, how long it will take.

    Args:
        config: What lm-eval made of the run config.
        names: Its tasks.
        asked: The settings read from its model's arguments.
        report: What was found of the models.
        load: Load the models, and the tasks' data where they are not here yet.
    """
    from trimix_lm_eval.harness import estimate, estimate_table, requests

    if report.each:
        return [*estimate.OF_EACH, *(_loaded(asked) if load else [])]
    begun = time.perf_counter()
    manager = _task_manager(config.include_path, tuple(names))
    unloaded = requests.Unloaded([asked], report)

    def tasks() -> requests.PreparedTasks:
        loaded = requests.load_tasks(manager, names, config.metadata or {})
        return requests.PreparedTasks(loaded, manager.task_index)

    try:
        with contextlib.nullcontext() if load else hub.offline():
            parts = requests.build(config, tasks, unloaded)
    except TrimixError:
        if load:
            raise
        return [
            "estimate: none, as the tasks' requests cannot be built from what is on this machine; "
            "--load fetches the data, or says what is wrong"
        ]
    jobs = estimate.jobs_of(unloaded, parts)
    told = estimate_table.lines(unloaded, jobs)
    if load:
        from trimix_lm_eval.harness import timing
        from trimix_lm_eval.llm import TriMix

        model = TriMix.from_settings(asked)
        told += timing.lines(model, unloaded, jobs, time.perf_counter() - begun)
    return told


def _check_models(given: Mapping[str, Any]) -> tuple[Settings, PreflightReport]:
    """Check the models that the arguments name."""
    wanted = settings.parse(given)
    return wanted, check(wanted, _needed(wanted))


def _needed(wanted: Settings) -> tuple[str, ...]:
    """The sources that the policy will have loaded."""
    policy = wanted.fusion_config().policy
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
    asked = (run.get("include_path"), tuple(names))
    for name in names:
        if name.endswith(".yaml"):
            found = bool(glob.glob(name))
        else:
            # Our own are there in any case; to read lm-eval's takes seconds.
            found = any(True for _ in tasks_of(shipped(), name))
            found = found or bool(_task_manager(*asked).match_tasks([name]))
            found = found or (len(names) == 1 and any(Path(name).glob("*.yaml")))
        if not found:
            raise run_config.no_task(name, _task_manager(*asked).all_tasks)
    return names


def _kinds(names: list[str]) -> set[str]:
    """How those tasks that are ours are answered."""
    configs = shipped()
    return {
        str(config.get("output_type")) for name in names for _, config in tasks_of(configs, name)
    }


def _look_at_data(names: list[str], metadata: Mapping[str, Any]) -> list[str]:
    """Check that the data of some tasks can be had; say what was found."""
    return [f"tasks: {', '.join(names)}", *_check_data(names, metadata)] if names else []


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
def _task_manager(include_path: str | None, names: tuple[str, ...]) -> Any:
    """lm-eval's index of tasks, or ours if all those names are in it; read once."""
    from trimix_lm_eval.harness.requests import manager_for

    return manager_for(include_path, names)
