"""`TriMixLM`: lm-eval on this side, `TriMix` on that. No mathematics here.

What a run has finished is handed to lm-eval's cache and to the weights log at once, so that Ctrl-C
or a crash loses no more than the batch in hand.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from lm_eval.api.model import CacheHook, TemplateLM
from lm_eval.api.registry import register_model
from tqdm import tqdm

from trimix_lm_eval import __version__, errors, prefill, processes, scoring, settings
from trimix_lm_eval.codec import Points, seed_for
from trimix_lm_eval.gen_kwargs import generation
from trimix_lm_eval.provenance import Guard, TaskPoint, describe, text_digest
from trimix_lm_eval.readers import Choice
from trimix_lm_eval.speculation import Account
from trimix_lm_eval.tasklib import places
from trimix_lm_eval.trimix import TriMix
from trimix_lm_eval.weights import Weights
from trimix_lm_eval.weights_log import WeightsLog

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance


@register_model("trimix")
class TriMixLM(TemplateLM):
    """Several causal LMs fused at every token, as one lm-eval model.

    Args:
        **arguments: ``--model_args``; see `settings.parse` for the names.

    Raises:
        TrimixError: Something is wrong that the user can mend (printed without a traceback).
    """

    backend = "causal"

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        errors.install_excepthook()
        self._rank, self._world_size, own = processes.join()
        device = _usable(arguments.pop("device", None))
        if self._world_size > 1:
            device = own  # of several processes each has its own
        asked = settings.parse(arguments)
        # Before the models: a path that cannot be written must not cost their loading.
        self._log = WeightsLog(asked.weights_log, self.rank, self.world_size)
        self.model = TriMix.from_settings(asked, device)
        self.tokenizer = self.model.tokenizer
        self._device = self.model.fuser.ensemble.device
        self.description = describe(self.model)
        self.guard = Guard()
        self.task_points: dict[str, TaskPoint] = {}
        self.chosen: dict[tuple[str, int], str] = {}
        # Over all processes, once they have told:
        self.truncated = 0
        self.account: Account | None = None
        run = hashlib.sha256(json.dumps(self.description, sort_keys=True).encode()).hexdigest()[:8]
        self._log.stamp = {"run": run, "policy": asked.policy}

    # ---------------------------------------------------------------- the three request types

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Score continuations; see `LM.loglikelihood`."""
        points = self._points(requests)
        pairs = [request.args for request in requests]
        questions = [(request.task_name, request.doc_id) for request in requests]
        scores = self.model.iter_loglikelihood(pairs, points, questions)
        results: list[Any] = [None] * len(requests)
        for i, _, score in self._progress(scores, requests, "loglikelihood", disable_tqdm):
            results[i] = (score.log_likelihood, score.is_greedy)
            self._finish("loglikelihood", requests[i], results[i], score.choice)
        return results

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Score whole texts; see `LM.loglikelihood_rolling`."""
        scores = self.model.iter_rolling([r.args[0] for r in requests])
        results: list[Any] = [None] * len(requests)
        what = "loglikelihood_rolling"
        for i, _, score in self._progress(scores, requests, what, disable_tqdm):
            results[i] = score.log_likelihood
            self._finish(what, requests[i], results[i], score.choice)
        return results

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continue prompts; see `LM.generate_until`."""
        eos = self.tokenizer.decode([self.tokenizer.eos_token_id])
        seen: Counter[tuple[Any, ...]] = Counter()
        jobs = []
        for request in requests:
            context, kwargs = request.args
            # Repeats of one request are draws of their own; greedy ones come out equal anyway.
            key = (request.task_name, request.doc_id, request.idx)
            seed = seed_for(self.model.settings.seed, *key, seen[key])
            seen[key] += 1
            jobs.append((context, generation(kwargs, eos, seed)))
        texts = self.model.iter_generate(jobs, self._points(requests))
        results: list[Any] = [None] * len(requests)
        for i, _, made in self._progress(texts, requests, "generate_until", disable_tqdm):
            results[i] = made.text
            cached = jobs[i][1].temperature == 0
            self._finish("generate_until", requests[i], made.text, made.choice, cached)
        return results

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Score pairs that are token ids already."""
        wanted = [
            scoring.Request(prefill.Prompt(tuple(context)), tuple(target))
            for _, context, target in requests
        ]
        scores = scoring.score(
            self.model.fuser, wanted, self.model.batch_size, self.model.max_length
        )
        found = {i: score for i, _, score in scores}
        return [(found[i].log_likelihood, found[i].is_greedy) for i in range(len(wanted))]

    def _progress(
        self, found: Iterator[Any], requests: Sequence[Instance], what: str, disable: bool
    ) -> Iterator[Any]:
        """Pass results on under a progress bar; name the document if one cannot be had."""
        off = disable or self.rank != 0
        try:
            yield from tqdm(found, total=len(requests), desc=f"trimix {what}", disable=off)
        except errors.NotFinite as error:
            at = requests[error.at]
            where = f"Task {at.task_name}, document {at.doc_id}, option {at.idx}"
            raise errors.TrimixError(f"{where}. {error}") from error

    def _finish(
        self, kind: str, request: Instance, result: Any, choice: Choice | None, cached: bool = True
    ) -> None:
        """Put a finished request where nothing can lose it."""
        if cached:
            self.cache_hook.add_partial(kind, request.args, result)
        task, doc = str(request.task_name), int(request.doc_id or 0)
        if choice is not None:
            label = self._label(choice.weights)
            if self.chosen.get((task, doc)) != label:
                self.chosen[task, doc] = label
                self.guard.keep_chosen(task, doc, label)
            self._log.write(task, doc, request.idx, kind, choice)

    def _label(self, weights: Weights) -> str:
        """A point of a grid by its name; a continuous choice to the nearest tenth."""
        policy = self.model.fuser.recipes[0].policy
        if policy.scope == "token" or policy.continuous:
            alpha, beta = round(weights.alpha, 1), round(weights.beta, 1)
            gamma = None if weights.gamma is None else round(weights.gamma, 1)
            weights = Weights(alpha, beta, None if gamma == alpha else gamma)
        return weights.label()

    # ---------------------------------------------------------------- one point per task

    def _points(self, requests: Sequence[Instance]) -> list[Points] | None:
        """The point of each request's task, where the policy chooses by task.

        A point is stored before any request is scored with it, and read again on resume: then
        only the remaining requests arrive, and their prompts would choose otherwise.

        Raises:
            TrimixError: The cache file's point was chosen from other prompts.
        """
        policy = self.model.fuser.recipes[0].policy
        if policy.scope != "task":
            return None
        arrived = self._prompts(requests)
        for task, found in arrived.items():
            point = self.task_points.get(task)
            if point and not all(point.fits(p, t, policy.task_prompts) for p, t in found.items()):
                if self.guard.is_file:
                    raise errors.TrimixError(
                        f"The cache file's point for {task} was chosen from other prompts (another "
                        "--limit, num_fewshot, chat template or system instruction).",
                        "give this run a --use_cache path of its own",
                    )
                del self.task_points[task]
        if set(arrived) - set(self.task_points):  # on every process alike: see set_cache_hook
            self._choose_points(arrived, policy.task_prompts)
        return [(self.task_points[str(r.task_name)].weights,) for r in requests]

    def _prompts(self, requests: Sequence[Instance]) -> dict[str, dict[int, str]]:
        """The prompts of each task by their place in the draw, which the seed alone decides.

        Of a document whose options differ in context, the first; an empty context, with which
        some metrics ask for the answer alone, only if there is no other.
        """
        seed = self.model.settings.seed
        found: dict[str, dict[int, str]] = {}
        for request in sorted(requests, key=lambda r: (bool(r.args[0]), -r.idx)):
            task, doc = str(request.task_name), int(request.doc_id or 0)
            found.setdefault(task, {})[seed_for(seed, task, doc)] = request.args[0]
        return found

    def _choose_points(self, arrived: dict[str, dict[int, str]], most: int) -> None:
        """Draw prompts over all processes, choose on each of them alike, and store."""
        new = {t: found for t, found in arrived.items() if t not in self.task_points}
        mine = {task: sorted(found.items())[:most] for task, found in new.items()}
        together: dict[str, dict[int, str]] = {}
        for part in processes.exchanged(mine, self.world_size):
            for task, items in part.items():
                together.setdefault(task, {}).update(items)
        for task, prompts in sorted(together.items()):
            read = sorted(prompts.items())[:most]
            choice = self.model.choose_for_task([text for _, text in read])
            point = TaskPoint(choice.weights, {place: text_digest(t) for place, t in read})
            self.task_points[task] = point
            self.guard.keep_task_point(task, point)

    # ---------------------------------------------------------------- lm-eval's cache and results

    def set_cache_hook(self, cache_hook: CacheHook) -> None:
        """Take lm-eval's response cache, if it is this run's own.

        Raises:
            TrimixError: It holds another run's answers.
        """
        super().set_cache_hook(cache_hook)
        self.guard = Guard(cache_hook.dbdict)
        self.guard.claim(self.description)
        for points in processes.exchanged(self.guard.task_points(), self.world_size):
            for task, point in points.items():
                self.task_points[task] = point
                self.guard.keep_task_point(task, point)
        for task, doc, label in self.guard.chosen():
            self.chosen[task, doc] = label

    def get_model_info(self) -> dict[str, Any]:
        """What the results file records: sources, revisions, policy, weights chosen per task."""
        sources = self.model.fuser.ensemble.sources
        histogram: dict[str, Counter[str]] = {}
        for (task, _), label in self.chosen.items():
            histogram.setdefault(task, Counter())[label] += 1
        large = self.model.settings.sources["large_ins"]
        return {
            "model_num_parameters": sum(s.model.num_parameters() for s in sources),
            "model_dtype": str(sources[0].dtype),
            "model_revision": large.revision,
            "model_sha": self.model.report.commits.get("large_ins") or "",
            "trimix": {
                "version": __version__,
                **self.description,
                "weights_chosen": {t: dict(c.most_common()) for t, c in sorted(histogram.items())},
                "task_points": {
                    task: point.weights.label() for task, point in sorted(self.task_points.items())
                },
                "speculation": self.model.speculation.summary(self.account),
                "truncated_requests": self.truncated or self.model.truncated,
                "data": dict(sorted(places.USED.items())),
            },
        }

    # ---------------------------------------------------------------- several processes

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """Concatenate a tensor over all processes."""
        return processes.concatenated(tensor, self.world_size)

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        """Collect an object from every process on ``dst``; None elsewhere.

        What a process counted travels along: `get_model_info` is asked on one process alone, too
        late to ask the others.
        """
        mine = (obj, self.chosen, self.model.truncated, self.model.speculation.account)
        parts = processes.collected(mine, self.rank, self.world_size, dst)
        if parts is None:
            return None
        self.truncated, self.account = 0, Account()
        for _, chosen, truncated, account in parts:
            self.chosen.update(chosen)
            self.truncated += truncated
            self.account = self.account.plus(account)
        return [part[0] for part in parts]

    def barrier(self) -> None:
        """Wait for all processes."""
        processes.wait(self.world_size)

    # ---------------------------------------------------------------- text

    @property
    def eot_token_id(self) -> int:
        """End of text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """The token before a text that has no context."""
        return self.model.codec.prefix_id

    @property
    def max_length(self) -> int:
        """Context length in tokens: the smallest of the sources'."""
        return self.model.max_length

    @property
    def max_gen_toks(self) -> int:
        """New tokens where a task names no number."""
        return 256

    @property
    def batch_size(self) -> int:
        """Rows per forward pass."""
        return self.model.batch_size

    @property
    def tokenizer_name(self) -> str:
        """A name for lm-eval's cache of requests."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Token ids of a text."""
        return self.model.codec.encode(string, add_special_tokens)

    def tok_decode(self, tokens: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of token ids."""
        return str(self.tokenizer.decode(tokens, skip_special_tokens=skip_special_tokens))

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Render a chat; a template that knows no system role gets the chat without it."""
        import jinja2

        thinking = self.model.settings.enable_thinking
        extra = {} if thinking is None else {"enable_thinking": thinking}

        def render(messages: list[dict[str, str]]) -> str:
            return str(
                self.tokenizer.apply_chat_template(
                    messages,
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                    continue_final_message=not add_generation_prompt,
                    **extra,
                )
            )

        if not self.tokenizer.chat_template:
            raise errors.TrimixError(
                "The tokenizer in use has no chat template.",
                "leave out --apply_chat_template, or name the tokenizer of an instruction-tuned "
                "model with tokenizer=",
            )
        try:
            return render(chat_history)
        except jinja2.exceptions.TemplateError as error:
            if not any(message["role"] == "system" for message in chat_history):
                raise errors.TrimixError(
                    f"The chat template fails: {error}",
                    "leave out --apply_chat_template, or try --fewshot_as_multiturn true",
                ) from error
            errors.warn_once("The chat template refuses the system role: it is left out.")
            return render([m for m in chat_history if m["role"] != "system"])


def _usable(device: str | None) -> str | None:
    """The ``--device`` of lm-eval, whose default is cuda:0 even where there is no GPU."""
    if device in ("cuda", "cuda:0") and not torch.cuda.is_available():
        return None
    return device
