"""The paper's experiment at a size for two cores: texts in, models and results out.

    python examples/miniature/run.py --texts FOLDER

Every step writes into a folder of its own below --out and is skipped once it is done: stop the
program as you like, the same command goes on. README.md here tells where the texts come from.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from recipe import EXPERIMENT, SMOKE


def main() -> None:
    """Does what is not done yet."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--texts", type=Path, required=True, help="folder of the text files")
    add("--out", type=Path, default=Path("results/miniature"), help="default: results/miniature")
    add("--seeds", type=int, nargs="+", default=[0], help="default: 0")
    add("--only", metavar="STEP", help="do one step, e.g. large_ins or seed1/large_ins")
    add("--dev", action="store_true", help="judge on development text, for settling a recipe")
    add("--smoke", action="store_true", help="all of it at toy size, one seed: some minutes")
    add("--demo", action="store_true", help="make the first seed's trio that of pretrained=demo")
    add("--threads", type=int, default=2, help="CPU threads; numbers depend on it; default: 2")
    args = parser.parse_args()
    if args.demo and (args.smoke or args.dev or args.only):
        parser.error("--demo is the whole trio at full size: leave out --smoke, --dev and --only")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is downloaded

    import demo
    import torch
    from plan import steps
    from steps import run

    torch.set_num_threads(args.threads)
    torch.use_deterministic_algorithms(True)
    recipe = SMOKE if args.smoke else EXPERIMENT
    seeds = args.seeds[:1] if args.smoke or args.demo else args.seeds
    part, out = "dev" if args.dev else "test", args.out.absolute()
    planned = steps(recipe, args.texts, out, seeds, part)
    if args.demo:
        run(demo.needed(planned, seeds[0]), out)
        demo.install(out / f"seed{seeds[0]}", out / "items_test", demo.CHECKOUT)
        print("Installed; `python examples/demo/run.py --record` measures and writes the table.")
    else:
        run(planned, out, args.only)


if __name__ == "__main__":
    main()
