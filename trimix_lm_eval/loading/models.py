"""One source's weights, loaded by transformers."""

from __future__ import annotations

import contextlib
import os
import pickle
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from trimix_lm_eval.loading.preflight.files import odd_tensor, quantized_tensor
from trimix_lm_eval.loading.rope import set_long_factors
from trimix_lm_eval.loading.settings import SourceSpec
from trimix_lm_eval.loading.text_part import of_text, text_part
from trimix_lm_eval.utils.errors import TrimixError, first_line, warn_once
from trimix_lm_eval.utils.progress import on_terminal, say

#: What older versions stored, and is computed.
_BUFFERS = re.compile(r"rotary_emb|inv_freq|masked_bias|attn\.bias$|attention\.bias$|position_ids")
#: Arguments that say which files a model's config is read from.
_OF_THE_CONFIG = ("revision", "subfolder", "gguf_file", "trust_remote_code", "local_files_only")
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def load_model(spec: SourceSpec, default_device: str, long_rope: bool = False) -> Any:
    """Load one source's weights with transformers: a causal LM in evaluation mode.

    Args:
        spec: The source.
        default_device: Where it goes if it names no device.
        long_rope: Whether its rotary embedding takes the factors for long texts.

    Raises:
        TrimixError: The weights cannot be loaded.
    """
    from transformers import BitsAndBytesConfig

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
    with _line_in_place_of_bars(f"trimix: loading {spec.name}"):
        model = read_weights(spec.name, spec.path, long_rope, **arguments)
    model.eval()
    model.requires_grad_(False)
    return model


def read_weights(name: str, path: str, long_rope: bool = False, **arguments: Any) -> Any:
    """A model as its files say, or an error: nothing in it is left at random.

    Args:
        name: What messages call it.
        path: A Hub id or a local folder.
        long_rope: Whether its rotary embedding takes the factors for long texts.
        **arguments: As transformers takes them.

    Returns:
        A causal LM; of a model that also sees or hears its text model alone.

    Raises:
        TrimixError: The weights cannot be loaded, do not fit the config, or are no numbers.
    """
    from transformers import AutoConfig

    where = f"{name} ({path})"
    # Mismatches are told in words here; transformers' own error refers to a table in the log.
    told = {"output_loading_info": True, "ignore_mismatched_sizes": True}
    try:
        hub = {key: arguments[key] for key in _OF_THE_CONFIG if key in arguments}
        config = AutoConfig.from_pretrained(path, **hub)
        part = text_part(config, arguments.get("trust_remote_code", False))
        if part is None:
            raise ValueError(f"model_type {config.model_type!r} has no text model of its own.")
        unscaled = getattr(config, "quantization_config", None) is None
        if unscaled and (stored := quantized_tensor(Path(path, hub.get("subfolder") or ""))):
            raise ValueError(f"{stored}, and its config.json has no quantization_config.")
        if long_rope:
            set_long_factors(part.config)
        loaded = part.from_pretrained(path, **told, **arguments)
    except Exception as error:  # whatever transformers, or the code of a repository, raises
        raise _not_loaded(where, path, error) from error
    # Code of a repository may have a from_pretrained of its own that tells nothing.
    model, info = loaded if isinstance(loaded, tuple) else (loaded, {})
    if part.partial:
        model._weight_conversions = None  # to be saved under its own names, not the wrapper's
        info = {**info, "unexpected_keys": of_text(model, info.get("unexpected_keys", ()))}
    _check_complete(where, model, info)
    _check_finite(where, model)
    return model


def _not_loaded(where: str, path: str, error: Exception) -> TrimixError:
    """The error for weights that transformers does not load."""
    what = f"The weights of {where} cannot be loaded"
    if isinstance(error, RuntimeError) and (odd := odd_tensor(Path(path))):
        # Of tensors that are put together, transformers says only that it has failed to.
        return TrimixError(f"{what}: {odd}.", "copy or download the model again")
    if isinstance(error, pickle.UnpicklingError | EOFError):
        # The text of it advises to let the file run code.
        return TrimixError(
            f"{what}: a .bin file of them is damaged, or holds other things than tensors.",
            "give a version of the model with .safetensors files, or download it again",
        )
    usual = isinstance(error, OSError | ValueError | RuntimeError | ImportError)
    return TrimixError(
        f"{what}: {error}" if usual else f"{what}: {type(error).__name__}: {first_line(error)}",
        "see the reason above; `trimix check` tests everything that comes before the weights. "
        "If a file is damaged, copy or download it again",
    )


def _check_complete(where: str, model: Any, told: Mapping[str, Any]) -> None:
    """Refuse a model of which transformers has made up a part, at random and in silence.

    It is told by the ``loading_info`` of transformers, in which neither tied weights are nor what a
    class of models may lack.
    """
    parameters = {name for name, _ in _learned(model)}
    again = "copy or download the model again; or its config.json is that of another model"
    missing = sorted(parameters & set(told.get("missing_keys", ())))
    if missing:
        raise TrimixError(
            f"The files of weights of {where} lack {len(missing)} of {len(parameters)} tensors: "
            f"{_first(missing)}.",
            again,
        )
    differing = sorted(told.get("mismatched_keys", ()))
    if differing:
        shapes = [f"{name} {list(has)} for {list(needs)}" for name, has, needs in differing]
        raise TrimixError(
            f"{where}: {len(shapes)} tensors have other shapes than its config.json says: "
            f"{_first(shapes)}.",
            again,
        )
    unused = sorted(name for name in told.get("unexpected_keys", ()) if not _BUFFERS.search(name))
    if unused:
        warn_once(
            f"{where}: the model has no place for {len(unused)} tensors of its files: "
            f"{_first(unused)}. If they belong to it, its config.json is that of another model."
        )


def _check_finite(where: str, model: Any) -> None:
    """Refuse weights that are NaN or infinite; looking takes far less time than loading."""
    bad = [name for name, tensor in _learned(model) if not _finite(tensor)]
    if bad:
        raise TrimixError(
            f"The weights of {where} are NaN or infinite in {len(bad)} tensors: {_first(bad)}.",
            "copy or download the model again; if dtype=float16 is given, leave it out: float16 "
            "has no numbers above 65,504",
        )


def _learned(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """The parameters of a model by name, tied ones by each, and the buffers that are learned.

    A buffer of floats that is stored with the parameters is taken to be learned (the biases by
    which some models pick experts are), but for those that old versions stored and new ones make.
    """
    yield from model.named_parameters(remove_duplicate=False)
    stored = model.state_dict(keep_vars=True)
    for name, buffer in model.named_buffers(remove_duplicate=False):
        if name in stored and buffer.is_floating_point() and not _BUFFERS.search(name):
            yield name, buffer


def _finite(tensor: torch.Tensor) -> bool:
    """Whether all of a tensor is finite; one that is quantized, or left on disk, is taken to be."""
    if tensor.is_meta or tensor.dtype not in _FLOATS or not tensor.numel():
        return True
    return bool(torch.stack(torch.aminmax(tensor.detach())).isfinite().all())


def _first(names: Sequence[str]) -> str:
    """The first of some names, and whether there are more."""
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


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
