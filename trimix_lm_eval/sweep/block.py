"""The ``sweep:`` block of a run config, read and checked. No model, no task, no lm-eval here.

    sweep:
      name: paper                      # default: the file's stem
      languages: [bod_Tibt, tel_Telu]  # fill {language}; or [{language: bo, flores: bod_Tibt}, …]
      grid: paper                      # or alpha:beta[:gamma] points, or {alpha: […], beta: […]}
      policies: all                    # or [ent, {policy: ppl, optimum: newton}]
      plausibility: [null, 0.1]
      num_fewshot: [0, 5]
      seeds: [1234, 7]

Points and policies, each with every plausibility, are the *variants* of a setting; every number of
shots with every seed is a *setting*.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from trimix_lm_eval.analysis.results import NAMED
from trimix_lm_eval.fusion import policies
from trimix_lm_eval.fusion.policies import Policy
from trimix_lm_eval.fusion.weights import Weights
from trimix_lm_eval.utils.errors import TrimixError, unknown

_KEYS = ("name", "languages", "grid", "policies", "plausibility", "num_fewshot", "seeds")
_AXES = ("alpha", "beta", "gamma")


class Block(NamedTuple):
    """What is to be swept.

    Attributes:
        name: Of the sweep.
        languages: Each a mapping from placeholders to what fills them; empty without languages.
        points: Of the grid.
        policies: Everything that weights the sources, by name and options: policies, then points.
        plausibility: The masks; empty leaves it to ``model_args``.
        num_fewshot: Numbers of exemplars; None is the task's own. Empty leaves it to the config.
        seeds: Empty leaves them to the config.
    """

    name: str
    languages: tuple[dict[str, str], ...]
    points: tuple[Weights, ...]
    policies: tuple[tuple[str, dict[str, Any]], ...]
    plausibility: tuple[float | None, ...]
    num_fewshot: tuple[int | None, ...]
    seeds: tuple[int, ...]


def read(given: Any, name: str) -> Block:
    """Read the block.

    Args:
        given: What YAML made of it.
        name: What the sweep is called if it does not say.

    Raises:
        TrimixError: Something in it is unknown, empty, or not what it should be.
    """
    if not isinstance(given, Mapping) or not given:
        raise TrimixError(
            "There is no `sweep:` block, or nothing in it.",
            "say what to sweep, e.g. `sweep: {grid: paper, policies: all}`; a config without one "
            "is run by `lm_eval run --config`",
        )
    for key in given:
        if key not in _KEYS:
            raise unknown("key in sweep", str(key), _KEYS)
    points = _grid(given.get("grid"))
    found = list(_policies(given.get("policies"), points))
    if not found:
        raise TrimixError(
            "The sweep has neither points nor policies.", "add grid: paper, policies: all, or both"
        )
    return Block(
        _name(given.get("name", name)),
        tuple(_languages(given.get("languages"))),
        points,
        tuple(found),
        tuple(_fraction(value) for value in _several("plausibility", given)),
        tuple(_whole("num_fewshot", value, True) for value in _several("num_fewshot", given)),
        tuple(_whole("seeds", value) or 0 for value in _several("seeds", given)),
    )


def _name(given: Any) -> str:
    if not isinstance(given, str) or not re.fullmatch(r"[\w][\w. +-]*", given):
        raise TrimixError(
            f"name is {given!r}, which cannot be part of a file's name.",
            "write letters, digits, '.', '-' and '_'",
        )
    return given


def _several(key: str, given: Mapping[str, Any]) -> list[Any]:
    """The values of a key: a list, or one value; nothing if the key is not there."""
    if key not in given:
        return []
    value = given[key]
    values = value if isinstance(value, list) else [value]
    if not values:
        raise TrimixError(f"{key} is an empty list.", f"give it values, or leave {key} out")
    return list(dict.fromkeys(values)) if all(map(_plain, values)) else values


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, (str, int, float))


def _languages(given: Any) -> Iterator[dict[str, str]]:
    """Each language as a mapping from placeholders to texts."""
    for value in _several("languages", {} if given is None else {"languages": given}):
        filled = value if isinstance(value, dict) else {"language": value}
        texts = [*filled, *filled.values()]
        if not filled or not all(isinstance(text, str) and text for text in texts):
            raise TrimixError(
                f"languages has {value!r} in it.",
                "write codes (no: in quotes, which YAML takes for false), or a mapping from "
                "placeholders to codes, e.g. {language: bo, flores: bod_Tibt}",
            )
        yield filled


def _grid(given: Any) -> tuple[Weights, ...]:
    """The points, each once, with gamma left out where it is alpha."""
    if given is None:
        return ()
    if isinstance(given, Mapping):
        points = _product(given)
    else:
        for item in given if isinstance(given, list) else [given]:
            if isinstance(item, (int, float)):
                raise TrimixError(
                    f"grid has the number {item!r} in it.",
                    "write points in quotes, '1:0': YAML takes them for times of day",
                )
        points = list(policies.parse_grid(given))
    short = (p._replace(gamma=None if p.gamma == p.alpha else p.gamma) for p in points)
    return tuple(dict.fromkeys(short))


def _product(given: Mapping[str, Any]) -> list[Weights]:
    """All combinations of alpha, beta and gamma."""
    for axis in given:
        if axis not in _AXES:
            raise unknown("axis of the grid", str(axis), _AXES)
    values = {axis: _several(axis, given) for axis in _AXES}
    for axis in ("alpha", "beta"):
        if not values[axis]:
            raise TrimixError(f"The grid names no {axis}.", f"add {axis}: [0.1, 0.5, 1.0]")
    combined = itertools.product(values["alpha"], values["beta"], values["gamma"] or [None])
    return list(policies.parse_grid([list(point) for point in combined]))


def _policies(given: Any, points: tuple[Weights, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Policies, then points; none twice, and a point with a name of its own under that name."""
    seen: set[Policy] = set()
    wanted: list[Any] = []
    for value in _several("policies", {} if given is None else {"policies": given}):
        everyone = [name for name in policies.names() if name != "fixed" or not points]
        wanted += everyone if value == "all" else [value]
    for value in [*wanted, *map(_point, points)]:
        name, options = _named(value)
        if name == "fixed":
            fixed = policies.build(name, **options).points()[0]
            short = fixed._replace(gamma=None if fixed.gamma == fixed.alpha else fixed.gamma)
            name, options = _named(_point(short))
        built = policies.build(name, **options)
        if built not in seen:
            seen.add(built)
            yield name, options


def _named(given: Any) -> tuple[str, dict[str, Any]]:
    """Name and options of one policy."""
    options = dict(given) if isinstance(given, Mapping) else {"policy": given}
    name = options.pop("policy", None)
    if not isinstance(name, str):
        raise TrimixError(
            f"policies has {given!r} in it.",
            "write names, or mappings such as {policy: ppl, optimum: newton}",
        )
    return name, {option: value for option, value in options.items() if value is not None}


def _point(point: Weights) -> dict[str, Any]:
    """A point as the policy that it is."""
    name = NAMED.get((point.alpha, point.beta)) if point.gamma is None else None
    return {"policy": name} if name else {"policy": "fixed", **point._asdict()}


def _fraction(value: Any) -> float | None:
    """A plausibility; whether it is a fraction is checked with the other arguments."""
    if value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)):
        return value
    raise TrimixError(
        f"plausibility has {value!r} in it.", "write fractions such as 0.1; null is no mask"
    )


def _whole(key: str, value: Any, optional: bool = False) -> int | None:
    if value is None and optional:
        return None
    if type(value) is not int or value < 0:
        raise TrimixError(f"{key} has {value!r} in it.", "write whole numbers")
    return int(value)
