"""`check`: of sources that are fused at every token together, of ``fusion=sequence`` one by one."""

from __future__ import annotations

from collections.abc import Container, Iterable
from itertools import chain

from trimix_lm_eval.loading import sequence
from trimix_lm_eval.loading.preflight import memory, report
from trimix_lm_eval.loading.preflight.access import locate
from trimix_lm_eval.loading.preflight.context import Contexts
from trimix_lm_eval.loading.preflight.report import PreflightReport, load_tokenizer, pinned
from trimix_lm_eval.loading.settings import Settings, SourceSpec


def check(
    settings: Settings,
    needed: Iterable[str],
    device: str | None = None,
    kept: Container[SourceSpec] = (),
) -> PreflightReport:
    """Check a run before any weight is loaded.

    Args:
        settings: What the run was asked for.
        needed: Roles of the sources that will be loaded. The tokenizer is large_ins's (or
            ``settings.tokenizer``) even if large_ins itself is not among them.
        device: Where sources go that name no device; None is the first GPU, or the CPU.
        kept: Models that are in memory already (see `pinned`): they need no room any more.

    Raises:
        TrimixError: Something would fail later, or silently give wrong numbers.
    """
    if settings.fusion == sequence.TOKEN:
        return report.check(settings, needed, device, kept)
    each = {
        name: report.check(settings.alone(name), [name], device, kept)
        for name in dict.fromkeys(needed)
    }
    joined = _joined(settings, each)
    new = [
        one
        for one in joined.estimates
        if pinned(
            settings.sources[one.source],
            joined.commits[one.source],
            one.source in joined.contexts.long,
        )
        not in kept
    ]
    memory.check_fit(new, joined.free)
    return joined


def _joined(settings: Settings, each: dict[str, PreflightReport]) -> PreflightReport:
    """What was found of all; the tokenizer is large_ins's, which writes chats for all of them."""
    reports = list(each.values())
    if "large_ins" in each:
        tokenizer = each["large_ins"].tokenizer
    else:
        large = settings.sources["large_ins"]
        tokenizer = load_tokenizer(large, locate(large))
    contexts = Contexts(
        min(one.max_length for one in reports),
        {name: one.max_length for name, one in each.items()},
        {name: length for one in reports for name, length in one.contexts.whole.items()},
        frozenset(chain.from_iterable(one.contexts.long for one in reports)),
    )
    return PreflightReport(
        {name: one.configs[name] for name, one in each.items()},
        {name: one.commits[name] for name, one in each.items()},
        contexts,
        {name: one.devices[name] for name, one in each.items()},
        tuple(chain.from_iterable(one.estimates for one in reports)),
        {device: free for one in reports for device, free in one.free.items()},
        len(tokenizer),
        (),
        {},
        tokenizer,
        each,
    )
