"""The card of a trained model: data, licence, recipe, commit, numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from trimix_lm_eval import __version__
from trimix_lm_eval.loading.settings import DEMO
from trimix_lm_eval.training.cpt.base import Base
from trimix_lm_eval.training.cpt.config import Config
from trimix_lm_eval.training.cpt.plan import TrainingPlan
from trimix_lm_eval.utils import templates

NAME = "README.md"
_TEMPLATE = Path(__file__).with_name("card.md")
_PACKAGES = ("torch", "transformers", "tokenizers", "accelerate", "datasets")


def write(
    config: Config,
    base: Base,
    plan: TrainingPlan,
    report: Mapping[str, Any],
    measured: Mapping[str, Any],
    step: int,
) -> str:
    """Write the card.

    Args:
        config: Of the run.
        base: Of the run.
        plan: Of the run.
        report: Of `corpus.prepare`.
        measured: By text, bits per byte before and after.
        step: Of the checkpoint that was kept.
    """
    on_hub = base.files.commit is not None
    page = f"https://huggingface.co/{config.base}"
    body = templates.render(
        _TEMPLATE,
        {"cell": _cell, "short": _short},
        title=config.output.name,
        base_link=f"[{config.base}]({page})" if on_hub else f"`{config.base}`",
        language=config.language,
        versions=_versions(config),
        config=config,
        measured=measured,
        report=report,
        plan=plan,
        step=step,
        recipe=_recipe(config),
        demo=config.base == DEMO,
        identity=base.identity(),
    )
    body = re.sub(r"\n{3,}", "\n\n", body)
    return f"---\n{_metadata(config, on_hub)}\n---\n\n{body}"


def _cell(text: object) -> str:
    """A text that stays inside its cell of a Markdown table."""
    return str(text).replace("|", "\\|")


def _short(name: str) -> str:
    """Of a file on this machine its name only."""
    return Path(name).name if Path(name).is_absolute() else name


def _metadata(config: Config, on_hub: bool) -> str:
    from huggingface_hub import ModelCardData

    return ModelCardData(
        # The metadata know ISO 639 only: of `swh_Latn` the part before the script.
        language=config.language.partition("_")[0] or None,
        license=config.license or None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["continual-pretraining", "trimix", *([DEMO] if config.base == DEMO else [])],
        base_model=config.base if on_hub else None,
    ).to_yaml()


def _recipe(config: Config) -> str:
    import yaml

    plain = {**config.plain(), "output": config.output.name}
    # Where files lay on one machine is of no use on another: the table has their SHA-256.
    for key in ("text", "english"):
        plain[key] = [Path(one).name if isinstance(one, str) else one for one in plain[key]]
    for key in ("held_out", "test"):
        if isinstance(plain[key], str):
            plain[key] = Path(plain[key]).name
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)


def _versions(config: Config) -> dict[str, str]:
    found = {"trimix-lm-eval": __version__}
    for name in (*_PACKAGES, *(["peft"] if config.lora_rank else [])):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found
