"""One source's weights, loaded by transformers."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch

from trimix_lm_eval.loading.settings import SourceSpec
from trimix_lm_eval.utils.errors import TrimixError
from trimix_lm_eval.utils.progress import on_terminal, say


def load_model(spec: SourceSpec, default_device: str) -> Any:
    """Load one source's weights with transformers.

    Args:
        spec: Where from and how.
        default_device: Where to, if the spec does not say.

    Returns:
        A causal LM in evaluation mode.

    Raises:
        TrimixError: The weights cannot be loaded.
    """
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    arguments = spec.hub_arguments()
    device = spec.device or default_device
    arguments["device_map"] = "auto" if device == "auto" else {"": device}
    arguments["dtype"] = spec.dtype if spec.dtype == "auto" else getattr(torch, spec.dtype)
    if spec.attn_implementation:
        arguments["attn_implementation"] = spec.attn_implementation
    if spec.quantization == "int8":
        arguments["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True)
    elif spec.quantization == "nf4":
        arguments["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
        )
    try:
        with _line_in_place_of_bars(f"trimix: loading {spec.name}"):
            model = AutoModelForCausalLM.from_pretrained(spec.path, **arguments)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise TrimixError(
            f"The weights of {spec.name} ({spec.path}) cannot be loaded: {error}",
            "see the reason above; `trimix check` tests everything that comes before the weights",
        ) from error
    model.eval()
    model.requires_grad_(False)
    return model


@contextlib.contextmanager
def _line_in_place_of_bars(line: str) -> Iterator[None]:
    """Elsewhere than on a terminal, print a line instead of transformers' and the Hub's bars.

    Who sets ``HF_HUB_DISABLE_PROGRESS_BARS``, to 0 or to 1, has decided that already.
    """
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    if on_terminal() or not shown or "HF_HUB_DISABLE_PROGRESS_BARS" in os.environ:
        yield
        return
    say(line)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()
