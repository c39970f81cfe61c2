"""A policy of anybody's: imported from where it is, and checked for what others will ask of it."""

from __future__ import annotations

import dataclasses
import importlib
import re
from collections.abc import Iterator
from typing import Any

from trimix_lm_eval.fusion.policies import base
from trimix_lm_eval.fusion.policies.base import HONESTY, RECORDED, SCOPES, Policy
from trimix_lm_eval.fusion.weights import SOURCES
from trimix_lm_eval.utils.errors import TrimixError

#: What a policy of each scope must have of its own.
_METHODS = {
    "run": ("points",),
    "task": ("points", "collector", "choose", "task_prompts"),
    "sample": ("points", "collector", "choose"),
    "token": ("token_weights", "sources"),
}
#: Names that ``--model_args`` or a results file needs for something else.
_TAKEN = (*RECORDED, *SOURCES, "policy", "pretrained")


def load(place: str, name: str = "") -> type[Policy]:
    """Import a policy.

    Args:
        place: ``package.module:Class``.
        name: What an entry point calls it; empty if it was asked for by its place.

    Raises:
        TrimixError: It cannot be imported, is no `Policy`, or lacks a part.
    """
    asked = name or place
    module, _, attribute = place.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except Exception as error:  # whatever somebody's module raises while it is imported
        raise TrimixError(
            f"policy={asked} cannot be imported: {type(error).__name__}: {error}",
            "write policy=package.module:Class, of a module that is installed or lies in a folder "
            "of PYTHONPATH",
        ) from error
    if not isinstance(found, type) or not issubclass(found, Policy):
        raise TrimixError(
            f"policy={asked} is no policy: {attribute} is not a subclass of Policy.",
            "derive it from trimix_lm_eval.fusion.policies.Policy, or from a policy",
        )
    for part in lacking(found):
        raise TrimixError(
            f"policy={asked} lacks a part: {part}.", "docs/add_a_policy.md explains each part"
        )
    if name and name != found.name:
        raise TrimixError(
            f"policy={name} is {found.name!r} by its class.",
            f"give the entry point and the attribute `name` of {attribute} the same name",
        )
    return found


def lacking(cls: type[Policy]) -> Iterator[str]:
    """The parts that a policy does not have, in words."""
    own = vars(cls)
    if not isinstance(cls.name, str) or not re.fullmatch(r"[\w.-]+", cls.name):
        yield "`name`, a word that results and tables call it"
    elif "name" not in own or base._REGISTRY.get(cls.name, cls) is not cls:
        yield f"a `name` of its own; {cls.name!r} is taken"
    if "__dataclass_params__" not in own:
        yield "the decorator `@dataclasses.dataclass(frozen=True)`"
        return
    if (cls.__doc__ or "").startswith(f"{cls.__name__}("):  # what dataclass makes up
        yield "a docstring that gives its formula"
    if cls.scope not in SCOPES:
        yield f"`scope`, one of {', '.join(SCOPES)}"
        return
    if own.get("honesty") not in HONESTY:
        yield f"`honesty` of its own, one of {', '.join(HONESTY)}"
    for method in _METHODS[cls.scope]:
        if getattr(cls, method) is getattr(Policy, method):
            yield f"`{method}`, which scope {cls.scope!r} needs"
    for field in dataclasses.fields(cls):
        if field.default is dataclasses.MISSING:
            yield f"a default for the option `{field.name}`"
            return
        if field.name in _TAKEN:
            yield f"another name for the option `{field.name}`, which is taken"
    try:
        hash(cls())
    except Exception as error:
        yield f"defaults that it can be built of: {error}"
