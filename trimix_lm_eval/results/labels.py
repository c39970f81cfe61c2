"""What a run is called: its policy, its point, and every option that is not the usual one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from trimix_lm_eval.results.values import mapping
from trimix_lm_eval.weights import PAPER_GRID

#: The points that have names of their own, and the policies that are one point.
NAMED = {
    (1.0, 0.0): "large_ins",
    (0.0, 1.0): "small_cpt",
    (0.0, 0.0): "small_base",
    (1.0, 1.0): "proxy_tuning",
}
SINGLE = ("large_ins", "small_cpt", "small_base")

#: What a policy's options, and the seed, are if nobody says otherwise: not worth a mention.
_USUAL = {
    "grid": [list(point) for point in PAPER_GRID],
    "optimum": "grid",
    "prompts": 50,
    "host": "large_ins",
    "scorer": "small_cpt",
    "floor": 0.0,
}
_USUAL_SEED = 1234


def options(trimix: dict[str, Any]) -> Iterator[str]:
    """What distinguishes a policy from the same with its usual options."""
    policy = mapping(trimix.get("policy"))
    for option, usual in _USUAL.items():
        value = policy.get(option, usual)
        if value == usual or (option == "grid" and policy.get("optimum") == "newton"):
            continue
        if option == "grid":
            yield f"grid of {len(value)}"
        elif option == "optimum":
            yield str(value)
        else:
            yield f"{option} {value}"
    if trimix.get("plausibility"):
        yield f"plausibility {trimix['plausibility']:g}"
    if trimix.get("seed", _USUAL_SEED) != _USUAL_SEED:
        yield f"seed {trimix['seed']}"
