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
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import timing
from lm_eval.api.instance import Instance
from models import STOP, Texts, Trio, add_arguments, open_trio, variant
from released import Released

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
    parser.add_argument("--released-prompts", type=timing.count, default=1)
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
    off = variant(auto, speculative="off")
    ppl = trio.load(policy="ppl", batch_size=asked.batch)
    hf = trio.load_hf(asked.batch)
    how = {"max_new_tokens": asked.new_tokens, "stop": (stop,) if stop else ()}
    until = {"until": [stop] if stop else [], "max_gen_toks": asked.new_tokens}
    sides = {
        "hf_large": lambda: hf.generate_until(requests(prompts, until), disable_tqdm=True),
        "off": lambda: off.generate(prompts, **how),
        "auto": lambda: auto.generate(prompts, **how),
        "ppl": lambda: ppl.generate(prompts, **how),
    }
    spent, written = timing.alternate(sides, asked.rounds, asked.device)

    released = Released(ppl)
    few = sorted(range(len(prompts)), key=lambda i: -len(written["auto"][i]))
    few = few[: asked.released_prompts]

    def by_released(weights: Weights | None) -> list[str]:
        some = [(prompts[i], weights or released.choose(prompts[i])) for i in few]
        return [released.generate(prompt, asked.new_tokens, stop, w) for prompt, w in some]

    plain = {"released": lambda: by_released(point), "released_ppl": lambda: by_released(None)}
    for name, side in plain.items():
        spent[name], written[name] = timing.seconds(side, asked.device)
    kept = {
        name: [len(auto.tokenizer.encode(text)) for text in some] for name, some in written.items()
    }
    per_token = {name: time / sum(kept[name]) for name, time in spent.items()}
    pairs = (("auto", "released"), ("ppl", "released_ppl"))
    drafts = auto.speculation.summary()
    return {
        "ratio_vs_hf_large": round(per_token["auto"] / per_token["hf_large"], 4),
        "ratio_vs_released": round(per_token["auto"] / per_token["released"], 4),
        "ratio_vs_released_ppl": round(per_token["ppl"] / per_token["released_ppl"], 4),
        "ratio_vs_off": round(spent["auto"] / spent["off"], 4),
        "tokens_identical": written["auto"] == written["off"]
        and all([written[ours][i] for i in few] == written[theirs] for ours, theirs in pairs),
        "rows_identical_to_off": share_equal(written["auto"], written["off"]),
        "acceptance": drafts["acceptance"],
        "draft_length": drafts["draft_length"],
        "ms_per_token": {name: round(time * 1e3, 3) for name, time in per_token.items()},
        "mean_tokens": {name: round(sum(n) / len(n), 1) for name, n in kept.items()},
    }


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
