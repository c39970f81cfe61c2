"""The trained model's folder: weights, tokenizer, card; it works at once as ``small_cpt=``.

The card tells data, licence, recipe, commit and numbers.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from trimix_lm_eval import __version__
from trimix_lm_eval.loading.settings import DEMO
from trimix_lm_eval.training.cpt import base as bases
from trimix_lm_eval.training.cpt.base import Base
from trimix_lm_eval.training.cpt.config import Config
from trimix_lm_eval.training.cpt.plan import TrainingPlan
from trimix_lm_eval.utils import templates

CARD = "README.md"
_TEMPLATE = Path(__file__).with_name("card.md")
_PACKAGES = ("torch", "transformers", "tokenizers", "accelerate", "datasets")


def trained(base: Base, config: Config, folder: Path) -> Any:
    """The model that the Trainer has written, weights or adapters, in the dtype of its release."""
    if config.lora_rank:
        from peft import PeftModel

        model = bases.load(base, config)
        model = PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
    else:
        model = bases.load(base, config, folder)
    return model.to(getattr(torch, base.dtype if config.dtype == "auto" else config.dtype))


def save(model: Any, base: Base, folder: Path) -> None:
    """Write weights, config and tokenizer beside their place."""
    shutil.rmtree(folder, ignore_errors=True)
    # It is off for training; whoever generates with the model wants it.
    released = base.config.get_text_config()
    model.config.get_text_config().use_cache = getattr(released, "use_cache", True)
    model.save_pretrained(folder)
    for key in ("is_local", "local_files_only"):  # of how this run found it, no matter of the next
        base.tokenizer.init_kwargs.pop(key, None)
    base.tokenizer.save_pretrained(folder)
    for file in folder.glob("*.safetensors"):
        shutil.copymode(folder / "config.json", file)  # written 0600, whatever the user's umask


def move(folder: Path, output: Path) -> None:
    """Put the files of a finished folder into their place."""
    for file in sorted(folder.iterdir()):
        file.replace(output / file.name)
    folder.rmdir()


def card(
    config: Config,
    base: Base,
    plan: TrainingPlan,
    report: Mapping[str, Any],
    measured: Mapping[str, Any],
    step: int,
) -> str:
    """Write the card of the model that was kept at a step."""
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
