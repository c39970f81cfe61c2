"""What a run will do, for reading: a line per task, prompts that do not fit, and memory."""

from __future__ import annotations

import math
from collections.abc import Sequence

from trimix_lm_eval.engine.model_runner import LOGIT_BYTES
from trimix_lm_eval.fusion.logits import WORK_BYTES
from trimix_lm_eval.harness.estimate import Job, Workload
from trimix_lm_eval.harness.requests import Unloaded
from trimix_lm_eval.loading.preflight.memory import gib
from trimix_lm_eval.utils.columns import aligned


def lines(model: Unloaded, jobs: Sequence[Job]) -> list[str]:
    """The work of a run for reading, and the memory that it takes."""
    works = [work for job in jobs for work in (job.work, job.choosing) if work is not None]
    longest = max((work.longest for work in works), default=0)
    rows: list[tuple[str, ...]] = [
        ("estimate", "documents", "requests", "tokens run", "forwards", "new tokens", "steps")
    ]
    for part, work, read in jobs:
        rows.append((f"{part.task} {part.kind}", f"{part.documents:,}", *_row([work])))
        if read is not None:
            rows.append((f"{part.task} weights", "", *_row([read])))
    rows.append(("in all", "", *_row(works)))
    told = aligned(rows)
    names = ", ".join(model.report.devices)
    told.append(f"each source ({names}) runs these, {model.batch_size} rows at a time")
    if any(work.new_tokens for work in works):
        told.append("new tokens and the steps that write them are the most: texts may end sooner")
    if sampled := sum(len(part.seen) < part.documents for part, _, _ in jobs):
        told.append(f"extrapolated from some of the documents: {sampled} of {len(jobs)} lines")
    return [*told, *_cuts(model, jobs), _memory(model, longest)]


def _cuts(model: Unloaded, jobs: Sequence[Job]) -> list[str]:
    """Which tasks have prompts that do not fit, if any."""
    named = [
        f"{part.task} ({'about ' * (len(part.seen) < part.documents)}{math.ceil(work.cut):,} of "
        f"{round(work.requests):,})"
        for part, work, _ in jobs
        if work.cut
    ]
    if not named:
        return []
    return [
        f"longer than the context length of {model.max_length:,} tokens, and cut from the left, "
        f"exemplars first: requests of {', '.join(named)}"
    ]


def _row(works: Sequence[Workload]) -> list[str]:
    """Their sums, column by column."""
    columns = ("requests", "tokens", "forwards", "new_tokens", "steps")
    return [f"{round(sum(getattr(work, name) for work in works)):,}" for name in columns]


def _memory(model: Unloaded, longest: int) -> str:
    """What weights, caches and temporaries take at the most, on all devices together."""
    known = model.report.estimates
    weights = sum(one.weights or 0 for one in known)
    states = sum(one.states for one in known)
    caches = (model.fuser.ensemble.token_bytes * longest + states) * model.batch_size
    work = LOGIT_BYTES + WORK_BYTES
    whole = weights + caches + work
    unknown = any(one.weights is None or one.cache is None for one in known)
    more = " (where known)" if unknown else ""
    return (
        f"memory: about {gib(whole)}{more}: weights {gib(weights)}, caches of {model.batch_size} "
        f"rows of {longest:,} tokens {gib(caches)}, logits and work on them {gib(work)}"
    )
