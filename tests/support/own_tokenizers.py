"""Models with tokenizers of their own, and `fusion=sequence` written down plainly."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from functools import cache
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast

from tests.conftest import SHAPE, byte_tokenizer
from tests.support.running import ROOT

#: Tokens of context: not the same for all.
LENGTHS = {"large_ins": 512, "small_cpt": 320, "small_base": 320}


@cache
def rows(name: str) -> list[dict]:
    """Real text of the demo's tasks: with `context`, questions (`finish`) with `choices`, too."""
    text = (ROOT / f"tasks/demo/data/{name}.jsonl").read_text(encoding="utf-8")
    found = [json.loads(line) for line in text.splitlines()]
    if name == "finish":
        return [{**row, "context": row["prompt"].partition(": ")[2]} for row in found]
    return [{"context": row["text"][:400], "reference": row["text"][401:]} for row in found]


def unigram_tokenizer() -> PreTrainedTokenizerFast:
    """A Unigram tokenizer of Tibetan, which puts a BOS; its ids mean other tokens than bytes do."""
    special, counts = ["<unk>", "[B]", "[E]"], Counter(".?\n▁abcdefghijklmnopqrstuvwxyz")
    for row in rows("rolling")[:30]:
        for word in row["context"].replace(" ", " ▁").split(" "):
            counts.update(word[i : i + n] for n in (1, 2, 3) for i in range(len(word) - n + 1))
    pieces = sorted(counts, key=lambda piece: (len(piece) > 1, -counts[piece], piece))[:320]
    vocab = [(one, 0.0) for one in special]
    vocab += [(piece, math.log(counts[piece] / counts.total())) for piece in pieces]
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="never")
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[B] $A", special_tokens=[("[B]", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="[B]", eos_token="[E]", unk_token="<unk>"
    )


def write(folder: Path) -> dict[str, str]:
    """A trio on disk: a large model that reads bytes, two small ones that read pieces."""
    written = {}
    for seed, (role, length) in enumerate(LENGTHS.items(), start=5):
        tokenizer = byte_tokenizer() if role == "large_ins" else unigram_tokenizer()
        tokenizer.save_pretrained(folder / role)
        torch.manual_seed(seed)
        shape = SHAPE | {
            "vocab_size": len(tokenizer),
            "max_position_embeddings": length,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": None,
        }
        config = LlamaConfig(**shape, hidden_size=32, intermediate_size=48, num_hidden_layers=2)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder / role)
        written[role] = str(folder / role)
    return written


class Alone:
    """One source by itself: transformers, one row at a time."""

    def __init__(self, folder: str) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.no_grad()
    def log_p(self, ids: list[int]) -> torch.Tensor:
        """[T, V]"""
        logits = self.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
        return logits.double().log_softmax(-1)

    def split(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """As lm-eval's ``hf`` does; a token that spans the border belongs to the continuation."""
        stripped = context.rstrip()
        ids = self.tokenizer.encode(stripped)
        whole = self.tokenizer.encode(stripped + context[len(stripped) :] + continuation)
        if continuation and len(whole) <= len(ids):
            ids = os.path.commonprefix([ids, whole])
        return ids, whole[len(ids) :]

    def score(self, context: list[int], target: list[int]) -> tuple[float, bool]:
        """Log-likelihood, and whether it is greedy."""
        log_p = self.log_p(context + target)[len(context) - 1 : -1]
        own = log_p.gather(1, torch.tensor(target)[:, None])[:, 0]
        return float(own.sum()), bool((log_p.argmax(1) == torch.tensor(target)).all())

    def greedy(self, text: str, stop: list[str], most: int) -> tuple[str, bool]:
        """The greedy text, and whether it was cut."""
        ids, new = self.tokenizer.encode(text), []
        while len(new) < most:
            token = int(self.log_p(ids + new)[-1].argmax())
            if token == self.tokenizer.eos_token_id:
                return self.tokenizer.decode(new, skip_special_tokens=True), False
            new.append(token)
            found = self.tokenizer.decode(new, skip_special_tokens=False)
            if any(one in found for one in stop):
                found = self.tokenizer.decode(new, skip_special_tokens=True)
                return min((found.split(one)[0] for one in stop), key=len), False
        return self.tokenizer.decode(new, skip_special_tokens=True), True

    def event(self, context: str, text: str, cut: bool, stop: list[str]) -> float:
        """Log-probability that the text comes and, unless it was cut, ends there in some way."""
        if cut:
            ids, target = self.split(context, text.rstrip("\ufffd"))
            return self.score(ids, target)[0] if target else 0.0
        ids, target = self.split(context, text)
        ways = [self.score(ids, [*target, self.tokenizer.eos_token_id])[0]]
        for end in stop:
            ids, target = self.split(context, text + end)
            if target[-1] != self.tokenizer.eos_token_id:
                ways.append(self.score(ids, target)[0])
        return math.log(sum(math.exp(way) for way in ways))
