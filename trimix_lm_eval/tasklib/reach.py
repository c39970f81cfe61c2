"""Whether the data of the package's tasks can be had, before a run needs it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trimix_lm_eval.tasklib import belebele, milic_eval, places, rouge, sib200

_LOADERS = {f"{module.__name__}.documents": module for module in (milic_eval, sib200, belebele)}


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
    select, wanted = config["dataset_kwargs"]["select"], places.options(options)
    if select.get("task") == "title_generation":
        rouge.Tokenizer()  # raises an error if what it needs is not installed
    place = places.place_of(module.BENCHMARK, **wanted)
    files = module.files(**{**wanted, **select})
    return places.reach(module.BENCHMARK, files, place)
