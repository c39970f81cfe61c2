"""What a trio is like: its size, what a token costs, how often the models agree.

    python benchmarks/describe.py [--trio cpu] [--json]

``small_large_ratio`` is the cost of one token of small_cpt over one of large_ins, each with its
head; ``small_large_ratio_prompt`` the same per token of a prompt. ``agreement`` is the share of the
fused model's tokens that small_cpt alone would have written, ``distinct`` the share of different
ones among the last 64 tokens of a text: where it repeats itself, that is small.
"""

from __future__ import annotations

from typing import Any

import timing
import torch
from models import Texts, Trio, add_arguments, open_trio
from released import Released
from transformers import DynamicCache

from trimix_lm_eval.fusion.weights import Weights


def main(argv: list[str] | None = None) -> None:
    parser = timing.parser(__doc__, rounds=9)
    add_arguments(parser)
    parser.add_argument("--prompts", type=timing.count, default=4)
    parser.add_argument("--prompt-tokens", type=timing.count, default=128)
    parser.add_argument("--new-tokens", type=timing.count, default=128)
    parser.add_argument("--alpha", type=float, default=0.1)
    parser.add_argument("--beta", type=float, default=0.9)
    asked = parser.parse_args(argv)
    with open_trio(asked.trio, asked.device, asked.models) as trio:
        values = measure(trio, asked)
    timing.report(values, asked)


def measure(trio: Trio, asked: Any) -> dict[str, Any]:
    plain = Released(trio.load(policy="ppl"))
    large, small, _ = plain.models
    texts, weights = Texts(trio), Weights(asked.alpha, asked.beta)
    prompts = [texts.text(asked.prompt_tokens) for _ in range(asked.prompts)]
    written = [plain.generate(prompt, asked.new_tokens, "", weights) for prompt in prompts]
    ends = [plain.tokenizer.encode(text)[-64:] for text in written]
    ids = torch.tensor([plain.tokenizer.encode(prompts[0])], device=asked.device)
    spent, _ = timing.alternate(
        {
            "large": OneToken(large, ids),
            "small": OneToken(small, ids),
            "large_prompt": lambda: prefill(large, ids),
            "small_prompt": lambda: prefill(small, ids),
        },
        asked.rounds,
        asked.device,
    )
    return {
        "million_parameters_large": round(parameters(large) / 1e6, 1),
        "million_parameters_small": round(parameters(small) / 1e6, 1),
        "ms_per_token_large": round(spent["large"] * 1e3, 2),
        "small_large_ratio": round(spent["small"] / spent["large"], 3),
        "small_large_ratio_prompt": round(spent["small_prompt"] / spent["large_prompt"], 3),
        "agreement": mean(
            [plain.agreement(p, text, weights) for p, text in zip(prompts, written, strict=True)]
        ),
        "distinct": mean([len(set(end)) / len(end) for end in ends]),
    }


class OneToken:
    """Decodes a token after a prompt, and another at each further call."""

    def __init__(self, model: Any, ids: torch.Tensor) -> None:
        self.model, self.last, self.cache = model, ids[:, -1:], DynamicCache()
        prefill(model, ids, self.cache)

    @torch.inference_mode()
    def __call__(self) -> None:
        """Decode a token."""
        self.model(input_ids=self.last, past_key_values=self.cache, use_cache=True)


@torch.inference_mode()
def prefill(model: Any, ids: torch.Tensor, cache: Any = None) -> None:
    """Run a prompt; logits at its end only."""
    model(input_ids=ids, past_key_values=cache, use_cache=cache is not None, logits_to_keep=1)


def mean(values: list[float]) -> float:
    return round(sum(values) / len(values), 3)


def parameters(model: Any) -> int:
    return sum(p.numel() for p in model.parameters())


if __name__ == "__main__":
    main()
