"""Whether a config is that of a causal LM, and whether its weights can be loaded here."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import transformers
from transformers import AutoConfig
from transformers.models.auto import modeling_auto

from trimix_lm_eval.loading.preflight.access import Files, label
from trimix_lm_eval.loading.preflight.files import read_json
from trimix_lm_eval.loading.settings import SourceSpec
from trimix_lm_eval.loading.text_part import text_part
from trimix_lm_eval.utils.errors import TrimixError, first_line

_ANOTHER = "give a decoder-only model that AutoModelForCausalLM can load"
#: Heads that AutoModelForCausalLM would replace by an untrained one without an error.
_OTHER_HEADS = (
    "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",
    "MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES",
)


def load_config(spec: SourceSpec, files: Files) -> Any:
    """Load a source's config and check that a causal LM can be built from it here.

    Of a model that also sees or hears, it is that of its text model if this has a class of its own
    (see `text_part`).

    Raises:
        TrimixError: Unreadable, of another kind of model, or a library is missing.
    """
    raw = {} if spec.gguf_file else read_json(label(spec), files.main)
    if spec.gguf_file and find_spec("gguf") is None:
        raise TrimixError(
            f"{label(spec)}: reading {spec.gguf_file} needs the library gguf.", "pip install gguf"
        )
    code = raw.get("auto_map")
    code = code if isinstance(code, dict) else {}
    try:
        config = AutoConfig.from_pretrained(spec.path, **files.arguments(spec))
    except Exception as error:  # whatever transformers or the repository's own code raises
        if "AutoConfig" in code and not spec.trust_remote_code:
            raise _needs_code(spec) from error
        raise TrimixError(
            f"{label(spec)}: transformers {transformers.__version__} cannot read its config "
            f"(model_type {raw.get('model_type')!r}): {first_line(error)}",
            "pip install -U transformers, or check that the files are those of a language model",
        ) from error
    text = _checked_causal(spec, config, code)
    _check_quantization(spec, text)
    return text


def _checked_causal(spec: SourceSpec, config: Any, code: dict[str, Any]) -> Any:
    """The config of the causal LM that is in a model; what is none is refused."""
    model_type = config.model_type
    layers = getattr(config.get_text_config(), "num_hidden_layers", 1)
    if isinstance(layers, int) and layers < 1:
        raise TrimixError(
            f"{label(spec)}: its config.json says num_hidden_layers={layers}.",
            "copy or download the file again",
        )
    if getattr(config, "is_encoder_decoder", False):
        raise TrimixError(
            f"{label(spec)} is an encoder-decoder (model_type {model_type!r}), not a causal LM.",
            _ANOTHER,
        )
    own_code = "AutoModelForCausalLM" in code
    if own_code and spec.trust_remote_code:
        return config
    part = text_part(config)
    if part is None:
        if own_code:
            raise _needs_code(spec)
        raise TrimixError(
            f"{label(spec)} is not a causal LM: AutoModelForCausalLM has no class for "
            f"model_type {model_type!r}, nor for a text model in it.",
            _ANOTHER,
        )
    if why := part.why_not_alone():
        raise TrimixError(
            f"{label(spec)} has no text model that runs by itself (model_type {model_type!r}): "
            f"{why}",
            _ANOTHER,
        )
    causal = set(modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    others = {n for m in _OTHER_HEADS for n in getattr(modeling_auto, m).values()} - causal
    for architecture in config.architectures or []:
        if architecture in others:
            raise TrimixError(
                f"{label(spec)} was saved as {architecture}: it has no next-token head.", _ANOTHER
            )
    return part.config


def _check_quantization(spec: SourceSpec, config: Any) -> None:
    """Check that what the weights are, or are to be, quantized with is installed."""
    stored = getattr(config, "quantization_config", None)
    if spec.quantization and stored:
        raise TrimixError(
            f"{label(spec)} is already quantized ({_method(stored)}); "
            f"quantization={spec.quantization} cannot be applied on top.",
            f"leave out quantization, or set {spec.name}_quantization only for the other sources",
        )
    if spec.quantization and find_spec("bitsandbytes") is None:
        raise TrimixError(
            f"{label(spec)}: quantization={spec.quantization} needs bitsandbytes.",
            "pip install 'trimix-lm-eval[quant]'",
        )
    if not stored:
        return
    from transformers.quantizers import AutoHfQuantizer

    try:
        # The library's own check: it knows every method and its pip line.
        quantizer = AutoHfQuantizer.from_config(stored, pre_quantized=True)
        quantizer.validate_environment(device_map=None, weights_only=True)
    except (ImportError, RuntimeError, ValueError) as error:
        raise TrimixError(
            f"{label(spec)} is quantized with {_method(stored)}, which cannot be used here: "
            f"{first_line(error)}",
            "install what is missing, or give the unquantized checkpoint",
        ) from error


def _method(stored: Any) -> str:
    """The name of a stored quantization method."""
    method = stored.get("quant_method") if isinstance(stored, dict) else stored.quant_method
    return str(getattr(method, "value", method))


def _needs_code(spec: SourceSpec) -> TrimixError:
    """The error for a repository that brings its own modelling code."""
    return TrimixError(
        f"{label(spec)} needs Python code from its repository, which is not run unasked.",
        f"read that code; if you trust it, add {spec.name}_trust_remote_code=true "
        "(trust_remote_code=true for all sources)",
    )
