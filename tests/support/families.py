"""Tiny random models of the families that people have, and how exactly each is run.

A family is examined as a user would run it: its models are written to disk and loaded by the
package, and everything that is asked of them is compared with a naive reference (`naive`): prompts
with options, rolling texts, greedy and sampled texts in batches of one and of four, with drafts and
without. What may differ is what the models' own logits differ by when their embeddings are rounded
anew, since a gated delta rule, for one, sums a text in chunks, and in others if it is cut.

python -m tests.support.families                      # all of them; writes docs/families.md
python -m tests.support.families qwen3_5_text lfm2    # some
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from tests.support.loaded import Trio, load
from trimix_lm_eval.engine.model_runner import ModelRunner
from trimix_lm_eval.engine.probe import described

PAGE = Path(__file__).parent.parent.parent / "docs" / "families.md"
ALPHA, BETA = 0.4, 0.9
#: Ids of the byte tokenizer, and rows of the embeddings that stand for no token.
VOCAB = 272

_SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.2,
    "max_position_embeddings": 512,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 0,
}
_DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
_EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
}
_MAMBA2 = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 16,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 16,
}


class Family(NamedTuple):
    """Models of one kind.

    Attributes:
        name: Their ``model_type``.
        released: A release of that kind.
        fields: Of the config of a model with so many layers, besides the common ones.
        without: Common fields that the family does not have.
    """

    name: str
    released: str
    fields: Callable[[int], dict[str, Any]]
    without: tuple[str, ...] = ()

    def config(self, layers: int) -> Any:
        """The config of a tiny model."""
        shape = {key: value for key, value in _SHAPE.items() if key not in self.without}
        fields = {**shape, "num_hidden_layers": layers, **self.fields(layers)}
        return AutoConfig.for_model(self.name, **fields)


def _types(*pattern: str) -> Callable[[int], dict[str, Any]]:
    """Layers of some kinds in turns."""
    return lambda n: {"layer_types": [pattern[i % len(pattern)] for i in range(n)]}


def _with(types: Callable[[int], dict[str, Any]], **more: Any) -> Callable[[int], dict[str, Any]]:
    return lambda n: {**types(n), **more}


_DELTA_TYPES = _types("linear_attention", "full_attention")
_CONV_TYPES = _types("conv", "full_attention")
#: Every family that is examined, those that people run most first.
FAMILIES = {
    family.name: family
    for family in (
        Family("llama", "Llama 3", lambda n: {}),
        Family("qwen3", "Qwen3", lambda n: {}),
        Family(
            "gemma3_text",
            "Gemma 3",
            _with(_types("sliding_attention", "full_attention"), sliding_window=5),
        ),
        Family("qwen3_5_text", "Qwen3.5", _with(_DELTA_TYPES, **_DELTA)),
        Family("qwen3_5_moe_text", "Qwen3.5 MoE", _with(_DELTA_TYPES, **_DELTA, **_EXPERTS)),
        Family("qwen3_next", "Qwen3-Next", _with(_DELTA_TYPES, **_DELTA, **_EXPERTS)),
        Family("lfm2", "LFM2", _with(_CONV_TYPES, block_auto_adjust_ff_dim=False)),
        Family(
            "lfm2_moe",
            "LFM2 MoE",
            _with(
                _CONV_TYPES,
                num_experts=4,
                num_experts_per_tok=2,
                moe_intermediate_size=32,
                num_dense_layers=1,
            ),
        ),
        Family(
            "granitemoehybrid",
            "Granite 4 hybrid",
            _with(
                _DELTA_TYPES,
                **_MAMBA2,
                mamba_expand=2,
                num_local_experts=0,
                shared_intermediate_size=64,
                logits_scaling=3.0,
                position_embedding_type="nope",
            ),
        ),
        Family("olmo_hybrid", "OLMo hybrid", _with(_DELTA_TYPES, **_DELTA)),
        Family(
            "falcon_h1",
            "Falcon-H1",
            lambda n: {**_MAMBA2, "mamba_n_heads": 4, "mamba_d_ssm": 32, "lm_head_multiplier": 0.5},
        ),
        Family(
            "nemotron_h",
            "Nemotron-H",
            lambda n: {
                "layer_types": ["linear_attention", "mlp", "full_attention", "mlp"][:n],
                "mamba_num_heads": 8,
                "mamba_head_dim": 8,
                "ssm_state_size": 16,
                "n_groups": 1,
                "chunk_size": 16,
            },
            ("num_hidden_layers",),
        ),
        Family("bamba", "Bamba", lambda n: {"attn_layer_indices": [1], **_MAMBA2}, ("head_dim",)),
        Family(
            "jamba",
            "Jamba",
            lambda n: {
                "attn_layer_period": 2,
                "attn_layer_offset": 1,
                "expert_layer_period": 2,
                "expert_layer_offset": 1,
                "num_experts": 4,
                "mamba_d_state": 8,
            },
            ("head_dim",),
        ),
        Family(
            "zamba2",
            "Zamba2",
            lambda n: {
                "num_key_value_heads": 4,
                "layers_block_type": ["mamba", "hybrid"] * (n // 2) + ["mamba"] * (n % 2),
                "mamba_d_state": 16,
                "n_mamba_heads": 8,
                "mamba_headdim": 8,
                "mamba_ngroups": 1,
                "num_mem_blocks": 1,
                "use_shared_attention_adapter": False,
                "adapter_rank": 4,
                "chunk_size": 16,
            },
            ("head_dim",),
        ),
        Family(
            "mamba2",
            "Mamba 2",
            lambda n: {
                "num_heads": 8,
                "head_dim": 8,
                "state_size": 16,
                "n_groups": 1,
                "chunk_size": 16,
            },
            ("intermediate_size", "num_attention_heads", "num_key_value_heads"),
        ),
        Family(
            "mamba",
            "Mamba",
            lambda n: {"state_size": 8},
            ("intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim"),
        ),
        Family(
            "falcon_mamba",
            "Falcon Mamba",
            lambda n: {"state_size": 8},
            ("intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim"),
        ),
        Family("kimi_linear", "Kimi Linear", lambda n: dict(_EXPERTS)),
        Family("bailing_hybrid", "Ling 2.5", lambda n: {}),
        Family("lfm3", "LFM3", lambda n: {}),
        Family(
            "minimax",
            "MiniMax-Text",
            _with(_DELTA_TYPES, num_local_experts=4, num_experts_per_tok=2, block_size=16),
        ),
        Family(
            "recurrent_gemma",
            "RecurrentGemma",
            lambda n: {"num_key_value_heads": 1, "lru_width": 32, "attention_window_size": 8},
        ),
        Family(
            "rwkv",
            "RWKV 4",
            lambda n: {"attention_hidden_size": 32},
            ("num_attention_heads", "num_key_value_heads", "head_dim"),
        ),
        Family("bloom", "BLOOM", lambda n: {"n_layer": n, "n_head": 4}),
    )
}


def known(name: str) -> bool:
    """Whether this version of transformers has the family."""
    return name in CONFIG_MAPPING_NAMES


def build(family: Family, folder: Path, tokenizer: Any) -> dict[str, str]:
    """Write four random models of a family to disk; the large ones are deeper. {role: folder}"""
    folders = {}
    for seed, role in enumerate(("large_ins", "small_cpt", "small_base", "large_base")):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(family.config(3 if "large" in role else 2))
        model.generation_config.eos_token_id = 257
        model.save_pretrained(folder / role)
        tokenizer.save_pretrained(folder / role)
        folders[role] = str(folder / role)
    return folders


# ---------------------------------------------------------------- what is asked

_EXEMPLARS = "Q: The hen in the barn?\nA: It is there.\n\nQ: And the river?\nA: It is not.\n\n"
QUESTIONS = [
    (_EXEMPLARS + "Q: Who is at the inn?\nA:", [" the man", " the hen", " there", " x"]),
    (_EXEMPLARS + "Q: Where is it raining now?\nA:", [" in the barn", " in the inn", " y"]),
    (_EXEMPLARS + "Q: Why?\nA:", [" སྐད་ཡིག", " so"]),
    ("The river", [" in the other barn", " z"]),
]
TEXTS = ["The winter in the inn was long. " * 3, "བོད་སྐད་ཡིག", "x"]
PROMPTS = [
    _EXEMPLARS + "Q: Who is at the inn?\nA:",
    _EXEMPLARS + "Q: Why?\nA:",
    "x",
    "There were rivers in the barn.\n",
    "In the other",
]
STEPS = 14


class Found(NamedTuple):
    """How a family is run.

    Attributes:
        runner: Of its large model.
        off: How far log-likelihoods are from the naive ones, per token, at most.
        allowed: How far they may be.
        texts_differ: Which texts are not the naive ones, or not those without drafts.
    """

    runner: ModelRunner
    off: float
    allowed: float
    texts_differ: list[str]


def examine(three: Trio) -> Found:
    """Ask all of a family's models, and compare with the naive reference."""
    runner = three.model.fuser.ensemble.sources[0]
    allowed = 1e-5 + 2 * max(map(_rounding, three.naive.models.values()))
    off = max(*_options(three), *_rolling(three))
    return Found(runner, off, allowed, list(_texts(three)))


@torch.no_grad()
def _rounding(model: PreTrainedModel) -> float:
    """How far log-probabilities of a text's tokens move if its embeddings are rounded anew."""
    ids = torch.arange(96)[None] * 37 % 256

    def of_text() -> torch.Tensor:
        log_p = model(input_ids=ids, use_cache=False).logits[0, :-1].log_softmax(-1)
        return log_p.gather(1, ids[0, 1:, None])

    def moved(module: Any, given: Any, states: torch.Tensor) -> torch.Tensor:
        signs = torch.ones_like(states).cumsum(dim=-1).remainder(2) * 2 - 1
        return states + states * signs * 6e-8

    before = of_text()
    hook = model.get_input_embeddings().register_forward_hook(moved)
    after = of_text()
    hook.remove()
    return float((before - after).abs().max())


def _options(three: Trio) -> Iterable[float]:
    """Log-likelihoods of options, several questions with the same exemplars."""
    pairs = [(context, option) for context, options in QUESTIONS for option in options]
    for batch_size in (1, 4):
        model = three.weighted("fixed", alpha=ALPHA, beta=BETA, batch_size=batch_size)
        for pair, score in zip(pairs, model.loglikelihood(pairs), strict=True):
            prompt, target = model.codec.pair(*pair)
            ids = [*prompt.ids, *target]
            fused = three.naive.fused(ids[:-1], ALPHA, BETA)
            nll = float(three.naive.nll(fused, ids, len(prompt.ids)).sum())
            yield abs(score.log_likelihood + nll) / len(target)


def _rolling(three: Trio) -> Iterable[float]:
    """Log-likelihoods of whole texts, which fit into one window."""
    model = three.weighted("fixed", alpha=ALPHA, beta=BETA, batch_size=4)
    for text, score in zip(TEXTS, model.loglikelihood_rolling(TEXTS), strict=True):
        ids = [model.codec.prefix_id, *model.codec.encode(text)]
        nll = float(three.naive.nll(three.naive.fused(ids[:-1], ALPHA, BETA), ids, 1).sum())
        yield abs(score.log_likelihood + nll) / (len(ids) - 1)


def _texts(three: Trio) -> Iterable[str]:
    """Which texts are not the naive ones, or depend on drafts or on the batch."""
    first: dict[bool, list[str]] = {}
    for drawn in (False, True):
        for batch_size in (1, 4):
            for speculative in ("off", "auto", 5):
                how = {"alpha": ALPHA, "beta": BETA, "speculative": speculative}
                model = three.weighted("fixed", batch_size=batch_size, **how)
                drawing = {"temperature": 1.0, "top_p": 0.9} if drawn else {}
                asked = {"max_new_tokens": STEPS, "stop": ("\n\n",), **drawing}
                texts = model.generate(PROMPTS, **asked)
                if first.setdefault(drawn, texts) != texts:
                    yield f"sampled={drawn} batch_size={batch_size} speculative={speculative}"
    for prompt, text in zip(PROMPTS, first[False], strict=True):
        ids = three.naive.greedy(list(model.codec.prompt(prompt).ids), STEPS, ALPHA, BETA)
        naive = model.tokenizer.decode(ids, skip_special_tokens=True).partition("\n\n")[0]
        if text != naive:
            yield repr(prompt)


# ---------------------------------------------------------------- the table

_COLUMNS = (
    "release",
    "`model_type`",
    "remembers",
    "prompts shared",
    "several tokens at once",
    "log-likelihood off by",
    "may be off by",
    "texts",
)


def row(family: Family, found: Found) -> str:
    """A line of the table."""
    how = described(found.runner)
    why = f" ({how['why_not']})" if how["why_not"] else ""
    plain = how["memory"] == "none"
    memory = how["memory"] + (why if plain else "")
    shares = ("yes" if how["prompts_shared"] else "no") + ("" if plain else why)
    several = "yes" if how["drafts"] else "no"
    texts = "; ".join(found.texts_differ) or "equal"
    cells = [family.released, f"`{family.name}`", memory, shares, several]
    cells += [f"{found.off:.0e}", f"{found.allowed:.0e}", texts]
    return f"| {' | '.join(cells)} |\n"


def main(names: list[str]) -> None:
    """Examine some families, or all and write the page."""
    from tests.conftest import byte_tokenizer

    rows = []
    for name in names or [name for name in FAMILIES if known(name)]:
        with tempfile.TemporaryDirectory() as folder:
            three = load(build(FAMILIES[name], Path(folder), byte_tokenizer()))
            rows.append(row(FAMILIES[name], examine(three)))
        print(rows[-1], end="", flush=True)
    if not names:
        PAGE.write_text(render(PAGE.read_text(encoding="utf-8"), rows), encoding="utf-8")


def render(page: str, rows: list[str]) -> str:
    """The page with these rows in its table, and the version with which they were measured."""
    head = f"| {' | '.join(_COLUMNS)} |\n|{' --- |' * len(_COLUMNS)}\n"
    before, _, rest = page.partition(head)
    after = rest.partition("\n\n")[2]
    before = re.sub(
        r"transformers \d+\.\d+\.\d+", f"transformers {transformers.__version__}", before
    )
    return before + head + "".join(rows) + "\n" + after


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1:])
