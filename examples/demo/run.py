"""The demo: three tiny models, five methods, one table, two answers side by side.

    python examples/demo/run.py [--limit N] [--output DIR]

Nothing is downloaded: models and tasks are in the package. What it prints it also writes to
demo.html in --output, beside the results; what is there already is not run again.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MEASURED = ROOT / "trimix_lm_eval" / "loading" / "demo" / "measured.json"
MARKS = ("<!-- demo-table -->\n", "\n<!-- /demo-table -->")


def main() -> None:
    """Runs what is missing and shows the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--limit", type=int, help="documents per task; default: all")
    add("--output", type=Path, default=Path("results/demo"), help="default: results/demo")
    add(
        "--record",
        action="store_true",
        help="also write the table into README.md and the package's measured.json",
    )
    args = parser.parse_args()
    if args.record and args.limit is not None:
        parser.error("--record is of all documents: leave --limit out")
    start = time.perf_counter()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is downloaded
    if sys.stdout.errors != "replace":  # a terminal that has no Tibetan shows question marks
        sys.stdout.reconfigure(errors="replace")
    print("Running five methods on five tasks ...", file=sys.stderr, flush=True)

    import answers
    import page
    import table

    from trimix_lm_eval.utils.errors import TrimixError

    folder = args.output if args.limit is None else args.output / f"limit{args.limit}"
    try:
        runs = table.evaluate(folder, args.limit)
        made = table.table(runs)
        given = (made, answers.examples(runs), sizes(runs))
        page.as_html(folder / "demo.html", *given)
        page.on_terminal(*given)
        print(f"\n{folder / 'demo.html'} shows the same. ({time.perf_counter() - start:.0f} s)")
        if args.record:
            record(table.markdown(made), table.dumped(runs, made))
        sys.stdout.flush()
    except TrimixError as error:
        raise SystemExit(f"error: {error}") from error
    except BrokenPipeError:  # whoever reads has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        what = error.filename or "the output"
        raise SystemExit(f"error: cannot use {what}: {error.strerror}") from error
    except KeyboardInterrupt:
        raise SystemExit("stopped; the same command goes on") from None


def sizes(runs: list) -> dict[str, int]:
    """Parameters of each source."""
    singles = {str(run.policy): run for run in runs}
    names = ("large_ins", "small_base", "small_cpt")
    return {name: int(singles[name].config["model_num_parameters"]) for name in names}


def record(rows: str, measured: str) -> None:
    """Writes the table where it is published."""
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    before, rest = text.split(MARKS[0])
    _, after = rest.split(MARKS[1])
    readme.write_text(f"{before}{MARKS[0]}{rows}{MARKS[1]}{after}", encoding="utf-8")
    MEASURED.write_text(measured, encoding="utf-8")


if __name__ == "__main__":
    main()
