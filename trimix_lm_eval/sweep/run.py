"""The whole of a sweep: what is there already, what is missing, one setting after the other.

Each setting's models are loaded for the variants that are missing, every model once for all
settings that it occurs in; if nothing is missing, nothing is loaded.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from trimix_lm_eval.fusion.policies.fixed import Fixed
from trimix_lm_eval.fusion.weights import SOURCES
from trimix_lm_eval.harness import estimate, estimate_table, requests
from trimix_lm_eval.harness.lm import read_gen_kwargs
from trimix_lm_eval.harness.requests import manager_for
from trimix_lm_eval.harness.weights_log import WeightsLog
from trimix_lm_eval.loading import preflight
from trimix_lm_eval.loading.run_config import usable
from trimix_lm_eval.loading.sequence import no_rolling
from trimix_lm_eval.loading.settings import SourceSpec
from trimix_lm_eval.sequence_fusion import class_of
from trimix_lm_eval.sweep import files, fingerprint, plan, quiet
from trimix_lm_eval.sweep.journal import Journal
from trimix_lm_eval.sweep.lm import SweepLM, VariantRun
from trimix_lm_eval.sweep.plan import Plan, Setting
from trimix_lm_eval.sweep.tasks import LoadedTasks
from trimix_lm_eval.utils import distributed
from trimix_lm_eval.utils.distributed import DistributedEnv
from trimix_lm_eval.utils.errors import TrimixError
from trimix_lm_eval.utils.progress import progress_bar

#: Models by what they were loaded from.
Kept = dict[SourceSpec, Any]


class Work(NamedTuple):
    """A setting, with the context length that all its variants share, and what is to be done.

    Attributes:
        report: What the preflight found of its sources.
        folders: Of the variants.
        identities: By variant, what its numbers depend on.
        missing: Indices of the variants that have no results yet.
    """

    setting: Setting
    report: preflight.PreflightReport
    folders: list[Path]
    tasks: LoadedTasks
    identities: list[dict[str, Any]]
    missing: list[int]


def sweep(config: str | Path | Mapping[str, Any]) -> list[Path]:
    """Run whatever of a sweep has no results yet.

    Args:
        config: A run config of lm-eval with a ``sweep:`` block (see `block`), or its path.

    Returns:
        The results files of all variants, in the order of the settings; on the first of several
        processes only.

    Raises:
        TrimixError: Something is wrong that the user can fix. What is finished stays finished.
    """
    planned = plan.read(config)
    place = distributed.join()
    work = list(_looked_at(planned, place))
    # One process decides, lest the others see the first results of this very sweep.
    missing = distributed.exchanged([one.missing for one in work], place.world)[0]
    work = [one._replace(missing=m) for one, m in zip(work, missing, strict=True)]
    if place.rank == 0:
        _say(planned, work)
    for one in work:
        if one.missing:
            _check_share(one.tasks.counts, place.world)
    if any(missing):
        hidden = planned.output / f".{planned.name}.sweep"
        digests = {fingerprint.digest(one.identities[i]) for one in work for i in one.missing}
        journal = Journal(hidden, place, digests)
        try:
            kept: Kept = {}
            for one in work:
                if one.missing:
                    _forget(kept, one.setting)
                    _evaluate(one, planned, place, journal, kept)
        except BaseException:
            journal.close()
            raise
        journal.remove()
    if place.rank:
        return []
    return [files.results_of(folder) for one in work for folder in one.folders]


def look(config: str | Path | Mapping[str, Any]) -> list[str]:
    """What a sweep would do, and how much that is, in lines for reading; no model is loaded.

    Raises:
        TrimixError: Something is wrong that the user can fix.
    """
    lines: list[str] = []
    reports: list[preflight.PreflightReport] = []
    for one in _looked_at(plan.read(config), DistributedEnv()):
        if not any(report is one.report for report in reports):
            reports.append(one.report)
            lines += one.report.lines()
        told = ", ".join(_documents(name, one.tasks) for name in one.tasks.digests)
        where = one.setting.folder or "results"
        ready = len(one.folders) - len(one.missing)
        lines.append(
            f"{where}: {len(one.folders)} points and policies, {ready} of them done; {told}"
        )
        if one.missing:
            lines += _estimate(one)
    return lines


def _documents(name: str, tasks: LoadedTasks) -> str:
    """A task, and how many of its documents are evaluated."""
    count, all_of_it = tasks.counts[name], tasks.digests[name]["documents"]
    return f"{name} ({count}{f' of {all_of_it}' if count != all_of_it else ''} documents)"


def _estimate(work: Work) -> list[str]:
    """How much the sources have to do for the variants of a setting that are missing."""
    variants = [work.setting.variants[i].settings for i in work.missing]
    if work.report.each:
        return list(estimate.OF_EACH)
    model = requests.Unloaded(variants, work.report)
    parts = requests.build(work.setting.config, lambda: work.tasks, model)
    return estimate_table.lines(model, estimate.jobs_of(model, parts))


def _looked_at(planned: Plan, place: DistributedEnv) -> Iterator[Work]:
    """What there is of each setting. Models are checked, not loaded."""
    names = {name for setting in planned.settings for name in setting.tasks}
    manager = manager_for(planned.settings[0].config.include_path, names)
    reports: dict[str, preflight.PreflightReport] = {}
    for setting in planned.settings:
        read_gen_kwargs(setting.config.gen_kwargs or {}, "", 0)
        asked = setting.variants[0].settings
        used = {name for v in setting.variants for name in v.policy.sources(asked.sources)}
        if setting.part not in reports:
            needed = [name for name in SOURCES if name in used]
            reports[setting.part] = preflight.check(asked, needed, _device(setting, place))
        report = reports[setting.part]
        # Of a rerun that needs some of the sources only, too.
        variants = tuple(
            v._replace(
                settings=replace(
                    v.settings, max_length=report.common_length or v.settings.max_length
                )
            )
            for v in setting.variants
        )
        setting = setting._replace(variants=variants)
        tasks = LoadedTasks(manager, setting)
        if report.each and "loglikelihood_rolling" in tasks.kinds():
            raise no_rolling()
        identities = fingerprint.identities(setting, report, tasks)
        folders = [planned.output / setting.folder / v.name for v in variants]
        missing = [
            i
            for i, (folder, identity) in enumerate(zip(folders, identities, strict=True))
            if not files.finished(folder, identity, planned.output)
        ]
        yield Work(setting, report, folders, tasks, identities, missing)


def _check_share(counts: Mapping[str, int], world: int) -> None:
    """Refuse what lm-eval cannot divide: each process needs a document of each task."""
    for name, count in counts.items():
        if count < world:
            raise TrimixError(
                f"{name} has {count} document{'s'[: count != 1]} for {world} processes.",
                f"start at most {count}, or raise limit" if count else "raise limit",
            )


def _device(setting: Setting, place: DistributedEnv) -> str | None:
    return place.device if place.world > 1 else usable(setting.config.device)


def _say(planned: Plan, work: list[Work]) -> None:
    total = sum(len(one.folders) for one in work)
    there = total - sum(len(one.missing) for one in work)
    if there:
        print(f"{there} of {total} results are there already and are skipped.", file=sys.stderr)
    if planned.without_mask:
        print(
            f"without a plausibility mask, since they do not use its source: "
            f"{', '.join(planned.without_mask)}",
            file=sys.stderr,
        )


def _forget(kept: Kept, setting: Setting) -> None:
    """Let go of models that a setting does not need, before it loads its own."""
    needed = {spec.path for spec in setting.variants[0].settings.sources.values()}
    for spec in [spec for spec in kept if spec.path not in needed]:
        del kept[spec]


def _evaluate(
    work: Work, planned: Plan, place: DistributedEnv, journal: Journal, kept: Kept
) -> None:
    """Load a setting's models, and let lm-eval evaluate each of its missing variants."""
    setting = work.setting
    variants = [setting.variants[i] for i in work.missing]
    # Before the models: a path that cannot be written must not cost their loading.
    log = WeightsLog(variants[0].settings.weights_log, place.rank, place.world)
    asked = [v.settings for v in variants]
    model = class_of(asked[0]).load_many(asked, _device(setting, place), kept)
    noted = {"name": planned.name, "setting": setting.folder, "points": list(planned.points)}
    named = {label: name for label, name in planned.points.items() if name != Fixed.name}
    runs = []
    for i, variant in zip(work.missing, variants, strict=True):
        digest = fingerprint.digest(work.identities[i])
        told = {**noted, "named": named, "variant": variant.name, "fingerprint": digest}
        runs.append(VariantRun(variant, digest, told))
    lm = SweepLM(model, place, runs, journal, log, setting.folder, work.tasks.data)
    staging_dir = journal.folder / f"results{place.rank}"
    title = f"{setting.folder} results".lstrip()
    with quiet.environment_told_once():
        _one(work, work.missing[0], lm, staging_dir)  # has all of them answered: the long part
        rest = work.missing[1:]
        bar = progress_bar(rest, title, unit="result", off=not rest or bool(place.rank))
        for which, i in enumerate(bar, start=1):
            lm.become(which)
            with requests.quiet():  # lm-eval says the same of every variant: once is enough
                _one(work, i, lm, staging_dir)


def _one(work: Work, i: int, lm: SweepLM, staging_dir: Path) -> None:
    """One variant, as ``lm_eval run`` would evaluate and write it."""
    from lm_eval import simple_evaluate
    from lm_eval.loggers import EvaluationTracker

    config, variant = work.setting.config, work.setting.variants[i]
    work.tasks.take(variant.model_args)
    files.clear(staging_dir)
    tracker = EvaluationTracker(output_path=str(staging_dir))
    seeds = config.seed or [None] * 4
    results = simple_evaluate(
        model=lm,
        model_args=variant.model_args,
        tasks=work.setting.tasks,
        task_manager=work.tasks,
        evaluation_tracker=tracker,
        random_seed=seeds[0],
        numpy_random_seed=seeds[1],
        torch_random_seed=seeds[2],
        fewshot_random_seed=seeds[3],
        **{name: getattr(config, name) for name in _PASSED_ON},
    )
    if results is None:  # not the first of several processes
        return
    # What lm-eval knows of a model that it did not make itself is its class.
    results["config"]["model"] = config.model
    tracker.general_config_tracker.model_source = config.model
    files.write(
        work.folders[i], staging_dir, work.identities[i], tracker, results, config.log_samples
    )


#: What goes from the config to `simple_evaluate` as it is.
_PASSED_ON = (
    *("num_fewshot", "batch_size", "max_batch_size", "device", "limit", "samples", "log_samples"),
    *("system_instruction", "apply_chat_template", "fewshot_as_multiturn", "gen_kwargs"),
    *("confirm_run_unsafe_code", "metadata"),
)
