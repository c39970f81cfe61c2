"""What lm-eval says while a sweep calls it, said once and with a name.

lm-eval is made for one run a process. Called for every variant it repeats itself, and what a bar
of its own counts is said by a log line before it, at a level that may not be shown. It has no
option for any of it, so names in its modules are changed for the time of a ``with`` statement.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import subprocess
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from trimix_lm_eval.utils.progress import progress_bar

#: Prompts that are built sooner need no line.
_SOON = 2.0


@contextlib.contextmanager
def configs_warned_of_once() -> Iterator[None]:
    """Let lm-eval warn once of what it finds in the config of every setting, such as a limit."""
    seen: set[str] = set()

    def is_new(record: logging.LogRecord) -> bool:
        before = len(seen)
        seen.add(record.getMessage())
        return len(seen) > before

    logger = logging.getLogger("lm_eval.config.evaluate_config")
    logger.addFilter(is_new)
    try:
        yield
    finally:
        logger.removeFilter(is_new)


@contextlib.contextmanager
def environment_told_once() -> Iterator[None]:
    """Let lm-eval find out once what it repeats in every results file.

    It asks torch what is installed, and git which commit the current folder is at: more than half a
    second each time, and a complaint of git's where there is no commit.
    """
    from lm_eval import evaluator
    from torch.utils import collect_env

    installed = functools.cache(collect_env.get_pretty_env_info)
    with (
        _changed(collect_env, "get_pretty_env_info", installed),
        _changed(evaluator, "get_git_commit_hash", functools.cache(git_commit_hash)),
    ):
        yield


def git_commit_hash() -> str | None:
    """What lm-eval records as ``git_hash``, without git's own words if there is no repository."""
    from lm_eval.loggers.utils import get_commit_from_path

    try:
        command = ["git", "describe", "--always"]
        return subprocess.run(command, check=True, capture_output=True).stdout.strip().decode()
    except (subprocess.CalledProcessError, FileNotFoundError):  # the latter where git is not there
        return get_commit_from_path(os.getcwd())


@contextlib.contextmanager
def named_prompts_bar(name: str, rank: int = 0) -> Iterator[None]:
    """Let the bar over a task's prompts, on the first process, say so and whose they are."""
    from lm_eval.api import task

    bar = functools.partial(
        progress_bar, desc=f"{name}: prompts", off=bool(rank), unit="prompt", delay=_SOON
    )
    with _changed(task, "tqdm", bar):
        yield


@contextlib.contextmanager
def _changed(module: ModuleType, name: str, value: Callable[..., Any]) -> Iterator[None]:
    """Give a module's name another value for a time."""
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)
