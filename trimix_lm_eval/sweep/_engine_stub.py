"""Many variants over sources that are loaded once, by a loop: what `TriMix.load_many` will do.

Slow, since the sources run anew for each variant. It goes when the real one comes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterator, MutableMapping, Sequence
from typing import Any, NamedTuple

import torch

from trimix_lm_eval import policies, preflight, provenance
from trimix_lm_eval.ensemble import Ensemble
from trimix_lm_eval.fuser import Fuser
from trimix_lm_eval.policies import Policy
from trimix_lm_eval.readers import Choice
from trimix_lm_eval.scoring import Score
from trimix_lm_eval.settings import Settings, SourceSpec
from trimix_lm_eval.sources import Source, load_model
from trimix_lm_eval.trimix import Generation, Text, TriMix
from trimix_lm_eval.weights import SOURCES, Weights

Points = Sequence[Weights | None]


class Recipe(NamedTuple):
    """How one variant weights the sources."""

    policy: Policy


class ManyTriMix(TriMix):
    """One `TriMix` for each variant, over common sources."""

    models: list[TriMix]

    @classmethod
    def load_many(
        cls,
        variants: Sequence[Settings],
        device: str | None = None,
        kept: MutableMapping[SourceSpec, Any] | None = None,
    ) -> ManyTriMix:
        """Load the union of the sources that the variants need, once."""
        built = [policies.build(v.policy, **v.policy_options) for v in variants]
        used = {n for policy in built for n in policy.sources(variants[0].sources)}
        names = [n for n in SOURCES if n in used]
        report = preflight.check(variants[0], names, device)
        default = device or ("cuda" if torch.cuda.is_available() else "cpu")
        models = {} if kept is None else kept
        sources = {}
        for name in names:
            spec = variants[0].sources[name]
            pinned = dataclasses.replace(spec, revision=report.commits[name] or spec.revision)
            if pinned not in models:
                models[pinned] = load_model(pinned, default)
            sources[name] = Source(name, models[pinned], report.vocab_size)
        made = []
        for asked, policy in zip(variants, built, strict=True):
            mine = [sources[n] for n in policy.sources(asked.sources)]
            ensemble = Ensemble(mine, report.unused_ids)
            fuser = Fuser(ensemble, policy, asked.plausibility, asked.plausibility_source)
            made.append(TriMix(asked, report.tokenizer, fuser, report))
        whole = Fuser(Ensemble(list(sources.values()), report.unused_ids), built[0])
        return cls.over(made, whole)

    @classmethod
    def over(cls, models: list[TriMix], whole: Fuser) -> ManyTriMix:
        """Put loaded variants together."""
        many = cls(models[0].settings, models[0].tokenizer, whole, models[0].report)
        many.models = models
        for model in models:
            model.speculation = many.speculation
        return many

    def part(self, which: Sequence[int]) -> ManyTriMix:
        """Some of the variants, over the same sources."""
        some = self.over([self.models[i] for i in which], self.fuser)
        some.speculation = self.speculation
        for model in some.models:
            model.speculation = self.speculation
        return some

    @property
    def recipes(self) -> list[Recipe]:
        """One for each variant."""
        return [Recipe(model.fuser.policy) for model in self.models]

    def iter_loglikelihood(  # type: ignore[override]
        self,
        pairs: Sequence[tuple[str, str]],
        points: Sequence[Points] | None = None,
        questions: Sequence[Hashable] | None = None,
    ) -> Iterator[tuple[int, int, Score]]:
        """Yield (index, variant, score)."""
        for which, model in enumerate(self.models):
            for i, score in model.iter_loglikelihood(pairs, _of(points, which), questions):
                yield i, which, score

    def iter_rolling(  # type: ignore[override]
        self, texts: Sequence[str]
    ) -> Iterator[tuple[int, int, Score]]:
        """Yield (index, variant, score)."""
        for which, model in enumerate(self.models):
            for i, score in model.iter_rolling(texts):
                yield i, which, score

    def iter_generate(  # type: ignore[override]
        self, jobs: Sequence[tuple[str, Generation]], points: Sequence[Points] | None = None
    ) -> Iterator[tuple[int, int, Text]]:
        """Yield (index, variant, text)."""
        for which, model in enumerate(self.models):
            for i, text in model.iter_generate(jobs, _of(points, which)):
                yield i, which, text

    def choose_for_task(self, contexts: Sequence[str], which: int = 0) -> Choice:
        """One point of a variant for a whole task."""
        return self.models[which].choose_for_task(contexts)


def describe(model: ManyTriMix, which: int) -> dict[str, Any]:
    """What the numbers of a variant depend on; see `provenance.describe`."""
    return provenance.describe(model.models[which])


def _of(points: Sequence[Points] | None, which: int) -> list[Weights | None] | None:
    """One variant's share; None where it chooses itself."""
    mine = None if points is None else [point[which] for point in points]
    return None if mine is None or all(point is None for point in mine) else mine
