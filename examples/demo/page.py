"""What the demo shows, for a terminal and as a web page: rich draws both from the same parts."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from answers import SHOWN, Answers
from rich import box
from rich.console import Console, Group
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table as Grid
from rich.terminal_theme import DEFAULT_TERMINAL_THEME
from rich.text import Text
from table import COLUMNS, METHODS, Table, errors, shown

WIDTH = 100
NARROWEST = 80  # what the table takes
#: By source: the colour of what it carries, and a sign for where there are no colours.
SOURCES = {
    "large_ins": ("bold blue", "L"),
    "small_cpt": ("bold red", "C"),
    "small_base": ("bold green", "B"),
    None: ("dim", "-"),
}
MODELS = (
    ("large_ins", "large, instruction-tuned", "the same as small_base, then more tasks"),
    ("small_base", "small", "English, also as tasks; a little Tibetan, Uyghur"),
    ("small_cpt", "small_base, trained further", "Tibetan; a fifth of it English, also as tasks"),
)
TASKS = (
    ("text", "bits that a byte of running text takes; less is better"),
    ("finish", "which of four continuations is the true one?"),
    ("follow", "a passage; write how the line ends that begins so"),
    ("say", "four speakers; write what this one said"),
    ("gloss_to", "a made-up list of words; write what stands beside this one"),
)
COMMANDS = (
    (
        "lm-eval's own command, on the same models and tasks",
        "lm_eval --model trimix --model_args pretrained=demo --tasks trimix_demo --limit 4",
    ),
    (
        "why each token of a text is there",
        "trimix explain --model_args pretrained=demo --prompt 'Again, Ruth: ' --output why.html",
    ),
    (
        "a language of your own: from text to a model and its numbers",
        "trimix new-language --help      # docs/new_language.md walks through it",
    ),
)


def parts(made: Table, found: list[Answers], sizes: dict[str, int], colours: bool) -> Group:
    """Puts the page together.

    Args:
        made: The table.
        found: Answers side by side.
        sizes: Parameters by source.
        colours: Whether it is shown in colours; without them pieces have signs.
    """
    missing = [task for task in SHOWN if task not in {one.task for one in found}]
    shown_examples = [part for one in found for part in (_answers(one, colours), Text())]
    return Group(
        Rule("TriMix: three models, one next token"),
        Text(
            "\nA large model that knows tasks and little Tibetan, and a small one that knows "
            "Tibetan, are fused token by token:\n"
        ),
        Text("  α · large_ins + β · small_cpt + (1 − α − β) · small_base\n", style="bold"),
        Text(
            "with α and β chosen by the perplexity of each prompt, no label seen. The three models "
            "are toys that ship with the package, and were trained for this on two processor "
            "cores. None of them has read the texts that they are asked about.\n"
        ),
        _models(sizes),
        Text(),
        _tasks(),
        Text(),
        _table(made),
        Text(
            f"*: best of its column; °: not significantly different from it (paired bootstrap "
            f"over documents, p ≥ 0.05 by Holm). Standard errors: {errors(made)}."
        ),
        Text(
            "Proxy Tuning is α = β = 1: all of small_base is subtracted, and with it what it knows "
            "of the tasks.\n"
        ),
        *shown_examples,
        *(Text(f"{task}: no question that only TriMix has right.\n") for task in missing),
        Rule("What to do next"),
        *map(_command, COMMANDS),
    )


def _command(one: tuple[str, str]) -> Padding:
    what, how = one
    return Padding(Text.assemble(f"{what}\n  ", (how, "bold")), (1, 0, 0, 0))


def _models(sizes: dict[str, int]) -> Grid:
    grid = Grid(title="The models", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for head in ("source", "what it is", "parameters", "has read"):
        grid.add_column(head, justify="right" if head == "parameters" else "left")
    for name, what, read in MODELS:
        size = f"{sizes[name] / 1e6:.1f} M"
        grid.add_row(Text(name, style=SOURCES[name][0]), what, size, read)
    return grid


def _tasks() -> Grid:
    grid = Grid(title="The tasks, in Tibetan", title_justify="left", box=None, padding=(0, 2, 0, 0))
    grid.show_header = False
    for name, what in TASKS:
        grid.add_row(name, what)
    return grid


def _table(made: Table) -> Grid:
    # Narrow enough for 80 columns.
    grid = Grid(title="The table", title_justify="left", padding=(0, 0, 0, 1), box=box.ROUNDED)
    grid.add_column("method", no_wrap=True)
    for column in COLUMNS:
        n = f"\nn = {made['ppl'][column.title].n}" if column.task else "\n"
        grid.add_column(f"{column.title}\n{column.metric}{n}", justify="right")
    for policy, name in METHODS.items():
        cells = []
        for column in COLUMNS:
            number = made[policy][column.title]
            sign = {"best": "*", "level": "°", "": " "}[number.mark]
            style = "bold" if number.mark == "best" else ""
            cells.append(Text(shown(number, column.percent) + sign, style=style))
        grid.add_row(name, *cells)
    return grid


def _answers(one: Answers, colours: bool) -> Group:
    """A question, and the answers to it.

    Nothing stands at the right of the text, since terminals and browsers do not agree on how wide
    letters of the language are.
    """
    grid = Grid(box=None, padding=(0, 2, 0, 0), show_header=False)
    grid.add_row("right", one.answer)
    for name, text in one.alone.items():
        grid.add_row(f"{name} alone", text or "(nothing)")
    grid.add_row("TriMix", _fused(one, colours))
    legend = Text("Each piece by the source that did most for it, whatever it writes alone: ")
    for name, (style, sign) in SOURCES.items():
        if any(source == name for _, source in one.fused):
            legend.append(f" {name or 'none'}{'' if colours else f' [{sign}]'}", style=style)
    told = (
        f"Of these four only TriMix has {one.won} of {one.n} questions right, of which this is the "
        f"first; of those that all models alone have right it has {one.lost or 'none'} wrong."
    )
    title = Text(f"An answer of {one.task}, after two that were solved", style="italic")
    return Group(title, Text(one.question), Text(), grid, legend, Text(told))


def _fused(one: Answers, colours: bool) -> Text:
    text = Text()
    for piece, source in one.fused:
        style, sign = SOURCES[source]
        text.append(piece, style=style)
        if not colours and piece.strip():
            text.append(f"[{sign}]")
    return text


def on_terminal(*given: Any) -> None:
    """Prints the page: in colours if the terminal has them; narrower than the table it never is."""
    console = Console()
    width = max(console.width, NARROWEST) if console.is_terminal else WIDTH
    console = Console(width=width)
    colours = console.color_system is not None and not console.no_color
    console.print(parts(*given, colours))


def as_html(path: Path, *given: Any) -> None:
    """Writes the page as HTML that loads nothing."""
    console = Console(
        width=WIDTH, record=True, file=io.StringIO(), force_terminal=True, color_system="truecolor"
    )
    console.print(parts(*given, True))
    text = console.export_html(theme=DEFAULT_TERMINAL_THEME)
    path.write_text(text.replace("<head>", "<head>\n<title>TriMix: the demo</title>", 1), "utf-8")
