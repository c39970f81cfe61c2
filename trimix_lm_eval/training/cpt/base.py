"""The model that training goes on from: found and checked before its weights are loaded."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import torch

from trimix_lm_eval.loading.models import read_weights
from trimix_lm_eval.loading.preflight import memory
from trimix_lm_eval.loading.preflight.access import Files, locate
from trimix_lm_eval.loading.preflight.configs import load_config
from trimix_lm_eval.loading.preflight.context import context_of
from trimix_lm_eval.loading.preflight.report import load_tokenizer
from trimix_lm_eval.loading.provenance import model_identity, vocabulary_digest
from trimix_lm_eval.loading.settings import SourceSpec
from trimix_lm_eval.training.cpt.config import Config
from trimix_lm_eval.utils.errors import TrimixError, warn_once

#: Bytes per weight that is trained: itself, its gradient and AdamW's two sums, in fp32.
_TRAINED, _FROZEN = 16, 4
#: Tokens of the shortest row.
_SHORTEST = 8


class Base(NamedTuple):
    """The base: where it is, what it consists of, transformers' config and tokenizer for it.

    ``context`` is the tokens that it sees at once, ``dtype`` that of its stored weights.
    """

    spec: SourceSpec
    files: Files
    config: Any
    tokenizer: Any
    context: int
    dtype: str

    def identity(self) -> dict[str, Any]:
        """What tells this base from others: its commit, or of a folder the content of all files."""
        return {
            **model_identity(self.spec.path, "", self.files.commit),
            "tokenizer": vocabulary_digest(self.tokenizer),
        }

    @property
    def filler(self) -> int:
        """A token to fill a row with, which is no target."""
        for token in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id):
            if token is not None:
                return int(token)
        return 0


def find(config: Config) -> Base:
    """Look at the base's small files.

    Raises:
        TrimixError: It cannot be read, or is no causal LM.
    """
    spec = SourceSpec(
        "base",
        config.base_path,
        revision=config.base_revision,
        dtype="float32",
        trust_remote_code=config.trust_remote_code,
    )
    files = locate(spec)
    loaded = load_config(spec, files)
    if getattr(loaded, "quantization_config", None):
        raise TrimixError(
            f"{config.base} is quantized, and quantized weights cannot be trained.",
            "give the checkpoint that it was made from",
        )
    tokenizer = load_tokenizer(spec, files)
    if tokenizer.bos_token_id is None and tokenizer.eos_token_id is None:
        raise TrimixError(
            f"The tokenizer of {config.base} has neither a BOS nor an EOS token: nothing can stand "
            "before a text or end it.",
            "name one in its tokenizer_config.json: bos_token or eos_token",
        )
    context = context_of(loaded, tokenizer)
    if context < _SHORTEST:
        raise TrimixError(
            f"The context of {config.base} is {context} tokens, as its config.json has it.",
            "correct max_position_embeddings there",
        )
    # Documents are longer than the context, and are meant to be.
    tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
    stored = str(memory.stored_dtype(loaded)).removeprefix("torch.")
    return Base(spec, files, loaded, tokenizer, context, stored)


def load(base: Base, config: Config, source: str | Path | None = None) -> Any:
    """Load weights in fp32, all of them from the files: of a folder, or of the base itself.

    Nothing of it is kept between forward passes: where keys and values are, some models do not
    tell documents in one row apart.

    Raises:
        TrimixError: See `models.read_weights`.
    """
    if source is None:
        where, more = base.spec.path, base.files.arguments(base.spec)
    else:
        where, more = str(source), {"trust_remote_code": config.trust_remote_code}
    model = read_weights("the model to train", where, dtype=torch.float32, **more)
    model.config.get_text_config().use_cache = False
    return model


def quiet_about_ties(model: Any) -> None:
    """Tell transformers which weights a checkpoint lacks because they are those of others."""
    if getattr(model.config.get_text_config(), "tie_word_embeddings", False):
        model._keys_to_ignore_on_save = list(model._tied_weights_keys or ())


def check_memory(base: Base, config: Config) -> None:
    """See whether weights, gradients and the optimizer's sums fit; rows of a batch come on top.

    Raises:
        TrimixError: They do not, on one device that has to hold all of them.
    """
    present = memory.devices()
    device = memory.place(base.spec, present)
    needs = memory.estimate(base.spec, base.config, base.files, device)
    if needs.parameters is None:
        return
    needed = needs.parameters * (_FROZEN if config.lora_rank else _TRAINED)
    free = memory.free_memory([device])[device]
    if free is None or needed <= free:
        return
    what = (
        f"Training {config.base} ({needs.parameters / 1e6:,.0f} M parameters) needs "
        f"{memory.gib(needed)} on {device} for weights, gradients and AdamW; "
        f"{memory.gib(free)} are free."
    )
    hint = "lora_rank: 16 trains adapters only; or spread it over GPUs: accelerate launch with FSDP"
    sharded = any(os.environ.get(f"ACCELERATE_USE_{kind}") for kind in ("FSDP", "DEEPSPEED"))
    if sharded:
        warn_once(f"{what} It is taken to be spread over the processes.")
        return
    raise TrimixError(what, hint)
