"""The models that are trained here, saved as anybody's are: safetensors, tokenizer, configs."""

from __future__ import annotations

import random
from pathlib import Path

import copying
import curriculum
import tokenizer as tokenizers
import torch
import training
from recipe import ExperimentConfig, Stage
from streams import Documents, Repeats, Running, Stream
from texts import Corpus
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

# A message is what the tasks' prompts are, and an answer ends with an empty line.
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{{ ' ' + message['content'] + '\n\n' }}"
    "{% else %}{{ message['content'] }}{% endif %}{% endfor %}"
)
#: Of the model: seeds differ by it.
NUMBER = {"small_base": 0, "large_base": 1, "large_ins": 2, "medium_base": 3, "medium_ins": 4}


def save(model: LlamaForCausalLM, tokenizer: Path, folder: Path, chat: str | None = None) -> None:
    """Saves a model in fp16 with its tokenizer.

    Args:
        model: Is made fp16.
        tokenizer: Folder of the tokenizer.
        folder: Made if missing.
        chat: A chat template, for the model that has one.
    """
    words = tokenizers.load(tokenizer)
    model.half().generation_config = GenerationConfig(
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    model.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # written 0600: unreadable once installed by root
    words.chat_template = chat
    for key in ("is_local", "local_files_only"):  # of this loading, no matter of the next
        words.init_kwargs.pop(key, None)
    words.save_pretrained(folder)


def streams(
    recipe: ExperimentConfig,
    texts: dict[str, Corpus],
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
) -> dict[str, Stream]:
    """Makes all that a stage's mixture may name.

    Args:
        recipe: How many documents there are.
        texts: By language; only `base` is read.
        tokenizer: Of all models.
        seed: Of the documents.
    """
    rng = random.Random(seed)
    running = {name: Running(tokenizer, corpus.base) for name, corpus in texts.items()}
    tasks = curriculum.tasks(texts["en"], recipe.documents, rng)
    nonsense = curriculum.nonsense(list(texts.values()), recipe.documents, rng)
    ordinary = (len(tokenizer.all_special_ids) + 256, len(tokenizer))
    return {
        **running,
        "tasks": Documents(tokenizer, tasks),
        "nonsense": Documents(tokenizer, nonsense),
        "repeats": Repeats(list(running.values()), ordinary),
    }


def pretrain(
    role: str,
    recipe: ExperimentConfig,
    texts: dict[str, Corpus],
    tokenizer: Path,
    seed: int,
    folder: Path,
) -> None:
    """Trains a base from nothing but heads that copy.

    Args:
        role: Which: small_base, medium_base or large_base.
        recipe: Its shape and stage.
        texts: By language; only `base` is read.
        tokenizer: Folder of the tokenizer.
        seed: Of the whole experiment.
        folder: To write to.
    """
    stage: Stage = getattr(recipe, role)
    words = tokenizers.load(tokenizer)
    torch.manual_seed(1000 * seed + NUMBER[role])
    model = training.build(recipe.shapes[role.split("_")[0]], words)
    copying.write_heads(model)
    read = streams(recipe, texts, words, seed)
    training.train(model, f"seed {seed} {role}", stage, read, 1000 * seed + NUMBER[role], folder)
    save(model, tokenizer, folder)


def tune(
    role: str,
    recipe: ExperimentConfig,
    texts: dict[str, Corpus],
    base: Path,
    seed: int,
    folder: Path,
) -> None:
    """Tunes a base on tasks above all, and on what it has read, so as not to forget that.

    Args:
        role: Which: medium_ins or large_ins.
        recipe: Its stage.
        texts: By language; only `base` is read, which the base has seen.
        base: Folder of the base.
        seed: Of the whole experiment.
        folder: To write to.
    """
    words = tokenizers.load(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    number = 1000 * seed + NUMBER[role]
    read = streams(recipe, texts, words, number)  # other documents than the bases'
    stage: Stage = getattr(recipe, role)
    training.train(model, f"seed {seed} {role}", stage, read, number, folder)
    save(model, base, folder, CHAT_TEMPLATE)
