"""``packllm``: per sample, weights by how well each source predicts the prompt."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial

from trimix_lm_eval.fusion.collectors import Choice, PromptCollector
from trimix_lm_eval.fusion.policies.base import register
from trimix_lm_eval.fusion.policies.perplexity import GridCollector
from trimix_lm_eval.fusion.policies.some_sources import SomeSources
from trimix_lm_eval.fusion.weights import Weights
from trimix_lm_eval.utils.options import option
from trimix_lm_eval.utils.validation import number


@register
@dataclasses.dataclass(frozen=True)
class PackLLM(SomeSources):
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
        return Choice(Weights.of_sources(shares), tokens=sum(one.count for one in read))
