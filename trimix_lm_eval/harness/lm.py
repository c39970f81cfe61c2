"""`TriMixLM`: lm-eval's requests in, the engine's answers out. No mathematics here.

A request of lm-eval (`Instance`) becomes token ids (`loading.codec`) and goes to the engine's
scheduler or scorer, without a layer in between. What a run has finished is handed to the response
cache and to the weights log at once, so that Ctrl-C or a crash loses no more than the batch in
hand.

Longer than most modules: lm-eval calls one class for all three kinds of request, and what each kind
says is read where it is answered. `SequenceLM` is what the model is with ``fusion=sequence``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook
from lm_eval.api.registry import register_model
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs

from trimix_lm_eval.engine import scheduler, scorer
from trimix_lm_eval.engine.model_runner import NotFinite
from trimix_lm_eval.engine.request import Prompt, ScoringRequest
from trimix_lm_eval.engine.sampler import SamplingParams
from trimix_lm_eval.engine.sequence import GenerationRequest, recorded
from trimix_lm_eval.fusion.collectors import Choice
from trimix_lm_eval.fusion.weights import Weights
from trimix_lm_eval.harness import request_cache, response_cache
from trimix_lm_eval.harness.base_lm import Identity, Tally, TextLM, label
from trimix_lm_eval.harness.response_cache import (
    CachedAnswer,
    ResponseCache,
    TaskPoint,
    answer_keys,
)
from trimix_lm_eval.harness.task_weights import TaskWeights
from trimix_lm_eval.harness.weights_log import WeightsLog
from trimix_lm_eval.llm import Points, TriMix
from trimix_lm_eval.loading import settings
from trimix_lm_eval.loading.codec import seed_for, whole_characters
from trimix_lm_eval.loading.run_config import usable
from trimix_lm_eval.loading.sequence import SEQUENCE
from trimix_lm_eval.sequence_fusion import SequenceFusion
from trimix_lm_eval.tasklib import places
from trimix_lm_eval.utils import distributed, errors, validation
from trimix_lm_eval.utils.errors import TrimixError, unknown
from trimix_lm_eval.utils.progress import progress_bar

_READ = ("until", "max_gen_toks", "do_sample", "temperature", "top_p", "top_k")
#: Names that other backends know: accepted where they change nothing, with this value.
_NEUTRAL: dict[str, Any] = {
    "num_beams": 1,
    "num_beam_groups": 1,
    "num_return_sequences": 1,
    "repetition_penalty": 1.0,
    "length_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "min_p": 0.0,
    "early_stopping": False,
    "use_cache": True,
}

#: Of each request as it is finished: its place, the result, the choice, why its text ended.
Found = Iterator[tuple[int, Any, Choice | None, str | None]]


@register_model("trimix")
class TriMixLM(TextLM):
    """Several causal LMs fused at every token, as one lm-eval model.

    Args:
        **arguments: ``--model_args``; see `settings.parse` for the names.

    Raises:
        TrimixError: Something is wrong that the user can fix (printed without a traceback).
    """

    model_class: ClassVar[type[TriMix]] = TriMix

    @classmethod
    def class_for(cls, arguments: Mapping[str, Any]) -> type[TriMixLM]:
        """The class that the arguments ask for: ``fusion=sequence`` has one of its own."""
        return SequenceLM if arguments.get("fusion") == SEQUENCE else cls

    def __init__(self, **arguments: Any) -> None:
        errors.install_excepthook()
        request_cache.install()
        response_cache.install()
        env = distributed.join()
        device = arguments.pop("device", None)
        usable(device)  # or an error
        if env.world > 1:
            device = env.device  # of several processes each has its own
        asked = settings.parse(arguments)
        # Before the models: a path that cannot be written must not cost their loading.
        self._log = WeightsLog(asked.weights_log, env.rank, env.world)
        super().__init__(self.model_class.from_settings(asked, device), env)
        self.description = self.model.describe()
        self.response_cache: ResponseCache | None = None
        self.policy = self.model.configs[0].policy
        self.task_points: dict[str, TaskPoint] = {}
        self.task_weights = TaskWeights(self.model, env.rank, env.world, self.task_points)
        #: By task and document; of several requests the last one's.
        self.weights: dict[tuple[str, int], Weights] = {}
        self.finish_reasons: dict[Identity, str] = {}
        self._log.begin(self.description)

    # ---------------------------------------------------------------- the three request types

    @torch.inference_mode()
    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Score continuations; see `LM.loglikelihood`."""
        model = self.model
        if model.settings.enable_thinking:
            self.refuse_thinking(requests)
        points = self._points(requests)
        wanted = []
        for i, request in enumerate(requests):
            tokens, target = model.codec.pair(*request.args)
            prompt = Prompt(*tokens, points[i] if points else None)
            wanted.append(ScoringRequest(prompt, target, question_of(request)))
        self._truncated(requests, (scorer.is_cut(one, model.max_length) for one in wanted))

        def score(todo: Sequence[int]) -> Found:
            some = [wanted[i] for i in todo]
            scores = scorer.score(model.fuser, some, model.batch_size, model.max_length)
            for i, _, one in scores:
                yield todo[i], (one.log_likelihood, one.is_greedy), one.choice, None

        return self._answers("loglikelihood", requests, points, score, disable_tqdm)

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Score whole texts; see `LM.loglikelihood_rolling`."""

        def score(todo: Sequence[int]) -> Found:
            for i, _, one in self.model.iter_rolling([requests[i].args[0] for i in todo]):
                yield todo[i], one.log_likelihood, one.choice, None

        return self._answers("loglikelihood_rolling", requests, None, score, disable_tqdm)

    @torch.inference_mode()
    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continue prompts; see `LM.generate_until`."""
        model = self.model
        points = self._points(requests)
        names = identified(requests)
        params = sampling_params(requests, names, self.tokenizer, model.settings.seed)
        prompts = [
            Prompt(*model.codec.prompt(request.args[0]), points[i] if points else None)
            for i, request in enumerate(requests)
        ]
        wanted = [
            GenerationRequest.fitted(
                prompt, how, model.stop_token_ids, self.tokenizer, model.max_length, model.thinking
            )
            for prompt, how in zip(prompts, params, strict=True)
        ]
        cut = (len(a.prompt.ids) < len(b.ids) for a, b in zip(wanted, prompts, strict=True))
        self._truncated(requests, cut)

        def generate(todo: Sequence[int]) -> Found:
            some = [wanted[i] for i in todo]
            outputs = scheduler.generate(model.fuser, some, model.batch_size, model.speculation)
            for i, _, output in outputs:
                text = model.codec.completion(output.token_ids, params[todo[i]].stop, output.answer)
                reason = recorded(output.finish_reason, output.answer is None)
                yield todo[i], text, output.choice, reason

        return self._answers("generate_until", requests, points, generate, disable_tqdm)

    def _answers(
        self,
        kind: str,
        requests: Sequence[Instance],
        points: Sequence[Points] | None,
        make: Callable[[Sequence[int]], Found],
        quiet: bool,
    ) -> list[Any]:
        """Take what the response cache has, make the rest, and keep it as it finishes.

        `points` are those of each request's task, where the policy chooses by task; `make` gives,
        from the places of requests, what is found of them.
        """
        names, cache = identified(requests), self.response_cache
        keys = answer_keys(kind, requests, names, points) if cache else []
        made: list[CachedAnswer | None] = [None] * len(requests)
        if cache is not None:
            made = [cache.answer(key) for key in keys]
        # Options of a question share the choice of its weights: they are scored together.
        lacking = {name[:2] for name, answer in zip(names, made, strict=True) if answer is None}
        todo = [i for i, name in enumerate(names) if name[:2] in lacking]
        with naming([requests[i] for i in todo]):
            found: Iterable[Any] = make(todo) if todo else ()
            if not quiet and self.rank == 0:
                done = len(requests) - len(todo)
                found = progress_bar(found, f"trimix {kind}", total=len(requests), initial=done)
            for i, result, choice, reason in found:
                made[i] = answer = CachedAnswer(result, choice and choice.weights, reason)
                if cache is not None:
                    cache.keep(keys[i], answer)
                if choice is not None and self._log.stream and counts(requests[i], names[i]):
                    self._log.write(names[i], kind, choice, reason)
        # In the order of the requests, whichever finished first.
        answers = [answer for answer in made if answer is not None]
        for request, name, answer in zip(requests, names, answers, strict=True):
            if answer.finish_reason is not None and counts(request, name):
                self.finish_reasons[name] = answer.finish_reason
            if answer.weights is not None and counts(request, name):
                self.weights[str(request.task_name), int(request.doc_id or 0)] = answer.weights
        return [answer.result for answer in answers]

    def _truncated(self, requests: Sequence[Instance], cut: Iterable[bool]) -> None:
        found = zip(requests, identified(requests), cut, strict=True)
        self.model.truncated += sum(long and counts(one, name) for one, name, long in found)
        if self.model.truncated:
            self.model.warn_truncated()

    def _points(self, requests: Sequence[Instance]) -> list[Points] | None:
        """The point of each request's task, where the policy chooses by task."""
        if self.policy.scope != "task":
            return None
        return self.task_weights.of(requests, self.response_cache)

    # ---------------------------------------------------------------- lm-eval's cache and results

    def set_cache_hook(self, cache_hook: CacheHook) -> None:
        """Take lm-eval's response cache, if it is this run's own.

        Raises:
            TrimixError: It holds another run's answers.
        """
        super().set_cache_hook(cache_hook)
        store = cache_hook.dbdict
        if store is None:
            self.response_cache = None
            return
        self.response_cache = ResponseCache(store.filename, store.tablename)
        self.response_cache.claim(self.description)

    def tally(self) -> Tally:
        """What this process has counted."""
        model = self.model
        chosen = {at: label(self.policy, weights) for at, weights in self.weights.items()}
        stats = model.speculation.stats
        return Tally(chosen, self.finish_reasons, model.truncated, stats, {}, model.costs())

    def get_model_info(self) -> dict[str, Any]:
        """What the results file records: sources, revisions, policy, weights chosen per task."""
        return self.info(self.description, self.task_points, places.USED)


class SequenceLM(TriMixLM):
    """What the model is with ``fusion=sequence``: requests go to a `SequenceFusion` as texts.

    Whole texts are refused as they are asked for: they have no perplexity.
    """

    model_class = SequenceFusion

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Score continuations; see `LM.loglikelihood`."""
        model, pairs = self.model, [request.args for request in requests]
        self._truncated(requests, (model.cuts_pair(*pair) for pair in pairs))

        def score(todo: Sequence[int]) -> Found:
            for i, _, one in model.iter_loglikelihood([pairs[i] for i in todo]):
                yield todo[i], (one.log_likelihood, one.is_greedy), one.choice, None

        return self._answers("loglikelihood", requests, None, score, disable_tqdm)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Choose among continuations; see `LM.generate_until`."""
        model, names = self.model, identified(requests)
        params = sampling_params(requests, names, self.tokenizer, model.settings.seed)
        prompts = [(one.args[0], how) for one, how in zip(requests, params, strict=True)]
        self._truncated(requests, (model.cuts_prompt(*prompt) for prompt in prompts))

        def generate(todo: Sequence[int]) -> Found:
            for i, _, made in model.iter_generate([prompts[i] for i in todo]):
                yield todo[i], made.text, made.choice, recorded(made.finish_reason, False)

        return self._answers("generate_until", requests, None, generate, disable_tqdm)


# -------------------------------------------------------------------- what lm-eval's requests say


def question_of(request: Instance) -> tuple[str | None, int | None]:
    """What a request is an option of."""
    return request.task_name, request.doc_id


def identified(requests: Sequence[Instance]) -> list[Identity]:
    """What tells each request from the others: repeats of one are numbered."""
    seen: Counter[tuple[Any, ...]] = Counter()
    found = []
    for request in requests:
        name = (request.task_name, request.doc_id, request.idx)
        found.append((*name, seen[name]))
        seen[name] += 1
    return found


def counts(request: Instance, name: Identity) -> bool:
    """Whether a request is one of its document's.

    lm-eval gives a process with fewer documents its last request some more times, so that all have
    equally many.
    """
    return name[-1] < max(1, request.repeats or 1)


def sampling_params(
    requests: Sequence[Instance], names: Sequence[Identity], tokenizer: Any, seed: int
) -> list[SamplingParams]:
    """How each text is to be continued; repeats of one request are draws of their own.

    Raises:
        TrimixError: A task's generation arguments are not all understood.
    """
    eos = tokenizer.decode([tokenizer.eos_token_id])
    return [
        read_gen_kwargs(request.args[1], eos, seed_for(seed, *name))
        for request, name in zip(requests, names, strict=True)
    ]


def read_gen_kwargs(kwargs: Mapping[str, Any], eos: str, seed: int) -> SamplingParams:
    """Read a request's ``generation_kwargs``: every name is read, or refused.

    Args:
        kwargs: Those of a task, ``--gen_kwargs`` merged in.
        eos: The end-of-text string, always a stop string.
        seed: Of this request.

    Raises:
        TrimixError: A name or a value that trimix does not take.
    """
    try:
        values: dict[str, Any] = dict(normalize_gen_kwargs(dict(kwargs)))
    except (TypeError, ValueError, OverflowError) as error:
        raise TrimixError(
            f"generation_kwargs cannot be read: {error}",
            "max_gen_toks is a whole number, temperature a number; --gen_kwargs overrides a task",
        ) from error
    for name, neutral in _NEUTRAL.items():
        value = values.pop(name, neutral)
        if value is not None and value != neutral:
            hint = " (trimix decodes without beams)" if name == "num_beams" else ""
            raise TrimixError(
                f"generation_kwargs {name}={value!r} is not supported{hint}.",
                f"leave it out or set {name}={neutral}; --gen_kwargs {name}={neutral} overrides "
                "what a task says",
            )
    for name in values:
        if name not in _READ:
            raise unknown("generation argument", name, [*_READ, *_NEUTRAL])
    until = kwargs.get("until") or []
    strings = until if isinstance(until, list) else [until]
    if not all(type(one) in (str, int, float) for one in strings):
        raise TrimixError(f"generation argument until={until!r:.80} is no list of strings.")
    stop = handle_stop_sequences(list(map(str, strings)), eos)
    most = kwargs.get("max_gen_toks")  # as it was written: lm-eval's reading cuts fractions off
    do_sample = values.get("do_sample")
    if not isinstance(do_sample, bool):
        do_sample = validation.truth("generation argument do_sample", do_sample or "false")
    temperature = _number("temperature", kwargs.get("temperature") if do_sample else None, least=0)
    return SamplingParams(
        max_new_tokens=_whole("max_gen_toks", values["max_gen_toks"] if most is None else most, 1),
        stop=tuple(map(whole_characters, stop)),
        temperature=temperature if do_sample else 0.0,
        top_k=_whole("top_k", values.get("top_k", 0), 0),
        top_p=_number("top_p", values.get("top_p"), most=1, above=0),
        seed=seed,
    )


# Values that are numbers already, as YAML and Python give them, are taken as they are.


def _whole(name: str, value: Any, least: int) -> int:
    if type(value) is int and value >= least:
        return value
    return least if value is None else validation.whole(f"generation argument {name}", value, least)


def _number(name: str, value: Any, **bounds: Any) -> float:
    if value is None:
        return 1.0
    if type(value) in (int, float) and 0 < value <= 1:
        return float(value)
    return validation.number(f"generation argument {name}", value, **bounds)


@contextmanager
def naming(requests: Sequence[Instance]) -> Iterator[None]:
    """Say of a `NotFinite` raised inside which document it belongs to, as a `TrimixError`."""
    try:
        yield
    except NotFinite as error:
        at = requests[error.at]
        where = f"Task {at.task_name}, document {at.doc_id}, option {at.idx}. "
        raise TrimixError(f"{where}{error}") from error
