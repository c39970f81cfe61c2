"""The packages import downward only, and no module imports itself by way of others.

Every import counts, wherever it stands: at the top, inside a function, for type checkers only.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

import trimix_lm_eval

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
            {"sequence_fusion"},
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
#: What a docstring names: the packages, and the one module at the root that others import.
PACKAGES = set(LEVEL) - {"_autoload", "__main__", "__init__"}


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


def imports(source: str) -> Iterator[str]:
    """The modules of ours that a program imports, by their names below the package.

    A name that the root exports counts as an import of the module that defines it.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
            roots = [a for a in node.names if a.name.split(".")[0] == "trimix_lm_eval"]
            assert all(alias.asname for alias in roots), "it gives a name to the whole package"
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports cannot be read off the line"
            # What is imported from a package is a module of it, or stands in its __init__.
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] != "trimix_lm_eval":
                continue
            inside = name.removeprefix("trimix_lm_eval").lstrip(".")
            home = trimix_lm_eval._HOME.get(inside)
            if home:
                inside = home.removeprefix("trimix_lm_eval.")
            elif inside not in ("", "__version__") and "." not in inside:
                assert inside in MODULES, f"the package's root has no {inside}"
            assert inside, "it imports the whole package"
            while inside and inside not in MODULES:
                inside = inside.rpartition(".")[0]
            yield inside or "__init__"


GRAPH = {
    name: sorted(set(imports(path.read_text(encoding="utf-8"))) - {name})
    for name, path in MODULES.items()
}


def layer(module: str) -> str:
    """The package of a module, or the module itself at the root."""
    return module.split(".")[0]


def test_what_lies_at_the_root():
    files = {p.stem for p in ROOT.glob("*.py")}
    folders = {p.name for p in ROOT.iterdir() if p.is_dir() and p.name != "__pycache__"}
    assert files == {"__init__", "__main__", "_autoload", "llm"}
    assert files | folders == set(LEVEL)


def upward(module: str, imported: Iterable[str]) -> list[str]:
    """Of what a module imports, what it must not."""
    own = layer(module)
    wrong = []
    for other in imported:
        theirs = layer(other)
        if theirs == own or theirs == "__init__":
            continue  # of the root itself there is nothing to be had but its version
        if LEVEL[theirs] >= LEVEL[own] or (own == "training" and theirs not in TRAINING):
            wrong.append(other)
    return wrong


@pytest.mark.parametrize("module", GRAPH)
def test_imports_point_downward(module):
    assert not upward(module, GRAPH[module])


@pytest.mark.parametrize(
    "line, wrong",
    [
        ("from trimix_lm_eval import TriMix", ["llm"]),
        ("def f():\n    from trimix_lm_eval import TriMix as T", ["llm"]),
        ("from trimix_lm_eval import loading", ["loading"]),
        ("from trimix_lm_eval.loading import settings", ["loading.settings"]),
        ("import trimix_lm_eval.loading.settings as s", ["loading.settings"]),
        ("from trimix_lm_eval import Weights, __version__", []),
    ],
)
def test_an_import_of_the_engine_that_points_upward_is_found(line, wrong):
    assert upward("engine.scorer", imports(line)) == wrong


@pytest.mark.parametrize(
    "line",
    ["import trimix_lm_eval", "import trimix_lm_eval.llm", "import trimix_lm_eval as t"]
    + ["from trimix_lm_eval import _HOME"],
)
def test_nobody_imports_the_root_as_a_whole(line):
    with pytest.raises(AssertionError):
        list(imports(line))


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


@pytest.mark.parametrize("package", [p for p in sorted(LEVEL) if (ROOT / p).is_dir()])
def test_a_package_says_what_it_is_for_and_whom_it_knows(package):
    text = ast.get_docstring(ast.parse((ROOT / package / "__init__.py").read_text("utf-8"))) or ""
    assert len(text.splitlines()[0]) > 20, "the first line says what it is for"
    assert "Imported by" in text and "imports" in text
    real = {layer(other) for name in GRAPH if layer(name) == package for other in GRAPH[name]}
    assert real & PACKAGES - {package} <= known(text)


def known(docstring: str) -> set[str]:
    """The packages that a package's docstring says it imports."""
    sentence = re.search(r"Imported by[^;.]*[;.]\s+[Ii]mports\s+([^.;]*)", docstring)
    assert sentence, docstring
    said, _, never = sentence[1].partition("never")
    if re.search(r"every\s+other\s+package", said):
        return set(PACKAGES)
    found = set(re.findall(r"`(\w+)`", said))
    assert found <= PACKAGES, found - PACKAGES
    if "what is below them" in said:
        least = min(LEVEL[name] for name in found)
        found |= {name for name in PACKAGES if LEVEL[name] < least}
    return found - set(re.findall(r"`(\w+)`", never))


def test_what_a_docstring_says_of_imports_is_read():
    two = known("Imported by `cli`; imports `llm` and `utils`, never\n`harness`.")
    assert two == {"llm", "utils"}
    assert known("It imports it. Imported by `cli`; imports none of them. Not `llm`.") == set()
    told = "Imported by `cli`; imports `harness`, `llm` and what is below them, never `training`."
    assert known(told) == PACKAGES - {"sequence_fusion", "analysis", "sweep", "cli", "training"}
