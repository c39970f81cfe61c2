"""Whether the data of the package's tasks can be had, before a run needs it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trimix_lm_eval.tasklib import places, rouge
from trimix_lm_eval.tasklib.benchmarks import loader_of


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
    loader = loader_of(str(config.get("custom_dataset")))
    if loader is None:
        return "shipped"
    select, wanted = config["dataset_kwargs"]["select"], places.options(options)
    if select.get("task") == "title_generation":
        rouge.RougeTokenizer()  # raises an error if what it needs is not installed
    place = places.place_of(loader.BENCHMARK, **wanted)
    files = loader.files(**{**wanted, **select})
    return places.reach(loader.BENCHMARK, files, place)
