"""How often decoding launches kernels and waits, and what that would take on a GPU.

    python benchmarks/launches.py [--json] [--large 7b 14b] [--drafts 0 2 4] [--batch 1 16]

A GPU need not be there: one is simulated (see `events`). Where there is one, PyTorch's profiler
counts. The trios have the layers of Qwen2.5-7B or 14B and twice 1.5B, and are narrow, since counts
do not depend on the width. Rounds are counted that are captured already, if they are. A round is a
step of decoding, all rows together; of `hf`, a token of each row. Nearly all drafts of these trios
are accepted, so that every round has all passes. Keys, for each trio, side, number of drafts and
batch size (``cases``):

* ``launches``: of a round; a replay of a graph is one. ``launches_per_token``: over the tokens that
  a row gains in a round at ``--acceptance`` a and k drafts, (1 - a^(k+1)) / (1 - a).
* ``waits``, ``pageable``: of a round, how often the host waits, and copies from memory that is not
  pinned.
* ``kernels``: kernels inside the graphs of a round. ``kernels_vs_hf``: those over what the same
  passes take when transformers runs them.
* ``captures``: graphs captured in the whole run.
* ``ms_per_token``, ``ratio_vs_hf_large``: from the cost model, for the widths of the real models,
  the first without and the second with a graph's kernels one after the other (see `Cost`).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any, NamedTuple

import timing
import torch
from events import Counts, Watch, counted, have_gpu
from lm_eval.api.instance import Instance
from models import PRESETS, Shape, Texts, Trio, meta_model, open_trio, variant
from transformers import AutoModelForCausalLM, DynamicCache

from trimix_lm_eval import TriMix
from trimix_lm_eval.engine.static_batch import MOST_DRAFTS

#: By the name of the large model: the trio that is run, and the one whose widths are reckoned with.
LARGE = {
    "7b": ("narrow-1.5b+7b", "qwen2.5-1.5b+7b"),
    "14b": ("narrow-1.5b+14b", "qwen2.5-1.5b+14b"),
}
#: From the end of this round to the end of that one is counted: rounds are captured from the third
#: on, and the last ones of a text may have fewer drafts.
_WINDOW = (4, 6)


def main(argv: list[str] | None = None) -> None:
    parser = timing.parser(__doc__)
    parser.set_defaults(device="cuda")
    parser.add_argument("--large", choices=tuple(LARGE), nargs="+", default=list(LARGE))
    parser.add_argument("--models", metavar="FOLDER", help="keep built trios here, and find them")
    parser.add_argument(
        "--drafts", type=int, nargs="+", default=[0, 2, 4], choices=range(MOST_DRAFTS + 1)
    )
    parser.add_argument("--batch", type=timing.count, nargs="+", default=[1, 16])
    parser.add_argument(
        "--shared", type=timing.count, help="tokens that all prompts begin with; default: none"
    )
    parser.add_argument("--acceptance", type=float, default=0.85, help="of a draft")
    parser.add_argument("--launch-us", type=float, default=20.0, help="of a launch by Python")
    parser.add_argument("--kernel-us", type=float, default=2.0, help="of a kernel in a graph")
    parser.add_argument("--bandwidth", type=float, default=3.35, help="TB/s; 3.35 is an H100's")
    parser.add_argument("--context", type=timing.count, default=1024, help="tokens of a row")
    asked = parser.parse_args(argv)
    have_gpu()
    cases: list[dict[str, Any]] = []
    for name in asked.large:
        shown, real = LARGE[name]
        with open_trio(shown, asked.device, asked.models) as trio:
            cases += [{"large": name, **case} for case in measure(trio, Cost(asked, real), asked)]
    if asked.json:
        timing.report({"cases": cases}, asked)
    else:
        print(table(cases))


def measure(trio: Trio, cost: Cost, asked: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """All cases of a trio."""
    # What is written is what small_cpt drafts; small_base has 0.001, or it would not run.
    model = trio.load(policy="fixed", alpha=0.001, beta=0.998)
    for batch in asked.batch:
        first = Texts(trio, batch).text(asked.shared) if asked.shared else ""
        prompts = [first + Texts(trio, i).text(8) for i in range(batch)]
        plain = of_hf(trio, prompts)
        theirs = cost.eager(plain.launches, cost.bytes("large", 1, batch))
        about = {"side": "hf", "drafts": 0, "batch": batch, "captures": 0}
        yield {**about, **told(plain, None, 1.0, theirs, theirs)}
        for k in asked.drafts:
            same = of_passes(trio, k, batch)
            gained = sum(asked.acceptance**i for i in range(k + 1))
            reads = cost.bytes("large", 1, batch) + cost.bytes("small", k + 2, batch)
            for side, captured in (("captured", True), ("eager", False)):
                mine, captures = of_ours(model, prompts, k, captured)
                spent = cost.of(mine, reads)
                yield {
                    "side": side,
                    "drafts": k,
                    "batch": batch,
                    "captures": captures,
                    **told(mine, same, gained, spent, theirs),
                }


def told(
    counts: Counts,
    same: float | None,
    gained: float,
    spent: tuple[float, float],
    theirs: tuple[float, float],
) -> dict[str, Any]:
    """A case's keys, from the launches of the same passes, tokens a round, and seconds a round."""
    return {
        **counts._asdict(),
        "launches_per_token": round(counts.launches / gained, 1),
        "kernels_vs_hf": round(counts.kernels / same, 3) if same and counts.kernels else None,
        "ms_per_token": [round(one / gained * 1e3, 2) for one in spent],
        "ratio_vs_hf_large": [round(one / gained / theirs[0], 3) for one in spent],
    }


# ------------------------------------------------------------------------------ counting


def of_ours(model: TriMix, prompts: list[str], k: int, captured: bool) -> tuple[Counts, int]:
    """Of a round of ours, and how many graphs were captured in all."""
    mine = variant(model, speculative=k, batch_size=len(prompts))
    ensemble, learn, watch = mine.fuser.ensemble, mine.speculation.learn, Watch()
    ensemble.cuda_graphs, before = captured, ensemble.graphs_captured
    found: list[Counts] = []

    def seen(*args: Any) -> None:  # at the end of each round
        learn(*args)
        if mine.speculation.stats.num_steps == _WINDOW[0]:
            watch.begin()
        elif mine.speculation.stats.num_steps == _WINDOW[1]:
            found.append(watch.end().per(_WINDOW[1] - _WINDOW[0]))

    mine.speculation.learn = seen  # type: ignore[method-assign]
    mine.generate(prompts, max_new_tokens=(_WINDOW[1] + 2) * (k + 1))
    return found[0], ensemble.graphs_captured - before


def of_hf(trio: Trio, prompts: list[str]) -> Counts:
    """Of a token of lm-eval's ``hf`` on the large model alone, all rows together."""
    hf = trio.load_hf(len(prompts))

    def run(tokens: int) -> Counts:
        until = {"until": [], "max_gen_toks": tokens}
        asked = [
            Instance("generate_until", {}, (text, dict(until)), i) for i, text in enumerate(prompts)
        ]
        return counted(lambda: hf.generate_until(asked, disable_tqdm=True))

    run(2)
    few, many = map(run, _WINDOW)
    return many.minus(few).per(_WINDOW[1] - _WINDOW[0])


def of_passes(trio: Trio, k: int, batch: int) -> float:
    """Launches of a round's passes when transformers runs them."""
    alone, several = (trio.small_cpt, 1), [(trio.large_ins, k + 1), (trio.small_base, k + 1)]
    return (k + 1) * of_pass(trio, *alone, batch) + sum(of_pass(trio, *x, batch) for x in several)


@torch.inference_mode()
def of_pass(trio: Trio, folder: str, columns: int, batch: int) -> float:
    """Launches of a pass over some tokens of each row when transformers runs it."""
    dtype = getattr(torch, trio.dtype)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(trio.device).eval()
    cache = DynamicCache()

    def run(n: int) -> None:
        ids = torch.ones(batch, n, dtype=torch.long, device=trio.device)
        model(input_ids=ids, past_key_values=cache, use_cache=True)

    run(16)
    run(columns)
    return counted(lambda: run(columns)).launches - 1  # to make the ids


# ------------------------------------------------------------------------------ the cost model


class Traffic(NamedTuple):
    """Bytes that a pass of a model reads."""

    weights: int
    per_token: int


class Cost:
    """What counts take on a GPU, in seconds.

    A launch by Python takes the host ``--launch-us``, a kernel inside a graph the GPU
    ``--kernel-us``, and a pass as long as its weights, and the keys and values of ``--context``
    tokens a row, take to be read at ``--bandwidth``. Launches, kernels and reading go on at the
    same time; at worst a graph's kernels are so short that their time comes on top of reading. Not
    reckoned with: arithmetic, logits and activations, which count at larger batches.

    Args:
        asked: The program's arguments.
        real: The preset whose widths are reckoned with.
    """

    def __init__(self, asked: argparse.Namespace, real: str) -> None:
        self.asked, preset = asked, PRESETS[real]
        self.models = {
            name: traffic(meta_model(preset, shape), shape)
            for name, shape in (("large", preset.large), ("small", preset.small))
        }

    def bytes(self, name: str, passes: int, batch: int) -> float:
        """What some passes of a model read."""
        model = self.models[name]
        return passes * (model.weights + model.per_token * batch * self.asked.context)

    def eager(self, launches: float, traffic: float) -> tuple[float, float]:
        """Of a round that is run operation by operation."""
        spent = max(launches * self.asked.launch_us / 1e6, self.reading(traffic))
        return spent, spent

    def of(self, counts: Counts, traffic: float) -> tuple[float, float]:
        """Of a round: at best, and at worst."""
        if not counts.kernels:
            return self.eager(counts.launches, traffic)
        host = counts.launches * self.asked.launch_us / 1e6
        kernels, reading = counts.kernels * self.asked.kernel_us / 1e6, self.reading(traffic)
        return max(host, kernels, reading), max(host, kernels + reading)

    def reading(self, traffic: float) -> float:
        """Of so many bytes."""
        return traffic / (self.asked.bandwidth * 1e12)


def traffic(model: Any, shape: Shape) -> Traffic:
    """Weights but for the input embedding, and keys and values of a token, in two bytes each."""
    weights = sum(p.numel() for p in model.parameters())
    weights -= model.get_input_embeddings().weight.numel()
    head = shape.hidden // shape.heads
    return Traffic(2 * weights, 2 * 2 * shape.layers * shape.kv_heads * head)


# ------------------------------------------------------------------------------ for reading


def table(cases: list[dict[str, Any]]) -> str:
    """The cases in Markdown."""
    names = (
        "large",
        "side",
        "drafts",
        "batch",
        "launches",
        "launches_per_token",
        "waits",
        "pageable",
        "captures",
        "kernels",
        "kernels_vs_hf",
        "ms_per_token",
        "ratio_vs_hf_large",
    )
    rows = [names, tuple("---" for _ in names)]
    rows += [tuple(shown(case[name]) for name in names) for case in cases]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def shown(value: Any) -> str:
    """A cell."""
    if isinstance(value, list):
        return " to ".join(dict.fromkeys(map(str, value)))
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
