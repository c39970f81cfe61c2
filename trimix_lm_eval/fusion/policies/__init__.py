"""How a policy is found: by its name, or by the place of its class.

* ``policy=ppl``: every module of this folder is imported, and its classes register themselves. No
  list names them: a new file is a new policy.
* ``policy=package.module:Class``: a class of anybody's that Python can import;
  ``policy=path/to/file.py:Class``: one in a file.
* ``policy=name``: one that an installed package offers as an entry point of the group
  ``trimix_lm_eval.policies``.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from trimix_lm_eval.fusion.policies import base, checks
from trimix_lm_eval.fusion.policies.base import (
    HONESTY,
    RECORDED,
    GridPolicy,
    MixturePolicy,
    Policy,
    ours,
    parse_grid,
    register,
    registered,
)
from trimix_lm_eval.fusion.policies.checks import load
from trimix_lm_eval.utils.errors import TrimixError, unknown, warn_once

__all__ = [
    "HONESTY",
    "RECORDED",
    "GridPolicy",
    "MixturePolicy",
    "Policy",
    "build",
    "find",
    "names",
    "option_names",
    "ours",
    "parse_grid",
    "recorded",
    "replaced",
    "register",
    "registered",
    "without_usual",
]

#: Where installed packages say which policies they have.
ENTRY_POINTS = "trimix_lm_eval.policies"

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")


def names() -> list[str]:
    """The names of all policies: of this package, registered, and of installed packages."""
    return sorted({*base._REGISTRY, *_installed()})


def find(policy: str) -> type[Policy]:
    """The class behind what a user writes after ``policy=``.

    Args:
        policy: A name, ``package.module:Class``, or ``path/to/file.py:Class``.

    Raises:
        TrimixError: There is no such policy, it cannot be imported, or it lacks a part.
    """
    if policy in base._REGISTRY:
        _tell_shadowed()
        return base._REGISTRY[policy]
    if ":" in policy:
        return load(policy)
    installed = _installed()
    if policy in installed:
        return load(installed[policy].value, policy)
    raise unknown("policy", policy, names())


def option_names(policy: str) -> list[str]:
    """The options that a policy takes, in order.

    Raises:
        TrimixError: There is no such policy.
    """
    return [field.name for field in dataclasses.fields(find(policy))]


def build(policy: str, **options: Any) -> Policy:
    """The policy of this name, with its options.

    Raises:
        TrimixError: Unknown policy or option, or a value that it does not take.
    """
    options = without_usual(options)
    accepted = option_names(policy)
    for option in options:
        if option not in accepted:
            raise replaced(option) or unknown(
                f"option of policy={policy}", option, accepted or ["(none)"]
            )
    return checks.built(find(policy), options)


def without_usual(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options without ``optimum=grid``, which old run configs give: it is what happens anyway."""
    return {name: value for name, value in options.items() if (name, value) != ("optimum", "grid")}


def replaced(option: str) -> TrimixError | None:
    """The error for an option that there was; None for any other name."""
    if option != "optimum":
        return None
    return TrimixError(
        "optimum is no option any more: optimum=grid is what happens without it.",
        "write refine=quadratic for what was optimum=newton: the lowest point between those of the "
        "grid, without looking at the logits again",
    )


def recorded(told: Mapping[str, Any]) -> Policy | None:
    """The policy of this package that a results file tells of, or None; imports nothing.

    Args:
        told: What `Policy.record` wrote, or versions before it; options of theirs that are no more
            are passed over.
    """
    cls = ours(str(told.get("name")))
    if cls is None:
        return None
    accepted = [field.name for field in dataclasses.fields(cls)]
    try:
        return cls(**{name: told[name] for name in accepted if name in told})
    except TrimixError:
        return None


def _installed() -> dict[str, EntryPoint]:
    """What installed packages offer, by name."""
    _tell_shadowed()
    found = entry_points(group=ENTRY_POINTS)
    return {entry.name: entry for entry in found if entry.name not in base._REGISTRY}


@cache
def _tell_shadowed() -> None:
    """Say once which policies of installed packages have the name of one of this package."""
    for entry in entry_points(group=ENTRY_POINTS):
        if entry.name in base._REGISTRY:
            warn_once(
                f"The entry point {entry.name} = {entry.value} of an installed package is refused: "
                f"policy={entry.name} is one of this package, and that is what is used. Give "
                f"the other a name of its own, or write policy={entry.value}."
            )
