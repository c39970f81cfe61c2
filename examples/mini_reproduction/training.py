"""Training of the bases and of large_ins: one loop, rows from several streams.

`small_cpt` is not trained here but by `trimix cpt`, as a user's would be.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
import torch.nn.functional as F
from items import Item
from recipe import CONTEXT, Shape, Stage
from torch import Tensor
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

IGNORED = -100  # a label that the loss leaves out


class Stream(Protocol):
    """Where rows come from."""

    def row(self, length: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draws a row: token ids and labels, int64 [length] each."""


class Running:
    """Documents end to end, each closed by EOS; a row is a random window.

    Every other row, on average, starts with BOS: lm-eval scores whole documents after BOS and
    prompts without it, so the models must know both.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, documents: list[str]) -> None:
        encoded = tokenizer(documents, add_special_tokens=False, verbose=False)["input_ids"]
        flat = [token for ids in encoded for token in (*ids, tokenizer.eos_token_id)]
        self.ids = torch.tensor(flat)  # [N]
        self.bos = tokenizer.bos_token_id

    def row(self, length: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draws a window; its labels are the tokens themselves."""
        start = int(torch.randint(len(self.ids) - length, (1,), generator=rng))
        row = self.ids[start : start + length].clone()
        if torch.rand(1, generator=rng).item() < 0.5:
            row[0] = self.bos
        return row, row


class Tasks:
    """Items of tasks, several to a row; the loss looks at answers only."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, items: list[Item]) -> None:
        prompts = tokenizer([item["prompt"] for item in items], verbose=False)["input_ids"]
        answers = tokenizer([" " + item["answer"] for item in items], verbose=False)["input_ids"]
        self.pairs = list(zip(prompts, answers, strict=True))
        self.eos = tokenizer.eos_token_id

    def row(self, length: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draws items until the row is full; what is left over is EOS, and not judged."""
        ids: list[int] = []
        labels: list[int] = []
        while True:
            which = int(torch.randint(len(self.pairs), (1,), generator=rng))
            prompt, answer = self.pairs[which]
            if len(ids) + len(prompt) + len(answer) + 1 > length:
                break
            ids += [*prompt, *answer, self.eos]
            labels += [*([IGNORED] * len(prompt)), *answer, self.eos]
        rest = length - len(ids)
        ids, labels = ids + [self.eos] * rest, labels + [IGNORED] * rest
        return torch.tensor(ids), torch.tensor(labels)


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
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Makes Muon for the matrices inside the layers and AdamW for embedding and norms.

    Muon learns faster at these sizes: a large model was at a loss of 4.80 after 150 steps of 1,024
    tokens, against 5.35 with AdamW alone.
    """
    inside = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    ids = set(map(id, inside))
    rest = [p for p in model.parameters() if id(p) not in ids]
    return [
        torch.optim.Muon(inside, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, weight_decay=0.0, betas=(0.9, 0.95), fused=True),
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


def train(
    model: LlamaForCausalLM, name: str, stage: Stage, streams: dict[str, Stream], seed: int
) -> None:
    """Trains a model in place.

    Args:
        model: In fp32.
        name: Shown beside the progress bar.
        stage: Length, learning rate and mixture.
        streams: By the names that the mixture uses.
        seed: Of the order of the rows.
    """
    rng = torch.Generator().manual_seed(seed)
    both = optimizers(model)
    bar = tqdm(range(stage.steps), desc=name, mininterval=1.0)
    for step in bar:
        length = stage.length if step < stage.steps * (1 - stage.long) else CONTEXT
        ids, labels = draw(streams, stage, length, rng)  # [B, T]
        with torch.autocast("cpu", torch.bfloat16):  # twice as fast; the weights stay fp32
            logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        loss = F.cross_entropy(logits.float().flatten(0, 1), labels[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        lr = rate(stage, step)
        for optimizer in both:
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if step % 20 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}")
