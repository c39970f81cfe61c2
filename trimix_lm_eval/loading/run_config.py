"""Run configs of lm-eval (``lm_eval run --config``), read and checked before anything is run."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from trimix_lm_eval.loading import run_values
from trimix_lm_eval.utils.errors import TrimixError, did_you_mean, quoted, unknown
from trimix_lm_eval.utils.paths import model_configs_dir
from trimix_lm_eval.utils.validation import each_once
from trimix_lm_eval.utils.yaml_files import read_yaml


def load(path: str | Path) -> dict[str, Any]:
    """Read the YAML of a run config."""
    return read_yaml(Path(path), "give a YAML file as for `lm_eval run --config`")


@cache
def shipped() -> dict[Path, dict[str, Any]]:
    """The run configs that the package has for known models, by path."""
    return {path: load(path) for path in sorted(model_configs_dir().glob("**/*.yaml"))}


def configured(run: Mapping[str, Any], where: str) -> Any:
    """What lm-eval makes of a run config, an ``EvaluatorConfig``; ``where`` names it in messages.

    Raises:
        TrimixError: lm-eval would refuse it, or not know a key.
    """
    from lm_eval.config.evaluate_config import EvaluatorConfig

    accepted = [field.name for field in dataclasses.fields(EvaluatorConfig)]
    for key in run:
        if key not in accepted:
            raise unknown(f"key in {where}", str(key), accepted)
    task_names(run.get("tasks"))
    run_values.check(run)
    try:
        made = EvaluatorConfig(**copy.deepcopy(dict(run)))._configure()
    except (OSError, TypeError, ValueError) as error:
        raise TrimixError(f"lm-eval refuses {where}: {error}", "correct the file") from error
    run_values.check_samples(made.samples)
    return made


def model_arguments(run: Mapping[str, Any], model_args: str | None) -> dict[str, Any]:
    """The model's arguments, as lm-eval would pass them.

    ``model_args`` is as on the command line, and takes the place of the config's.

    Raises:
        TrimixError: They cannot be read, or one is given twice.
    """
    given: Any = model_args or run.get("model_args") or {}
    if not isinstance(given, dict | str):
        raise TrimixError(
            f"model_args is {quoted(given)}.",
            "write name=value,name=value, or a mapping",
        )
    if isinstance(given, str):
        try:
            given = named_values(given)
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


def named_values(text: str) -> dict[str, Any]:
    """What lm-eval's command line takes for a mapping: ``name=value,name=value``, or JSON.

    Raises:
        ValueError: It cannot be read, or has a name twice.
    """
    from lm_eval.utils import simple_parse_args_string

    try:
        if text.lstrip().startswith("{"):
            return dict(json.loads(text, object_pairs_hook=each_once))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    each_once((part.partition("=")[0].strip(), "") for part in text.split(",") if part.strip())
    return dict(simple_parse_args_string(text))


def task_names(given: Any) -> list[str]:
    """The names under ``tasks`` in a run config, whether they exist or not."""
    entries = [] if given is None else given if isinstance(given, list | tuple) else [given]
    for entry in entries:
        if not isinstance(entry, str) or not all(map(str.strip, entry.split(","))):
            raise TrimixError(
                f"tasks has {quoted(entry)} in it.",
                "list names of tasks, or paths to YAML",
            )
    return [name.strip() for entry in entries for name in entry.split(",")]


def no_task(name: str, known: list[str]) -> TrimixError:
    """The error for a task that is not among those known."""
    return TrimixError(
        f"There is no task {name!r}.{did_you_mean(name, known)}",
        "list them with `lm_eval ls tasks`; a folder of your own is named by include_path",
    )


def usable(device: str | None) -> str | None:
    """The ``--device`` of lm-eval; None where it is lm-eval's default, cuda:0, and there is no GPU.

    Raises:
        TrimixError: It names no device.
    """
    import torch

    if device is None:
        return None
    try:
        torch.device(str(device))
    except RuntimeError as error:
        raise TrimixError(
            f"device is {quoted(device)}, which names no device.",
            "give one such as cuda:0 or cpu",
        ) from error
    if device in ("cuda", "cuda:0") and not torch.cuda.is_available():
        return None
    return device
