"""The verdicts of `claims` as a picture, and the grid of points with what `ppl` chose of it."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
from claims import POINTS, Verdict  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402

#: Of Okabe and Ito (2008), and a shape, so that no colours are needed.
LOOKS = {
    "holds": ("#0072B2", "o"),
    "fails": ("#D55E00", "X"),
    "cannot be told": ("#7f7f7f", "|"),
    "measured": ("#000000", "d"),
}


def draw(panels: dict[str, dict[str, dict[str, Verdict]]], path: Path) -> None:
    """Draws differences in points with their 95 % intervals over documents.

    Args:
        panels: By title, the verdicts by claim and task; running text has a unit of its own and
            is left out.
        path: Of the PNG.
    """
    claims = list(next(iter(panels.values())))
    figure, axes = plt.subplots(
        1, len(panels), sharey=True, squeeze=False, figsize=(3.4 * len(panels) + 2.6, 6.4)
    )
    for axis, (title, found) in zip(axes[0], panels.items(), strict=True):
        _panel(axis, [found[claim] for claim in claims])
        axis.set_title(title, fontsize=9)
    axes[0][0].set_yticks(range(len(claims)), claims, fontsize=8)
    axes[0][0].invert_yaxis()
    handles = [
        plt.Line2D([], [], color=colour, marker=marker, linestyle="", label=verdict)
        for verdict, (colour, marker) in LOOKS.items()
    ]
    figure.legend(handles=handles, loc="lower center", ncols=len(LOOKS), fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0.04, 1, 1))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _panel(axis: Axes, rows: list[dict[str, Verdict]]) -> None:
    """One panel: of each claim the mean in bold, and its tasks above and below it."""
    for place, tasks in enumerate(rows):
        shown = {name: one for name, one in tasks.items() if name != "rolling"}
        names = [name for name in shown if name != "mean"]
        for i, name in enumerate([*names, "mean"]):
            one, wide = shown[name], name == "mean"
            colour, marker = LOOKS[one.verdict]
            y = place if wide else place + 0.7 * (i + 0.5) / len(names) - 0.35
            axis.plot([one.low, one.high], [y, y], color=colour, linewidth=2.5 if wide else 0.8)
            axis.plot([one.mean], [y], color=colour, marker=marker, markersize=7 if wide else 3)
        axis.axhline(place + 0.5, color="0.9", linewidth=0.8)
    axis.axvline(0, color="0.4", linewidth=0.8)
    axis.set_xlabel("points; big marks: means over the tasks", fontsize=8)
    axis.tick_params(labelsize=8)


def draw_grids(panels: dict[str, tuple[np.ndarray, np.ndarray]], path: Path) -> None:
    """Draws the score of every point, and how often `ppl` has chosen it.

    Args:
        panels: By title, mean scores and shares of all choices, both by alpha and beta ``[A, B]``.
        path: Of the PNG.
    """
    figure, axes = plt.subplots(1, len(panels), squeeze=False, figsize=(3.6 * len(panels), 3.9))
    for axis, (title, (scores, shares)) in zip(axes[0], panels.items(), strict=True):
        axis.imshow(scores.T, origin="lower", cmap="cividis")
        for (a, b), score in np.ndenumerate(scores):
            dark = score < scores.min() + 0.6 * np.ptp(scores)
            axis.text(
                a,
                b,
                f"{score:.0f}",
                ha="center",
                va="center",
                fontsize=7,
                color="0.9" if dark else "0.1",
            )
            if shares[a, b] >= 0.01:
                axis.scatter(
                    a, b, s=900 * shares[a, b] + 60, facecolors="none", edgecolors="#D55E00"
                )
        axis.set_xticks(range(len(POINTS)), [f"{one:g}" for one in POINTS], fontsize=8)
        axis.set_yticks(range(len(POINTS)), [f"{one:g}" for one in POINTS], fontsize=8)
        axis.set_xlabel("α (large_ins)", fontsize=8)
        axis.set_title(title, fontsize=9)
    axes[0][0].set_ylabel("β (small_cpt)", fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
