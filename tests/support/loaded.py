"""Pico models loaded once, to be weighted by one policy after the other."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from tests.support.naive import Naive
from trimix_lm_eval import TriMix
from trimix_lm_eval.engine.model_runner import Ensemble, Fuser
from trimix_lm_eval.fusion import policies
from trimix_lm_eval.fusion.config import FusionConfig


class Trio(NamedTuple):
    """All four sources of one family, and the naive reference over the same files."""

    model: TriMix
    naive: Naive
    folders: dict[str, str]

    def weighted(
        self,
        policy: str,
        *,
        batch_size: int = 1,
        max_length: int | None = None,
        plausibility: float | None = None,
        plausibility_source: str = "large_ins",
        chunk_tokens: int | None = None,
        logit_positions: int | None = None,
        speculative: str | int = "auto",
        **options: Any,
    ) -> TriMix:
        """A TriMix over the loaded sources that this policy needs."""
        config = FusionConfig(policies.build(policy, **options), plausibility, plausibility_source)
        ensemble = self.ensemble([config])
        ensemble.chunk_tokens = chunk_tokens or ensemble.chunk_tokens
        ensemble.logit_positions = logit_positions or ensemble.logit_positions
        asked = dataclasses.replace(
            self.model.settings,
            policy=policy,
            policy_options=options,
            batch_size=batch_size,
            max_length=max_length,
            plausibility=plausibility,
            plausibility_source=plausibility_source,
            speculative=speculative,
        )
        return TriMix(asked, self.model.tokenizer, Fuser(ensemble, (config,)), self.model.report)

    def many(
        self,
        configs: Sequence[FusionConfig],
        *,
        chunk_tokens: int | None = None,
        logit_positions: int | None = None,
        **asked: Any,
    ) -> TriMix:
        """A TriMix of several fusion configs over the loaded sources that they need."""
        ensemble = self.ensemble(configs)
        ensemble.chunk_tokens = chunk_tokens or ensemble.chunk_tokens
        ensemble.logit_positions = logit_positions or ensemble.logit_positions
        settings = dataclasses.replace(self.model.settings, **asked)
        fuser = Fuser(ensemble, tuple(configs))
        return TriMix(settings, self.model.tokenizer, fuser, self.model.report)

    def ensemble(self, configs: Sequence[FusionConfig]) -> Ensemble:
        """The loaded sources that some fusion configs need."""
        whole = self.model.fuser.ensemble
        names = {name for config in configs for name in config.policy.sources(whole.names)}
        return Ensemble([s for s in whole.sources if s.name in names], whole.unused)


def load(folders: dict[str, str]) -> Trio:
    """Load four sources; the point is one that needs them all."""
    point = {"policy": "fixed", "alpha": 0.3, "beta": 0.6, "gamma": 0.5}
    model = TriMix.from_pretrained(**folders, **point, dtype="float32")
    return Trio(model, Naive(folders, model.report.vocab_size), folders)


def by_index(found: Iterable[tuple[int, int, Any]]) -> dict[int, Any]:
    """What the one fusion config of a run answered, by request."""
    return {i: answer for i, _, answer in found}
