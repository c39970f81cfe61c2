"""One tokenizer for all models: a byte-level BPE that leaves syllables whole."""

from __future__ import annotations

from pathlib import Path

from recipe import CONTEXT
from texts import Corpus
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
# A word or syllable with its vowel signs (\p{M}) and tsek stays together; GPT-2's pattern, made for
# scripts without combining vowels, would cut Tibetan at each of them.
PIECES = r" ?[\p{L}\p{M}]+་?| ?\p{N}+| ?[^\s\p{L}\p{M}\p{N}]+|\s+"
# How often a language is repeated: by its share of the text alone, Uyghur would get no merges.
REPEATED = {"en": 1, "bo": 1, "ug": 8}


def train(
    texts: dict[str, Corpus], documents: list[list[str]], vocabulary: int
) -> PreTrainedTokenizerFast:
    """Trains the tokenizer on what the bases read.

    Args:
        texts: By language; only `base` is read.
        documents: Of tasks. Without them, what stands between an entry and its meaning would be
            two tokens, a blank and a sign, and the heads of `copying` would see no entry.
        vocabulary: Entries in all, special tokens and 256 bytes included.

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
        vocab_size=vocabulary,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    read = [text for name, n in REPEATED.items() for text in texts[name].base * n]
    bpe.train_from_iterator([*read, *("".join(parts) for parts in documents)], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def load(folder: Path) -> PreTrainedTokenizerFast:
    """Reads a tokenizer that was saved."""
    return AutoTokenizer.from_pretrained(folder)
