"""The claims and all scores as tables and a picture: the page of the experiment.

    python examples/miniature/claims_page.py results/miniature

Of all seeds and sizes whose results are there.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from claims import (
    AVERAGED,
    Chosen,
    Seed,
    Verdict,
    at,
    oracle,
    read_all,
    smaller_gains,
    verdicts,
)


def points(seeds: list[Seed], language: str, task: str) -> tuple[float, float]:
    """The mean alpha and beta of the upper bound over the seeds."""
    best = [point for seed in seeds for point in oracle(seed[language, task])]
    return float(np.mean([a for a, _ in best])), float(np.mean([b for _, b in best]))


def preferred(chosen: list[Chosen], language: str) -> dict[str, str]:
    """By task, how often `ppl` gives small_cpt the larger weight, and at least 0.9, in percent."""
    found = {}
    for task in chosen[0]:
        if task[0] != language:
            continue
        counts: dict[tuple[float, float], int] = {}
        for seed in chosen:
            for label, n in seed[task].items():
                alpha, beta = (float(part) for part in label.split(":")[:2])
                counts[alpha, beta] = counts.get((alpha, beta), 0) + n
        total = sum(counts.values())
        more = sum(n for (alpha, beta), n in counts.items() if beta > alpha)
        high = sum(n for (_, beta), n in counts.items() if beta >= 0.9)
        found[task[1]] = f"{100 * more / total:.0f}, {100 * high / total:.0f}" if total else "–"
    return found


def scores_table(seeds: list[Seed], language: str) -> str:
    """All methods of a language as Markdown: means over seeds and documents."""
    tasks = [task for lang, task in seeds[0] if lang == language]
    names = [name for name in seeds[0][language, tasks[0]] if ":" not in name]
    names += [f"{alpha}:0" for alpha in (0.3, 0.5, 0.7)] + ["0.5:0.5", "0.1:0.9", "upper bound"]
    lines = [f"| | {' | '.join(tasks)} | mean |", "|---" * (len(tasks) + 2) + "|"]
    for name in names:
        row = {}
        for task in tasks:
            by_seed = [seed[language, task] for seed in seeds]
            row[task] = np.mean(
                [
                    (at(s, oracle(s)[0]) if name == "upper bound" else s[name]).mean()
                    for s in by_seed
                ]
            )
        cells = [f"{abs(v):.3f}" if t == "rolling" else f"{v:.1f}" for t, v in row.items()]
        mean = np.mean([row[task] for task in AVERAGED])
        lines.append(f"| {name} | {' | '.join(cells)} | {mean:.1f} |")
    return "\n".join(lines)


def claims_table(found: dict[str, dict[str, Verdict]]) -> str:
    """What became of claims, as Markdown: bold where they hold, slanted where they fail."""
    columns = list(next(iter(found.values())))
    lines = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name, its in found.items():
        cells = []
        for column, one in its.items():
            text = f"{one.mean:+.3f}" if column == "rolling" else f"{one.mean:+.1f}"
            sign = {"holds": "**", "fails": "*", "cannot be told": ""}[one.verdict]
            cells.append(f"{sign}{text}{sign}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def page(
    read_in: dict[str, list[tuple[Seed, Chosen]]],
    pairs: tuple[str, ...],
    languages: dict[str, str],
) -> str:
    """All tables of the experiment as Markdown.

    Args:
        read_in: From `read_all`.
        pairs: Sizes of the large models, the larger one first.
        languages: Names by code.
    """
    parts = []
    for pair, found in read_in.items():
        seeds, chosen = [one[0] for one in found], [one[1] for one in found]
        for code, language in languages.items():
            parts += [
                f"## {language}, {pair}: {len(seeds)} seeds",
                scores_table(seeds, code),
                claims_table(verdicts(seeds, code)),
            ]
            rows = preferred(chosen, code)
            parts.append(
                f"| | {' | '.join(rows)} |\n{'|---' * (len(rows) + 1)}|\n"
                f"| β > α, β ≥ 0.9, % of samples | {' | '.join(rows.values())} |\n"
                "| α, β of the upper bound | "
                + " | ".join("{:.2f}, {:.2f}".format(*points(seeds, code, t)) for t in rows)
                + " |"
            )
    if len(read_in) == 2 and len({len(found) for found in read_in.values()}) == 1:
        large, medium = ([one[0] for one in read_in[pair]] for pair in pairs)
        gains = {name: smaller_gains(large, medium, code) for code, name in languages.items()}
        parts += ["## Does the smaller large model gain more?", claims_table(gains)]
    return "\n\n".join(parts) + "\n"


def write(out: Path, part: str, folder: Path) -> None:
    """Writes claims.md and claims.png."""
    import pictures
    from recipe import LANGUAGES, PAIRS

    read_in = read_all(out, part, PAIRS)
    (folder / "claims.md").write_text(page(read_in, PAIRS, LANGUAGES), encoding="utf-8")
    panels = {
        f"{name}, {pair}": verdicts([seed for seed, _ in found], code)
        for code, name in LANGUAGES.items()
        for pair, found in read_in.items()
    }
    pictures.draw(panels, folder / "claims.png")


def main() -> None:
    """Prints the tables."""
    from recipe import LANGUAGES, PAIRS

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path, help="folder of the experiment")
    parser.add_argument("--dev", action="store_true", help="of development text")
    args = parser.parse_args()
    read_in = read_all(args.out, "dev" if args.dev else "test", PAIRS)
    print(page(read_in, PAIRS, LANGUAGES))


if __name__ == "__main__":
    main()
