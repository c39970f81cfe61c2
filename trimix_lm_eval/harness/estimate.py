"""How much a run will do, said beforehand: requests, tokens, forward passes, and memory.

What the sources will run is counted as the engine will run it: what prompts share runs once, the
rest in batches, padding included. Of a task with many documents a sample is tokenised, and what is
found is extrapolated to all of them. `timing` says how long it takes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from trimix_lm_eval.engine import scheduler, scorer
from trimix_lm_eval.engine.input_batch import chunk_columns
from trimix_lm_eval.engine.kept import keep
from trimix_lm_eval.engine.model_runner import CHUNK_TOKENS, Fuser
from trimix_lm_eval.engine.options import tree_passes
from trimix_lm_eval.engine.prefill import (
    PrefixNode,
    PrefixTree,
    collectors_for,
    cut,
    evenly,
)
from trimix_lm_eval.engine.request import Prompt, ScoringRequest
from trimix_lm_eval.engine.rolling import by_length
from trimix_lm_eval.harness import task_weights
from trimix_lm_eval.harness.lm import identified, question_of, sampling_params
from trimix_lm_eval.harness.requests import TaskRequests, Unloaded
from trimix_lm_eval.loading.sequence import ALONE
from trimix_lm_eval.utils.windows import Window, continuation_windows

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

    from trimix_lm_eval.llm import Points


#: What is said instead of sources that read with tokenizers of their own.
OF_EACH = (
    "estimate: none with fusion=sequence, where each source runs the requests by itself: check it "
    f"alone ({ALONE})",
)


@dataclass
class Workload:
    """What each source has to do for some requests.

    Attributes:
        requests: How many.
        tokens: Tokens of prompts and options that are run, padding included.
        forwards: Forward passes for these.
        new_tokens: Tokens that may be written, at most.
        steps: Forward passes for these, at most, one token at a time.
        cut: Requests whose contexts are longer than the models', and lose their beginnings.
        longest: Tokens of the longest prompt with its option or its new text.
    """

    requests: float = 0
    tokens: float = 0
    forwards: float = 0
    new_tokens: float = 0
    steps: float = 0
    cut: float = 0
    longest: int = 0

    def run(self, rows: int, start: int, width: int) -> None:
        """Add so many new tokens in each of some rows that hold ``start`` tokens already."""
        self.tokens += rows * width
        self.longest = max(self.longest, start + width)
        end = start + width
        while start < end:
            start += chunk_columns(rows, start, CHUNK_TOKENS)
            self.forwards += 1

    def scaled(self, by: float) -> Workload:
        """Of so many times as many requests, no longer than these."""
        return replace(Workload(*(by * value for value in astuple(self))), longest=self.longest)


class Job(NamedTuple):
    """The requests of a task that are of one kind, and what they cost.

    Attributes:
        part: The requests.
        work: For all documents of the task.
        choosing: For the choice of the task's weights, where a policy chooses by task.
    """

    part: TaskRequests
    work: Workload
    choosing: Workload | None


def jobs_of(model: Unloaded, parts: Sequence[TaskRequests]) -> list[Job]:
    """What the requests of a run come to, task by task."""
    return [_job(model, part) for part in parts]


def _job(model: Unloaded, part: TaskRequests) -> Job:
    """What the requests of a part come to; prompts that are read for a choice run there only."""
    whole = count(model, part.kind, part.requests)
    about = whole.scaled(part.documents / max(1, len(part.seen)))
    if part.kind == "loglikelihood_rolling":
        return Job(part, about, None)
    read = choosing(model, part.requests, keeping=True)
    if model.fuser.ensemble.kept:
        left = count(model, part.kind, part.requests)
        model.fuser.ensemble.kept.clear()
        about.tokens += left.tokens - whole.tokens
        about.forwards += left.forwards - whole.forwards
    return Job(part, about, read)


def count(model: Unloaded, kind: str, requests: Sequence[Instance]) -> Workload:
    """The work for these requests, in a run of their own.

    Args:
        model: Says how texts become tokens.
        kind: The method of lm-eval's model that answers them.
        requests: Of that kind.
    """
    work = Workload(len(requests))
    if kind == "generate_until":
        _generate(model, requests, work)
    elif kind == "loglikelihood_rolling":
        _roll(model, [model.codec.windows(one.args[0], model.max_length) for one in requests], work)
    else:
        points, wanted = _points(model), list[ScoringRequest]()
        for one in requests:
            prompt, target = model.codec.pair(*one.args)
            request = ScoringRequest(Prompt(*prompt, points), target, question_of(one))
            wanted += _fitting(request, model.max_length)
            work.cut += scorer.is_cut(request, model.max_length)
        _score(model, model.fuser, wanted, work)
    return work


def _points(model: Unloaded) -> Points:
    """As if chosen for a task already, where policies choose so."""
    policies = [config.policy for config in model.fuser.configs]
    if all(policy.scope != "task" for policy in policies):
        return None
    return tuple(policy.points()[0] if policy.scope == "task" else None for policy in policies)


def _fitting(request: ScoringRequest, max_length: int) -> list[ScoringRequest]:
    """A request as it is run: nothing, itself or its windows."""
    if len(request.continuation) <= max_length:
        return [request] if request.continuation else []
    windows = continuation_windows(request.prompt.ids, request.continuation, max_length)
    return [ScoringRequest(Prompt(context), target) for context, target in windows]


def _score(
    model: Unloaded, fuser: Fuser, requests: Sequence[ScoringRequest], work: Workload
) -> None:
    """Add what `scorer` runs."""
    size = model.batch_size
    questions = scorer.questions_of(requests, range(len(requests)), model.max_length)
    for some in scorer.blocks(fuser, questions, size):
        apart = list(scorer.chosen_apart(some))
        if any(mine is not None for mine in collectors_for(fuser, apart)):
            _prefill(fuser, apart, size, work)
        for part in scorer.in_passes(fuser, some):
            for _, passes in _batches(fuser, [q.run for q in part], size, work):
                for batch in passes:
                    start = len(part[batch[0]].context)
                    for rows, trees in tree_passes([part[i].options for i in batch]):
                        work.run(len(rows), start, max(len(tree.ids) for tree in trees))


def _roll(model: Unloaded, documents: Sequence[Sequence[Window]], work: Workload) -> None:
    """Add what `rolling` runs."""
    full = [windows for windows in documents if windows]
    for docs in _split([full[doc] for doc in by_length(full)], model.batch_size):
        lengths = [len(a) + len(b) - 1 for windows in docs for a, b in windows]
        _run_padded(lengths, model.batch_size, work)


def _generate(model: Unloaded, requests: Sequence[Instance], work: Workload) -> None:
    """Add what `scheduler` runs, if every text becomes as long as it may."""
    params = sampling_params(requests, identified(requests), model.tokenizer, 0)
    most = [min(one.max_new_tokens, model.max_length - 1) for one in params]
    points = _points(model)
    whole = [Prompt(*model.codec.prompt(one.args[0]), points) for one in requests]
    prompts = [cut(one, model.max_length - new) for one, new in zip(whole, most, strict=True)]
    work.cut = sum(len(a.ids) < len(b.ids) for a, b in zip(prompts, whole, strict=True))
    lengths = [len(prompt.ids) + new for prompt, new in zip(prompts, most, strict=True)]
    started, rows, forks = model.batch_size, float(model.batch_size), len(model.fuser.configs)
    if forks > 1:  # texts that have a prompt in common hold it once: there is room for more
        started = max(1, started // 4)
        held = sum(lengths) + (forks - 1) * sum(most)
        rows *= min(scheduler.MAX_FORKS, forks * sum(lengths) / max(1, held))
    for _ in _batches(model.fuser, prompts, started, work, padded=True):
        pass
    work.new_tokens = forks * sum(most)
    # The first token of a text comes with its prompt.
    work.steps = max(max(most, default=1) - 1, math.ceil(forks * sum(n - 1 for n in most) / rows))
    work.longest = max(lengths, default=0)


def choosing(
    model: Unloaded, requests: Sequence[Instance], keeping: bool = False
) -> Workload | None:
    """The work for the prompts that policies read before they choose for a whole task.

    Args:
        model: Says how texts become tokens.
        requests: Whose prompts may be read.
        keeping: Whether the next count is to know that these prompts were run.
    """
    policies = [one.policy for one in model.fuser.configs if one.policy.scope == "task"]
    if not policies:
        return None
    work = Workload()
    found = task_weights.prompts(requests, model.settings.seed)
    for policy in policies:
        for some in task_weights.drawn(found, policy.task_prompts, 1).values():
            prompts = [Prompt(*model.codec.prompt(text)) for text in some.values()]
            prompts = [cut(prompt, model.max_length) for prompt in prompts]
            for node, places in _batches(model.fuser, prompts, model.batch_size, work, anew=True):
                runs = [(cast(Any, object()), [prompts[i] for i in rows]) for rows in places]
                if keeping:
                    keep(model.fuser.ensemble, node, runs)
            work.requests += len(prompts)
    return work


# ---------------------------------------------------------------- as `prefill` runs prompts


class _Tree(PrefixTree):
    """Prompts by the prefixes that the engine runs once; here they are counted."""

    work: Workload

    def extend(self, node: PrefixNode, index: int, length: int) -> PrefixNode:
        """A node for a segment that would be run here."""
        self.work.run(1, node.length, length - node.length)
        return PrefixNode(node, length, cast(Any, self))


def _batches(
    fuser: Fuser,
    prompts: Sequence[Prompt],
    size: int,
    work: Workload,
    *,
    anew: bool = False,
    padded: bool = False,
) -> Iterator[tuple[PrefixNode, list[list[int]]]]:
    """Add what is run of some prompts; yield each batch's node and prompts, pass by pass.

    Args:
        fuser: The sources and the fusion configs.
        prompts: In any order.
        size: Rows of a batch.
        work: Is added to.
        anew: See `PrefixTree.walk`.
        padded: Whether a batch is one pass, however uneven its prompts are.
    """
    tree = _Tree(fuser, prompts)
    tree.work = work
    for node, some in tree.walk(anew):
        for batch in _split(some, size):
            rest = [len(node.rest(prompts[i]).ids) for i in batch]
            passes = [[batch[row] for row in rows] for rows in evenly(rest)]
            if padded:
                passes = [list(batch)]
            for first, *more in passes:
                new = len(node.rest(prompts[first]).ids)
                work.run(1 + len(more), len(prompts[first].ids) - new, new)
            yield node, passes


def _prefill(fuser: Fuser, prompts: Sequence[Prompt], size: int, work: Workload) -> None:
    """Add what is run of some prompts."""
    for _ in _batches(fuser, prompts, size, work):
        pass


def _run_padded(lengths: Sequence[int], size: int, work: Workload, start: int = 0) -> None:
    """Add rows of these lengths, the longest first, in batches."""
    for some in _split(sorted(lengths, reverse=True), size):
        for rows in evenly(some):
            work.run(len(rows), start, some[rows[0]])


def _split(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))
