"""What choosing among 36 points costs per prompt token, beside the way of the released code.

    python benchmarks/grid.py [--json] [--vocab 151936] [--tokens 256] [--trio cpu]

Both sides get the same fp32 logits of three sources, random but alike as those of related models
are, and return the NLL of every token under every point. The released way is written here plainly:
for each point it fuses the logits of the whole prompt and takes the cross entropy. Its temporaries
grow with the prompt: at ``--tokens 32`` they are small enough to be reused, at realistic lengths
the system hands out fresh pages for each.

Keys: ``ms_per_token``, ``speedup_vs_released``, ``max_abs_diff`` between the two (fp32), and
``max_abs_diff_float64`` to the released way in fp64. Then, on a trio of models and a prompt of as
many tokens:

* ``share_of_forward``: seconds of this arithmetic over those of the prompt's forward passes through
  the three sources, logits of all tokens included (which a choice needs, and no other work);
* ``share_of_forward_without_heads``: the same over forward passes that stop at hidden states.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import timing
import torch
from models import Texts, Trio, add_arguments, open_trio
from torch import Tensor

from trimix_lm_eval.engine.prefill import collectors_for, prefill
from trimix_lm_eval.engine.request import Prompt
from trimix_lm_eval.fusion import logits as fusion_logits
from trimix_lm_eval.fusion.logits import grid_nll
from trimix_lm_eval.fusion.weights import PAPER_GRID

NAMES = ("large_ins", "small_cpt", "small_base")


def main(argv: list[str] | None = None) -> None:
    parser = timing.parser(__doc__, rounds=5)
    add_arguments(parser)
    parser.add_argument("--vocab", type=timing.count, default=151_936, help="as Qwen2.5 has it")
    parser.add_argument("--tokens", type=timing.count, default=256)
    asked = parser.parse_args(argv)
    values = measure(asked.vocab, asked.tokens, asked.rounds, asked.device)
    with open_trio(asked.trio, asked.device, asked.models) as trio:
        values |= shares(trio, asked.tokens, asked.rounds)
    timing.report(values, asked)


def measure(vocab: int, tokens: int, rounds: int, device: str) -> dict[str, Any]:
    logits, targets = example(vocab, tokens, device)
    points = torch.tensor([p.vector(NAMES) for p in PAPER_GRID], device=device)
    sides: dict[str, Callable[[], Tensor]] = {
        "released": lambda: released(logits, targets, points),
        "ours": lambda: grid_nll(logits, targets, points),
    }
    for side in sides.values():
        side()  # warm up
    spent, results = timing.alternate(sides, rounds, device)
    exact = released([x[:8].double() for x in logits], targets[:8], points.double())
    return {
        "ms_per_token": round(spent["ours"] / tokens * 1e3, 4),
        "ms_per_token_released": round(spent["released"] / tokens * 1e3, 4),
        "speedup_vs_released": round(spent["released"] / spent["ours"], 1),
        "max_abs_diff": float((results["ours"] - results["released"]).abs().max()),
        "max_abs_diff_float64": float((results["ours"][:, :8] - exact).abs().max()),
    }


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


def shares(trio: Trio, tokens: int, rounds: int) -> dict[str, float]:
    """The arithmetic's share of a prompt's forward passes."""
    model = trio.load(policy="ppl")
    ensemble = model.fuser.ensemble
    prompt = Prompt(*model.codec.prompt(Texts(trio).text(tokens)))
    stopwatch = Stopwatch(trio.device)

    @torch.inference_mode()
    def choosing() -> None:
        prefill(ensemble, [prompt], collectors_for(model.fuser, [prompt]))

    @torch.inference_mode()
    def reading() -> None:
        prefill(ensemble, [prompt], [None])

    # The collector takes it from its module when it is called.
    with mock.patch.object(fusion_logits, "grid_nll", stopwatch):
        choosing()  # warm up
        reading()
        stopwatch.turns.clear()
        sides = {"choosing": lambda: stopwatch.turn(choosing), "reading": reading}
        spent, _ = timing.alternate(sides, rounds, trio.device)
    arithmetic = statistics.median(stopwatch.turns)
    return {
        "share_of_forward": round(arithmetic / (spent["choosing"] - arithmetic), 4),
        "share_of_forward_without_heads": round(arithmetic / spent["reading"], 4),
    }


class Stopwatch:
    """Stands in for `grid_nll`, and knows how long that took in each turn."""

    def __init__(self, device: str) -> None:
        self.device, self.turns = device, [0.0]

    def turn(self, side: Callable[[], None]) -> None:
        """Run a side, its calls counted by themselves."""
        self.turns.append(0.0)
        side()

    def __call__(self, *arguments: Any) -> Tensor:
        """`grid_nll`."""
        if not self.turns:
            return grid_nll(*arguments)
        spent, nll = timing.seconds(lambda: grid_nll(*arguments), self.device)
        self.turns[-1] += spent
        return nll


if __name__ == "__main__":
    main()
