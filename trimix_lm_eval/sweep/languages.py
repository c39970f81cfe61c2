"""Placeholders in ``tasks`` and ``model_args``, and the languages that fill them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from trimix_lm_eval.loading import run_config
from trimix_lm_eval.sweep.block import Block
from trimix_lm_eval.utils.errors import TrimixError

_PLACEHOLDER = re.compile(r"\{([A-Za-z_]\w*)\}")


def parts(run: Mapping[str, Any], block: Block) -> Iterator[tuple[str, dict[str, Any]]]:
    """Tell which models run on which tasks.

    Yields:
        For each set of models a folder, which is empty if there is but one set, and the tasks and
        model_args.

    Raises:
        TrimixError: A placeholder is not filled, or there is none to fill.
    """
    known = {name for language in block.languages for name in language}
    holes = {key: set(_placeholders(run.get(key))) for key in ("tasks", "model_args")}
    for key, hole in holes.items():
        for name in sorted(hole - known):
            raise TrimixError(
                f"{key} has the placeholder {{{name}}}, which nothing fills.",
                f"add languages to the sweep block, with {name} in each: "
                f"languages: [{{{name}: …}}]",
            )
    if block.languages and not (holes["tasks"] or holes["model_args"]):
        raise TrimixError(
            "The sweep names languages, but neither tasks nor model_args have a placeholder.",
            "write e.g. tasks: ['trimix_sib200_{language}'], or leave languages out",
        )
    if holes["model_args"]:
        for language in block.languages:
            name = language.get("language") or "_".join(language.values())
            filled = {key: _fill(run.get(key), language) for key in holes}
            yield folder_name(name), filled
        return
    names = [
        name
        for language in block.languages or ({},)
        for name in run_config.task_names(_fill(run.get("tasks"), language))
    ]
    yield "", {"tasks": list(dict.fromkeys(names)), "model_args": run.get("model_args")}


def folder_name(name: str) -> str:
    """A name as one folder: whatever it is, not hidden, not above, and not too long."""
    safe = re.sub(r"^\.+|[^\w.=+-]+", "_", name)[:80]
    if safe == name:
        return name
    return f"{safe}_{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def _placeholders(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield from _PLACEHOLDER.findall(value)
    elif isinstance(value, Mapping):
        yield from _placeholders(list(value.values()))
    elif isinstance(value, list):
        for one in value:
            yield from _placeholders(one)


def _fill(value: Any, language: Mapping[str, str]) -> Any:
    """A value with its placeholders filled.

    Raises:
        TrimixError: This language does not fill all of them.
    """
    if isinstance(value, Mapping):
        return {key: _fill(one, language) for key, one in value.items()}
    if isinstance(value, list):
        return [_fill(one, language) for one in value]
    if not isinstance(value, str):
        return value
    for name in _PLACEHOLDER.findall(value):
        if name not in language:
            raise TrimixError(
                f"The language {dict(language)} does not fill {{{name}}}.", f"add {name} to it"
            )
    return _PLACEHOLDER.sub(lambda match: language[match[1]], value)
