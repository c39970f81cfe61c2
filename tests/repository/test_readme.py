"""The commands of README and docs run as printed, and what they say of names and files is true."""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import lm_eval_tasks, pages, quick_python
from tests.support.pages import PAGES, README, ROOT
from tests.support.quick_python import environment
from trimix_lm_eval.fusion import policies
from trimix_lm_eval.loading import settings

pytestmark = pytest.mark.slow

#: Pages whose blocks another test runs, since it looks closer at what comes of them.
ELSEWHERE = {
    "engine.md": "engine/test_standalone.py",
    "clusters.md": "repository/test_clusters.py",
    "new_language.md": "training/test_new_language.py",
    "add_a_policy.md": "repository/test_add_a_policy.py",
}
RUN = ("sh", "python")
#: All that `lm_eval` prints to a log: its own account of the run, with its own bars; a line a step
#: of ours; and what git says when lm-eval asks it for the commit of a folder without one.
LOG = r"""
\S+ WARNING  \[\S+\] --limit SHOULD ONLY BE USED FOR TESTING. .*
\S+ INFO     \[\S+\] .*
trimix: loading (large_ins|small_cpt|small_base)
trimix (loglikelihood|loglikelihood_rolling|generate_until): \d+/\d+ \[.*\]
 *\d+%\|.*
fatal: not a git repository .*
""".strip().splitlines()
EXECUTED = [
    page
    for page in PAGES
    if page.name not in ELSEWHERE
    and any(block.language in RUN and not block.name for block in pages.blocks(page))
]


def run(command: list[str], folder: Path, programs: Path, **more: str) -> tuple[str, str]:
    """Run a command that finds `trimix` and `lm_eval` among some programs; what it prints."""
    env = environment(PATH=f"{programs}{os.pathsep}{os.environ['PATH']}", **more)
    env = {name: value for name, value in env.items() if not name.startswith("TQDM_")}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout, done.stderr


def run_page(page: Path, folder: Path, programs: Path, **env: str) -> tuple[str, str]:
    """Write the files of a page and run its blocks, in its order; returns what they print.

    Python is run in this process, which has imported the libraries already.
    """
    printed = []
    names = {"__name__": "__main__"}  # a block goes on with the names of those before it
    for block in pages.blocks(page):
        if block.name:
            pages.put(block, folder)
        elif block.language == "sh":
            printed.append(run(["bash", "-euc", block.text], folder, programs, **env))
        elif block.language == "python":
            printed.append((execute(block.text, names), ""))
    output, errors = map("".join, zip(*printed, strict=True))
    return output, errors


def execute(source: str, names: dict[str, object]) -> str:
    """Run a program in this process; what it prints."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(source, "page", "exec"), names)
    return printed.getvalue()


@pytest.mark.parametrize("page", EXECUTED, ids=lambda page: page.name)
def test_a_page_runs_from_any_folder(page, tmp_path):
    """Blocks marked `sh` need nothing to download; those marked `console` need the Hub."""
    env = {}
    if page.name == "README.md":  # as users run it, in interpreters that have imported nothing
        programs = Path(sys.executable).parent
        env = {"PYTHONPATH": lm_eval_tasks.sitecustomize(tmp_path / "site")}
    elif page.name == "add_a_benchmark.md":
        programs = quick_python.folder("libraries")  # which can import another checkout than this
        env = {"PYTHONPATH": str(pages.checkout(tmp_path))}
    else:
        programs = quick_python.folder()
    printed, said = run_page(page, tmp_path, programs, **env)
    script = "".join(pages.of_language(page, "sh"))
    if "--tasks trimix_demo " in script:
        assert re.search(r"trimix_demo_rolling\s*\|.*\|bits_per_byte", printed)
        check_the_log(said)
    if "check" in script:
        assert "large_ins" in printed and "small_base" in printed
    if page.name == "python.md":
        assert "log_likelihood=-" in printed
    for place in re.findall(r"^trimix .*--output (\S+)$", script, flags=re.M):
        written = tmp_path / (place if place.endswith(".html") else f"{place}/report.html")
        assert written.stat().st_size > 10_000
    if page.name == "add_a_benchmark.md":
        check_the_benchmark(printed, tmp_path)


def check_the_log(said: str) -> None:
    """A run of `lm_eval` says nothing that is of no use."""
    lines = [line for line in re.split(r"[\r\n]+", said) if line]
    assert [line for line in lines if not any(re.fullmatch(known, line) for known in LOG)] == []
    assert sum("WARNING" in line for line in lines) == 1
    ours = [line.split(":")[0] for line in lines if line.startswith("trimix ")]
    kinds = ["loglikelihood_rolling", "loglikelihood", "generate_until"]
    assert ours == [f"trimix {kind}" for kind in kinds]


def check_the_benchmark(printed: str, folder: Path) -> None:
    """It is listed, its data is found, its scores are in the table of the report."""
    for code in ("bod_Tibt", "uig_Arab"):
        name = f"trimix_words_{code}"
        assert re.search(rf"^{name} +task +0 +multiple_choice +folder$", printed, flags=re.M)
        assert re.search(rf"\|{name} *\|.*\|acc *\|", printed)
        report = (folder / "report" / "report.md").read_text(encoding="utf-8")
        assert name.replace("_", "\\_") in report or name in report
    (results,) = (folder / "results").rglob("results_*.json")
    assert '"words/bod_Tibt.jsonl"' in results.read_text(encoding="utf-8"), "the data's digest"


def test_what_runs_elsewhere_does():
    for page, test in ELSEWHERE.items():
        assert (ROOT / "docs" / page).exists(), page
        assert page in (ROOT / "tests" / test).read_text(encoding="utf-8"), page


def test_no_block_runs_twice():
    scripts = [
        block.text
        for page in EXECUTED
        for block in pages.blocks(page)
        if block.language in RUN and not block.name
    ]
    assert len(scripts) == len(set(scripts))


def everywhere() -> str:
    return "".join(map(pages.text, PAGES))


def test_every_policy_is_in_the_table():
    for name in policies.names():
        assert f"`{name}`" in everywhere(), name


def test_every_argument_of_the_run_is_named():
    said = everywhere()
    for name in (one.name for one in settings.RUN_OPTIONS):
        if name not in ("batch_size", "max_batch_size"):  # options of lm_eval itself
            assert f"`{name}`" in said, name
    for name in (one.name for one in settings.SOURCE_OPTIONS):
        assert re.search(rf"`(\w+_)?{name}[=`]", said), name


def test_the_map_names_every_package_once_and_no_other():
    readme = pages.text(README)
    start = readme.index("## Packages")
    named = re.findall(r"^\| `(\w+(?:/|\.py))` \|", readme[start:], flags=re.M)
    package = ROOT / "trimix_lm_eval"
    there = {f"{init.parent.name}/" for init in package.glob("*/__init__.py")} | {"llm.py"}
    assert sorted(named) == sorted(there)
    for name in re.findall(r"`(\w+/)`", readme[start:]):
        assert any(path.is_dir() for path in (ROOT / name, *package.glob(f"**/{name}"))), name


def test_the_readme_is_short():
    assert len(pages.text(README).splitlines()) <= 200
