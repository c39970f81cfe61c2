"""`TriMixLM`: lm-eval on this side, `TriMix` on that. No mathematics here.

What a run has finished is handed to lm-eval's cache and to the weights log at once, so that Ctrl-C
or a crash loses no more than the batch in hand.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from lm_eval.api.model import CacheHook
from lm_eval.api.registry import register_model

from trimix_lm_eval.fusion.collectors import Choice
from trimix_lm_eval.harness import instances
from trimix_lm_eval.harness.base_lm import Tally, TextLM
from trimix_lm_eval.harness.response_cache import Guard, TaskPoint
from trimix_lm_eval.harness.weights_log import WeightsLog
from trimix_lm_eval.llm import TriMix
from trimix_lm_eval.loading import settings
from trimix_lm_eval.loading.devices import usable
from trimix_lm_eval.loading.provenance import text_digest
from trimix_lm_eval.loading.tokenizer import Points
from trimix_lm_eval.tasklib import places
from trimix_lm_eval.utils import distributed, errors
from trimix_lm_eval.utils.progress import progress_bar

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance


@register_model("trimix")
class TriMixLM(TextLM):
    """Several causal LMs fused at every token, as one lm-eval model.

    Args:
        **arguments: ``--model_args``; see `settings.parse` for the names.

    Raises:
        TrimixError: Something is wrong that the user can mend (printed without a traceback).
    """

    def __init__(self, **arguments: Any) -> None:
        errors.install_excepthook()
        place = distributed.join()
        device = usable(arguments.pop("device", None))
        if place.world > 1:
            device = place.device  # of several processes each has its own
        asked = settings.parse(arguments)
        # Before the models: a path that cannot be written must not cost their loading.
        self._log = WeightsLog(asked.weights_log, place.rank, place.world)
        super().__init__(TriMix.from_settings(asked, device), place)
        self.description = self.model.describe()
        self.guard = Guard()
        self.task_points: dict[str, TaskPoint] = {}
        self.chosen: dict[tuple[str, int], str] = {}
        run = hashlib.sha256(json.dumps(self.description, sort_keys=True).encode()).hexdigest()[:8]
        self._log.stamp = {"run": run, "policy": asked.policy}

    # ---------------------------------------------------------------- the three request types

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Score continuations; see `LM.loglikelihood`."""
        points = self._points(requests)
        pairs = [request.args for request in requests]
        questions = [instances.question_of(request) for request in requests]
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
        jobs = instances.jobs(requests, self.tokenizer, self.model.settings.seed)
        texts = self.model.iter_generate(jobs, self._points(requests))
        results: list[Any] = [None] * len(requests)
        for i, _, made in self._progress(texts, requests, "generate_until", disable_tqdm):
            results[i] = made.text
            cached = jobs[i][1].temperature == 0
            self._finish("generate_until", requests[i], made.text, made.choice, cached)
        return results

    def _progress(
        self, found: Iterator[Any], requests: Sequence[Instance], what: str, disable: bool
    ) -> Iterator[Any]:
        """Pass results on under a progress bar; name the document if one cannot be had."""
        off = disable or self.rank != 0
        with instances.naming(requests):
            yield from progress_bar(found, f"trimix {what}", total=len(requests), off=off)

    def _finish(
        self, kind: str, request: Instance, result: Any, choice: Choice | None, cached: bool = True
    ) -> None:
        """Put a finished request where nothing can lose it."""
        if cached:
            self.cache_hook.add_partial(kind, request.args, result)
        task, doc = str(request.task_name), int(request.doc_id or 0)
        if choice is not None:
            label = instances.label(self.model.fuser.configs[0].policy, choice.weights)
            if self.chosen.get((task, doc)) != label:
                self.chosen[task, doc] = label
                self.guard.keep_chosen(task, doc, label)
            self._log.write(task, doc, request.idx, kind, choice)

    # ---------------------------------------------------------------- one point per task

    def _points(self, requests: Sequence[Instance]) -> list[Points] | None:
        """The point of each request's task, where the policy chooses by task.

        A point is stored before any request is scored with it, and read again on resume: then
        only the remaining requests arrive, and their prompts would choose otherwise.

        Raises:
            TrimixError: The cache file's point was chosen from other prompts.
        """
        policy = self.model.fuser.configs[0].policy
        if policy.scope != "task":
            return None
        arrived = instances.prompts(requests, self.model.settings.seed)
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

    def _choose_points(self, arrived: dict[str, dict[int, str]], most: int) -> None:
        """Draw prompts over all processes, choose on each of them alike, and store."""
        new = {t: found for t, found in arrived.items() if t not in self.task_points}
        for task, prompts in instances.drawn(new, most, self.world_size).items():
            title = None if self.rank else f"trimix {task}: weights"
            choice = self.model.choose_for_task(list(prompts.values()), title=title)
            point = TaskPoint(choice.weights, {p: text_digest(t) for p, t in prompts.items()})
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
        for points in distributed.exchanged(self.guard.task_points(), self.world_size):
            for task, point in points.items():
                self.task_points[task] = point
                self.guard.keep_task_point(task, point)
        for task, doc, label in self.guard.chosen():
            self.chosen[task, doc] = label

    def tally(self) -> Tally:
        """What this process has counted."""
        return Tally(self.chosen, self.model.truncated, self.model.speculation.account, {})

    def get_model_info(self) -> dict[str, Any]:
        """What the results file records: sources, revisions, policy, weights chosen per task."""
        return self.info(self.description, self.task_points, places.USED)
