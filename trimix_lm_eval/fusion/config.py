"""How one distribution is made of the sources' logits: what is asked for, what is in force."""

from __future__ import annotations

from typing import NamedTuple

from trimix_lm_eval.fusion.policies import MixturePolicy, Policy


class LogitsProcessor(NamedTuple):
    """What is made of logits and chosen weights.

    Attributes:
        per_token: The policy that replaces the weights at every token; None keeps them.
        fuses: The policy that makes one distribution of logits and weights by a rule of its own;
            None is the weighted sum of the logits.
        plausibility: ``a`` of the plausibility mask, or None.
        reference: The source whose logits the mask looks at; empty without a mask.
        updates: The policy whose weights follow the text, token by token; None keeps them.
        may_exclude: Whether a token may have probability 0, which is no fault: its score is
            minus infinity.
    """

    per_token: Policy | None = None
    fuses: Policy | None = None
    plausibility: float | None = None
    reference: str = ""
    updates: MixturePolicy | None = None
    may_exclude: bool = False


class ResolvedFusion(NamedTuple):
    """How one distribution is made, once the weights are chosen.

    Fusion configs that resolve to equal values have equal distributions, and write the same text.

    Attributes:
        vector: The chosen weight of each source, in the order of the sources.
        processor: What is made of them.
    """

    vector: tuple[float, ...]
    processor: LogitsProcessor


class FusionConfig(NamedTuple):
    """One way to make a distribution of the sources' logits: what a run asks for.

    Attributes:
        policy: Who chooses the weights.
        plausibility: ``a`` of the plausibility mask that is asked for, or None.
        plausibility_source: Whose logits the mask looks at.
    """

    policy: Policy
    plausibility: float | None = None
    plausibility_source: str = "large_ins"

    @property
    def mask(self) -> float | None:
        """``a`` of the plausibility mask in force: that of the policy, unless one is asked for."""
        return self.policy.plausibility if self.plausibility is None else self.plausibility

    @property
    def decoding(self) -> LogitsProcessor:
        """What is made of the chosen weights where text is written."""
        return self._processor(self.mask)

    @property
    def scoring(self) -> LogitsProcessor:
        """What is made of them where given text is scored: the policy's own mask is none there."""
        return self._processor(self.plausibility)

    def _processor(self, mask: float | None) -> LogitsProcessor:
        policy, masked = self.policy, mask is not None
        return LogitsProcessor(
            policy if policy.scope == "token" else None,
            policy if policy.fuses else None,
            mask,
            self.plausibility_source if masked else "",
            policy if isinstance(policy, MixturePolicy) and policy.updates else None,
            masked or policy.fuses,
        )
