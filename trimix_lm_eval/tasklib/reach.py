"""Whether the data of the package's tasks can be had, before a run needs it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trimix_lm_eval.tasklib import belebele, milic_eval, places, sib200

_LOADERS = {f"{module.__name__}.load": module for module in (milic_eval, sib200, belebele)}


def reach(config: Mapping[str, Any], options: Mapping[str, Any]) -> str:
    """Say where the data of a task is, without downloading it.

    Args:
        config: The task's YAML, as `catalog.read_all` gives it.
        options: What ``--metadata`` holds, e.g. `data_dir`.

    Returns:
        ``Hub``, ``cache`` (of the Hub, which does not answer), ``folder``, ``zip``, or ``shipped``.

    Raises:
        TrimixError: It cannot be had; the message says why and what to do.
    """
    module = _LOADERS.get(str(config.get("custom_dataset")))
    if module is None:
        return "shipped"
    place = places.place_of(module.BENCHMARK, **options)
    files = module.files(**{**options, **config["dataset_kwargs"]})
    return places.reach(module.BENCHMARK, files, place)
