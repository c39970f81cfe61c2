"""Sources and recipes together: from hidden states to distributions.

A run has one recipe. A sweep has many, and the sources still run once: recipes differ only in what
is made of the logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from torch import Tensor

from trimix_lm_eval import fusion
from trimix_lm_eval.ensemble import Ensemble
from trimix_lm_eval.policies import Policy, reading
from trimix_lm_eval.readers import Choice
from trimix_lm_eval.weights import Weights


class Rule(NamedTuple):
    """What is made of logits and chosen weights.

    Attributes:
        per_token: The policy that replaces the weights at every token; None keeps them.
        plausibility: ``a`` of the plausibility mask, or None.
        reference: The source whose logits the mask looks at; empty without a mask.
    """

    per_token: Policy | None = None
    plausibility: float | None = None
    reference: str = ""


class Voice(NamedTuple):
    """How one distribution is made: recipes with equal voices write the same text.

    Attributes:
        vector: Chosen weights, one per source.
        rule: What is made of them.
    """

    vector: tuple[float, ...]
    rule: Rule


class Recipe(NamedTuple):
    """One way to make a distribution of the sources' logits: what a run asks for.

    Attributes:
        policy: Who chooses the weights.
        plausibility: ``a`` of the plausibility mask, or None.
        plausibility_source: Whose logits the mask looks at.
    """

    policy: Policy
    plausibility: float | None = None
    plausibility_source: str = "large_ins"

    @property
    def rule(self) -> Rule:
        """What is made of the weights that the policy chooses."""
        return Rule(
            self.policy if self.policy.scope == "token" else None,
            self.plausibility,
            "" if self.plausibility is None else self.plausibility_source,
        )


@dataclass(frozen=True)
class Fuser:
    """How the sources' logits become distributions.

    Attributes:
        ensemble: The sources.
        recipes: What is made of them; at least one.
    """

    ensemble: Ensemble
    recipes: tuple[Recipe, ...]

    @cached_property
    def choosers(self) -> tuple[int, ...]:
        """For each recipe the first one with the same policy, which reads and chooses for it."""
        first: dict[Policy, int] = {}
        return tuple(first.setdefault(r.policy, i) for i, r in enumerate(self.recipes))

    @cached_property
    def bits(self) -> dict[Policy, int]:
        """The policies that read prompts, with their bits."""
        return reading(recipe.policy for recipe in self.recipes)

    def only(self, recipe: int) -> Fuser:
        """The same sources with one of the recipes."""
        return Fuser(self.ensemble, (self.recipes[recipe],))

    def fused(self, logits: Sequence[Tensor], vectors: Tensor, rule: Rule) -> tuple[Tensor, Tensor]:
        """Fused logits ``[N, V]`` and the weights in force ``[N, S]``.

        Args:
            logits: One ``[N, V]`` tensor per source.
            vectors: ``[N, S]`` chosen weights; a policy per token replaces them.
            rule: What is made of them.
        """
        names = self.ensemble.names
        if rule.per_token is not None:
            vectors = rule.per_token.token_weights(logits, names)
        fused = fusion.fuse(logits, vectors)
        if rule.plausibility is not None:
            reference = logits[names.index(rule.reference)]
            fused = fusion.plausible(fused, reference, rule.plausibility)
        return fused, vectors

    def vector(self, choice: Choice | None) -> list[float]:
        """A choice as one weight per source; zeros where weights are per token."""
        if choice is None:
            return [0.0] * len(self.ensemble.names)
        return choice.weights.vector(self.ensemble.names)


def mean_choice(fuser: Fuser, used: Tensor) -> Choice:
    """The mean weights of a policy per token, ``[N, S]`` over all sources to a point."""
    mean = dict(zip(fuser.ensemble.names, used.double().mean(dim=0).tolist(), strict=True))
    alpha, beta = mean.get("large_ins", 0.0), mean.get("small_cpt", 0.0)
    gamma = alpha + mean.get("large_base", 0.0)
    return Choice(Weights(round(alpha, 4), round(beta, 4), round(gamma, 4)))
