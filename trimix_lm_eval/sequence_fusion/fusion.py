"""`SequenceFusion`: one `TriMix` per source, and the weighted sums of their scores.

    score(text) = sum over the sources of w · log p_source(text)

Each source reads and scores a text by itself, with its own tokenizer, its own BOS and its own
context length, as a `TriMix` of this source alone does; w are the weights of the point. So every
source runs once, however many points there are. The sum is no log-probability: its exponentials
over all texts do not sum to 1.

What is generated is chosen among candidates, which the sources write, by their scores per byte.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Hashable, Iterator, Mapping, MutableMapping, Sequence
from functools import partial
from operator import add
from typing import Any

import torch

from trimix_lm_eval.engine.model_runner import ModelRunner, blame, choice_of
from trimix_lm_eval.engine.request import Score
from trimix_lm_eval.engine.sampler import SamplingParams
from trimix_lm_eval.engine.sequence import GenerationRequest
from trimix_lm_eval.engine.spec_decode import Speculation
from trimix_lm_eval.fusion.collectors import Choice
from trimix_lm_eval.fusion.config import FusionConfig
from trimix_lm_eval.fusion.weights import source_vector
from trimix_lm_eval.llm import Completion, Points, TriMix
from trimix_lm_eval.loading import preflight
from trimix_lm_eval.loading.codec import TextCodec
from trimix_lm_eval.loading.provenance import needed, policy_code, vocabulary_digest
from trimix_lm_eval.loading.sequence import SCORES, SEQUENCE, no_rolling
from trimix_lm_eval.loading.settings import Settings, SourceSpec
from trimix_lm_eval.sequence_fusion.candidates import CandidateText, Event, likelihoods, write
from trimix_lm_eval.utils.errors import TrimixError, warn_once

#: So many requests go through all sources before the next ones: what is lost with a crash.
_PAIRS, _PROMPTS = 512, 128


class SequenceFusion(TriMix):
    """Several causal LMs, each with its own tokenizer, combined by their scores of whole texts.

    It has the methods of `TriMix`, but for what needs one distribution over the next token.

    Args:
        asked: The settings that it was built from; of several fusion configs the first one's.
        members: By role, each source by itself.
        configs: The fusion configs, whose policies weigh everything alike.
        report: What the preflight found; its tokenizer is the large model's.
    """

    fusion = SEQUENCE

    def __init__(
        self,
        asked: Settings,
        members: Mapping[str, TriMix],
        configs: Sequence[FusionConfig],
        report: preflight.PreflightReport,
    ) -> None:
        self.settings, self.members, self.report = asked, dict(members), report
        self._configs, names = tuple(configs), tuple(members)
        self.choices = [choice_of(config.policy, [], names) for config in configs]
        vectors = [source_vector(choice.weights, names) for choice in self.choices]
        #: Of each config, the weight of each source that has one.
        self.weights = [
            {name: w for name, w in zip(names, vector, strict=True) if w} for vector in vectors
        ]
        #: The sources that some config gives a weight, and those that write for one.
        self.used = [name for name in names if any(name in mine for mine in self.weights)]
        self.writers = [n for n in names if any(mine.get(n, 0) > 0 for mine in self.weights)]
        large = members.get("large_ins")
        self.tokenizer = large.tokenizer if large else report.tokenizer
        self.codec = (
            large.codec if large else TextCodec(report.tokenizer, asked, (), report.vocab_size)
        )
        self.max_length, self.batch_size = report.max_length, members[names[0]].batch_size
        self.truncated, self.thinking = 0, None
        self.speculation = Speculation("off")  # one source drafts for nobody
        self._costs: Counter[tuple[str, str]] = Counter()
        self._answers: list[Counter[tuple[str, str]]] = [Counter() for _ in configs]

    @classmethod
    def load_checked(
        cls,
        asked: Settings,
        configs: tuple[FusionConfig, ...],
        report: preflight.PreflightReport,
        default: str,
        models: MutableMapping[SourceSpec, Any],
    ) -> SequenceFusion:
        """Load each source that was checked, by itself."""
        members = {}
        for name, found in report.each.items():
            alone = asked.alone(name)
            config = alone.fusion_config()
            members[name] = TriMix.load_checked(alone, (config,), found, default, models)
        return cls(asked, members, configs, report)

    @property
    def configs(self) -> tuple[FusionConfig, ...]:
        """Who weighs the scores, for each variant."""
        return self._configs

    @property
    def sources(self) -> list[ModelRunner]:
        """The loaded sources."""
        return [member.sources[0] for member in self.members.values()]

    def part(self, which: Sequence[int]) -> SequenceFusion:
        """The same loaded sources with some of the configs; costs are counted together."""
        configs = [self._configs[i] for i in which]
        needed_now = needed(self.settings, configs)
        members = {name: one for name, one in self.members.items() if name in needed_now}
        part = SequenceFusion(self.settings, members, configs, self.report)
        part.tokenizer, part.codec = self.tokenizer, self.codec
        part._costs, part._answers = self._costs, [self._answers[i] for i in which]
        return part

    def describe(self, which: int = 0) -> dict[str, Any]:
        """What the scores of one config depend on; see `provenance.describe`.

        Each source has its own ``tokenizer`` and ``max_length`` beside what it was loaded from.
        """
        config = self._configs[which]
        names = needed(self.settings, [config])
        alone = {name: self.members[name].describe() for name in names}
        own = ("tokenizer", "max_length", "leading_bos")
        common = {key: value for key, value in alone[names[0]].items() if key not in own}
        return {
            **common,
            "fusion": SEQUENCE,
            "scores": SCORES,
            "candidates": self.settings.candidates,
            "sources": {
                name: one["sources"][name] | {key: one[key] for key in own if key in one}
                for name, one in alone.items()
            },
            "policy": config.policy.record(),
            **policy_code(config.policy),
            # Of the model that lm-eval asks for chats and for the end of a text.
            "tokenizer": vocabulary_digest(self.tokenizer),
            "max_length": self.settings.max_length,
        }

    def runtime(self, names: Collection[str]) -> dict[str, Any]:
        """How each source is run by itself; graphs are counted together."""
        found = {name: one.runtime([name]) for name, one in self.members.items() if name in names}
        graphs = [one["cuda_graphs"] for one in found.values()]
        return {
            "sources": {
                name: one["sources"][name] | {"vocabulary": "own"} for name, one in found.items()
            },
            "cuda_graphs": {
                "captured": sum(one["captured"] for one in graphs),
                "reason": next((one["reason"] for one in graphs if one["reason"]), None),
            },
        }

    def costs(self, which: int = 0) -> Counter[tuple[str, str]]:
        """What choosing among candidates took, by what and source.

        ``candidates`` written, their ``new_tokens``, ``scored_tokens`` of candidates that a source
        read, and how many ``answers`` of this config a source wrote.
        """
        return self._costs + self._answers[which]

    def cuts_pair(self, context: str, continuation: str) -> bool:
        """Whether some source cannot see all of a context."""
        return any(
            self.members[name].cuts_pair(self._text(name, context), continuation)
            for name in self.used
        )

    def cuts_prompt(self, text: str, params: SamplingParams) -> bool:
        """Whether a text is cut for some source that writes."""
        return any(
            self.members[name].cuts_prompt(self._text(name, text), params) for name in self.writers
        )

    def warn_truncated(self) -> None:
        """Warn once if contexts were cut for some source; each has said for itself how many."""
        if self.truncated:
            what = "longer than the context length of one of the sources"
            warn_once(
                f"{self.truncated} request(s) {what}, which sees them cut from the left. Later "
                "ones are only counted (truncated_requests).",
                what,
            )

    def _text(self, name: str, text: str) -> str:
        """A text as a source reads it, who puts its own BOS where the chat's is another's."""
        bos = self.tokenizer.bos_token
        if bos and self.members[name].tokenizer.bos_token != bos:
            return text.removeprefix(bos)
        return text

    def request(
        self, text: str, params: SamplingParams, points: Points = None
    ) -> GenerationRequest:
        """Refuse: token ids are those of one source.

        Raises:
            TrimixError: Always.
        """
        raise TrimixError(
            "fusion=sequence has no token ids that all sources share.",
            "ask one of them: model.members['large_ins'].request(…)",
        )

    # ---------------------------------------------------------------- scores

    @torch.inference_mode()
    def iter_loglikelihood(
        self,
        pairs: Sequence[tuple[str, str]],
        points: Sequence[Points] | None = None,
        questions: Sequence[Hashable] | None = None,
    ) -> Iterator[tuple[int, int, Score]]:
        """Yield (index, fusion config, score), some hundred pairs after the other.

        A score's `log_likelihood` is the weighted sum; it `is_greedy` if it is so for every source
        of a positive weight.

        Args:
            pairs: (context, continuation).
            points: Nothing: policies weigh everything alike.
            questions: Of no matter, since nothing is chosen.
        """
        for start in range(0, len(pairs), _PAIRS):
            some = pairs[start : start + _PAIRS]
            found: list[dict[str, Score]] = [{} for _ in some]
            with blame(partial(add, start)):
                for name in self.used:
                    own = [(self._text(name, context), target) for context, target in some]
                    for i, _, score in self.members[name].iter_loglikelihood(own):
                        found[i][name] = score
            for i, scores in enumerate(found):
                for which in range(len(self._configs)):
                    yield start + i, which, self._combined(which, scores)

    def _combined(self, which: int, scores: Mapping[str, Score]) -> Score:
        weights = self.weights[which]
        total = math.fsum(w * scores[name].log_likelihood for name, w in weights.items())
        greedy = all(scores[name].is_greedy for name, w in weights.items() if w > 0)
        scored = any(scores[name].choice is not None for name in weights)
        return Score(total, greedy, self.choices[which] if scored else None)

    def iter_rolling(self, texts: Sequence[str]) -> Iterator[tuple[int, int, Score]]:
        """Refuse: there is no distribution over texts whose perplexity would be measured.

        Raises:
            TrimixError: Always.
        """
        raise no_rolling()

    def choose_for_task(
        self,
        contexts: Sequence[str],
        which: int = 0,
        title: str | None = None,
        keeping: bool = True,
    ) -> Choice:
        """The point of a config, which is the same for every task."""
        return self.choices[which]

    # ---------------------------------------------------------------- texts

    @torch.inference_mode()
    def iter_generate(
        self,
        prompts: Sequence[tuple[str, SamplingParams]],
        points: Sequence[Points] | None = None,
    ) -> Iterator[tuple[int, int, Completion]]:
        """Yield (index, fusion config, completion), some prompts after the other.

        Args:
            prompts: Texts, each with how it is to be continued.
            points: Nothing: policies weigh everything alike.
        """
        for start in range(0, len(prompts), _PROMPTS):
            some = prompts[start : start + _PROMPTS]
            with blame(partial(add, start)):
                made, scores = self._made(some)
            for i, candidates in enumerate(made):
                own = {name: found[i] for name, found in scores.items()}
                for which, choice in enumerate(self.choices):
                    best = self._best(which, candidates, own)
                    self._answers[which]["answers", best.writer] += 1
                    yield start + i, which, Completion(best.text, choice, best.finish_reason)

    def _made(
        self, some: Sequence[tuple[str, SamplingParams]]
    ) -> tuple[list[list[CandidateText]], dict[str, list[dict[Event, float]]]]:
        """Of each prompt the candidates, source by source; by source, how likely it finds each."""
        own = {name: [(self._text(name, text), how) for text, how in some] for name in self.used}
        made: list[list[CandidateText]] = [[] for _ in some]
        for name in self.writers:
            written, tokens = write(self.members[name], name, own[name], self.settings.candidates)
            for candidates, mine in zip(made, written, strict=True):
                candidates += mine
            self._costs["candidates", name] += sum(map(len, written))
            self._costs["new_tokens", name] += tokens
        events = [dict.fromkeys(one.event for one in candidates) for candidates in made]
        scores = {}
        for name in self.used:
            scores[name], tokens = likelihoods(self.members[name], own[name], events)
            self._costs["scored_tokens", name] += tokens
        return made, scores

    def _best(
        self,
        which: int,
        candidates: Sequence[CandidateText],
        scores: Mapping[str, Mapping[Event, float]],
    ) -> CandidateText:
        """The candidate of the best score; of equal ones the first in the order of sources."""
        weights = self.weights[which]

        def rank(candidate: CandidateText) -> tuple[bool, float]:
            event = candidate.event
            return candidate.rank(math.fsum(w * scores[n][event] for n, w in weights.items()))

        return max((one for one in candidates if weights.get(one.writer, 0) > 0), key=rank)


def class_of(asked: Settings) -> type[TriMix]:
    """The class that loads what is asked for."""
    return SequenceFusion if asked.fusion == SEQUENCE else TriMix
