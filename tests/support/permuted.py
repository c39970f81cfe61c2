"""The same tokens under other ids: tokenizers, and models with their rows moved along."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast


def shuffled(count: int, seed: int) -> list[int]:
    """An id for each of so many."""
    ids = list(range(count))
    random.Random(seed).shuffle(ids)
    return ids


def renumbered(tokenizer: Any, own: Sequence[int]) -> PreTrainedTokenizerFast:
    """A tokenizer of BPE that gives ``own[i]`` where another gives i."""
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    # Of what is not in it, the library makes up ids by its length.
    spec["model"]["vocab"] = {token: own[i] for token, i in tokenizer.get_vocab().items()}
    for added in spec["added_tokens"]:
        added["id"] = own[added["id"]]
    ends = {role: token for role, token in tokenizer.special_tokens_map.items() if token}
    made = Tokenizer.from_str(json.dumps(spec))
    return PreTrainedTokenizerFast(tokenizer_object=made, **ends)


def permuted(folder: str, to: Path, seed: int) -> str:
    """Write a model that is another with all rows of its embeddings shuffled, padding included."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    rows = model.config.get_text_config().vocab_size
    own = shuffled(rows, seed)
    moved = torch.tensor(own)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if len(weight) == rows and ("emb" in name or "wte" in name or "head" in name):
                weight[moved] = weight.clone()
    for config in (model.config, model.generation_config):
        for end in ("bos_token_id", "eos_token_id", "pad_token_id"):
            ids = getattr(config, end, None)
            if isinstance(ids, list):
                setattr(config, end, [own[i] for i in ids])
            elif ids is not None:
                setattr(config, end, own[ids])
    model.save_pretrained(to)
    renumbered(AutoTokenizer.from_pretrained(folder), own).save_pretrained(to)
    return str(to)
