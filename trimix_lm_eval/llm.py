"""The Python face of TriMix: text in, numbers or text out.

    from trimix_lm_eval import TriMix

    model = TriMix.from_pretrained("demo", policy="ppl")
    model.loglikelihood([("The capital of Tibet is", " Lhasa")])
    model.generate(["Once upon a time"], max_new_tokens=32)

`TriMix` checks and loads the sources (`loading`) and puts them together with the engine (`engine`);
its methods turn texts into requests of token ids, and the engine's outputs into texts again.
lm-eval's model (`harness.lm`) loads through it, and then hands its requests to the engine directly.

Imported by `harness`, `analysis`, `sweep` and `cli`; imports `loading`, `engine`, `fusion` and
`utils`. Long, since each method of the public class documents its arguments in full.
"""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter
from collections.abc import Collection, Hashable, Iterator, MutableMapping, Sequence
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch

from trimix_lm_eval.engine import graph_decoder, rolling, scheduler, scorer
from trimix_lm_eval.engine.model_runner import Ensemble, Fuser, ModelRunner, choice_of
from trimix_lm_eval.engine.prefill import cut
from trimix_lm_eval.engine.probe import described, load_runner
from trimix_lm_eval.engine.request import Prompt, Score, ScoringRequest
from trimix_lm_eval.engine.sampler import SamplingParams
from trimix_lm_eval.engine.sequence import FinishReason, GenerationRequest
from trimix_lm_eval.engine.spec_decode import Speculation
from trimix_lm_eval.engine.thinking import ThinkingCriteria
from trimix_lm_eval.fusion.collectors import Choice
from trimix_lm_eval.fusion.config import FusionConfig
from trimix_lm_eval.fusion.policies import checks
from trimix_lm_eval.fusion.weights import Weights
from trimix_lm_eval.loading import preflight, settings
from trimix_lm_eval.loading.codec import TextCodec, check_token_ids, seed_for
from trimix_lm_eval.loading.models import load_model
from trimix_lm_eval.loading.provenance import describe, needed
from trimix_lm_eval.loading.settings import Settings, SourceSpec
from trimix_lm_eval.utils.errors import TrimixError, unknown, warn_once
from trimix_lm_eval.utils.progress import progress_bar

T = TypeVar("T")

#: The class for each ``fusion=``.
_CLASSES = {"token": "TriMix", "sequence": "SequenceFusion"}

#: Points chosen elsewhere, one or none per fusion config; None lets every policy choose.
Points = tuple[Weights | None, ...] | None


class Completion(NamedTuple):
    """A generated text.

    Attributes:
        text: The text, without what a stop string cut off.
        choice: The weights that made it; where they are per token, their mean.
        finish_reason: Why it ended: ``stop`` (a stop string), ``eos`` (an end-of-text or other stop
            token) or ``length`` (``max_new_tokens`` reached, or the context full).
        unfinished_thought: Whether it ended before its thinking did: it is empty then.
    """

    text: str
    choice: Choice
    finish_reason: FinishReason
    unfinished_thought: bool = False


class TriMix:
    """Several causal LMs with one tokenizer, fused at every token.

    Most have one fusion config: a policy, and perhaps a mask. A sweep has many, and the sources run
    once for all of them; what users call answers by the first, and the methods that yield by all.

    Args:
        asked: The settings that it was built from; of several fusion configs the first one's.
        tokenizer: The common tokenizer.
        fuser: The loaded sources and the fusion configs.
        report: What the preflight found (commits, lengths).
    """

    #: The ``fusion=`` that this class is.
    fusion: ClassVar[str] = "token"

    def __init__(
        self, asked: Settings, tokenizer: Any, fuser: Fuser, report: preflight.PreflightReport
    ) -> None:
        self.settings, self.tokenizer, self.fuser, self.report = asked, tokenizer, fuser, report
        self.max_length = int(asked.max_length or report.max_length)
        weighting = [config.policy for config in fuser.configs]
        self.codec = TextCodec(tokenizer, asked, weighting, report.vocab_size)
        self.truncated = 0
        self.speculation = Speculation(asked.speculative)
        fuser.ensemble.cuda_graphs = asked.cuda_graphs == "auto"
        #: Rows per forward pass; ``auto`` starts high on a GPU and halves when memory runs out.
        self.batch_size = asked.rows_per_pass(fuser.ensemble.device.type)
        #: By config, the tokens that end a text: the tokenizer's, and those its sources declare.
        self.stop_token_ids = _stop_token_ids(tokenizer, fuser)
        end = asked.think_end_token
        self.thinking = None if end is None else ThinkingCriteria(tokenizer, end)

    @classmethod
    def from_pretrained(cls, large_ins: str, **arguments: Any) -> TriMix:
        """Load the sources.

        Args:
            large_ins: Hub id or folder of the large instruction-tuned model, or ``demo``.
            **arguments: ``small_cpt``, ``small_base``, ``large_base``, ``policy``, the policy's
                options, and everything that ``--model_args`` takes, e.g. ``small_dtype``.

        Raises:
            TrimixError: Something is wrong that the user can fix.
        """
        given = {"large_ins": large_ins, "fusion": cls.fusion, **arguments}
        return cls.from_settings(settings.parse(given))

    @classmethod
    def from_settings(cls, asked: Settings, device: str | None = None) -> TriMix:
        """Check, then load.

        Args:
            asked: What to load.
            device: Where sources go that name no device; None is the first GPU, or the CPU.
        """
        return cls.load_many([asked], device)

    @classmethod
    def load_many(
        cls,
        variants: Sequence[Settings],
        device: str | None = None,
        kept: MutableMapping[SourceSpec, Any] | None = None,
    ) -> TriMix:
        """Check, then load the sources that several variants need, once for all of them.

        Args:
            variants: A fusion config each; they differ in policy and plausibility only.
            device: Where sources go that name no device; None is the first GPU, or the CPU.
            kept: Models loaded before, which are not loaded again; gets those that are.
        """
        asked = variants[0]
        if asked.fusion != cls.fusion:
            raise TrimixError(
                f"fusion={asked.fusion} is not what {_CLASSES[cls.fusion]} does.",
                f"use trimix_lm_eval.{_CLASSES[asked.fusion]}, which has the same methods",
            )
        configs = tuple(v.fusion_config() for v in variants)
        names = needed(asked, configs)
        for config in configs:
            checks.check_collector(config.policy, config.policy.sources(names))
        models = {} if kept is None else kept
        report = preflight.check(asked, names, device, models)
        default = device or ("cuda" if torch.cuda.is_available() else "cpu")
        return cls.load_checked(asked, configs, report, default, models)

    @classmethod
    def load_checked(
        cls,
        asked: Settings,
        configs: tuple[FusionConfig, ...],
        report: preflight.PreflightReport,
        default: str,
        models: MutableMapping[SourceSpec, Any],
    ) -> TriMix:
        """Load the sources that were checked.

        Args:
            asked: What was asked for.
            configs: The fusion configs.
            report: What the preflight found of the sources that these need.
            default: Where sources go that name no device.
            models: Those loaded before, which are not loaded again; gets those that are.
        """
        tokenizer = report.tokenizer
        check_token_ids(asked, report.vocab_size)
        if asked.add_bos_token is not None:
            tokenizer = copy.deepcopy(tokenizer)  # which other runs may have, too
            tokenizer.add_bos_token = asked.add_bos_token
        sources = []
        for name in report.configs:
            long = name in report.contexts.long
            spec = preflight.pinned(asked.sources[name], report.commits[name], long)
            if spec not in models:
                models[spec] = load_model(spec, default, long)
            own = spec.attn_implementation is None
            ids = report.relations[name].own_ids
            sources.append(load_runner(name, models[spec], report.vocab_size, own, ids))
        return cls(asked, tokenizer, Fuser(Ensemble(sources, report.unused_ids), configs), report)

    @property
    def configs(self) -> tuple[FusionConfig, ...]:
        """What is made of the logits, one for each variant."""
        return self.fuser.configs

    @property
    def sources(self) -> list[ModelRunner]:
        """The loaded sources."""
        return self.fuser.ensemble.sources

    def runtime(self, names: Collection[str]) -> dict[str, Any]:
        """How the sources of these names are run, and how many CUDA graphs were captured."""
        related = self.report.relations
        return {
            "sources": {
                one.name: {"vocabulary": related[one.name].kind, **described(one)}
                for one in self.sources
                if one.name in names
            },
            "cuda_graphs": graph_decoder.told(self.fuser),
        }

    def costs(self, which: int = 0) -> Counter[tuple[str, str]]:
        """What choosing among texts took, by what and source; nothing where none are chosen from.

        Args:
            which: Index of the fusion config.
        """
        return Counter()

    def cuts_pair(self, context: str, continuation: str) -> bool:
        """Whether a context is longer than what is left of the context length."""
        prompt, target = self.codec.pair(context, continuation)
        return scorer.is_cut(ScoringRequest(Prompt(*prompt), target), self.max_length)

    def cuts_prompt(self, text: str, params: SamplingParams) -> bool:
        """Whether a text is cut to leave room for the new tokens."""
        return len(self.codec.encode(text)) > self.max_length - params.max_new_tokens

    def part(self, which: Sequence[int]) -> TriMix:
        """The same loaded sources with some of the configs; drafts are counted together."""
        fuser = Fuser(self.fuser.ensemble, tuple(self.fuser.configs[i] for i in which))
        part = TriMix(self.settings, self.tokenizer, fuser, self.report)
        part.speculation = self.speculation
        return part

    def describe(self, which: int = 0) -> dict[str, Any]:
        """What the numbers of one fusion depend on; see `provenance.describe`.

        Args:
            which: Index of the fusion config.
        """
        dtypes = {s.name: str(s.dtype).removeprefix("torch.") for s in self.fuser.ensemble.sources}
        return describe(
            self.settings,
            self.fuser.configs[which],
            self.report.commits,
            dtypes,
            self.max_length,
            self.tokenizer,
            self.codec.puts_bos,
        )

    # ---------------------------------------------------------------- what users call

    def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> list[Score]:
        """Log-likelihood of each continuation given its context.

        Args:
            pairs: (context, continuation); pairs with equal contexts are options of one question
                and share its weights.

        Returns:
            Scores in the order of the pairs, natural logarithm.
        """
        if any(isinstance(pair, str) or len(pair) != 2 for pair in pairs):
            raise TrimixError(
                "loglikelihood takes a list of (context, continuation) pairs.",
                'e.g. model.loglikelihood([("The capital of Tibet is", " Lhasa")])',
            )
        found = _by_first(self.iter_loglikelihood(pairs))
        return [found[i] for i in range(len(pairs))]

    def loglikelihood_rolling(self, texts: Sequence[str]) -> list[Score]:
        """Log-likelihood of whole texts, each token after as much context as fits."""
        _check_list(texts, "loglikelihood_rolling")
        found = _by_first(self.iter_rolling(texts))
        return [found[i] for i in range(len(texts))]

    def generate(self, texts: Sequence[str], **options: Any) -> list[str]:
        """Continue texts.

        Args:
            texts: The prompts.
            **options: ``max_new_tokens``, ``stop``, ``temperature``, ``top_k``, ``top_p`` and
                ``seed``, as in `SamplingParams`. Of one seed every text, and every repetition of a
                text, makes draws of its own.

        Returns:
            Strings, on purpose: only the new texts, in the order of the prompts. `complete` takes
            the same and returns completions, which know their weights and their `finish_reason`.
        """
        _check_list(texts, "generate")
        return [completion.text for completion in self.complete(texts, **options)]

    def complete(self, texts: Sequence[str], **options: Any) -> list[Completion]:
        """Continue texts, and tell why each of them ended and which weights made it.

        Args:
            texts: The prompts.
            **options: As for `generate`, which returns only the strings.

        Returns:
            Completions in the order of the prompts: ``text``, ``choice`` (the weights) and
            ``finish_reason`` (``stop``, ``eos`` or ``length``).
        """
        _check_list(texts, "complete")
        for option in options:
            if option not in SamplingParams.__dataclass_fields__:
                raise unknown("option of generate", option, SamplingParams.__dataclass_fields__)
        params = SamplingParams(**options)
        seen: Counter[str] = Counter()
        prompts = []
        for text in texts:
            # The same text again is another draw, and which is which depends on no other text.
            seed = seed_for(params.seed, text, seen[text])
            prompts.append((text, dataclasses.replace(params, seed=seed)))
            seen[text] += 1
        found = _by_first(self.iter_generate(prompts))
        return [found[i] for i in range(len(texts))]

    # ---------------------------------------------------------------- the same, as they finish

    @torch.inference_mode()
    def iter_loglikelihood(
        self,
        pairs: Sequence[tuple[str, str]],
        points: Sequence[Points] | None = None,
        questions: Sequence[Hashable] | None = None,
    ) -> Iterator[tuple[int, int, Score]]:
        """Yield (index, fusion config, score) as soon as each is known.

        Args:
            pairs: (context, continuation).
            points: Per pair, weights chosen elsewhere, one or None for each config; None lets the
                policies choose.
            questions: What each pair is an option of. Options that differ in context share the
                weights of the part that their contexts have in common. None: a question is a
                context.
        """
        requests = []
        for i, (context, continuation) in enumerate(pairs):
            tokens, target = self.codec.pair(context, continuation)
            prompt = Prompt(*tokens, points[i] if points else None)
            requests.append(ScoringRequest(prompt, target, questions[i] if questions else None))
        self.truncated += sum(scorer.is_cut(request, self.max_length) for request in requests)
        self.warn_truncated()
        yield from scorer.score(self.fuser, requests, self.batch_size, self.max_length)

    @torch.inference_mode()
    def iter_rolling(self, texts: Sequence[str]) -> Iterator[tuple[int, int, Score]]:
        """Yield (index, fusion config, score of the whole text) as soon as each is known."""
        documents = [self.codec.windows(text, self.max_length) for text in texts]
        yield from rolling.score_rolling(self.fuser, documents, self.batch_size)

    @torch.inference_mode()
    def iter_generate(
        self,
        prompts: Sequence[tuple[str, SamplingParams]],
        points: Sequence[Points] | None = None,
    ) -> Iterator[tuple[int, int, Completion]]:
        """Yield (index, fusion config, completion) as soon as each is finished.

        Args:
            prompts: Texts, each with how it is to be continued.
            points: Per prompt, weights chosen elsewhere, one or None for each config; None lets
                the policies choose.
        """
        requests = [
            self.request(text, params, points[i] if points else None)
            for i, (text, params) in enumerate(prompts)
        ]
        self.warn_truncated()
        outputs = scheduler.generate(self.fuser, requests, self.batch_size, self.speculation)
        for i, which, output in outputs:
            ids, choice, reason, answer = output
            text = self.codec.completion(ids, prompts[i][1].stop, answer)
            yield i, which, Completion(text, choice, reason, answer is None)

    def request(
        self, text: str, params: SamplingParams, points: Points = None
    ) -> GenerationRequest:
        """A text to be continued, as token ids; what leaves no room for the new ones is cut off.

        Raises:
            TrimixError: The new tokens leave no room for a prompt.
        """
        prompt = Prompt(*self.codec.prompt(text), points)
        made = GenerationRequest.fitted(
            prompt, params, self.stop_token_ids, self.tokenizer, self.max_length, self.thinking
        )
        self.truncated += len(made.prompt.ids) < len(prompt.ids)
        return made

    @torch.inference_mode()
    def choose_for_task(
        self,
        contexts: Sequence[str],
        which: int = 0,
        title: str | None = None,
        keeping: bool = True,
    ) -> Choice:
        """One point of a config for a whole task, from some of its prompts (see `TaskPerplexity`).

        Args:
            contexts: The prompts.
            which: Index of the fusion config.
            title: Of a progress bar; None shows none.
            keeping: Whether the prompts as they were run are kept for what is asked of them later.
        """
        only = self.part([which])  # with a codec that marks what this policy is shown
        whole = [Prompt(*only.codec.prompt(text)) for text in contexts]
        prompts = [cut(prompt, self.max_length) for prompt in whole]
        made = scorer.collect_prompts(only.fuser, prompts, self.batch_size, keeping=keeping)
        off = title is None
        read = dict(progress_bar(made, title or "", total=len(prompts), unit="prompt", off=off))
        found = [mine for i in range(len(prompts)) if (mine := read[i]) is not None]
        collectors = [one for mine in found for one in mine.collectors.values()]
        return choice_of(self.configs[which].policy, collectors, only.fuser.ensemble.names)

    def warn_truncated(self) -> None:
        """Warn once if contexts were cut."""
        if self.truncated:
            sources = self.sources
            whose = f" of {sources[0].name}" if len(sources) == 1 else ""
            what = f"longer than the context length{whose} of {self.max_length} tokens"
            warn_once(
                f"{self.truncated} request(s) {what}: their contexts are cut from the left. Later "
                "ones are only counted (truncated_requests).",
                what,
            )


def _stop_token_ids(tokenizer: Any, fuser: Fuser) -> tuple[frozenset[int], ...]:
    """By fusion config, the tokens that end a text."""
    declared: dict[str, set[int]] = {}
    for source in fuser.ensemble.sources:
        ends = getattr(source.model.generation_config, "eos_token_id", None)
        many = ends if isinstance(ends, (list, tuple)) else [ends]
        declared[source.name] = source.common_ids(int(end) for end in many if end is not None)
    eos = tokenizer.eos_token_id
    own = set() if eos is None else {int(eos)}
    return tuple(
        frozenset(own.union(*(declared[name] for name in config.policy.sources(declared))))
        for config in fuser.configs
    )


def _by_first(found: Iterator[tuple[int, int, T]]) -> dict[int, T]:
    """What the first fusion config answers, by index."""
    return {i: result for i, which, result in found if which == 0}


def _check_list(texts: Sequence[str], method: str) -> None:
    """A single text would be taken for a list of its characters."""
    if isinstance(texts, str):
        raise TrimixError(f"{method} takes a list of texts, not one text.", f"{method}([text])")
