"""The models that are trained here, saved as anybody's are: safetensors, tokenizer, configs."""

from __future__ import annotations

from pathlib import Path

import tokenizer as tokenizers
import torch
import training
from items import Item
from recipe import ExperimentConfig, Stage
from texts import Corpus
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaForCausalLM

# A message becomes what the tasks' prompts are: a question, and `Answer:` before what is asked for.
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{{ ' ' + message['content'] + '\n\n' }}"
    "{% else %}{{ message['content'] + '\nAnswer:' }}{% endif %}{% endfor %}"
)
NUMBER = {"small_base": 0, "large_base": 1, "large_ins": 2}  # of the model: seeds differ by it


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


def pretrain(
    role: str,
    recipe: ExperimentConfig,
    texts: dict[str, Corpus],
    tokenizer: Path,
    seed: int,
    folder: Path,
) -> None:
    """Trains small_base or large_base from nothing.

    Args:
        role: Which of the two.
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
    streams = {name: training.Running(words, texts[name].base) for name in stage.mixture}
    training.train(model, f"seed {seed} {role}", stage, streams, 1000 * seed + NUMBER[role])
    save(model, tokenizer, folder)


def tune(
    recipe: ExperimentConfig,
    texts: dict[str, Corpus],
    items: list[Item],
    base: Path,
    seed: int,
    folder: Path,
) -> None:
    """Trains large_ins from large_base: English tasks, and the base's own text not to forget it.

    Args:
        recipe: Its stage.
        texts: By language; only `base` is read, which large_base has seen.
        items: Of the English tasks.
        base: Folder of large_base.
        seed: Of the whole experiment.
        folder: To write to.
    """
    words = tokenizers.load(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    streams: dict[str, training.Stream] = {
        name: training.Running(words, texts[name].base)
        for name in recipe.large_ins.mixture
        if name != "tasks"
    }
    streams["tasks"] = training.Tasks(words, items)
    training.train(
        model,
        f"seed {seed} large_ins",
        recipe.large_ins,
        streams,
        1000 * seed + NUMBER["large_ins"],
    )
    save(model, base, folder, CHAT_TEMPLATE)
