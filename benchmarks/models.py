"""Trios of random models, shaped like Qwen2 or Qwen3.5, that cost and agree as real ones do.

Nothing is downloaded. What matters for time is made to measure, and `describe.py` measures it:

* Shapes. ``cpu`` has Qwen2.5's vocabulary and a small/large cost of about 0.2 per token, and so has
  ``cpu-hybrid``, whose layers are Qwen3.5's; the ``qwen2.5-…`` trios have the shapes of the real
  models.
* Text. Weights have a standard deviation of `GAIN` / sqrt(width): with less, attention is nearly
  uniform and greedy text soon repeats itself; with more, rounding grows from layer to layer. Input
  and output embeddings are not tied, else a random model repeats its input.
* Agreement. small_cpt is small_base plus noise. The fused argmax is small_cpt's wherever its lead
  over the runner-up is more than what the large model's logits, which are independent of it, move.
  `Preset.spread`, the standard deviation of those, was set so that at alpha = 0.1, beta = 0.9 this
  holds for 0.8 to 0.95 of the tokens.
* Stops. One word in `STOP_EVERY` ends in a full stop, so with that as a stop string the lengths of
  texts are distributed geometrically, whoever writes them: mostly sentences, now and then a text up
  to the limit. No model writes the end-of-text token.
"""

from __future__ import annotations

import contextlib
import dataclasses
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import logging

from trimix_lm_eval import TriMix
from trimix_lm_eval.engine.model_runner import Ensemble, Fuser
from trimix_lm_eval.loading import settings
from trimix_lm_eval.loading.provenance import needed
from trimix_lm_eval.utils.paths import demo_dir

if TYPE_CHECKING:
    from lm_eval.models.huggingface import HFLM

#: Standard deviation of what a matrix makes of an input of standard deviation 1.
GAIN = 0.7
#: Standard deviation of the small models' logits.
SPREAD = 3.0
#: Standard deviation of small_cpt's noise, as a share of that of small_base's weights.
NOISE = 0.1
#: One word in so many ends in `STOP`.
STOP_EVERY = 32
STOP = "."
END = "<|endoftext|>"


class Shape(NamedTuple):
    """Of one model, in Qwen2's terms."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int


class Preset(NamedTuple):
    """How to build a trio.

    Attributes:
        large: Shape of large_ins.
        small: Shape of small_cpt and small_base.
        spread: Standard deviation of the large model's logits: it sets the agreement.
        vocab: Tokens of the tokenizer, rows of the embeddings.
        dtype: Of the weights.
        hybrid: Whether three layers of four are gated delta rules, as in Qwen3.5.
    """

    large: Shape
    small: Shape
    spread: float = 1.5
    vocab: int = 151_936
    dtype: str = "float32"
    hybrid: bool = False


_QWEN_1_5B = Shape(1536, 28, 12, 2, 8960)
#: The layers of the real models, at next to no width.
_NARROW = Shape(32, 28, 4, 2, 64)
PRESETS = {
    "tiny": Preset(Shape(48, 3, 4, 2, 96), Shape(32, 2, 4, 2, 64), vocab=1024),
    "cpu": Preset(Shape(192, 24, 6, 2, 4096), Shape(64, 12, 4, 2, 4096)),
    "cpu-hybrid": Preset(Shape(192, 24, 6, 2, 4096), Shape(64, 12, 4, 2, 4096), hybrid=True),
    "qwen2.5-1.5b+7b": Preset(Shape(3584, 28, 28, 4, 18944), _QWEN_1_5B, dtype="bfloat16"),
    "qwen2.5-1.5b+14b": Preset(Shape(5120, 48, 40, 8, 13824), _QWEN_1_5B, dtype="bfloat16"),
    "narrow-1.5b+7b": Preset(_NARROW, _NARROW, vocab=1024, dtype="bfloat16"),
    "narrow-1.5b+14b": Preset(_NARROW._replace(layers=48), _NARROW, vocab=1024, dtype="bfloat16"),
}
NAMES = ("demo", *PRESETS)
#: Models that `Trio.load` has loaded, by trio and source.
_LOADED: dict[Trio, dict[Any, Any]] = {}


class Trio(NamedTuple):
    """Three models and their tokenizer on disk, and how to load them."""

    large_ins: str
    small_cpt: str
    small_base: str
    tokenizer: str
    dtype: str
    device: str

    def load(self, **arguments: Any) -> TriMix:
        """TriMix over these models; arguments as for `TriMix.from_pretrained`.

        What was loaded once is shared, so that several fit on one GPU.
        """
        asked = settings.parse({**self._asdict(), **arguments})
        return TriMix.load_many([asked], kept=_LOADED.setdefault(self, {}))

    def load_hf(self, batch_size: int) -> HFLM:
        """lm-eval's ``hf`` on the large model alone."""
        from lm_eval.models.huggingface import HFLM

        return HFLM(
            pretrained=self.large_ins,
            tokenizer=self.tokenizer,
            dtype=self.dtype,
            device=self.device,
            batch_size=batch_size,
        )

    def words(self, count: int = 2000) -> list[str]:
        """Words that are one token each after a space, without a full stop."""
        tokenizer = AutoTokenizer.from_pretrained(self.tokenizer)
        ids = random.Random(0).sample(range(len(tokenizer)), min(2 * count, len(tokenizer)))
        words = [tokenizer.decode([i]).strip() for i in ids]
        found = [
            word
            for i, word in zip(ids, words, strict=True)
            if word and STOP not in word and word != END and tokenizer.encode(" " + word) == [i]
        ]
        return found[:count]


class Texts:
    """Random texts of given lengths: the same ones in every run.

    Args:
        trio: Whose words they are made of.
        seed: Two of different seeds have nothing in common.
    """

    def __init__(self, trio: Trio, seed: int = 0) -> None:
        self.words, self.random = trio.words(), random.Random(seed)

    def text(self, tokens: int) -> str:
        """So many words, one token each."""
        return " ".join(self.random.choices(self.words, k=tokens))

    def options(self, count: int, tokens: int) -> list[str]:
        """Different texts, each after a space: the options of a question."""
        first = self.random.sample(self.words, count)
        rest = [self.text(tokens - 1) for _ in first]
        return [f" {word} {more}".rstrip() for word, more in zip(first, rest, strict=True)]


@contextlib.contextmanager
def open_trio(
    name: str, device: str, folder: str | None, vocab: int | None = None
) -> Iterator[Trio]:
    """Build a trio, or find it built.

    Args:
        name: One of `NAMES`.
        device: Where to build and to run it.
        folder: Where built trios stay; None builds in a temporary folder.
        vocab: Another vocabulary than the preset's.
    """
    with contextlib.ExitStack() as stack:
        if name == "demo":
            here = demo_dir()
            roles = [str(here / role) for role in ("large_ins", "small_cpt", "small_base")]
            trio = Trio(*roles, tokenizer=roles[0], dtype="float32", device=device)
        else:
            preset = PRESETS[name]
            if vocab is not None:
                preset = preset._replace(vocab=vocab)
            root = Path(folder or stack.enter_context(tempfile.TemporaryDirectory()))
            trio = _build(preset, root / f"{name}-{preset.vocab}", device)
        try:
            yield trio
        finally:
            _LOADED.pop(trio, None)


def variant(model: TriMix, **settings: Any) -> TriMix:
    """The same loaded models under other settings of the run, e.g. another ``batch_size``."""
    asked = dataclasses.replace(model.settings, **settings)
    return TriMix(asked, model.tokenizer, model.fuser, model.report)


def alone(model: TriMix, config: int, **settings: Any) -> TriMix:
    """One fusion config of several in a run of its own, over the loaded models that it needs."""
    mine, whole = model.fuser.configs[config], model.fuser.ensemble
    names = needed(model.settings, [mine])
    sources = [source for source in whole.sources if source.name in names]
    fuser = Fuser(Ensemble(sources, whole.unused), (mine,))
    asked = dataclasses.replace(model.settings, **settings)
    return TriMix(asked, model.tokenizer, fuser, model.report)


def add_arguments(parser: Any, default: str = "cpu") -> None:
    """The arguments that say which trio."""
    parser.add_argument("--trio", choices=NAMES, default=default)
    parser.add_argument("--models", metavar="FOLDER", help="keep built trios here, and find them")


def _build(preset: Preset, root: Path, device: str) -> Trio:
    """Write a trio, unless this very one is there."""
    names = ("large_ins", "small_cpt", "small_base", "tokenizer")
    trio = Trio(*(str(root / name) for name in names), dtype=preset.dtype, device=device)
    mark, recipe = root / "recipe.txt", repr((preset, GAIN, SPREAD, NOISE, STOP_EVERY))
    if mark.is_file() and mark.read_text(encoding="utf-8") == recipe:
        return trio
    logging.disable_progress_bar()
    _tokenizer(preset.vocab).save_pretrained(trio.tokenizer)
    large = _model(preset, preset.large, preset.spread, device, seed=1)
    large.cpu().save_pretrained(trio.large_ins)
    del large
    small = _model(preset, preset.small, SPREAD, device, seed=2)
    small.cpu().save_pretrained(trio.small_base)
    small.to(device)
    with torch.no_grad():
        for weights in small.parameters():
            weights.add_(torch.randn_like(weights) * (NOISE * weights.std()))
        _silence_end(small)
    small.cpu().save_pretrained(trio.small_cpt)
    mark.write_text(recipe, encoding="utf-8")
    return trio


def _tokenizer(vocab: int) -> PreTrainedTokenizerFast:
    """Words w0, w1, … divided by spaces, a token each; the last id ends a text.

    It is saved apart from the models: next to a config that says ``qwen2``, transformers would
    read it as a byte-level BPE.
    """
    words = {f"w{i}{STOP if i % STOP_EVERY == 0 else ''}": i for i in range(vocab - 1)}
    made = Tokenizer(WordLevel({**words, END: vocab - 1}, unk_token=END))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token=END, pad_token=END, unk_token=END
    )


def _model(preset: Preset, shape: Shape, spread: float, device: str, seed: int) -> Any:
    """A random model whose logits have the standard deviation ``spread``."""
    torch.manual_seed(seed)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(
            config_of(preset, shape), dtype=getattr(torch, preset.dtype)
        )
    with torch.no_grad():
        model.lm_head.weight.mul_(spread / GAIN)
        _silence_end(model)
    return model.eval()


def meta_model(preset: Preset, shape: Shape) -> Any:
    """A model of a shape without storage."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config_of(preset, shape))


def config_of(preset: Preset, shape: Shape) -> Any:
    """The config of a random model."""
    more: dict[str, Any] = {}
    if preset.hybrid:
        more["head_dim"] = size = shape.hidden // shape.heads
        more |= {"linear_num_key_heads": shape.heads // 2, "linear_key_head_dim": size}
        more |= {"linear_num_value_heads": shape.heads, "linear_value_head_dim": size}
    return AutoConfig.for_model(
        "qwen3_5_text" if preset.hybrid else "qwen2",
        **more,
        vocab_size=preset.vocab,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        intermediate_size=shape.intermediate,
        initializer_range=GAIN / shape.hidden**0.5,
        max_position_embeddings=32_768,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=preset.vocab - 1,
        pad_token_id=preset.vocab - 1,
    )


def _silence_end(model: Any) -> None:
    """The end of text gets the logit 0: never the highest of so many."""
    model.lm_head.weight[-1] = 0.0
