"""What policies that weigh the sources themselves, and not points of a grid, have in common."""

from __future__ import annotations

import dataclasses
from typing import Any

from trimix_lm_eval.fusion.policies.base import Policy
from trimix_lm_eval.fusion.weights import SOURCES, Weights
from trimix_lm_eval.utils.errors import TrimixError
from trimix_lm_eval.utils.options import option
from trimix_lm_eval.utils.validation import one_of


def _some_sources(name: str, value: Any) -> tuple[str, ...]:
    """Two sources or more, joined by ``;`` or as a list, in the order of `SOURCES`."""
    given = value.split(";") if isinstance(value, str) else value
    if not isinstance(given, list | tuple):
        given = [value]
    named = {one_of(name, one, accepted=SOURCES) for one in given}
    if len(named) < 2:
        raise TrimixError(
            f"{name}={value!r} is one source.", f"name some of {', '.join(SOURCES)}, joined by ';'"
        )
    return tuple(one for one in SOURCES if one in named)


@dataclasses.dataclass(frozen=True)
class SomeSources(Policy):
    """Weights that lie between those of some sources, each alone."""

    among: Any = option(
        "large_ins;small_cpt;small_base",
        "sources",
        "Which sources, joined by `;`.",
        _some_sources,
    )

    def points(self) -> tuple[Weights, ...]:
        """Each source alone."""
        return tuple(Weights.of_sources({name: 1.0}) for name in self.among)
