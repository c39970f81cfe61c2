"""The ``sweep:`` block of a run config, read and checked. No model, no task, no lm-eval here.

    sweep:
      name: paper                      # default: the file's stem
      languages: [bod_Tibt, tel_Telu]  # fill {language}; or [{language: bo, flores: bod_Tibt}, …]
      grid: paper                      # or alpha:beta[:gamma] points, or {alpha: […], beta: […]}
      policies: all                    # or [ent, {policy: ppl, refine: quadratic}]
      plausibility: [null, 0.1]
      num_fewshot: [0, 5]
      seeds: [1234, 7]

Points and policies, each with every plausibility, are the *variants* of a setting; every number of
shots with every seed is a *setting*.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trimix_lm_eval.fusion import policies
from trimix_lm_eval.fusion.policies import Policy
from trimix_lm_eval.fusion.policies.fixed import Fixed, name_of
from trimix_lm_eval.fusion.weights import Weights
from trimix_lm_eval.loading.run_values import MOST_SEED, is_text
from trimix_lm_eval.utils.errors import TrimixError, quoted, unknown
from trimix_lm_eval.utils.options import checked, option, options_of
from trimix_lm_eval.utils.validation import number, whole

_AXES = ("alpha", "beta", "gamma")


def read(given: Any, name: str, everyone: Sequence[str]) -> Block:
    """Read the block that YAML made.

    Args:
        given: What stands under ``sweep:``.
        name: What the sweep is called if it does not say.
        everyone: The policies that ``all`` stands for.

    Raises:
        TrimixError: Something in it is unknown, empty, or not what it should be.
    """
    if not isinstance(given, Mapping) or not given:
        raise TrimixError(
            "There is no `sweep:` block, or nothing in it.",
            "say what to sweep, e.g. `sweep: {grid: paper, policies: all}`; a config without one "
            "is run by `lm_eval run --config`",
        )
    accepted = [one.name for one in OPTIONS]
    for key in given:
        if key not in accepted:
            raise unknown("key in sweep", str(key), accepted)
    block = Block(**checked(OPTIONS, {"name": name, **given}))
    variants = tuple(_distinct(block.policies, block.grid, everyone))
    if not variants:
        raise TrimixError(
            "The sweep has neither points nor policies.", "add grid: paper, policies: all, or both"
        )
    return dataclasses.replace(block, variants=variants)


def _name(key: str, given: Any) -> str:
    if not isinstance(given, str) or not re.fullmatch(r"[\w][\w. +-]{0,99}", given):
        raise TrimixError(
            f"{key} is {quoted(given)}, which cannot be part of a file's name.",
            "write at most 100 letters, digits, '.', '-' and '_'",
        )
    return given


def _several(key: str, value: Any) -> list[Any]:
    values = value if isinstance(value, list) else [value]
    if not values:
        raise TrimixError(f"{key} is an empty list.", f"give it values, or leave {key} out")
    if not all(map(_plain, values)):
        return values
    # By type, too: true is not the 1 that it equals.
    return list({(type(value), value): value for value in values}.values())


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, (str, int, float))


def _languages(key: str, given: Any) -> tuple[dict[str, str], ...]:
    """Each language as a mapping from placeholders to texts."""
    found = []
    for value in [] if given is None else _several(key, given):
        filled = value if isinstance(value, dict) else {"language": value}
        words = [*filled, *filled.values()]
        if not filled or not all(map(is_text, words)):
            raise TrimixError(
                f"{key} has {quoted(value)} in it.",
                "write codes (no: in quotes, which YAML takes for false), or a mapping from "
                "placeholders to codes, e.g. {language: bo, flores: bod_Tibt}",
            )
        found.append(filled)
    return tuple(found)


def _grid(key: str, given: Any) -> tuple[Weights, ...]:
    """The points, each once, with gamma left out where it is alpha."""
    if given is None:
        return ()
    if isinstance(given, Mapping):
        points = _product(given)
    else:
        for item in given if isinstance(given, list) else [given]:
            if isinstance(item, (int, float)):
                raise TrimixError(
                    f"{key} has the number {item!r} in it.",
                    "write points in quotes, '1:0': YAML takes them for times of day",
                )
        points = list(policies.parse_grid(given))
    return tuple(dict.fromkeys(map(_short, points)))


def _short(point: Weights) -> Weights:
    return point._replace(gamma=None) if point.gamma == point.alpha else point


def _product(given: Mapping[str, Any]) -> list[Weights]:
    for axis in given:
        if axis not in _AXES:
            raise unknown("axis of the grid", str(axis), _AXES)
    values = {axis: _several(axis, given[axis]) if axis in given else [] for axis in _AXES}
    for axis in ("alpha", "beta"):
        if not values[axis]:
            raise TrimixError(f"The grid names no {axis}.", f"add {axis}: [0.1, 0.5, 1.0]")
    combined = itertools.product(values["alpha"], values["beta"], values["gamma"] or [None])
    return list(policies.parse_grid([list(point) for point in combined]))


def _policies(key: str, given: Any) -> tuple[Any, ...]:
    return () if given is None else tuple(_several(key, given))


def _distinct(
    asked: Iterable[Any], points: tuple[Weights, ...], everyone: Sequence[str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Policies, then points; none twice, and a point with a name of its own under that name."""
    seen: set[Policy] = set()
    wanted: list[Any] = []
    for value in asked:
        # Points of a grid are what `fixed` would be.
        known = [name for name in everyone if name != Fixed.name or not points]
        wanted += known if value == "all" else [value]
    for value in [*wanted, *map(_point, points)]:
        name, options = _named(value)
        if name == Fixed.name:
            (fixed,) = policies.build(name, **options).points()
            name, options = _named(_point(_short(fixed)))
        built = policies.build(name, **options)
        if built not in seen:
            seen.add(built)
            yield name, options


def _named(given: Any) -> tuple[str, dict[str, Any]]:
    options = dict(given) if isinstance(given, Mapping) else {"policy": given}
    name = options.pop("policy", None)
    if not isinstance(name, str):
        raise TrimixError(
            f"policies has {given!r} in it.",
            "write names, or mappings such as {policy: ppl, refine: quadratic}",
        )
    return name, {option: value for option, value in options.items() if value is not None}


def _point(point: Weights) -> dict[str, Any]:
    """A point as the policy that it is."""
    name = name_of(point)
    return {"policy": name, **(point._asdict() if name == Fixed.name else {})}


def _masks(key: str, given: Any) -> tuple[float | None, ...]:
    """Values for ``plausibility``, whose bounds are checked with the other arguments of a run."""
    hint = " such as 0.1; null is no mask"
    return tuple(
        None if value is None else number(key, value, hint=hint) for value in _several(key, given)
    )


def _shots(key: str, given: Any) -> tuple[int | None, ...]:
    return tuple(None if value is None else whole(key, value, 0) for value in _several(key, given))


def _seeds(key: str, given: Any) -> tuple[int, ...]:
    return tuple(whole(key, value, 0, MOST_SEED) for value in _several(key, given))


@dataclass(frozen=True)
class Block:
    """What is to be swept; what is empty is left to the rest of the config.

    Attributes:
        languages: Each a mapping from placeholders to what fills them.
        grid: Points, gamma left out where it is alpha.
        variants: Everything that weights the sources, by name and options: policies, then points.
    """

    name: str = option(
        None, "text", "What the sweep is called: the file's stem, unless given.", _name
    )
    languages: tuple[dict[str, str], ...] = option(
        (),
        "codes, or mappings",
        "Fill `{language}` in `tasks` and `model_args`; a mapping such as `{language: bo, flores: "
        "bod_Tibt}` fills placeholders of other names.",
        _languages,
    )
    grid: tuple[Weights, ...] = option(
        (),
        "points",
        "`paper`, points as `alpha:beta[:gamma]`, or `{alpha: […], beta: […]}` for all "
        "combinations.",
        _grid,
    )
    policies: tuple[Any, ...] = option(
        (),
        "names, or mappings",
        "`all`, names, or mappings such as `{policy: gate, floor: 0.1}`.",
        _policies,
    )
    plausibility: tuple[float | None, ...] = option(
        (),
        "numbers between 0 and 1, or null",
        "Each point and policy is run with each; null is no mask.",
        _masks,
    )
    num_fewshot: tuple[int | None, ...] = option(
        (),
        "whole numbers >= 0, or null",
        "Numbers of few-shot examples; null is the task's own.",
        _shots,
    )
    seeds: tuple[int, ...] = option(
        (), "whole numbers >= 0", "Each value of `num_fewshot` is run with each.", _seeds
    )
    variants: tuple[tuple[str, dict[str, Any]], ...] = ()


#: The keys of the block.
OPTIONS = options_of(Block)
