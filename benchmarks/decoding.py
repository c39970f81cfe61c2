"""What writing text costs, beside the large model alone and the released way.

    python benchmarks/decoding.py [--json] [--trio cpu] [--batch 16]

Seconds are of whole calls, prompts included, and compared per token that is kept: up to the stop
string, or up to ``--new-tokens``. With more than one row in a batch texts stop at a full stop, so
that rows end at different lengths; all sides have the same prompts and limits, but the large model
alone writes other texts than the fusion, with lengths of the same distribution. Keys:

* ``ratio_vs_hf_large``: TriMix, speculative=auto, over lm-eval's ``hf`` on large_ins alone.
* ``ratio_vs_released``: the same over the released algorithm at the same fixed weights, which runs
  once, one row at a time, on the ``--released-prompts`` prompts with the longest texts (so that the
  prompt weighs little on its side). ``ratio_vs_released_ppl``: both choose weights by the prompt
  first, TriMix with policy=ppl, the released algorithm with 36 full passes.
* ``ratio_vs_off``: speculative=auto over speculative=off.
* ``tokens_identical``: whether auto, off and the released algorithm wrote the same texts, and the
  latter and policy=ppl, too; in fp32 they must, in bf16 the shape of a batch already decides how
  logits are rounded. ``rows_identical_to_off``: the share of auto's texts that are off's.
* ``acceptance``: share of the verified drafts that were accepted (None if none was made), and
  ``draft_length``: drafts per sequence and step; both over all steps of this run.
* ``share_of_own_work``: of the time of one more turn of auto, what was not spent inside the models'
  forwards and heads. ``bound_vs_hf_large``: what the ratio would be if that were nothing, so that a
  ratio can be judged: it comes from what a pass of each model costs on this machine
  (``ms_per_pass``, heads included) and how many a token takes (``passes_per_token``, of decoding).
  On a GPU the time is that of whole rounds there, fusion included (``rounds``), and of reading the
  prompts.
* On a GPU also ``ratio_vs_eager``: with CUDA graphs over without, and ``texts_identical_to_eager``;
  and ``ratio_vs_hf_large_compiled``: over lm-eval's ``hf`` with a static cache, which transformers
  compiles (``--no-compiled`` leaves that side out: to compile takes a minute).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import timing
import torch
from counting import Clock, clocking
from lm_eval.api.instance import Instance
from models import STOP, Texts, Trio, add_arguments, open_trio, variant
from released import Released

from trimix_lm_eval import TriMix
from trimix_lm_eval.fusion.weights import Weights


def main(argv: list[str] | None = None) -> None:
    parser = timing.parser(__doc__, rounds=3)
    add_arguments(parser)
    parser.add_argument("--batch", type=timing.count, default=1, help="sequences that run at once")
    parser.add_argument("--prompts", type=timing.count, help="default: 4, or eight batches")
    parser.add_argument("--prompt-tokens", type=timing.count, default=128)
    parser.add_argument("--new-tokens", type=timing.count, default=128, help="at most")
    parser.add_argument("--alpha", type=float, default=0.1)
    parser.add_argument("--beta", type=float, default=0.9)
    parser.add_argument("--released-prompts", type=int, default=1, help="0 leaves that side out")
    parser.add_argument(
        "--compiled",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="hf with a static cache and torch.compile, too, on a GPU",
    )
    parser.add_argument(
        "--stop",
        action=argparse.BooleanOptionalAction,
        help="whether texts end at a full stop; default: if the batch is larger than 1",
    )
    asked = parser.parse_args(argv)
    asked.prompts = asked.prompts or (4 if asked.batch == 1 else 8 * asked.batch)
    asked.stop = asked.batch > 1 if asked.stop is None else asked.stop
    with open_trio(asked.trio, asked.device, asked.models) as trio:
        values = measure(trio, asked)
    timing.report(values, asked)


def measure(trio: Trio, asked: argparse.Namespace) -> dict[str, Any]:
    texts = Texts(trio)
    prompts = [texts.text(asked.prompt_tokens) for _ in range(asked.prompts)]
    stop, point = STOP if asked.stop else "", Weights(asked.alpha, asked.beta)
    # speculative=auto is the default.
    auto = trio.load(policy="fixed", alpha=asked.alpha, beta=asked.beta, batch_size=asked.batch)
    ppl = trio.load(policy="ppl", batch_size=asked.batch)
    sides = all_sides(trio, asked, prompts, auto, ppl)
    if asked.device.startswith("cuda"):
        for side in sides.values():
            side()  # kernels are chosen and compiled
    spent, written = timing.alternate(sides, asked.rounds, asked.device)
    with clocking(auto) as clock:
        whole, _ = timing.seconds(sides["auto"], asked.device)
    if asked.device.startswith("cuda"):  # whose clock knows of rounds alone
        read, _ = timing.seconds(lambda: auto.generate(prompts, max_new_tokens=1), asked.device)
        clock.seconds["prompts"] = read

    released = Released(ppl)
    few = sorted(range(len(prompts)), key=lambda i: -len(written["auto"][i]))
    few = few[: asked.released_prompts]

    def by_released(weights: Weights | None) -> list[str]:
        some = [(prompts[i], weights or released.choose(prompts[i])) for i in few]
        return [released.generate(prompt, asked.new_tokens, stop, w) for prompt, w in some]

    plain = {"released": lambda: by_released(point), "released_ppl": lambda: by_released(None)}
    for name, side in plain.items() if few else ():
        spent[name], written[name] = timing.seconds(side, asked.device)
    kept = {
        name: [len(auto.tokenizer.encode(text)) for text in some] for name, some in written.items()
    }
    per_token = {name: time / sum(kept[name]) for name, time in spent.items()}
    drafts = auto.speculation.summary()
    return {
        **ratios(per_token),
        "ratio_vs_off": round(spent["auto"] / spent["off"], 4),
        "share_of_own_work": round(1 - clock.seconds.total() / whole, 4),
        **judged(clock, sum(kept["auto"]), per_token["hf_large"]),
        **identical(written, few),
        "acceptance": drafts["acceptance"],
        "draft_length": drafts["draft_length"],
        "ms_per_token": {name: round(time * 1e3, 3) for name, time in per_token.items()},
        "mean_tokens": {name: round(sum(n) / len(n), 1) for name, n in kept.items()},
    }


def all_sides(
    trio: Trio, asked: argparse.Namespace, prompts: list[str], auto: TriMix, ppl: TriMix
) -> dict[str, Callable[[], Any]]:
    """What is timed, by name, but for the released algorithm."""
    off, hf = variant(auto, speculative="off"), trio.load_hf(asked.batch)
    stop = [STOP] if asked.stop else []
    how = {"max_new_tokens": asked.new_tokens, "stop": tuple(stop)}
    until = {"until": stop, "max_gen_toks": asked.new_tokens}
    sides = {
        "hf_large": lambda: hf.generate_until(requests(prompts, until), disable_tqdm=True),
        "off": lambda: off.generate(prompts, **how),
        "auto": lambda: auto.generate(prompts, **how),
        "ppl": lambda: ppl.generate(prompts, **how),
    }
    if asked.device.startswith("cuda"):
        sides["eager"] = lambda: without_graphs(auto, sides["auto"])
        if asked.compiled:
            sides["hf_large_compiled"] = lambda: with_static_cache(hf, sides["hf_large"])
    return sides


def ratios(per_token: Mapping[str, float]) -> dict[str, float]:
    """Seconds of a token of ours over those of each other side that ran."""
    pairs = {
        "hf_large": "auto",
        "hf_large_compiled": "auto",
        "eager": "auto",
        "released": "auto",
        "released_ppl": "ppl",
    }
    return {
        f"ratio_vs_{theirs}": round(per_token[ours] / per_token[theirs], 4)
        for theirs, ours in pairs.items()
        if theirs in per_token
    }


def judged(clock: Clock, tokens: int, hf: float) -> dict[str, Any]:
    """What a token takes inside the models, beside the seconds of one under ``hf``."""
    passes = {name: n for name, n in clock.passes.items() if n}
    return {
        "bound_vs_hf_large": round(clock.seconds.total() / tokens / hf, 4),
        "passes_per_token": {name: round(n / tokens, 3) for name, n in passes.items()},
        "ms_per_pass": {
            name: round(clock.decoding[name] / n * 1e3, 3) for name, n in passes.items()
        },
    }


def identical(written: Mapping[str, list[str]], few: Sequence[int]) -> dict[str, Any]:
    """Which sides wrote the same; the released algorithm wrote only a few."""
    pairs = [("auto", "released"), ("ppl", "released_ppl")] if few else []
    auto = written["auto"]
    found: dict[str, Any] = {
        "tokens_identical": auto == written["off"]
        and all([written[ours][i] for i in few] == written[theirs] for ours, theirs in pairs),
        "rows_identical_to_off": share_equal(auto, written["off"]),
    }
    if "eager" in written:
        found["texts_identical_to_eager"] = share_equal(auto, written["eager"])
    return found


def without_graphs(model: TriMix, side: Callable[[], Any]) -> Any:
    """Run a side operation by operation."""
    ensemble = model.fuser.ensemble
    ensemble.cuda_graphs = False
    try:
        return side()
    finally:
        ensemble.cuda_graphs = True


def with_static_cache(hf: Any, side: Callable[[], Any]) -> Any:
    """Run lm-eval's ``hf`` with a static cache, for which transformers compiles the model."""
    config = hf.model.generation_config
    config.cache_implementation = "static"
    # Where PyTorch has no kernels for a GPU, it cannot compile for one.
    config.disable_compile = not torch.backends.cuda.is_built()
    try:
        return side()
    finally:
        config.cache_implementation = None


def requests(prompts: Sequence[str], until: dict[str, Any]) -> list[Instance]:
    """As lm-eval hands them to a model, which writes into the lists it is given."""
    copies = [{**until, "until": list(until["until"])} for _ in prompts]
    return [
        Instance("generate_until", {}, (prompt, how), i)
        for i, (prompt, how) in enumerate(zip(prompts, copies, strict=True))
    ]


def share_equal(some: Sequence[str], others: Sequence[str]) -> float:
    """How many of the texts are the same."""
    same = sum(a == b for a, b in zip(some, others, strict=True))
    return round(same / len(some), 3)


if __name__ == "__main__":
    main()
