"""LoRA adapters: which layers of a model get one, found by what layers there are and by trial."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import set_seed
from transformers.pytorch_utils import Conv1D

from trimix_lm_eval.training.cpt.config import Config


def adapted(model: Any, config: Config) -> Any:
    """The model with LoRA adapters, if the config asks for them; it is where it is trained."""
    if not config.lora_rank:
        return model
    from peft import LoraConfig, get_peft_model

    layers = _layers(model)
    refused = {name for name in map(_last, layers) if _refused(name, model.config)}
    set_seed(config.seed)
    return get_peft_model(
        model,
        LoraConfig(
            task_type="CAUSAL_LM",
            r=config.lora_rank,
            lora_alpha=config.lora_alpha or 2 * config.lora_rank,
            target_modules=[name for name in layers if _last(name) not in refused],
            target_parameters=_experts(model) or None,
        ),
    )


def _layers(model: Any) -> list[str]:
    """The linear layers that text runs through in training, but the output's.

    Convolutions are left out: adapters of grouped ones, as recurrent layers have, cannot be merged.
    So is a layer that does not run where one beside it does: its weights are taken past it, by a
    kernel or by a forward pass of training, and an adapter would be passed over.
    """
    inside = set(model.get_decoder().modules())
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module in inside
    }
    ran: set[str] = set()

    def noted(name: str) -> Any:
        return lambda *_: ran.add(name)

    hooks = [module.register_forward_hook(noted(name)) for name, module in layers.items()]
    training = model.training
    model.train()
    with torch.no_grad():
        model(input_ids=torch.arange(8, device=model.device)[None])
    model.train(training)
    for hook in hooks:
        hook.remove()
    beside = {name.rpartition(".")[0] for name in ran}
    return [name for name in layers if name in ran or name.rpartition(".")[0] not in beside]


def _experts(model: Any) -> list[str]:
    """The parameters of experts: layers that are stacked to tensors of three dimensions."""
    inside = set(model.get_decoder().modules())
    return [
        f"{name}.{own}"
        for name, module in model.named_modules()
        if module in inside and not isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        for own, parameter in module.named_parameters(recurse=False)
        if parameter.ndim == 3
    ]


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _refused(name: str, config: Any) -> bool:
    """Whether peft has no adapters for layers of a name in models of a type; it tells by trial."""
    from peft import LoraConfig, inject_adapter_in_model

    alone = nn.Module()
    alone.config = config
    setattr(alone, name, nn.Linear(1, 1))
    try:
        inject_adapter_in_model(LoraConfig(target_modules=[name]), alone)
    except ValueError:
        return True
    return False
