"""Training of the bases and of large_ins: one loop, which goes on where it was ended.

`small_cpt` is not trained here but by `trimix cpt`, as a user's would be.
"""

from __future__ import annotations

import math
import time
from pathlib import Path

import copying
import torch
import torch.nn.functional as F
from recipe import CONTEXT, Shape, Stage
from streams import IGNORED, Stream
from torch import Tensor
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

ROPE = 1e6  # of 1e4 too few pairs hardly turn, and contents are compared in those (`copying`)
STATE = "training.pt"
_EVERY = 120  # seconds after which the state is saved
_SHARES = {"heads": 0.1, "embedding": 0.3, "norms": 1.0}  # of the learning rate, what AdamW trains


def build(shape: Shape, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Makes an untrained Llama with tied embeddings, in fp32."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=shape.width,
            intermediate_size=shape.feed_forward,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.heads,
            head_dim=shape.head_dim,
            max_position_embeddings=CONTEXT,
            rope_parameters={"rope_type": "default", "rope_theta": ROPE},
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Makes Muon for the matrices inside the layers, and AdamW for all else.

    Muon learns faster at these sizes: a large model was at a loss of 4.80 after 150 steps of 1,024
    tokens, against 5.35 with AdamW alone. But its steps are equally large in all directions, and
    wash away what was written into a few: what the heads of `copying` compare is trained by AdamW,
    slowly, and so is the embedding, by which they know tokens. Weight decay would fade both.
    """
    groups: dict[str, list[torch.nn.Parameter]] = {
        "muon": [],
        "heads": [],
        "embedding": [],
        "norms": [],
    }
    compared = tuple(f"model.layers.{layer}." for layer in copying.LAYERS)
    ends = ("q_proj.weight", "k_proj.weight")
    for name, parameter in model.named_parameters():
        if name.startswith(compared) and ".self_attn." in name and name.endswith(ends):
            groups["heads"].append(parameter)
        elif "embed" in name:
            groups["embedding"].append(parameter)
        else:
            groups["muon" if parameter.ndim == 2 else "norms"].append(parameter)
    others = [{"params": groups[name], "share": share} for name, share in _SHARES.items()]
    return [
        torch.optim.Muon(groups["muon"], weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, weight_decay=0.0, betas=(0.9, 0.95), fused=True),
    ]


def draw(
    streams: dict[str, Stream], stage: Stage, length: int, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draws a batch, each row from one stream.

    Returns:
        Token ids and labels, int64 [batch / length, length] each.
    """
    names, shares = zip(*stage.mixture.items(), strict=True)
    count = stage.batch // length
    picked = torch.multinomial(torch.tensor(shares), count, replacement=True, generator=rng)
    rows = [streams[names[i]].row(length, rng) for i in picked.tolist()]
    ids, labels = zip(*rows, strict=True)
    return torch.stack(ids), torch.stack(labels)


def rate(stage: Stage, step: int) -> float:
    """The learning rate of a step: linear warm-up, then a cosine to 0."""
    progress = max(0, step - stage.warmup) / max(1, stage.steps - stage.warmup)
    return stage.lr * min((step + 1) / stage.warmup, 0.5 + 0.5 * math.cos(math.pi * progress))


def loss_of(model: LlamaForCausalLM, ids: Tensor, labels: Tensor) -> Tensor:
    """The mean cross entropy of the labels; logits are made where there is one.

    Args:
        model: In fp32; its matrix products are in bf16.
        ids: [B, T]
        labels: [B, T]
    """
    judged = labels[:, 1:] != IGNORED  # [B, T - 1]
    with torch.autocast("cpu", torch.bfloat16):  # twice as fast; the weights stay fp32
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
        logits = model.lm_head(hidden[judged])  # [judged, V]
    return F.cross_entropy(logits.float(), labels[:, 1:][judged])


def train(
    model: LlamaForCausalLM,
    name: str,
    stage: Stage,
    streams: dict[str, Stream],
    seed: int,
    folder: Path,
) -> None:
    """Trains a model in place, from where a run that was ended has left it.

    Args:
        model: In fp32.
        name: Shown beside the progress bar.
        stage: Length, learning rate and mixture.
        streams: By the names that the mixture uses.
        seed: Of the order of the rows.
        folder: Holds the state of a run until it is finished.
    """
    rng = torch.Generator().manual_seed(seed)
    both = optimizers(model)
    first = _resume(folder / STATE, model, both, rng)
    saved = time.monotonic()
    bar = tqdm(range(stage.steps), desc=name, initial=first, mininterval=1.0)
    for step in range(first, stage.steps):
        length = stage.length if step < stage.steps * (1 - stage.long) else CONTEXT
        loss = loss_of(model, *draw(streams, stage, length, rng))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        lr = rate(stage, step)
        for optimizer in both:
            for group in optimizer.param_groups:
                group["lr"] = lr * group.get("share", 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        bar.update()
        if step % 20 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}")
        if time.monotonic() - saved > _EVERY:
            _save(folder / STATE, model, both, rng, step + 1)
            saved = time.monotonic()
    bar.close()
    (folder / STATE).unlink(missing_ok=True)


def _save(
    path: Path,
    model: LlamaForCausalLM,
    both: list[torch.optim.Optimizer],
    rng: torch.Generator,
    step: int,
) -> None:
    """Saves all that the next steps depend on."""
    state = {
        "step": step,
        "model": model.state_dict(),
        "optimizers": [one.state_dict() for one in both],
        "rng": rng.get_state(),
    }
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.rename(path)


def _resume(
    path: Path, model: LlamaForCausalLM, both: list[torch.optim.Optimizer], rng: torch.Generator
) -> int:
    """Takes up what was saved, if anything was; returns the step to go on with."""
    if not path.is_file():
        return 0
    state = torch.load(path)
    model.load_state_dict(state["model"])
    for one, its in zip(both, state["optimizers"], strict=True):
        one.load_state_dict(its)
    rng.set_state(state["rng"])
    return int(state["step"])
