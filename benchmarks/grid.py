"""What choosing among 36 points costs per prompt token, beside the way of the released code.

    python benchmarks/grid.py [--json] [--vocab 151936] [--tokens 32] [--rounds 5]

Both sides get the same fp32 logits of three sources, random but alike as those of related models
are, and return the NLL of every token under every point. The released way is written here plainly:
for each point it fuses the logits of the whole prompt and takes the cross entropy.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from trimix_lm_eval.fusion import PAPER_GRID
from trimix_lm_eval.grid import grid_nll

NAMES = ("large_ins", "small_cpt", "small_base")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vocab", type=int, default=151_936, help="as Qwen2.5 has it")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    asked = parser.parse_args()

    logits, targets = example(asked.vocab, asked.tokens, asked.device)
    points = torch.tensor([p.vector(NAMES) for p in PAPER_GRID], device=asked.device)
    sides: dict[str, Callable[[], Tensor]] = {
        "released": lambda: released(logits, targets, points),
        "ours": lambda: grid_nll(logits, targets, points),
    }
    times: dict[str, list[float]] = {name: [] for name in sides}
    results = {name: side() for name, side in sides.items()}  # and warm up
    for _ in range(asked.rounds):
        for name, side in sides.items():  # alternating, so that both meet the same machine
            times[name].append(seconds(side, asked.device))
    per_token = {name: statistics.median(each) / asked.tokens * 1e3 for name, each in times.items()}
    exact = released([x[:8].double() for x in logits], targets[:8], points.double())
    report = {
        "ms_per_token": round(per_token["ours"], 3),
        "ms_per_token_released": round(per_token["released"], 3),
        "speedup_vs_released": round(per_token["released"] / per_token["ours"], 1),
        "max_abs_diff": float((results["ours"] - results["released"]).abs().max()),
        "max_abs_diff_float64": float((results["ours"][:, :8] - exact).abs().max()),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    print(json.dumps(report) if asked.json else "\n".join(f"{k}: {v}" for k, v in report.items()))


def example(vocab: int, tokens: int, device: str) -> tuple[list[Tensor], Tensor]:
    """Logits ``[T, V]`` of three sources, and the tokens ``[T]`` that follow."""
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(tokens, vocab, generator=generator) * 3
    logits = [(common + torch.randn(tokens, vocab, generator=generator)) for _ in NAMES]
    targets = torch.randint(vocab, (tokens,), generator=generator)
    return [x.to(device) for x in logits], targets.to(device)


def released(logits: Sequence[Tensor], targets: Tensor, points: Tensor) -> Tensor:
    """Point by point over the whole prompt, ``[P, T]``."""
    rows = []
    for weights in points.tolist():
        fused = sum(w * x for w, x in zip(weights, logits, strict=True))
        rows.append(torch.nn.functional.cross_entropy(fused, targets, reduction="none"))
    return torch.stack(rows)


def seconds(side: Callable[[], Tensor], device: str) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    side()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
