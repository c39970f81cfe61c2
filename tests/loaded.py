"""Pico models loaded once, to be weighted by one policy after the other."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

from tests.naive import Naive
from trimix_lm_eval import TriMix, policies
from trimix_lm_eval.ensemble import Ensemble
from trimix_lm_eval.fuser import Fuser


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
        built = policies.build(policy, **options)
        whole = self.model.fuser.ensemble
        names = built.sources(whole.names)
        ensemble = Ensemble(
            [source for source in whole.sources if source.name in names], whole.unused.tolist()
        )
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
        fuser = Fuser(ensemble, built, plausibility, plausibility_source)
        return TriMix(asked, self.model.tokenizer, fuser, self.model.report)


def load(folders: dict[str, str]) -> Trio:
    """Load four sources; the point is one that needs them all."""
    point = {"policy": "fixed", "alpha": 0.3, "beta": 0.6, "gamma": 0.5}
    model = TriMix.from_pretrained(**folders, **point, dtype="float32")
    return Trio(model, Naive(folders, model.report.vocab_size), folders)
