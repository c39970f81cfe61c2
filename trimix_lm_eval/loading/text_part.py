"""How a model that also sees or hears is loaded: its text model alone.

Such models wrap a text model. What else they consist of is neither built nor read: it costs memory,
sometimes libraries, and has no say in the logits of a text. Where the text model has a causal LM of
its own in transformers, that is loaded; its tensors are found under the names that wrappers give
them. Where it has none, the wrapper is built without its other parts.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.models.auto import modeling_auto
from transformers.utils import logging

from trimix_lm_eval.utils.errors import first_line

#: Attributes under which wrappers hold their text model, as transformers' `get_decoder` knows them,
#: and so their tensors' names: of old releases outermost, of new ones inside ``model``.
_INSIDE = r"(?:model\.)?(?:language_model|text_model)\."
#: What may be written beside a text config rather than in it, and then holds for it, too.
_SHARED = ("dtype", "tie_word_embeddings", "eos_token_id", "quantization_config")
#: Auto classes of models that answer in text; the second is not in all versions.
_WRAPPERS = ("AutoModelForImageTextToText", "AutoModelForMultimodalLM")


class TextPart(NamedTuple):
    """What a causal LM is built from.

    Attributes:
        config: Its config: of the text model alone, if transformers has a causal LM for that.
        model: The class of the model, or the auto class that finds it.
        key_mapping: As ``from_pretrained`` takes it: patterns in the names of stored tensors, and
            what stands there in the model's own names.
        partial: Whether the files hold more than is loaded.
    """

    config: Any
    model: Any
    key_mapping: dict[str, str]
    partial: bool

    def from_pretrained(self, path: str, **arguments: Any) -> Any:
        """Read the weights; ``arguments`` are those of transformers."""
        if self.key_mapping:
            arguments["key_mapping"] = self.key_mapping
        before = logging.get_verbosity()
        if self.partial:  # it would list all that is not read
            logging.set_verbosity_error()
        try:
            return self.model.from_pretrained(path, config=self.config, **arguments)
        finally:
            logging.set_verbosity(before)

    def build(self, **arguments: Any) -> Any:
        """Build the model without reading weights, on PyTorch's default device."""
        make = getattr(self.model, "from_config", None) or self.model._from_config
        return make(copy.deepcopy(self.config), **arguments)

    def why_not_alone(self) -> str:
        """Why what is left of a wrapper runs on no text; nothing if it does.

        It is tried out without storage. Some models look into their inputs, where there are then
        no numbers: they are taken to run.
        """
        if self.model is AutoModelForCausalLM:
            return ""
        try:
            with torch.device("meta"):
                self.build()(input_ids=torch.zeros(1, 4, dtype=torch.long), use_cache=False)
        except RuntimeError:
            return ""
        except Exception as error:  # whatever a model raises for what it lacks
            return f"{type(error).__name__}: {first_line(error)}"
        return ""


def text_part(config: Any, own_code: bool = False) -> TextPart | None:
    """Find how the text model of a config is loaded; None if it has none that is a causal LM.

    Args:
        config: As transformers reads it; it is not changed. What this returns as a config gives
            the same again.
        own_code: Whether code from the model's repository may run.
    """
    causal = AutoModelForCausalLM._model_mapping
    text = config.get_text_config()
    own = causal.get(type(config), None)
    code = getattr(config, "auto_map", None) or {}
    if (text is config and own is not None) or (own_code and "AutoModelForCausalLM" in code):
        return TextPart(config, AutoModelForCausalLM, {}, False)
    if own is not None and own.config_class is type(text):  # transformers does it by itself
        return TextPart(config, AutoModelForCausalLM, {}, True)
    if getattr(text, "is_encoder_decoder", False):
        return None
    if type(text) in causal:
        return TextPart(_completed(text, config), AutoModelForCausalLM, {f"^{_INSIDE}": ""}, True)
    name, outer = _wrapper_of(config, text)
    for auto in (getattr(modeling_auto, one, None) for one in _WRAPPERS):
        if auto is not None and type(outer) in auto._model_mapping:
            mapping = {rf"^{name}\.": ""} if name else {}
            return TextPart(outer, _without_others(auto._model_mapping[type(outer)]), mapping, True)
    return None


def _completed(text: Any, config: Any) -> Any:
    """A text config with what is written beside it."""
    whole = copy.deepcopy(text)
    for name in _SHARED:
        value = getattr(config, name, None)
        if value is not None:
            setattr(whole, name, _renamed(value) if name == "quantization_config" else value)
    return whole


def _renamed(value: Any) -> Any:
    """A quantization config with the names of modules that it leaves out as the text model's."""
    if isinstance(value, dict):
        return {key: _renamed(one) for key, one in value.items()}
    if isinstance(value, list):
        return [re.sub(f"^{_INSIDE}", "", one) if isinstance(one, str) else one for one in value]
    return value


def _wrapper_of(config: Any, text: Any) -> tuple[str, Any]:
    """The innermost config with a text config and more, and where its model lies in the whole."""
    for key in getattr(config, "sub_configs", {}):
        part = getattr(config, key, None)
        if part is not None and part is not text and part.get_text_config() is text:
            return key.removesuffix("_config"), part
    return "", config


class _TextOnly:
    """Of a wrapper's model: without its other parts, which therefore are not read either."""

    def post_init(self: Any) -> None:
        """Drop them before transformers looks at what there is."""
        _keep_only(self, [self.get_decoder(), self.get_output_embeddings()])
        super().post_init()  # type: ignore[misc]


def _without_others(model: Any) -> Any:
    """The class of a wrapper's text model and head.

    Its name and its module are those of the wrapper, by which transformers finds the names that
    tensors have in the wrapper's files.
    """
    return type(model.__name__, (_TextOnly, model), {"__module__": model.__module__})


def _keep_only(module: nn.Module, wanted: list[nn.Module]) -> None:
    """Drop what neither is one of some modules, nor contains one."""
    for name, child in list(module.named_children()):
        if not any(child is one for one in wanted):
            if any(inner is one for inner in child.modules() for one in wanted):
                _keep_only(child, wanted)
            else:
                setattr(module, name, None)


def of_text(model: Any, names: Iterable[str]) -> list[str]:
    """Which of some names of stored tensors lie in a text model, or would, and not beside it.

    Args:
        model: The text model, as loaded.
        names: As they are in the files, or as transformers has renamed them.
    """
    modules = (model, model.base_model, model.get_decoder())
    parts = {name for one in modules for name, _ in one.named_children()}
    outer = rf"(?:{_INSIDE})?(?:{re.escape(model.base_model_prefix)}\.)?"
    return [
        name for name in names if re.sub(f"^{outer}", "", name, count=1).partition(".")[0] in parts
    ]
