"""``packllm``: per sample, weights by how well each source predicts the prompt."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

from trimix_lm_eval.fusion.collectors import Choice, PromptCollector
from trimix_lm_eval.fusion.policies.base import Policy, register
from trimix_lm_eval.fusion.policies.perplexity import GridCollector
from trimix_lm_eval.fusion.weights import SOURCES, Weights
from trimix_lm_eval.utils.errors import TrimixError
from trimix_lm_eval.utils.options import option
from trimix_lm_eval.utils.validation import number, one_of

#: The point at which each source is alone.
_ALONE = {
    "large_ins": Weights(1.0, 0.0),
    "small_cpt": Weights(0.0, 1.0),
    "small_base": Weights(0.0, 0.0),
    "large_base": Weights(0.0, 0.0, 1.0),
}


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


@register
@dataclasses.dataclass(frozen=True)
class PackLLM(Policy):
    """Per sample, L = sum_s w_s L_s, w = softmax(−NLL / `tau`) of each source's mean prompt NLL.

    PackLLM-sim (Mavromatis et al. 2024). Honest everywhere: it sees no answer. Their PackLLM-opt
    looks for the weights of least perplexity pair by pair: ``ppl`` does that on a grid.
    """

    name = "packllm"
    label = "PackLLM-sim"
    scope = "sample"
    honesty = "label_free"
    honest_when = "always"
    cost = "as `ppl`, with a point per source in place of a grid"
    url = "https://arxiv.org/abs/2404.11531"

    tau: float = option(
        1.0,
        "number from 0.001 to 1000",
        "Temperature in nats per token: near 0 the best source has all the weight.",
        partial(number, least=1e-3, most=1e3),
    )
    among: Any = option(
        "large_ins;small_cpt;small_base",
        "sources",
        "Which sources, joined by `;`.",
        _some_sources,
    )

    def points(self) -> tuple[Weights, ...]:
        """Each source alone: the weights lie between these points."""
        return tuple(_ALONE[name] for name in self.among)

    def collector(self, names: tuple[str, ...]) -> PromptCollector:
        """The NLL of each source."""
        return GridCollector(names, self.points())

    def choose(self, collectors: Sequence[PromptCollector]) -> Choice:
        """Equation above; with no evidence all weigh the same."""
        import torch

        read = [c for c in collectors if isinstance(c, GridCollector) and c.count]
        mean = torch.zeros(len(self.among), dtype=torch.float64)
        for one in read:
            mean += one.nll / one.count / len(read)
        shares = dict(zip(self.among, (-mean / self.tau).softmax(dim=0).tolist(), strict=True))
        alpha, beta = shares.get("large_ins", 0.0), shares.get("small_cpt", 0.0)
        gamma = alpha + shares["large_base"] if "large_base" in shares else None
        if "small_base" not in shares:  # whose weight is what the others leave: nothing, exactly
            beta = 1.0 - (alpha if gamma is None else gamma)
        return Choice(Weights(alpha, beta, gamma), tokens=sum(one.count for one in read))
