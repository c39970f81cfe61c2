"""The claims and all scores as tables and pictures: the page of the experiment.

    python examples/miniature/claims_page.py results/miniature examples/miniature

Of all seeds and sizes whose results are there.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

import numpy as np
from claims import (
    AVERAGED,
    GRID,
    POINTS,
    Chosen,
    Read,
    Scores,
    Seed,
    Verdict,
    at,
    of_sizes,
    oracle,
    read_all,
    verdicts,
)

#: Points that tell why: large_ins and small_base alone; and alpha = beta, where ever more of
#: small_base is subtracted (none at 0.5, 0.8 at 0.9, all of it in Proxy Tuning).
CONTROLS = ("0.3:0", "0.5:0", "0.7:0", "0.1:0.9", "0.3:0.5", "0.5:0.5", "0.7:0.7", "0.9:0.9")
SIGNS = {"holds": "**", "fails": "*", "cannot be told": "", "measured": ""}
LEGEND = """\
What the models, tasks and claims are, and what follows: [README.md](README.md).

TriMix is `ppl`; its rivals among the [policies](../../docs/policies.md) and some fixed points α:β
stand beside it. `large` and `medium` are two sizes of the large model. Tasks that end in `_ll` are
chosen by log-likelihood, the others written; `rolling` is bits per byte of running text (lower is
better), the rest percent right. `mean` is over the tasks of the claims. *no model* is the best
answer that takes none. Of running text a policy weights each token by those before it, so TriMix
may be above the upper bound, which is one point for all.

Differences in points, means over seeds (running text: bits per byte; positive is better).
**Bold**: positive in every seed and above 0 in 97.5 % of the resamples of documents; *slanted*: the
other way; neither: cannot be told. The intervals are over documents, the seeds are taken as they
are, and nothing is corrected for the number of claims. The best single model is that of each task
and seed on these very documents; so is the upper bound, the best point of the grid, whose distance
is therefore too large and has no verdict. (+2) after a best point: two more are level with it."""


def best_points(seeds: list[Seed], language: str, task: str) -> str:
    """The best point of each seed, as alpha:beta; a plus says that as many others are level."""
    found = [oracle(seed[language, task]) for seed in seeds]
    return ", ".join(
        f"{best[0][0]:g}:{best[0][1]:g}" + (f" (+{len(best) - 1})" if best[1:] else "")
        for best in found
    )


def counted(chosen: dict[str, int]) -> Counter[tuple[float, float]]:
    """How often each point was chosen, by alpha and beta."""
    counts: Counter[tuple[float, float]] = Counter()
    for label, n in chosen.items():
        alpha, beta = (float(part) for part in label.split(":")[:2])
        counts[alpha, beta] += n
    return counts


def preferred(chosen: list[Chosen], language: str) -> dict[str, str]:
    """By task, how often `ppl` gives small_cpt the larger weight, and at least 0.9, in percent."""
    found = {}
    for task in chosen[0]:
        if task[0] != language:
            continue
        counts = sum((counted(seed[task]) for seed in chosen), Counter())
        more = sum(n for (alpha, beta), n in counts.items() if beta > alpha)
        high = sum(n for (_, beta), n in counts.items() if beta >= 0.9)
        total = counts.total()
        found[task[1]] = f"{100 * more / total:.0f}, {100 * high / total:.0f}" if total else "–"
    return found


def documents(seed: Seed, language: str) -> str:
    """How many documents a language's tasks have, in a sentence."""
    sizes = {
        task: len(next(iter(scores.values())))
        for (code, task), scores in seed.items()
        if code == language
    }
    ((usual, _),) = Counter(sizes.values()).most_common(1)
    others = "".join(f", {n} of {task}" for task, n in sizes.items() if n != usual)
    return f"{usual} documents of each task{others}."


def scores_table(seeds: list[Seed], language: str, trivial: dict[str, dict[str, float]]) -> str:
    """All methods of a language as Markdown: means over seeds and documents.

    Args:
        seeds: Their scores.
        language: Code of the language.
        trivial: By task, what answers that take no model score; the best of them is shown.
    """
    tasks = [task for lang, task in seeds[0] if lang == language]
    names = [name for name in seeds[0][language, tasks[0]] if ":" not in name]
    if "ppl" in names:  # a sweep, and not two models alone
        names += [*CONTROLS, "upper bound"]
    lines = [f"| | {' | '.join(tasks)} | mean |", "|---" * (len(tasks) + 2) + "|"]
    lines += [_row(name, _means(seeds, language, name, tasks)) for name in names]
    lines.append(_row("no model", {t: max(trivial[t].values()) for t in tasks if t in trivial}))
    return "\n".join(lines)


def _means(seeds: list[Seed], language: str, name: str, tasks: list[str]) -> dict[str, float]:
    """Scores of a method by task, over seeds and documents."""

    def of(scores: Scores) -> float:
        documents = at(scores, oracle(scores)[0]) if name == "upper bound" else scores[name]
        return float(documents.mean())

    return {task: float(np.mean([of(seed[language, task]) for seed in seeds])) for task in tasks}


def _row(name: str, scores: dict[str, float]) -> str:
    """A row of the scores; what is missing is running text, which comes last."""
    cells = [f"{abs(v):.3f}" if task == "rolling" else f"{v:.1f}" for task, v in scores.items()]
    cells += [] if "rolling" in scores else ["–"]
    mean = np.mean([scores[task] for task in AVERAGED])
    return f"| {name} | {' | '.join(cells)} | {mean:.1f} |"


def claims_table(found: dict[str, dict[str, Verdict]]) -> str:
    """What became of claims, as Markdown: bold where they hold, slanted where they fail."""
    columns = list(next(iter(found.values())))
    lines = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name, its in found.items():
        cells = []
        for column, one in its.items():
            text = f"{one.mean:+.3f}" if column == "rolling" else f"{one.mean:+.1f}"
            sign = SIGNS[one.verdict]
            cells.append(f"{sign}{text}{sign}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def summary(places: dict[str, dict[str, dict[str, Verdict]]]) -> str:
    """What became of each claim in the mean over tasks: points, and their 95 % interval."""
    lines = [f"| | {' | '.join(places)} |", "|---" * (len(places) + 1) + "|"]
    for claim in next(iter(places.values())):
        cells = []
        for found in places.values():
            one = found[claim]["mean"]
            sign = SIGNS[one.verdict]
            cells.append(f"{sign}{one.mean:+.1f}{sign} ({one.low:+.1f} to {one.high:+.1f})")
        lines.append(f"| {claim} | {' | '.join(cells)} |")
    return "\n".join(lines)


def choices_table(seeds: list[Seed], chosen: list[Chosen], language: str) -> str:
    """Which points `ppl` chooses, and which are best, as Markdown."""
    found = preferred(chosen, language)
    best = [best_points(seeds, language, task) for task in found]
    return (
        f"| | {' | '.join(found)} |\n{'|---' * (len(found) + 1)}|\n"
        f"| β > α, β ≥ 0.9, % of samples | {' | '.join(found.values())} |\n"
        f"| best point α:β of each seed | {' | '.join(best)} |"
    )


def page(
    read_in: dict[str, dict[str, Read]],
    languages: dict[str, str],
    trivial: dict[str, dict[str, dict[str, float]]],
) -> str:
    """All tables of the experiment as Markdown.

    Args:
        read_in: From `read_all`, the larger size first.
        languages: Names by code.
        trivial: By language and task, what answers that take no model score.
    """
    seeds = {pair: [scores for scores, _ in found.values()] for pair, found in read_in.items()}
    parts = ["# The claims of the paper, measured", LEGEND, summary(panels(read_in, languages))]
    if len(seeds) == 2 and len({tuple(found) for found in read_in.values()}) == 1:
        sizes = {name: of_sizes(*seeds.values(), code) for code, name in languages.items()}
        parts += ["## Two sizes of the large model", summary(sizes)]
        for language, found in sizes.items():
            parts += [f"{language}:", claims_table(found)]
    for pair, found in read_in.items():
        for code, language in languages.items():
            parts += [
                f"## {language}, {pair}: {len(found)} seeds",
                documents(seeds[pair][0], code),
                scores_table(seeds[pair], code, trivial[code]),
                claims_table(verdicts(seeds[pair], code)),
                choices_table(seeds[pair], [chosen for _, chosen in found.values()], code),
            ]
        if any(("en", task) in seeds[pair][0] for task in AVERAGED):
            parts += [
                f"## English, {pair}, models alone",
                documents(seeds[pair][0], "en"),
                scores_table(seeds[pair], "en", trivial["en"]),
            ]
    return "\n\n".join(parts) + "\n"


def panels(
    read_in: dict[str, dict[str, Read]], languages: dict[str, str]
) -> dict[str, dict[str, dict[str, Verdict]]]:
    """What became of the claims, by language and size."""
    return {
        f"{name}, {pair}": verdicts([seed for seed, _ in found.values()], code)
        for code, name in languages.items()
        for pair, found in read_in.items()
    }


def grids(
    read_in: dict[str, dict[str, Read]], languages: dict[str, str]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """By language and size, the mean score of each point, and its share of `ppl`'s choices."""
    found = {}
    for code, name in languages.items():
        for pair, its in read_in.items():
            scores, shares = (np.zeros((len(POINTS), len(POINTS))) for _ in range(2))
            for seed, chosen in its.values():
                for task in AVERAGED:
                    counts = counted(chosen[code, task])
                    for i, point in enumerate(GRID):
                        place = np.unravel_index(i, scores.shape)
                        scores[place] += at(seed[code, task], point).mean()
                        shares[place] += counts[point] / counts.total()
            of = len(its) * len(AVERAGED)
            found[f"{name}, {pair}"] = (scores / of, shares / of)
    return found


def write(out: Path, part: str, folder: Path) -> None:
    """Writes claims.md, claims.png and grids.png."""
    import pictures
    import trivial
    from recipe import LANGUAGES, PAIRS

    read_in = read_all(out, part, PAIRS)
    known = {code: trivial.scores(out / f"items_{part}", code) for code in ("en", *LANGUAGES)}
    (folder / "claims.md").write_text(page(read_in, LANGUAGES, known), encoding="utf-8")
    pictures.draw(panels(read_in, LANGUAGES), folder / "claims.png")
    pictures.draw_grids(grids(read_in, LANGUAGES), folder / "grids.png")


def main() -> None:
    """Writes all into a folder."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path, help="folder of the experiment")
    parser.add_argument("folder", type=Path, help="folder to write to")
    parser.add_argument("--dev", action="store_true", help="of development text")
    args = parser.parse_args()
    write(args.out, "dev" if args.dev else "test", args.folder)


if __name__ == "__main__":
    main()
