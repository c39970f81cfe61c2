"""The README's commands run as printed, and what it says of names and files is true."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from trimix_lm_eval.fusion import policies
from trimix_lm_eval.loading import settings

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.M | re.S)


def run(command: list[str], folder: Path) -> str:
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.mark.parametrize("script", blocks("sh"))
def test_shell_block_runs_from_any_folder(script, tmp_path):
    """Blocks marked `sh` need nothing to download; those marked `console` need the Hub."""
    printed = run(["bash", "-euc", script], tmp_path)
    if "--tasks trimix_demo " in script:
        assert re.search(r"trimix_demo_rolling\s*\|.*\|bits_per_byte", printed)
    if "check" in script:
        assert "large_ins" in printed and "small_base" in printed
    for place in re.findall(r"^trimix .*--output (\S+)$", script, flags=re.M):
        page = place if place.endswith(".html") else f"{place}/report.html"
        assert (tmp_path / page).stat().st_size > 10_000


@pytest.mark.parametrize("script", blocks("python"))
def test_python_block_runs_from_any_folder(script, tmp_path):
    printed = run([sys.executable, "-c", script], tmp_path)
    assert "log_likelihood=-" in printed


def test_every_policy_is_in_the_table():
    for name in policies.names():
        assert f"`{name}`" in README, name


def test_every_argument_of_the_run_is_named():
    for name in (one.name for one in settings.RUN_OPTIONS):
        if name not in ("batch_size", "max_batch_size"):  # options of lm_eval itself
            assert f"`{name}`" in README, name
    for name in (one.name for one in settings.SOURCE_OPTIONS):
        assert re.search(rf"`(\w+_)?{name}[=`]", README), name


def test_the_map_names_every_module_and_no_other():
    start = README.index("## Map of the house")
    named = set(re.findall(r"\b(\w+\.py|\w+/)", README[start : README.index("##", start + 5)]))
    modules = {f.name for f in (ROOT / "trimix_lm_eval").glob("*.py")} - {"__init__.py"}
    assert modules <= named, modules - named
    for name in named:
        assert any((ROOT / folder / name).exists() for folder in ("", "trimix_lm_eval", "tasks")), (
            name
        )
