"""What a sweep is to run: settings, and in each the same variants. Nothing is loaded here.

A *variant* is a policy or a point with a mask or none: what runs of the same models differ in while
the sources need to run only once. A *setting* is what lm-eval has to be called anew for: another
number of exemplars, another seed, or, where ``model_args`` hold a placeholder, another language.

The config without its ``sweep:`` block, and with a variant's ``model_args``, is a config for
``lm_eval run --config`` that gives that variant's numbers.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from trimix_lm_eval.fusion import policies
from trimix_lm_eval.fusion.policies import Policy
from trimix_lm_eval.fusion.policies.fixed import Fixed, name_of
from trimix_lm_eval.fusion.weights import Weights
from trimix_lm_eval.loading import run_config, sequence, settings
from trimix_lm_eval.loading.run_values import is_text
from trimix_lm_eval.loading.settings import Settings
from trimix_lm_eval.sweep import block as blocks
from trimix_lm_eval.sweep import languages, quiet
from trimix_lm_eval.sweep.block import Block
from trimix_lm_eval.utils.errors import TrimixError, quoted

#: What a run config may say and a sweep does not do, with the reason.
_UNUSED = {
    "use_cache": "it keeps a journal of its own, and a rerun goes on from there",
    "cache_requests": "it builds every request once",
    "predict_only": "it writes metrics",
    "check_integrity": "it runs no tests of tasks",
    "write_out": "it prints no prompts; they are in the samples",
    "show_config": "it prints no configuration",
    "wandb_args": "it logs to files only",
    "wandb_config_args": "it logs to files only",
    "trackio_args": "it logs to files only",
    "hf_hub_log_args": "it uploads nothing; `trimix export --push` does",
}


class SweepVariant(NamedTuple):
    """One way to weight the sources: its folder's name, its arguments, the same as checked."""

    name: str
    policy: Policy
    model_args: dict[str, Any]
    settings: Settings


class Setting(NamedTuple):
    """One call of lm-eval for each variant.

    Attributes:
        part: Which sources: the language's folder, or nothing if all have the same.
        folder: Where its results go, relative to the sweep's; empty if it is the only one.
        config: lm-eval's, an ``EvaluatorConfig``; its model_args lack what the variants add.
        tasks: Names of tasks, as asked for.
        variants: In the order in which they run.
    """

    part: str
    folder: str
    config: Any
    tasks: list[str]
    variants: tuple[SweepVariant, ...]


class Plan(NamedTuple):
    """A whole sweep.

    Attributes:
        output: Folder of all results.
        points: Labels of the grid's points, and the name of each that has one of its own.
        without_mask: Names of variants that are not run with a plausibility mask, since they do
            not use the source that it looks at.
    """

    name: str
    output: Path
    settings: tuple[Setting, ...]
    points: dict[str, str]
    without_mask: tuple[str, ...]


def read(config: str | Path | Mapping[str, Any]) -> Plan:
    """Read a sweep's config, or the YAML file with it, and check what needs no look at a file.

    Raises:
        TrimixError: Something in it is wrong.
    """
    is_file = isinstance(config, (str, Path))
    run = run_config.load(str(config)) if is_file else copy.deepcopy(dict(config))  # type: ignore[arg-type]
    where = str(config) if is_file else "the config"
    name = Path(where).stem if is_file else "sweep"
    block = blocks.read(run.pop("sweep", None), name, _everyone(run))
    run.setdefault("log_samples", True)  # without them no report can test a difference
    _check(run, block, where)
    if "batch_size" not in {**run, **run_config.model_arguments(run, None)}:
        run["batch_size"] = "auto"  # lm-eval's own 1 leaves the points hardly a row to share
    with quiet.configs_warned_of_once():
        made = [
            _setting(run, block, where, part, filling, shots, seed)
            for part, filling in languages.parts(run, block)
            for shots in block.num_fewshot or (None,)
            for seed in block.seeds or (None,)
        ]
    _check_folders([setting for setting, _ in made])
    named = {point.label(): name_of(point) for point in block.grid}
    masked = {name for _, skipped in made for name in skipped}
    return Plan(
        block.name,
        Path(run["output_path"]),
        tuple(setting for setting, _ in made),
        named,
        tuple(sorted(masked)),
    )


def _everyone(run: Mapping[str, Any]) -> list[str]:
    """The policies that ``all`` stands for: with ``fusion=sequence``, those that it takes."""
    if run_config.model_arguments(run, None).get("fusion") == sequence.SEQUENCE:
        return sequence.policies_taken()
    return policies.names()


def _check(run: Mapping[str, Any], block: Block, where: str) -> None:
    if run.get("model") != "trimix":
        raise TrimixError(
            f"model is {quoted(run.get('model'))}, not 'trimix'.",
            f"write `model: trimix` in {where}",
        )
    for key, reason in _UNUSED.items():
        if run.get(key):
            raise TrimixError(f"{key} is of no use to a sweep: {reason}.", f"leave {key} out")
    output = run.get("output_path")
    if not isinstance(output, str) or not is_text(output) or output.endswith(".json"):
        raise TrimixError(
            f"output_path is {quoted(output)}; a sweep writes many files.", "name a folder for them"
        )
    arguments = run_config.model_arguments(run, None)
    swept = {"num_fewshot": block.num_fewshot, "seed": block.seeds}
    for key, values in {**swept, "plausibility": block.plausibility}.items():
        if values and (key in run or key in arguments):
            raise TrimixError(
                f"{key} is given in the sweep block and outside of it.", "keep the one in sweep"
            )
    # Of this package and of the sweep: others, which may be broken, are not imported for it.
    known = {*filter(policies.ours, policies.names()), *(name for name, _ in block.variants)}
    options = {option for name in known for option in policies.option_names(name)}
    for key in arguments:
        if key == "policy" or key in options:
            raise TrimixError(
                f"model_args has {key}={arguments[key]}, but weights are what a sweep varies.",
                "move it into the sweep block, e.g. policies: [{policy: gate, floor: 0.1}]",
            )


def _check_folders(made: list[Setting]) -> None:
    """No two variants may have one place for their results."""
    taken: set[tuple[str, str]] = set()
    for setting in made:
        for variant in setting.variants:
            place = (setting.folder, variant.name)
            if place in taken:
                raise TrimixError(
                    f"Two parts of the sweep would write into {'/'.join(filter(None, place))}.",
                    "give each language a {language} of its own, and no value twice",
                )
            taken.add(place)


def _setting(
    run: Mapping[str, Any],
    block: Block,
    where: str,
    part: str,
    filling: Mapping[str, Any],
    shots: int | None,
    seed: int | None,
) -> tuple[Setting, list[str]]:
    """A setting, and which of its variants go without a mask."""
    changed: dict[str, Any] = {**run, **filling}
    extra: dict[str, Any] = {}
    folders = []
    if block.num_fewshot:
        changed["num_fewshot"] = shots
        folders.append("own_shots" if shots is None else f"{shots}shot")
    if block.seeds:
        changed["seed"] = seed
        extra["seed"] = seed
        folders.append(f"seed{seed}")
    config = run_config.configured(changed, where)
    made, skipped = [], []
    for name, options in block.variants:
        for mask in block.plausibility or (None,):
            masked = {} if mask is None else {"plausibility": mask}
            arguments = {**config.model_args, **extra, "policy": name, **options, **masked}
            variant = _variant(arguments, changed)
            if variant is None:
                skipped.append(name)
            else:
                made.append(variant)
    folder = "/".join(filter(None, [part, "_".join(folders)]))
    names = run_config.task_names(changed.get("tasks"))
    if not names:
        raise TrimixError(f"{where} names no tasks.", "add tasks: [trimix_demo]")
    return Setting(part, folder, config, names, tuple(made)), skipped


def _variant(model_args: dict[str, Any], run: Mapping[str, Any]) -> SweepVariant | None:
    """A variant, or None where the mask would look at a source that it does not use."""
    given = run_config.model_arguments({**run, "model_args": model_args}, None)
    given.pop("device", None)
    asked = settings.parse(given)
    policy = policies.build(asked.policy, **asked.policy_options)
    used = policy.sources(asked.sources)
    if asked.fusion_config().mask and asked.plausibility_source not in used:
        return None
    return SweepVariant(_folder(policy, asked), policy, model_args, asked)


def _folder(policy: Policy, asked: Settings) -> str:
    """A variant's name: what differs from the policy's defaults, safe as a folder."""
    if isinstance(policy, Fixed):
        name = "_".join([policy.name, *policy.points()[0].label().split(":")])
    else:
        usual = type(policy)()
        changed = {
            option: getattr(policy, option)
            for option in policy.options
            if getattr(policy, option) != getattr(usual, option)
        }
        name = policy.name + "".join(f"_{key}={_text(value)}" for key, value in changed.items())
    if asked.plausibility:
        name += f"_plausibility={asked.plausibility:g}"
    return languages.folder_name(name)


def _text(value: Any) -> str:
    """An option's value; a grid as users write it."""
    if isinstance(value, Weights):
        return value.label()
    if isinstance(value, tuple):
        return ";".join(map(_text, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
