"""What each key of a run config may be, so that `check` refuses what a run would stumble over.

lm-eval reads these values as YAML has typed them and converts none, so nothing is converted here
either: a number in quotes is a text. What is left out, or null, is lm-eval's default. Batch sizes
are arguments of the model, too, and are checked with those.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from trimix_lm_eval.utils.errors import TrimixError, quoted

#: Takes a value; returns whether it will do.
_Test: TypeAlias = Callable[[Any], bool]

#: What no file's name can have in it.
_CANNOT = re.compile("[\0\ud800-\udfff]")
#: What numpy takes for a seed.
MOST_SEED = 2**32 - 1


def check(run: Mapping[str, Any]) -> None:
    """Check every value of a run config by itself."""
    for key, value in run.items():
        wanted, test = _KEYS.get(key, ("", None))
        if value is not None and test is not None and not test(value):
            raise TrimixError(f"{key} is {quoted(value)}.", f"give {wanted}, or leave {key} out")
    _check_folders(run.get("include_path") or [])


def check_samples(samples: Any) -> None:
    """Check ``samples`` once lm-eval has read the JSON or the file that they may be given as."""
    if samples and (isinstance(samples, str) or not _are_samples(samples)):
        raise TrimixError(
            f"samples is {quoted(samples)}, neither JSON nor a file of it."
            if isinstance(samples, str)
            else f"samples holds {quoted(samples)}.",
            f"give {_KEYS['samples'][0]}, e.g. {{trimix_demo: [0, 2]}}",
        )


def _check_folders(given: Any) -> None:
    """The folders of ``include_path`` have to be there, or every task in them has no name."""
    for folder in given if isinstance(given, list) else [given]:
        if not os.path.isdir(folder):
            where = "" if Path(folder).is_absolute() else f" in {Path.cwd()}"
            raise TrimixError(
                f"include_path: there is no folder {folder}{where}.",
                "correct it; a relative path begins where the command is started",
            )


def _is_whole(value: Any, least: int, most: int = sys.maxsize) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def is_text(value: Any) -> bool:
    """Whether a value is a text that a path may have in it: not blank, no NUL, no surrogate."""
    return isinstance(value, str) and bool(value.strip()) and _CANNOT.search(value) is None


def _is_mapping(value: Any) -> bool:
    """Also as lm-eval takes it on its command line, ``name=value,name=value``."""
    if isinstance(value, str):
        return all("=" in part for part in value.split(",") if part) or value.startswith("{")
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)


def _is_limit(value: Any) -> bool:
    if isinstance(value, float):
        return 0 < value < 1 or (1 <= value <= sys.maxsize and value.is_integer())
    return _is_whole(value, 1)


def _are_folders(value: Any) -> bool:
    values = value if isinstance(value, list) else [value]
    return all(isinstance(one, Path) or is_text(one) for one in values)


def _are_samples(value: Any) -> bool:
    """A mapping; a text is JSON or the path of a file, which lm-eval reads."""
    if isinstance(value, str):
        return is_text(value)
    return isinstance(value, dict) and all(
        isinstance(task, str)
        and isinstance(places, list)
        and places
        and all(_is_whole(place, 0) for place in places)
        for task, places in value.items()
    )


def _are_seeds(value: Any) -> bool:
    values = value if isinstance(value, list) else [value]
    return len(values) in (1, 3, 4) and all(
        one is None or _is_whole(one, 0, MOST_SEED) for one in values
    )


_FLAG = ("true or false", _is_flag)
_TEXT = ("a text", is_text)
_MAPPING = ("a mapping from names to values", _is_mapping)
#: By key, what to write and how it is told.
_KEYS: dict[str, tuple[str, _Test]] = {
    "config": _TEXT,
    "model": _TEXT,
    "model_args": _MAPPING,
    "num_fewshot": ("a whole number >= 0", lambda value: _is_whole(value, 0)),
    "device": ("a device such as cuda:0 or cpu", is_text),
    "limit": ("a whole number >= 1, or a share between 0 and 1", _is_limit),
    "samples": ("a mapping from tasks to lists of whole numbers >= 0", _are_samples),
    "use_cache": _TEXT,
    "cache_requests": (
        "true, refresh or delete",
        lambda value: isinstance(value, bool | str | dict),
    ),
    "check_integrity": _FLAG,
    "write_out": _FLAG,
    "log_samples": _FLAG,
    "output_path": _TEXT,
    "predict_only": _FLAG,
    "system_instruction": ("a text", lambda value: value == "" or is_text(value)),
    "apply_chat_template": (
        "true, false or the name of a template",
        lambda value: _is_flag(value) or is_text(value),
    ),
    "fewshot_as_multiturn": _FLAG,
    "show_config": _FLAG,
    "include_path": ("a folder", _are_folders),
    "gen_kwargs": _MAPPING,
    "verbosity": _TEXT,
    "wandb_args": _MAPPING,
    "wandb_config_args": _MAPPING,
    "hf_hub_log_args": _MAPPING,
    "trackio_args": _MAPPING,
    "seed": (f"a whole number from 0 to {MOST_SEED}, or 3 or 4 of them", _are_seeds),
    "trust_remote_code": _FLAG,
    "confirm_run_unsafe_code": _FLAG,
    "metadata": _MAPPING,
}
