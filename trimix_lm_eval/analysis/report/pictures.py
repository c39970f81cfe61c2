"""The pictures: maps of the plane, prompt NLL against score, what policies chose.

Colours are viridis and those of Okabe and Ito (2008), which colour-blind readers can tell apart;
nothing is told by colour alone.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from string import ascii_lowercase
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from trimix_lm_eval.analysis.report.numbers import minus
from trimix_lm_eval.analysis.report.plane import LEAST, ChosenPoints, Plane, Slice
from trimix_lm_eval.fusion.weights import Weights

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, ORANGE, RED = "#0072B2", "#E69F00", "#D55E00"

#: Panels side by side: more would be too small to read on a narrow screen.
_ACROSS = 3

_STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    # Names come from files: a dollar sign in them is no formula.
    "text.parse_math": False,
    "svg.hashsalt": "trimix",
}


class Picture(NamedTuple):
    """One picture: ``map`` (of each gamma), ``nll`` or ``choices``; SVG for HTML, PNG for Markdown.

    ``alt`` says what is to be seen, for who does not see it; ``name`` is the PNG's file.
    """

    kind: str
    alt: str
    svg: bytes
    png: bytes
    name: str = ""


def pictures(plane: Plane) -> Iterator[Picture]:
    """Draw what there is of a plane."""
    best = plane.oracle.label() if plane.oracle else "none"
    for cut in plane.slices:
        at = f" at gamma = {_gamma(cut)}" if plane.gammas else ""
        alt = f"{plane.metric} of {plane.title} over alpha and beta{at}; best at {best}"
        kind = "map" if cut.gamma is None else f"map_gamma_{cut.gamma:g}"
        yield _draw(kind, alt, partial(_map, plane, cut))
    if len(plane.scattered) >= LEAST:
        rho = "not defined" if plane.rho is None else f"{plane.rho:.2f}"
        alt = f"prompt NLL against {plane.metric} of {plane.title}; rank correlation {rho}"
        yield _draw("nll", alt, lambda: _nll(plane))
    if plane.choices:
        alt = f"weights chosen on {plane.title} by " + ", ".join(c.row.title for c in plane.choices)
        yield _draw("choices", alt, lambda: _choices(plane))


def _draw(kind: str, alt: str, draw: Callable[[], Figure]) -> Picture:
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        figure = draw()
        svg, png = io.BytesIO(), io.BytesIO()
        # Laid out and cut to size once for both files: that takes as long as to draw them.
        figure.draw_without_rendering()
        figure.set_layout_engine(None)
        box = figure.get_tightbbox().padded(matplotlib.rcParams["savefig.pad_inches"])
        figure.savefig(svg, format="svg", bbox_inches=box, metadata={"Date": None})
        figure.savefig(png, format="png", bbox_inches=box, dpi=160)
    return Picture(kind, alt, svg.getvalue(), png.getvalue())


def _figure(
    width: float, height: float, panels: int = 1, layout: Literal["constrained"] | None = None
) -> tuple[Figure, list[Any]]:
    # Not pyplot: no window system, no figures that are kept.
    from matplotlib.figure import Figure

    rows, columns = -(-panels // _ACROSS), min(panels, _ACROSS)
    figure = Figure(figsize=(width * columns, height * rows), layout=layout)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for spare in axes[panels:]:
        spare.set_axis_off()
    return figure, axes[:panels]


def _scores(plane: Plane) -> str:
    unit = f" {plane.scale.unit}" if plane.scale.unit else ""
    return f"{plane.metric}{unit} ({'higher' if plane.higher_is_better else 'lower'} is better)"


def _gamma(cut: Slice) -> str:
    return "alpha" if cut.gamma is None else f"{cut.gamma:g}"


def _named(plane: Plane, marks: str) -> str:
    """The title; where gamma is free in some points, with the marks that tell them."""
    return f"{plane.title}, {marks}: γ (large_base) is not α" if plane.gammas else plane.title


def _map(plane: Plane, cut: Slice) -> Figure:
    """Scores by alpha (across) and beta (upwards); choices ringed, the oracle starred."""
    shown, unit = cut.points, plane.scale
    alphas = sorted({point.weights.alpha for point in shown})
    betas = sorted({point.weights.beta for point in shown})
    grid = np.full((len(betas), len(alphas)), np.nan)
    for point in shown:
        at = betas.index(point.weights.beta), alphas.index(point.weights.alpha)
        grid[at] = point.cell.value * unit.factor
    figure, (axes,) = _figure(0.8 * len(alphas) + 1.2, 0.62 * len(betas))
    # Bright is good, whichever way is up.
    colours = "viridis" if plane.higher_is_better else "viridis_r"
    image = axes.imshow(grid, origin="lower", aspect="auto", cmap=colours)
    bar = figure.colorbar(image, ax=axes, pad=0.02)
    bar.set_label(_scores(plane))
    bar.outline.set_visible(False)
    for (row, column), value in np.ndenumerate(grid):
        if np.isfinite(value):
            red, green, blue, _ = image.cmap(image.norm(value))
            dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
            look: Any = {"ha": "center", "va": "center", "fontsize": 7}
            text = f"{value:.{unit.decimals}f}"
            axes.text(column, row, text, color="white" if dark else "black", **look)
    axes.set_xticks(range(len(alphas)), [f"{a:g}" for a in alphas])
    axes.set_yticks(range(len(betas)), [f"{b:g}" for b in betas])
    axes.set_xlabel("α (large_ins)")
    axes.set_ylabel("β (small_cpt)")
    free = f", γ (large_base) = {'α' if cut.gamma is None else _gamma(cut)}"
    axes.set_title(plane.title + free * bool(plane.gammas), loc="left", fontweight="bold")
    _mark(axes, plane, cut, alphas, betas)
    return figure


def _mark(axes: Any, plane: Plane, cut: Slice, alphas: list[float], betas: list[float]) -> None:
    """Ring each policy's most frequent choice; star the oracle."""
    ringed: dict[Weights, list[str]] = {}
    for choice in plane.choices:
        share = "" if choice.share == 1 else f" ({choice.share:.0%} of its choices)"
        ringed.setdefault(choice.counts[0][0], []).append(f"{choice.row.title}{share}")
    handles: dict[str, Any] = {}

    def on_map(weights: Weights) -> bool:
        return cut.holds(weights) and weights.alpha in alphas and weights.beta in betas

    shown = [weights for weights in ringed if on_map(weights)]
    look: Any = {"marker": "o", "mfc": "none", "ls": ""}
    for letter, weights in zip(ascii_lowercase, shown, strict=False):
        column, row = alphas.index(weights.alpha), betas.index(weights.beta)
        axes.plot(column, row, ms=25, mec="white", mew=4, **look)
        axes.plot(column, row, ms=25, mec=RED, mew=2, **look)
        tag: Any = {"boxstyle": "circle,pad=0.15", "fc": "white", "ec": RED, "lw": 0.6}
        corner = column - 0.36, row + 0.32
        axes.text(*corner, letter, ha="center", va="center", fontsize=6, bbox=tag)
        (handle,) = axes.plot([], [], ms=8, mec=RED, mew=2, **look)
        handles[f"{letter}  {weights.label()}: {', '.join(ringed[weights])}"] = handle
    best = plane.oracle
    if best and on_map(best):
        corner = alphas.index(best.alpha) + 0.36, betas.index(best.beta) + 0.32
        star = axes.plot(*corner, "*", ms=8, mfc="white", mec="black", mew=0.8, ls="")
        handles[f"{best.label()}: oracle (best test score)"] = star[0]
    _legend(axes, handles)


def _legend(axes: Any, handles: Mapping[str, Any]) -> None:
    """What marks mean, half an inch below the axes: under their label, whatever their height."""
    if handles:
        below = 0.5 / (axes.get_position().height * axes.figure.get_figheight())
        axes.legend(
            handles.values(),
            [textwrap.fill(text, 64, subsequent_indent="    ") for text in handles],
            loc="upper left",
            bbox_to_anchor=(-0.02, -below),
            frameon=False,
            fontsize=7,
        )


def _nll(plane: Plane) -> Figure:
    points, factor = plane.scattered, plane.scale.factor
    figure, (axes,) = _figure(3.7, 2.9)
    lowest = min(points, key=lambda point: point.nll or 0.0)
    looks = [
        ("", BLUE, "o", 5, [p for p in points if p.weights.gamma is None]),
        ("", BLUE, "s", 5, [p for p in points if p.weights.gamma is not None]),
        ("lowest NLL", RED, "D", 6, [lowest]),
        ("oracle", ORANGE, "*", 11, [p for p in points if p.weights == plane.oracle]),
    ]
    handles: dict[str, Any] = {}
    for name, colour, marker, size, some in looks:
        at = [p.nll for p in some], [p.cell.value * factor for p in some]
        edge: Any = {"mec": "black" if name else "white", "mew": 0.6}
        (drawn,) = axes.plot(*at, marker, ms=size, color=colour, **edge)
        if name and some:
            handles[f"{name}: {some[0].weights.label()}"] = drawn
    axes.margins(0.08)
    axes.grid(alpha=0.25)
    axes.set_xlabel("mean NLL per prompt token (nats)")
    axes.set_ylabel(_scores(plane))
    rho = "" if plane.rho is None else f"Spearman ρ = {minus(plane.rho)}, {len(points)} points"
    axes.set_title(f"{_named(plane, 'squares')}\n{rho}", loc="left", fontweight="bold")
    _legend(axes, handles)
    return figure


def _choices(plane: Plane) -> Figure:
    """Of each policy, how often it chose each point: the area of a dot is its share."""
    figure, panels = _figure(2.4, 2.6, len(plane.choices), "constrained")
    for place, (axes, choice) in enumerate(zip(panels, plane.choices, strict=True)):
        _panel(axes, choice)
        if place % _ACROSS == 0:
            axes.set_ylabel("β (small_cpt)")
    figure.suptitle(
        f"{_named(plane, 'squares')}\n", x=0.01, ha="left", fontsize=8, fontweight="bold"
    )
    return figure


def _panel(axes: Any, choice: ChosenPoints) -> None:
    total = sum(count for _, count in choice.counts)
    look: Any = {"color": BLUE, "alpha": 0.65, "edgecolor": "white", "linewidth": 0.6}
    for place, (weights, count) in enumerate(choice.counts):
        share, at = count / total, (weights.alpha, weights.beta)
        axes.scatter(*at, s=12 + 700 * share, marker="o" if weights.gamma is None else "s", **look)
        if place < 3 and share >= 0.15:
            axes.annotate(f"{share:.0%}", at, ha="center", va="center", fontsize=6.5)
    axes.set_xlim(-0.12, 1.12)
    axes.set_ylim(-0.12, 1.14)
    axes.set_xticks([0, 0.5, 1])
    axes.set_yticks([0, 0.5, 1])
    axes.set_aspect("equal")
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    axes.set_xlabel("α (large_ins)")
    axes.set_title(f"{choice.row.title} (n = {total})", loc="left")
