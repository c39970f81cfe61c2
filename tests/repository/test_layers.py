"""The packages import downward only, and no module imports itself by way of others.

Every import counts, wherever it stands: at the top, inside a function, for type checkers only.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent / "trimix_lm_eval"

#: From the bottom to the top: what stands in one line imports nothing of that line's others.
LAYERS: tuple[frozenset[str], ...] = tuple(
    map(
        frozenset,
        (
            {"utils"},
            {"fusion", "_autoload"},
            {"engine", "loading"},
            {"tasklib"},
            {"llm", "training"},
            {"harness", "analysis"},
            {"sweep"},
            {"cli"},
            {"__main__", "__init__"},
        ),
    )
)
#: What the trainer needs of the package; nothing of the engine, or of what rests on it.
TRAINING = {"utils", "fusion", "loading", "tasklib", "training"}
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name below it; a package by that of its folder."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[-1] == "__init__" and len(parts) > 1:
            parts = parts[:-1]
        found[".".join(parts)] = path
    return found


MODULES = modules()


def imports(path: Path) -> Iterator[str]:
    """The modules of ours that a file imports, by their names below the package."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports cannot be read off the line"
            # What is imported from a package is a module of it, or stands in its __init__.
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            inside = name.removeprefix("trimix_lm_eval").lstrip(".")
            if name.split(".")[0] != "trimix_lm_eval":
                continue
            while inside and inside not in MODULES:
                inside = inside.rpartition(".")[0]
            yield inside or "__init__"


GRAPH = {name: sorted(set(imports(path)) - {name}) for name, path in MODULES.items()}


def layer(module: str) -> str:
    """The package of a module, or the module itself at the root."""
    return module.split(".")[0]


def test_what_lies_at_the_root():
    files = {p.stem for p in ROOT.glob("*.py")}
    folders = {p.name for p in ROOT.iterdir() if p.is_dir() and p.name != "__pycache__"}
    assert files == {"__init__", "__main__", "_autoload", "llm"}
    assert files | folders == set(LEVEL)


@pytest.mark.parametrize("module", GRAPH)
def test_imports_point_downward(module):
    own = layer(module)
    for other in GRAPH[module]:
        theirs = layer(other)
        if theirs == own or (theirs == "__init__" and own != "__init__"):
            continue  # the version, and the two names that the package exports
        assert LEVEL[theirs] < LEVEL[own], f"{module} imports {other}"
        assert own != "training" or theirs in TRAINING, f"{module} imports {other}"


def test_no_module_imports_itself_by_way_of_others():
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " -> ".join((*way[way.index(module) :], module))
        if module not in done:
            for other in GRAPH[module]:
                if other != "__init__":
                    visit(other, (*way, module))
            done.add(module)

    for module in GRAPH:
        visit(module, ())


@pytest.mark.parametrize("package", [p for p in LEVEL if (ROOT / p).is_dir()])
def test_a_package_says_what_it_is_for_and_whom_it_knows(package):
    text = ast.get_docstring(ast.parse((ROOT / package / "__init__.py").read_text("utf-8"))) or ""
    assert len(text.splitlines()[0]) > 20, "the first line says what it is for"
    assert "Imported by" in text and "imports" in text
