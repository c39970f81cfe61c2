"""How much a run will do, said beforehand: requests, tokens, forward passes, memory, and time.

What the sources will run is counted as the engine will run it: what prompts share runs once, the
rest in batches, padding included. Of a task with many documents a sample is tokenised, and what is
found is extrapolated to all of them. How long that takes is measured, on a few of the very
requests, once the sources are loaded.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from trimix_lm_eval.engine.model_runner import CHUNK_TOKENS, LOGIT_BYTES
from trimix_lm_eval.engine.prefill import PrefixNode, PrefixTree, cut, shared_length
from trimix_lm_eval.engine.request import Prompt
from trimix_lm_eval.harness import task_weights
from trimix_lm_eval.harness.lm import identified, question_of, sampling_params
from trimix_lm_eval.harness.requests import TaskRequests, Unloaded
from trimix_lm_eval.loading.preflight.memory import gib
from trimix_lm_eval.utils.windows import Window

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance


class Work(NamedTuple):
    """What each source has to do for some requests.

    Attributes:
        requests: How many.
        tokens: Tokens of prompts and options that are run, padding included.
        forwards: Forward passes for these.
        longest: Tokens of the longest prompt with its option or its new text.
        new_tokens: Tokens that may be written, at most.
        steps: Forward passes for these, at most, one token at a time.
    """

    requests: float
    tokens: float
    forwards: float
    longest: float
    new_tokens: float = 0
    steps: float = 0

    @classmethod
    def total(cls, parts: Sequence[Work]) -> Work:
        """Of several tasks together."""
        columns = list(zip(*parts, strict=True)) or [(0,)] * len(cls._fields)
        made = cls(*(sum(column) for column in columns))
        return made._replace(longest=max(part.longest for part in parts) if parts else 0)

    def grown(self, half: Work, by: float) -> Work:
        """Extrapolate: what is shared stays, the rest grows with the documents.

        Args:
            half: The work for half of the documents.
            by: Documents that are missing here, as a multiple of the other half.
        """
        pairs = zip(self, half, strict=True)
        return Work(*(whole + max(0, whole - less) * by for whole, less in pairs))._replace(
            longest=self.longest
        )


def work_of(model: Unloaded, part: TaskRequests) -> Work:
    """The work for all requests of a task, of which `part` may be a sample."""
    seen = len(part.seen)
    found = count(model, part.kind, part.requests)
    if seen == part.documents or seen < 2:
        return found
    first = set(part.seen[: seen // 2])
    half = count(model, part.kind, [one for one in part.requests if one.doc_id in first])
    return found.grown(half, (part.documents - seen) / (seen - seen // 2))


def count(model: Unloaded, kind: str, requests: Sequence[Instance]) -> Work:
    """The work for these requests, in a run of their own.

    Args:
        model: Says how texts become tokens.
        kind: The method of lm-eval's model that answers them.
        requests: Of that kind.
    """
    if kind == "generate_until":
        return _generating(model, requests)
    pairs: list[tuple[Prompt, tuple[int, ...], Any]] = []
    if kind == "loglikelihood_rolling":
        documents = [model.codec.windows(one.args[0], model.max_length) for one in requests]
        if model.policy.scope not in ("run", "token"):
            return _rolling(model, documents)
        for context, target in itertools.chain(*documents):
            pairs.append((Prompt(context), target, None))
    else:
        for one in requests:
            prompt, target = model.codec.pair(*one.args)
            pairs.append((Prompt(*prompt), target, question_of(one)))
    return _scoring(model, pairs)._replace(requests=len(requests))


def _scoring(model: Unloaded, pairs: Sequence[tuple[Prompt, tuple[int, ...], Any]]) -> Work:
    """The work for (prompt, option, question); see `scorer`."""
    by_question: dict[Any, dict[Prompt, None]] = {}
    options: dict[Prompt, list[int]] = {}
    apart: dict[Prompt, None] = {}
    longest = 0
    for prompt, target, question in pairs:
        room = max(1, model.max_length - len(target) + 1)
        context = cut(prompt, room)
        if len(prompt.ids) > room and model.policy.scope == "sample":
            apart[cut(prompt, model.max_length)] = None
        options.setdefault(context, []).append(len(target))
        longest = max(longest, len(context.ids) + len(target))
        if question is not None and len(prompt.ids) > 1:
            by_question.setdefault(question, {})[prompt] = None
    for prompts in by_question.values():
        if len(prompts) > 1 and model.policy.scope == "sample":
            first, *others = (prompt.ids for prompt in prompts)
            apart[Prompt(first[: min(shared_length(first, ids) for ids in others) or 1])] = None
    tokens, forwards = _prefilled(model, list(apart)) if apart else (0, 0)
    contexts = list(options)
    for run, batch in _batches(model, contexts):
        tokens, forwards = tokens + run[0], forwards + run[1]
        several = (n - 1 for i in batch for n in options[contexts[i]] if n > 1)
        lengths = sorted(several, reverse=True)
        for some in _split(lengths, model.batch_size):
            tokens += len(some) * some[0]
            forwards += _chunks(len(some), some[0])
    return Work(len(pairs), tokens, forwards, longest)


def _rolling(model: Unloaded, documents: Sequence[Sequence[Window]]) -> Work:
    """The work for whole texts under a policy that chooses; see `rolling`."""
    tokens = forwards = longest = 0
    for docs in _split(documents, model.batch_size):
        lengths = [len(a) + len(b) - 1 for windows in docs for a, b in windows]
        for some in _split(sorted(lengths, reverse=True), model.batch_size):
            tokens += len(some) * some[0]
            forwards += _chunks(len(some), some[0])
            longest = max(longest, some[0])
    return Work(len(documents), tokens, forwards, longest)


def _generating(model: Unloaded, requests: Sequence[Instance]) -> Work:
    """The work for texts to be written; see `scheduler`."""
    params = sampling_params(requests, identified(requests), model.tokenizer, 0)
    most = [min(one.max_new_tokens, model.max_length - 1) for one in params]
    prompts = [
        cut(Prompt(*model.codec.prompt(one.args[0])), model.max_length - new)
        for one, new in zip(requests, most, strict=True)
    ]
    longest = max((len(p.ids) + n for p, n in zip(prompts, most, strict=True)), default=0)
    tokens, forwards = _prefilled(model, prompts)
    # The first token of a text comes with its prompt.
    steps = max(max(most, default=1) - 1, math.ceil(sum(n - 1 for n in most) / model.batch_size))
    return Work(len(requests), tokens, forwards, longest, sum(most), steps)


def choosing(model: Unloaded, requests: Sequence[Instance]) -> Work:
    """The work for the prompts that a policy reads before it chooses for a whole task."""
    found = task_weights.prompts(requests, model.settings.seed)
    texts = task_weights.drawn(found, model.policy.task_prompts, 1)
    parts = []
    for some in texts.values():
        prompts = [Prompt(*model.codec.prompt(text)) for text in some.values()]
        parts.append(_prefilled(model, [cut(prompt, model.max_length) for prompt in prompts]))
    read = sum(len(some) for some in texts.values())
    return Work(read, sum(t for t, _ in parts), sum(f for _, f in parts), 0)


# ---------------------------------------------------------------- as `prefill` runs prompts


class _Tree(PrefixTree):
    """Prompts by the prefixes that the engine runs once; here nothing is run.

    Attributes:
        segments: Tokens of each prefix that would have been run.
    """

    segments: list[int]

    def extend(self, node: PrefixNode, index: int, length: int) -> PrefixNode:
        """A node for a segment that would be run here."""
        self.segments.append(length - node.length)
        return PrefixNode(node, length, cast(Any, self))


def _batches(
    model: Unloaded, prompts: Sequence[Prompt]
) -> list[tuple[tuple[int, int], Sequence[int]]]:
    """What is run of some prompts, batch by batch.

    Returns:
        For each batch (tokens, forward passes), and the indices of its prompts; for what several
        share, none.
    """
    token_bytes = sum(one.cache or 0 for one in model.report.estimates)
    fuser: Any = SimpleNamespace(ensemble=SimpleNamespace(token_bytes=token_bytes))
    tree = _Tree(fuser, prompts)
    tree.segments = []
    found: list[tuple[tuple[int, int], Sequence[int]]] = []
    for node, some in tree.walk():
        for batch in _split(some, model.batch_size):
            width = len(prompts[batch[0]].ids) - node.length  # the longest comes first
            found.append(((len(batch) * width, _chunks(len(batch), width)), batch))
    return [*(((length, _chunks(1, length)), ()) for length in tree.segments), *found]


def _prefilled(model: Unloaded, prompts: Sequence[Prompt]) -> tuple[int, int]:
    """Tokens and forward passes of some prompts."""
    runs = [run for run, _ in _batches(model, prompts)]
    return sum(tokens for tokens, _ in runs), sum(forwards for _, forwards in runs)


def _chunks(rows: int, width: int) -> int:
    """Forward passes of some rows of new tokens."""
    return math.ceil(width / max(1, CHUNK_TOKENS // rows))


def _split(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


# ---------------------------------------------------------------- for reading


class Job(NamedTuple):
    """The requests of a task that are of one kind, and what they cost.

    Attributes:
        part: The requests.
        work: For all documents of the task.
        choosing: For the choice of the task's weights, where the policy chooses by task.
    """

    part: TaskRequests
    work: Work
    choosing: Work | None


def jobs_of(model: Unloaded, parts: Sequence[TaskRequests]) -> list[Job]:
    """What the requests of a run come to, task by task."""
    by_task = model.policy.scope == "task"
    return [
        Job(
            part,
            work_of(model, part),
            choosing(model, part.requests)
            if by_task and part.kind != "loglikelihood_rolling"
            else None,
        )
        for part in parts
    ]


def lines(model: Unloaded, jobs: Sequence[Job]) -> list[str]:
    """The work of a run for reading, and the memory that it takes beside the weights."""
    total = Work.total([w for job in jobs for w in (job.work, job.choosing) if w is not None])
    names = ", ".join(model.report.devices)
    rows: list[tuple[str, ...]] = [
        ("estimate", "documents", "requests", "tokens run", "forwards", "new tokens", "steps")
    ]
    for part, work, read in jobs:
        name = f"{part.task} {part.kind}"
        rows.append((name, f"{part.documents:,}", *_row(work)))
        if read is not None:
            rows.append((f"{part.task} weights", "", *_row(read)))
    rows.append(("in all", "", *_row(total)))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    told = [
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    sampled = sum(len(part.seen) < part.documents for part, _, _ in jobs)
    told.append(f"each source ({names}) runs these tokens, batches of {model.batch_size}")
    if total.new_tokens:
        told.append("new tokens and the steps that write them are the most: texts may end sooner")
    if sampled:
        told.append(f"{sampled} task(s) have more documents than were read: extrapolated")
    return [*told, _memory(model, total.longest)]


def _row(work: Work) -> tuple[str, ...]:
    shown = (work.requests, work.tokens, work.forwards, work.new_tokens, work.steps)
    return tuple(f"{round(value):,}" for value in shown)


def _memory(model: Unloaded, longest: float) -> str:
    """What weights, caches and logits take at the most, on all devices together."""
    known = model.report.estimates
    weights = sum(one.weights or 0 for one in known)
    caches = round(sum(one.cache or 0 for one in known) * longest * model.batch_size)
    whole = weights + caches + LOGIT_BYTES
    more = "" if all(one.weights and one.cache for one in known) else " (where known)"
    return (
        f"memory: about {gib(whole)}{more}: weights {gib(weights)}, caches of {model.batch_size} "
        f"rows of {round(longest):,} tokens {gib(caches)}, logits {gib(LOGIT_BYTES)}"
    )
