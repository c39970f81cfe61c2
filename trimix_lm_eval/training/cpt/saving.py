"""The trained model's folder: weights, tokenizer, card; it works at once as ``small_cpt=``."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from trimix_lm_eval.training.cpt import base as bases
from trimix_lm_eval.training.cpt.base import Base
from trimix_lm_eval.training.cpt.config import Config


def adapted(model: Any, config: Config) -> Any:
    """The model with LoRA adapters, if the config asks for them.

    Args:
        model: Loaded.
        config: Of the run.
    """
    if not config.lora_rank:
        return model
    from peft import LoraConfig, get_peft_model

    return get_peft_model(
        model,
        LoraConfig(
            task_type="CAUSAL_LM",
            r=config.lora_rank,
            lora_alpha=config.lora_alpha or 2 * config.lora_rank,
            target_modules="all-linear",
        ),
    )


def trained(base: Base, config: Config, folder: Path) -> Any:
    """The trained model in the dtype in which it is saved, adapters merged into it.

    Args:
        base: Of the run.
        config: Of the run.
        folder: What the Trainer has written: weights, or adapters.
    """
    if config.lora_rank:
        from peft import PeftModel

        model = bases.load(base, config)
        model = PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
    else:
        model = bases.load(base, config, folder)
    return model.to(getattr(torch, base.dtype if config.dtype == "auto" else config.dtype))


def save(model: Any, base: Base, folder: Path) -> None:
    """Write weights, config and tokenizer beside their place.

    Args:
        model: Of `trained`.
        base: Of the run.
        folder: Made anew.
    """
    shutil.rmtree(folder, ignore_errors=True)
    # The Trainer switches it off for itself; whoever generates with the model wants it.
    model.config.use_cache = getattr(base.config, "use_cache", True)
    model.save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)
    for file in folder.glob("*.safetensors"):
        shutil.copymode(folder / "config.json", file)  # written 0600, whatever the user's umask


def move(folder: Path, output: Path) -> None:
    """Put the files of a finished folder into their place.

    Args:
        folder: Of `save`, with the card.
        output: Their place.
    """
    for file in sorted(folder.iterdir()):
        file.replace(output / file.name)
    folder.rmdir()
