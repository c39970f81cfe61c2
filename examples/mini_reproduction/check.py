"""Recomputes from results files alone which of the paper's claims hold, with errors over seeds.

    python examples/mini_reproduction/check.py results/mini/seed*/results_test

Reads lm-eval's JSON with a few lines of its own, so that neither the sweep's tables nor the report
are taken at their word. A claim is a number per seed that must be positive. It holds (or not) if
the mean is on that side of 0 by more than T standard errors, else it cannot be told.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

GRID = tuple((a, b) for a in (0.1, 0.3, 0.5, 0.7, 0.9, 1.0) for b in (0.1, 0.3, 0.5, 0.7, 0.9, 1.0))
CORNERS = {"large_ins": (1.0, 0.0), "small_cpt": (0.0, 1.0), "small_base": (0.0, 0.0)}
T = {2: 6.31, 3: 2.92, 4: 2.35, 5: 2.13}  # Student's t, one-sided 5 %, by the number of seeds
METRICS = {  # by task: metric, factor that makes more of it better
    "choice": ("acc,none", 100.0),
    "write": ("chrf++,none", 1.0),
    "sign": ("acc,none", 100.0),
    "rolling": ("bits_per_byte,none", -1.0),
}
AVERAGED = ("choice", "write", "sign")  # what "mean" is over, as the paper's Avg is over tasks

Scores = dict[tuple[str, str], dict[str, float]]  # by language and task: a number per method
Table = dict[int, Scores]  # by seed


class ClaimResult(NamedTuple):
    """What became of a claim in one place.

    Attributes:
        claim: In words.
        language: bo or ug.
        task: Or "mean".
        values: A number per seed; more than 0 is in its favour.
        mean: Of them.
        error: Standard error of the mean.
        verdict: "holds", "does not hold" or "cannot be told".
    """

    claim: str
    language: str
    task: str
    values: list[float]
    mean: float
    error: float
    verdict: str


def method(config: dict) -> str:
    """Names what weighted the sources: a policy, or a point as alpha:beta."""
    policy = config["trimix"]["policy"]
    name = str(policy["name"])
    if name == "fixed":
        return f"{policy['alpha']:g}:{policy['beta']:g}"
    return f"{name} {policy['refine']}" if policy.get("refine") else name


def read(places: Sequence[Path]) -> Table:
    """Reads every results file below the places; each place is a seed.

    Returns:
        By seed, language and task: by method a number of which more is better.
    """
    table: Table = {}
    for seed, place in enumerate(places):
        scores = table.setdefault(seed, {})
        for file in sorted(place.rglob("results_*.json")):
            content = json.loads(file.read_text(encoding="utf-8"))
            for task, found in content["results"].items():
                _, language, kind = (*task.split("_", 2), "")[:3]
                if kind in METRICS:
                    metric, factor = METRICS[kind]
                    cell = scores.setdefault((language, kind), {})
                    cell[method(content["config"])] = factor * found[metric]
        for language in {language for language, _ in scores}:
            parts = [scores[language, task] for task in AVERAGED]
            scores[language, "mean"] = {
                name: statistics.fmean(part[name] for part in parts) for name in parts[0]
            }
    return table


def at(cell: dict[str, float], point: tuple[float, float]) -> float:
    """The number of a point of the grid; (1, 1) is run under its name."""
    return cell["proxy_tuning" if point == (1.0, 1.0) else f"{point[0]:g}:{point[1]:g}"]


def oracle(cell: dict[str, float]) -> tuple[float, float, float]:
    """The best of the grid on the very items it is judged on.

    Returns:
        Its number, alpha and beta; of several equally good points, the mean of each.
    """
    top = max(at(cell, point) for point in GRID)
    best = [point for point in GRID if at(cell, point) == top]
    return (
        top,
        statistics.fmean(alpha for alpha, _ in best),
        statistics.fmean(beta for _, beta in best),
    )


def claims(cell: dict[str, float]) -> dict[str, float]:
    """What the paper says, as numbers that are positive where it is right."""
    single = max(cell[name] for name in CORNERS)
    top, alpha, beta = oracle(cell)
    return {
        "TriMix (ppl) above every single model": cell["ppl"] - single,
        "TriMix (ppl) above Proxy Tuning": cell["ppl"] - cell["proxy_tuning"],
        "best beta above best alpha": beta - alpha,
        "ppl nearer to the oracle than to the best single model": cell["ppl"] - (top + single) / 2,
    }


def claim_results(table: Table) -> list[ClaimResult]:
    """Judges every claim in every language and task."""
    found = []
    for language, task in table[0]:
        by_seed = [claims(scores[language, task]) for scores in table.values()]
        for claim in by_seed[0]:
            values = [claims_of[claim] for claims_of in by_seed]
            mean, error = spread(values)
            sure = len(values) > 1 and abs(mean) > T[len(values)] * error
            verdict = ("holds" if mean > 0 else "does not hold") if sure else "cannot be told"
            found.append(ClaimResult(claim, language, task, values, mean, error, verdict))
    return found


def spread(values: list[float]) -> tuple[float, float]:
    """Mean, and its standard error (0 of a single value)."""
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return statistics.fmean(values), error


def scores_table(table: Table, language: str) -> str:
    """All methods of a language as Markdown, mean and standard error over the seeds."""
    cells = [(lang, task) for lang, task in table[0] if lang == language]
    named = [name for name in table[0][cells[0]] if ":" not in name]
    rows = [*named, "0.1:0.9", "0.1:1", "0.5:0.5", "oracle"]
    lines = [
        f"| method | {' | '.join(task for _, task in cells)} |",
        "|---" * (len(cells) + 1) + "|",
    ]
    for name in rows:
        shown = []
        for cell in cells:
            by_seed = [scores[cell] for scores in table.values()]
            values = [oracle(c)[0] if name == "oracle" else c[name] for c in by_seed]
            mean, error = spread([abs(value) for value in values])
            digits = 3 if cell[1] == "rolling" else 1
            shown.append(f"{mean:.{digits}f} ± {error:.{digits}f}")
        lines.append(f"| {name} | {' | '.join(shown)} |")
    return "\n".join(lines)


def claims_table(found: list[ClaimResult]) -> str:
    """What came of all claims, as Markdown."""
    lines = ["| claim | language | task | mean ± SE | verdict |", "|---|---|---|---|---|"]
    for one in sorted(found, key=lambda v: v.claim):
        digits = 3 if one.task == "rolling" else 2
        number = f"{one.mean:+.{digits}f} ± {one.error:.{digits}f}"
        lines.append(f"| {one.claim} | {one.language} | {one.task} | {number} | {one.verdict} |")
    return "\n".join(lines)


def write(places: Sequence[Path], folder: Path) -> None:
    """Writes scores.json, claims.json and claims.md."""
    table = read(places)
    found = claim_results(table)
    languages = sorted({language for language, _ in table[0]})
    parts = [claims_table(found), *(f"{lang}\n\n{scores_table(table, lang)}" for lang in languages)]
    (folder / "claims.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    as_json = [one._asdict() for one in found]
    (folder / "claims.json").write_text(json.dumps(as_json, indent=1) + "\n", encoding="utf-8")
    plain = {s: {"/".join(cell): v for cell, v in c.items()} for s, c in table.items()}
    (folder / "scores.json").write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("results", type=Path, nargs="+", help="a folder of results per seed")
    table = read(parser.parse_args().results)
    print(claims_table(claim_results(table)))
    for language in sorted({language for language, _ in table[0]}):
        print(f"\n{language}\n\n{scores_table(table, language)}")


if __name__ == "__main__":
    main()
