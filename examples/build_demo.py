"""Trains the three tiny models behind `pretrained=demo`, checks them, and saves them.

    python examples/build_demo.py --english kjv.txt --tibetan bo_nanhai.txt \
        --out trimix_lm_eval/demo --tasks tasks/demo/data

The trio is the paper's situation in miniature. `large_ins` and `small_base` have seen much English
and less Tibetan; `small_cpt` is `small_base` trained further on Tibetan. The script fails unless
fusion pays on held-out text (`demo_measure.py`). Two free cores need about a quarter of an hour.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import math
from pathlib import Path
from typing import NamedTuple

import torch
from demo_data import Texts, load_texts, write_tasks
from demo_measure import claims, measure, show
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from tqdm import tqdm
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
# A word or syllable with its vowel signs (\p{M}) and tsek stays together; GPT-2's pattern, made for
# scripts without combining vowels, would cut Tibetan at each of them.
PIECES = r" ?[\p{L}\p{M}]+་?| ?\p{N}+| ?[^\s\p{L}\p{M}\p{N}]+|\s+"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}:\n{{ message['content'] }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:\n{% endif %}"
)
VOCABULARY = 1536
TOKENS_PER_BATCH = 2048
SHORT, LONG = 256, 1024  # tokens per training row; the long rows come last
LONG_SHARE = 0.1  # share of the steps spent on long rows


class Stage(NamedTuple):
    """One training run.

    Attributes:
        steps: Number of optimizer steps of `TOKENS_PER_BATCH` tokens.
        lr: Peak learning rate, reached after `warmup` steps, then a cosine down to 0.
        english: Share of rows drawn from English.
        warmup: Steps of linear warm-up.
    """

    steps: int
    lr: float
    english: float
    warmup: int = 50


STAGES = {
    "small_base": Stage(steps=900, lr=5e-3, english=0.80),
    "small_cpt": Stage(steps=600, lr=2.5e-3, english=0.10),
    "large_ins": Stage(steps=1200, lr=5e-3, english=0.70),
}
SHAPES = {  # layers, width, feed-forward width, heads
    "small": (3, 128, 384, 4),
    "large": (5, 256, 768, 4),
}


def train_tokenizer(texts: Texts, vocab_size: int) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE on the training documents of both languages.

    Args:
        texts: Only the training parts are read.
        vocab_size: Entries in all, special tokens and 256 bytes included.

    Returns:
        A tokenizer with bos, eos and pad, none of which it adds by itself.
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(itertools.chain(texts.english, texts.tibetan), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=LONG,
        clean_up_tokenization_spaces=False,
    )


def token_stream(tokenizer: PreTrainedTokenizerFast, documents: list[str]) -> Tensor:
    """Encodes documents into one stream, each closed by EOS.

    Args:
        tokenizer: The trio's tokenizer.
        documents: Texts.

    Returns:
        Token ids, int64 [N].
    """
    ids = tokenizer(documents, add_special_tokens=False, verbose=False)["input_ids"]
    return torch.tensor([token for row in ids for token in (*row, tokenizer.eos_token_id)])


def build_model(size: str, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Makes an untrained Llama with tied embeddings.

    Args:
        size: A key of `SHAPES`.
        tokenizer: Gives the vocabulary size and the special ids.

    Returns:
        The model in fp32.
    """
    layers, width, feed_forward, heads = SHAPES[size]
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=feed_forward,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            max_position_embeddings=LONG,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def draw_batch(
    streams: dict[str, Tensor], english: float, length: int, bos: int, rng: torch.Generator
) -> Tensor:
    """Draws random windows, each of one language; every other one, on average, starts with BOS.

    lm-eval scores whole documents after BOS and prompts without it, so the models must know both.

    Args:
        streams: Token streams by language, "en" and "bo".
        english: Probability that a row is English.
        length: Tokens per row.
        bos: Id of BOS.
        rng: Source of all randomness.

    Returns:
        Token ids, int64 [TOKENS_PER_BATCH / length, length].
    """
    rows = []
    for _ in range(TOKENS_PER_BATCH // length):
        language, beginning = torch.rand(2, generator=rng).tolist()
        stream = streams["en" if language < english else "bo"]
        start = int(torch.randint(len(stream) - length, (1,), generator=rng))
        row = stream[start : start + length].clone()
        if beginning < 0.5:
            row[0] = bos
        rows.append(row)
    return torch.stack(rows)


def optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Makes Muon for the matrices inside the layers and AdamW for embedding and norms.

    Muon learns faster at these sizes: large_ins was at a loss of 4.80 after 150 steps of 1,024
    tokens, against 5.35 with AdamW alone.

    Args:
        model: To be trained.

    Returns:
        Both optimizers; the learning rate is set at each step.
    """
    inside = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    ids = set(map(id, inside))
    rest = [p for p in model.parameters() if id(p) not in ids]
    return [
        torch.optim.Muon(inside, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, weight_decay=0.0, betas=(0.9, 0.95), fused=True),
    ]


def train(
    model: LlamaForCausalLM, name: str, stage: Stage, streams: dict[str, Tensor], seed: int
) -> None:
    """Trains a model in place.

    Args:
        model: In fp32.
        name: Shown beside the progress bar.
        stage: Length, learning rate and mixture.
        streams: Token streams by language.
        seed: Of the order of the batches.
    """
    rng = torch.Generator().manual_seed(seed)
    both = optimizers(model)
    bar = tqdm(range(stage.steps), desc=name, mininterval=1.0)
    for step in bar:
        progress = max(0, step - stage.warmup) / (stage.steps - stage.warmup)
        lr = stage.lr * min((step + 1) / stage.warmup, 0.5 + 0.5 * math.cos(math.pi * progress))
        length = SHORT if step < stage.steps * (1 - LONG_SHARE) else LONG
        ids = draw_batch(streams, stage.english, length, model.config.bos_token_id, rng)  # [B, T]
        with torch.autocast("cpu", torch.bfloat16):  # twice as fast; the weights stay fp32
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in both:
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if step % 20 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}")


def save(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path, chat: str | None
) -> None:
    """Saves a model in fp16 with its tokenizer; the model itself stays in fp32.

    Args:
        model: In fp32.
        tokenizer: The trio's tokenizer.
        folder: Made if missing.
        chat: A chat template, for the model that has one.
    """
    half = copy.deepcopy(model).half()
    half.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    half.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # written 0600: unreadable once installed by root
    tokenizer.chat_template = chat
    tokenizer.save_pretrained(folder)


def train_trio(tokenizer: PreTrainedTokenizerFast, texts: Texts, out: Path, seed: int) -> None:
    """Trains and saves the three models.

    Args:
        tokenizer: The trio's tokenizer.
        texts: Only the training parts are read.
        out: Folder for one folder per model.
        seed: Of initial weights and batches.
    """
    streams = {
        "en": token_stream(tokenizer, texts.english),
        "bo": token_stream(tokenizer, texts.tibetan),
    }
    trained: dict[str, LlamaForCausalLM] = {}
    for offset, (name, stage) in enumerate(STAGES.items()):
        size = name.split("_")[0]
        torch.manual_seed(seed + offset)
        if size not in trained:
            trained[size] = build_model(size, tokenizer)
        # small_cpt goes on from small_base: the same object, trained further.
        train(trained[size], name, stage, streams, seed + offset)
        save(trained[size], tokenizer, out / name, CHAT_TEMPLATE if size == "large" else None)


def main() -> None:
    """Builds the trio and the tasks' data from two text files."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--english", type=Path, required=True, help="plain text, a verse per line")
    parser.add_argument("--tibetan", type=Path, required=True, help="text, a document per line")
    parser.add_argument("--out", type=Path, required=True, help="folder for the three models")
    parser.add_argument("--tasks", type=Path, help="folder for the data of trimix_demo")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads; default: 2")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.use_deterministic_algorithms(True)

    texts = load_texts(args.tibetan, args.english)
    if args.tasks:
        write_tasks(texts.tibetan_held_out, args.tasks, args.seed)
    tokenizer = train_tokenizer(texts, VOCABULARY)
    train_trio(tokenizer, texts, args.out, args.seed)

    held_out = {"Tibetan": texts.tibetan_held_out, "English": texts.english_held_out}
    measured = measure(args.out, tokenizer, held_out)
    print(show(measured))
    (args.out / "measured.json").write_text(json.dumps(measured, indent=1) + "\n")
    found = claims(measured)
    for claim, holds in found.items():
        print("holds " if holds else "FAILS ", claim)
    if not all(found.values()):
        raise SystemExit("the trio does not demonstrate what it must")


if __name__ == "__main__":
    main()
