"""How long a run will take: some of its own requests are answered for a few seconds each.

The run's models, policy and batch size answer them, and the seconds are extrapolated by the
tokens that are run (see `estimate`). How long texts become is taken from those that are written.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import psutil
import torch

from trimix_lm_eval.engine import scheduler
from trimix_lm_eval.engine.spec_decode import NewTokens
from trimix_lm_eval.harness import task_weights
from trimix_lm_eval.harness.estimate import Job, Workload, choosing, count
from trimix_lm_eval.harness.lm import identified, question_of, sampling_params
from trimix_lm_eval.harness.requests import TaskRequests, Unloaded
from trimix_lm_eval.llm import Points, TriMix
from trimix_lm_eval.loading.preflight.memory import gib
from trimix_lm_eval.utils.columns import aligned

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

    from trimix_lm_eval.fusion.weights import Weights

#: Seconds for all tasks together and for a single one; more only where one batch takes longer.
SECONDS, MOST_SECONDS, LEAST_SECONDS = 20.0, 3.0, 0.3


class _Enough(Exception):
    """The time of a probe is up."""


class _Written(NamedTuple):
    """What came of some prompts.

    Attributes:
        prefilling: Seconds until all texts had a token.
        decoding: Seconds after that.
        new: Tokens drawn.
        ended: Texts that ended by themselves.
    """

    prefilling: float
    decoding: float
    new: int
    ended: int


class Probe:
    """A loaded model that answers some requests of each task.

    Args:
        model: The model.
        unloaded: The same run, as it was counted.
        jobs: Its tasks.
    """

    def __init__(self, model: TriMix, unloaded: Unloaded, jobs: Sequence[Job]) -> None:
        self.model, self.unloaded = model, unloaded
        self.budget = min(MOST_SECONDS, max(LEAST_SECONDS, SECONDS / max(1, len(jobs))))

    @torch.inference_mode()
    def seconds(self, job: Job) -> float:
        """What a task's requests of one kind will take."""
        part, work, read = job
        documents = list(part.seen)
        random.Random(0).shuffle(documents)
        points: Points = None
        spent = 0.0
        if read is not None:
            points, spent = self._choose(part, documents, read)
        if part.kind == "generate_until":
            return spent + self._generating(part, documents, work, points)
        some, seconds = self._timed(part, documents, lambda some: self._score(part, some, points))
        return spent + seconds * work.tokens / max(1, count(self.unloaded, part.kind, some).tokens)

    def _timed(
        self,
        part: TaskRequests,
        documents: Sequence[int],
        answer: Callable[[Sequence[Instance]], None],
    ) -> tuple[list[Instance], float]:
        """Answer the requests of more and more documents until it takes long enough.

        Returns:
            The last ones, and what they took.
        """
        answer(_requests(part, documents[:1]))  # what is slow the first time
        number = min(self.model.batch_size, len(documents))
        while True:
            some = _requests(part, documents[:number])
            begun = time.perf_counter()
            answer(some)
            spent = time.perf_counter() - begun
            if number == len(documents) or spent >= self.budget / 2:
                return some, spent
            number = min(2 * number, len(documents))

    def _score(self, part: TaskRequests, requests: Sequence[Instance], points: Points) -> None:
        if part.kind == "loglikelihood_rolling":
            list(self.model.iter_rolling([one.args[0] for one in requests]))
            return
        questions = [question_of(one) for one in requests]
        pairs = [one.args for one in requests]
        list(self.model.iter_loglikelihood(pairs, [points] * len(pairs), questions))

    def _choose(
        self, part: TaskRequests, documents: Sequence[int], read: Workload
    ) -> tuple[Points, float]:
        """A point for the task from a few of its prompts, and the seconds that all will take."""
        chosen: list[Weights] = []

        def choose(requests: Sequence[Instance]) -> None:
            (found,) = task_weights.prompts(requests, self.model.settings.seed).values()
            chosen.append(self.model.choose_for_task(list(found.values())).weights)

        some, spent = self._timed(part, documents, choose)
        done = choosing(self.unloaded, some) or read
        return (chosen[-1],), spent * read.tokens / max(1, done.tokens)

    def _generating(
        self, part: TaskRequests, documents: Sequence[int], work: Workload, points: Points
    ) -> float:
        some = _requests(part, documents)[: self.model.batch_size]
        self._write(some[:1], points, 0.0)  # what is slow the first time
        found = self._write(some, points, self.budget, len(part.requests) > len(some))
        prompts = count(self.unloaded, part.kind, some)
        # Texts are taken to end with the same chance at each token, or when they are as long as
        # they may be.
        ends = min(1.0, found.ended / max(1, found.new))
        each = work.new_tokens / max(1, work.requests)
        length = (1 - (1 - ends) ** each) / ends if ends else each
        drawn = max(0.0, length - 1) * work.requests  # the first one comes with the prompt
        prefilling = found.prefilling * work.tokens / max(1, prompts.tokens)
        return prefilling + found.decoding / max(1, found.new - len(some)) * drawn

    def _write(
        self, requests: Sequence[Instance], points: Points, budget: float, more: bool = False
    ) -> _Written:
        """Continue prompts side by side for some seconds.

        Args:
            requests: At most as many as run at the same time.
            points: Of the task.
            budget: Seconds after which texts are left as they are.
            more: Whether others will take the place of those that end, as they cannot here.
        """
        model, seed = self.model, self.model.settings.seed
        params = sampling_params(requests, identified(requests), model.tokenizer, seed)
        made = [
            model.request(one.args[0], how, points)
            for one, how in zip(requests, params, strict=True)
        ]
        new = ended = finished = 0
        begun = started = time.perf_counter()

        def observe(_: int, had: int, gained: NewTokens) -> None:
            nonlocal started, new
            new += len(gained.token_ids)
            now = time.perf_counter()
            if had == 0:
                started = now
            elif now - started > budget:
                raise _Enough

        try:
            for _, _, output in scheduler.generate(
                model.fuser, made, model.batch_size, model.speculation, observe
            ):
                ended += output.finish_reason != "length"
                finished += 1
                if more and 2 * finished > len(made):
                    break
        except _Enough:
            pass
        return _Written(started - begun, time.perf_counter() - started, new, ended)


def lines(model: TriMix, unloaded: Unloaded, jobs: Sequence[Job], before: float) -> list[str]:
    """Measure, and say how the sources are run and how long the run will take.

    Args:
        model: The loaded model.
        unloaded: The same run, as it was counted.
        jobs: Its tasks.
        before: Seconds that it took to load models and to build requests.
    """
    probe = Probe(model, unloaded, jobs)
    spent = [(f"{job.part.task} {job.part.kind}", probe.seconds(job)) for job in jobs]
    whole = before + sum(seconds for _, seconds in spent)
    told = [f"time: about {clock(whole)} ({whole / 3600:.3f} hours), of which"]
    parts = [("loading and building requests", before), *spent]
    told += [f"  {clock(seconds)}  {name}" for name, seconds in parts]
    told.append(f"memory in the probe: {_in_use()}")
    return [*verdict(model), *told]


def verdict(model: TriMix) -> list[str]:
    """How each source is run, as was found out when it was loaded."""
    how_run = model.runtime([source.name for source in model.sources])
    rows = [("loaded", "class", "remembers", "prompts shared", "drafts", "off by", "may be off by")]
    sources = how_run["sources"]
    for name, how in sources.items():
        yes = ["yes" if how[key] else "no" for key in ("prompts_shared", "drafts")]
        off = ["?" if how[key] is None else f"{how[key]:g}" for key in ("difference", "tolerance")]
        rows.append((name, how["class"], how["memory"], *yes, *off))
    told = aligned(rows)
    told += [f"{name}: {how['why_not']}" for name, how in sources.items() if how["why_not"]]
    graphs = how_run["cuda_graphs"]
    why = f" ({graphs['reason']})" if graphs["reason"] else ""
    return [*told, f"decoding steps: {graphs['captured']} captured as CUDA graphs{why}"]


def clock(seconds: float) -> str:
    """Seconds as hours, minutes and seconds; below a minute with tenths."""
    if round(seconds, 1) < 60:
        return f"0:00:{seconds:04.1f}"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def _requests(part: TaskRequests, documents: Sequence[int]) -> list[Instance]:
    wanted = set(documents)
    return [one for one in part.requests if one.doc_id in wanted]


def _in_use() -> str:
    """What the probe took at its peak; on a CPU what the process holds."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        peaks = [torch.cuda.max_memory_allocated(i) for i in range(torch.cuda.device_count())]
        return ", ".join(f"cuda:{i} {gib(peak)} at its peak" for i, peak in enumerate(peaks))
    return f"{gib(psutil.Process().memory_info().rss)} held by the process"
