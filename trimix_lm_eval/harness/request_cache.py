"""Checks of the requests that lm-eval builds: one for each process, and none of another run's.

Where a process has no document of a task, lm-eval ends there in a ValueError, and the others wait
for it: `check_shares` says so on all of them.

The rest is about lm-eval's request cache, ``--cache_requests``.
lm-eval keeps the requests that it has built of a task by the task's name, the number of exemplars,
the processes, and whether there is a chat template or a system instruction. It forgets all else
that they are made of: ``--gen_kwargs``, ``--metadata``, ``--samples``, the seed of exemplars, the
chat template's text, the task's YAML, code and data. So here requests are built whether some are
kept or not, which takes seconds, and those that are kept must be the same.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lm_eval.api.instance import Instance

from trimix_lm_eval.utils.errors import TrimixError

#: Characters of a prompt on either side of what is shown of a difference.
_AROUND = 30


def install() -> None:
    """From now on, check what lm-eval builds and what it reads from its request cache."""
    from lm_eval.api import task

    build = task.Task.build_all_requests
    if hasattr(build, "__trimix_checks__"):
        return

    @functools.wraps(build)
    def build_all_requests(self: Any, **how: Any) -> None:
        check_shares(self, how)
        if not how.get("cache_requests") or how.get("rewrite_requests_cache"):
            build(self, **how)
            return
        _build_and_compare(task, functools.partial(build, self, **how), self.config.task)

    build_all_requests.__trimix_checks__ = True  # type: ignore[attr-defined]
    task.Task.build_all_requests = build_all_requests


def check_shares(task: Any, how: Mapping[str, Any]) -> None:
    """See that every process has a document of a task, whose requests are built like this.

    Raises:
        TrimixError: There are fewer documents than processes; on all of them alike.
    """
    world, limit, samples = how.get("world_size", 1), how.get("limit"), how.get("samples")
    if world < 2:
        return
    count = len(task.eval_docs if samples is None else samples)
    count = count if limit is None else min(count, limit)
    if count < world:
        raise TrimixError(
            f"{task.config.task} has {count} document{'s' * (count != 1)} in this run, fewer than "
            f"the {world} processes.",
            f"start {max(1, count)} process{'es' * (count > 1)}, or raise --limit",
        )


def _build_and_compare(module: Any, build: Callable[[], None], task: str) -> None:
    """Build a task's requests anew, and compare them to those that lm-eval has kept.

    ``lm_eval.api.task``, the `module`, loads and saves by two functions; `build` saves what it
    has built if none could be loaded.
    """
    load, save = module.load_from_cache, module.save_to_cache
    kept: list[list[list[Instance]]] = []

    def load_later(file_name: str, cache: bool = False) -> None:
        found = load(file_name=file_name, cache=cache)
        if found:
            kept.append(found)

    def save_or_compare(file_name: str, obj: list[list[Instance]]) -> None:
        if not kept:
            save(file_name=file_name, obj=obj)
            return
        difference = _difference(kept[0], obj)
        if difference:
            raise TrimixError(
                f"--cache_requests has other requests of {task} than this run makes: {difference}. "
                "lm-eval keeps them by little more than the task's name and the number of "
                "exemplars.",
                "run with --cache_requests refresh to make them anew, or without --cache_requests",
            )

    module.load_from_cache, module.save_to_cache = load_later, save_or_compare
    try:
        build()
    finally:
        module.load_from_cache, module.save_to_cache = load, save


def _difference(kept: Sequence[Sequence[Instance]], now: Sequence[Sequence[Instance]]) -> str:
    """What the first requests that differ differ in; empty if none do."""
    if len(kept) != len(now):
        return f"of {len(kept)} documents, not {len(now)}"
    for old, new in zip(kept, now, strict=True):
        if len(old) != len(new):
            return f"document {new[0].doc_id} has {len(old)} requests there, not {len(new)}"
        for a, b in zip(old, new, strict=True):
            where = f"document {b.doc_id}, request {b.idx}"
            for name in ("request_type", "task_name", "doc_id", "idx", "repeats"):
                if getattr(a, name, None) != getattr(b, name):
                    return (
                        f"{where} has {name}={getattr(a, name, None)} there, not {getattr(b, name)}"
                    )
            if a.args != b.args:
                return f"{where} has {_of_arguments(a.args, b.args)}"
    return ""


def _of_arguments(kept: Sequence[Any], now: Sequence[Any]) -> str:
    if len(kept) != len(now):
        return f"{len(kept)} arguments there, not {len(now)}"
    a, b = next(pair for pair in zip(kept, now, strict=True) if pair[0] != pair[1])
    if isinstance(a, dict) and isinstance(b, dict):
        keys = [key for key in {**a, **b} if a.get(key) != b.get(key)]
        told = (f"{key}={a.get(key)!r} there, not {b.get(key)!r}" for key in keys)
        return f"generation arguments {'; '.join(told)}"
    if isinstance(a, str) and isinstance(b, str):
        pairs = enumerate(zip(a, b, strict=False))
        at = next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))
        start = max(0, at - _AROUND)
        return f"{a[start : at + _AROUND]!r} there, not {b[start : at + _AROUND]!r}"
    return f"{a!r} there, not {b!r}"
