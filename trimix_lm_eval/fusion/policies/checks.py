"""A policy of anybody's: imported from where it is, and checked for what others will ask of it."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from traceback import extract_tb
from types import ModuleType
from typing import Any, NoReturn, cast

from trimix_lm_eval.fusion.collectors import Choice, PromptCollector
from trimix_lm_eval.fusion.policies import base
from trimix_lm_eval.fusion.policies.base import HONESTY, RECORDED, SCOPES, Policy
from trimix_lm_eval.fusion.weights import LARGEST, SOURCES, Weights
from trimix_lm_eval.utils.errors import TrimixError, first_line, is_out_of_memory, quoted

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
        place: ``package.module:Class``, or ``path/to/file.py:Class``.
        name: What an entry point calls it; empty if it was asked for by its place.

    Raises:
        TrimixError: It cannot be imported, is no `Policy`, or lacks a part.
    """
    asked = (name or place)[:100]
    module, _, attribute = place.rpartition(":")
    try:
        found: Any = _imported(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever somebody's module raises, `sys.exit` included
        frame = extract_tb(error.__traceback__)[-1]
        what = f"policy={asked} cannot be imported: {type(error).__name__}: {str(error)[:500]}"
        if not frame.filename.startswith("<") and Path(frame.filename) != Path(__file__):
            where = f"{Path(frame.filename).name}, line {frame.lineno}"
            raise TrimixError(f"{what} ({where})", "correct the code of the policy") from error
        raise TrimixError(
            what,
            f"it is the entry point {name} = {place} of an installed package: fix or remove that"
            if name
            else "write policy=package.module:Class, of a module that is installed or lies in a "
            "folder of PYTHONPATH, or policy=path/to/file.py:Class",
        ) from error
    if not isinstance(found, type) or not issubclass(found, Policy):
        raise TrimixError(
            f"policy={asked} is no policy: {attribute} is not a subclass of Policy.",
            "derive it from trimix_lm_eval.fusion.policies.Policy, or from a policy",
        )
    for part in lacking(found):
        raise TrimixError(
            f"policy={asked} lacks a part: {part}.",
            "docs/add_a_policy.md explains each part"
            + (f"; it is the entry point {name} = {place} of an installed package" if name else ""),
        )
    if name and name != found.name:
        raise TrimixError(
            f"policy={name} is {found.name!r} by its class.",
            f"give the entry point and the attribute `name` of {attribute} the same name",
        )
    return found


def _imported(module: str) -> ModuleType:
    """A module by its name, or by its file, which may import what lies beside it."""
    if not module.endswith(".py"):
        return importlib.import_module(module)
    file = Path(module).resolve(strict=True)
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
    found = importlib.import_module(file.stem)
    if Path(found.__file__ or "").resolve() != file:
        raise ImportError(f"another module has the name {file.stem}; give the file another name")
    return found


def lacking(cls: type[Policy]) -> Iterator[str]:
    """The parts that a policy does not have, in words."""
    own, label = vars(cls), cast(Any, cls.label)
    if not isinstance(cls.name, str) or not re.fullmatch(r"[^\W\d_][\w.-]*", cls.name):
        yield "`name`, a word that results and tables call it and that begins with a letter"
    elif "name" not in own or base._REGISTRY.get(cls.name, cls) is not cls:
        yield f"a `name` of its own; {cls.name!r} is taken"
    if not isinstance(label, str):
        yield "`label`, a text that tables call it"
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


def built(cls: type[Policy], options: Mapping[str, Any]) -> Policy:
    """A policy with its options, which results files can record.

    Raises:
        TrimixError: A value is not one that its option takes, is no JSON value or not hashable; or
            the points or sources of the policy are none.
    """
    try:
        policy = cls(**options)
    except Exception as error:
        blame_class(cls, f"{cls.__qualname__}.__post_init__", error)
    for name, value in policy.options.items():
        try:
            json.dumps(value)  # for results files
            hash(getattr(policy, name))  # a run compares policies
        except (TypeError, ValueError) as error:
            raise TrimixError(
                f"{_called(cls)}: its option {name} is {quoted(value)}, which is no JSON value or "
                f"not hashable: {first_line(error)}.",
                "let the option's check make a number, text, truth value or tuple of these",
            ) from error
    _check_points(policy)
    return policy


def _check_points(policy: Policy) -> None:
    """Ask for the points and the sources, which decide what is loaded, and check them.

    Raises:
        TrimixError: Asking fails, or what is returned is none.
    """
    cls = type(policy)
    try:
        points: Any = policy.points()
    except Exception as error:
        blame_class(cls, f"{cls.__qualname__}.points", error)
    are_points = isinstance(points, tuple) and all(isinstance(p, Weights) for p in points)
    if not are_points or (policy.scope != "token" and not points):
        raise TrimixError(
            f"{_called(cls)}: points() returned {repr(points)[:80]}, no tuple of Weights.",
            "return every point that may be chosen, e.g. (Weights(0.1, 0.9),)",
        )
    for point in points:
        if not point.in_range():
            raise TrimixError(
                f"{_called(cls)}: points() has {quoted(point)} in it, which fp32 cannot fuse.",
                f"give Weights of numbers from {-LARGEST:g} to {LARGEST:g}",
            )
    if policy.scope == "task" and not isinstance(policy.task_prompts, int):
        raise TrimixError(
            f"{_called(cls)}: task_prompts is {repr(policy.task_prompts)[:80]}, no whole number.",
            "write @property above it, or task_prompts = 32 in the class",
        )
    try:
        sources: Any = set(policy.sources(SOURCES))
    except Exception as error:
        blame_class(cls, f"{cls.__qualname__}.sources", error)
    if not sources or not sources <= set(SOURCES):
        raise TrimixError(
            f"{_called(cls)}: sources() returned {sources or 'none'}.",
            f"return some of {', '.join(SOURCES)}",
        )


def check_collector(policy: Policy, names: tuple[str, ...]) -> None:
    """Make one collector and check what will be asked of it, before any model is loaded.

    Args:
        policy: The policy.
        names: The sources that will be loaded.

    Raises:
        TrimixError: The collector cannot be made, is no `PromptCollector`, or lacks a method.
    """
    if policy.scope not in ("sample", "task"):
        return
    try:
        made: Any = policy.collector(names)
    except Exception as error:
        blame_policy(policy, f"{type(policy).__qualname__}.collector", error)
    if made is None:
        return
    kind, who = type(made), _called(type(policy))
    if not isinstance(made, PromptCollector):
        raise TrimixError(
            f"{who}: collector() returned {kind.__qualname__}, no PromptCollector.",
            "derive the collector from trimix_lm_eval.fusion.collectors.PromptCollector",
        )
    needed: tuple[str, ...] = ("read_next",) if made.next_only else ("read", "absorb")
    own = [
        m for m in ("unsettled", "settle") if getattr(kind, m) is not getattr(PromptCollector, m)
    ]
    if own:  # neither is needed, but each needs the other
        needed += ("unsettled", "settle")
    lacks = [m for m in needed if getattr(kind, m) is getattr(PromptCollector, m)]
    if lacks:
        raise TrimixError(
            f"{who}: its collector {kind.__qualname__} lacks {' and '.join(lacks)}.",
            "docs/add_a_policy.md explains each part",
        )


def blame_policy(policy: Policy | None, method: str, error: Exception) -> NoReturn:
    """`blame_class`, of a policy; None is code of this package."""
    if policy is None:
        raise error
    blame_class(type(policy), method, error)


def blame_class(cls: type[Policy], method: str, error: Exception) -> NoReturn:
    """Raise an error of somebody's code as one that names their policy and its method.

    What a user can fix, and what the engine answers to (memory that runs out), stay what they
    are; so does what goes wrong in a policy of this package, whose traceback is wanted.
    """
    ours = base._REGISTRY.get(cls.name) is cls
    if ours or isinstance(error, TrimixError) or is_out_of_memory(error):
        raise error
    what = f"{type(error).__name__}: {first_line(error)}"
    frames = extract_tb(error.__traceback__)
    own = getattr(sys.modules.get(cls.__module__), "__file__", None)  # not a line of torch's
    frame = next((f for f in reversed(frames) if f.filename == own), frames[-1])
    raise TrimixError(
        f"{_called(cls)}: {method} failed: {what} ({Path(frame.filename).name}, line "
        f"{frame.lineno})",
        "correct the code of the policy",
    ) from error


def no_choice(policy: Policy, returned: Any, why: Exception | None) -> TrimixError:
    """The error for what `choose` returned, if it is no choice of weights of the sources."""
    if isinstance(returned, Choice) and isinstance(returned.weights, Weights):
        reason = first_line(why) if why else f"they are not all numbers of {LARGEST:g} at most"
        told = f"choose() returned {repr(returned)[:200]}, which cannot be used: {reason}"
        hint = "choose one of points(), which decides what is loaded; give float(x), not a tensor"
    else:
        told = f"choose() returned {repr(returned)[:80]}, no Choice of Weights."
        hint = "return Choice(weights), weights being one of points()"
    return TrimixError(f"{_called(type(policy))}: {told}", hint)


#: What a policy's method returns a tensor of, by its name.
_AXES = {
    "token_weights": "positions by sources",
    "update": "positions by sources",
    "fuse": "positions by tokens",
}


def no_tensor(policy: Policy, method: str, returned: Any, shape: tuple[int, ...]) -> TrimixError:
    """The error for what a policy's method returned, if it is no tensor of this shape."""
    found = getattr(returned, "shape", None)
    what = type(returned).__name__ if found is None else f"the shape {tuple(found)}"
    return TrimixError(
        f"{_called(type(policy))}: {method}() returned {what}, no tensor of shape {shape}: "
        f"{_AXES[method]}.",
        "return one number for each of them",
    )


def not_finite(policy: Policy) -> TrimixError:
    """The error for weights per token that are NaN or infinite though the logits are finite."""
    return TrimixError(
        f"{_called(type(policy))}: token_weights() returned NaN or infinite weights.",
        "look for a division by 0, or for the logarithm of 0",
    )


def _called(cls: type[Policy]) -> str:
    """A policy as messages call it: by its name, and where its class is."""
    return f"policy={cls.name} ({base.place(cls)})"
