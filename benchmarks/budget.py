"""Peak memory of writing texts, beside what `trimix check` says that a run will take.

    python benchmarks/budget.py [--json] [--trio qwen2.5-1.5b+7b] [--device cuda] [--batch 16]

A batch of prompts is continued with ``policy=ppl``. Keys, in GiB: ``predicted``, which is
``predicted_weights``, ``predicted_caches`` and ``predicted_logits`` together, ``peak`` from before
the models were loaded, and ``peak_loaded`` of it when they were; ``peak_vs_predicted``.

On a GPU the peak is that of PyTorch's allocator; on a CPU that of the resident set (Linux only), in
which the files that weights are read from count, too.
"""

from __future__ import annotations

import argparse
from typing import Any

import timing
from memory import CudaMemory, ResidentMemory
from models import Texts, Trio, add_arguments, open_trio

from trimix_lm_eval.engine.model_runner import LOGIT_BYTES


def main(argv: list[str] | None = None) -> None:
    parser = timing.parser(__doc__)
    add_arguments(parser)
    parser.add_argument("--batch", type=timing.count, default=16, help="sequences that run at once")
    parser.add_argument("--prompt-tokens", type=timing.count, default=1000)
    parser.add_argument("--new-tokens", type=timing.count, default=128)
    asked = parser.parse_args(argv)
    with open_trio(asked.trio, asked.device, asked.models) as trio:
        values = measure(trio, asked)
    timing.report(values, asked)


def measure(trio: Trio, asked: argparse.Namespace) -> dict[str, Any]:
    meter = CudaMemory(trio.device) if trio.device.startswith("cuda") else ResidentMemory()
    model = trio.load(policy="ppl", batch_size=asked.batch)
    loaded = meter.peak()
    texts = Texts(trio)
    prompts = [texts.text(asked.prompt_tokens) for _ in range(asked.batch)]
    model.generate(prompts, max_new_tokens=asked.new_tokens)
    longest = asked.prompt_tokens + asked.new_tokens
    # As `harness.estimate` reckons.
    predicted = {
        "weights": sum(one.weights or 0 for one in model.report.estimates),
        "caches": model.fuser.ensemble.token_bytes * longest * asked.batch,
        "logits": LOGIT_BYTES,
    }
    whole, peak = sum(predicted.values()), meter.peak()
    return {
        "peak_vs_predicted": round(peak / whole, 3),
        "peak": gib(peak),
        "peak_loaded": gib(loaded),
        "predicted": gib(whole),
        **{f"predicted_{name}": gib(size) for name, size in predicted.items()},
    }


def gib(size: int) -> float:
    return round(size / 2**30, 3)


if __name__ == "__main__":
    main()
