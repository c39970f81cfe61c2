"""The Markdown pages that people read: their blocks of code, and folders in which these are run."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent.parent
README = ROOT / "README.md"
#: The README and the pages of the documentation.
PAGES = (README, *sorted((ROOT / "docs").glob("*.md")))


class Block(NamedTuple):
    """A fenced block of a page.

    Attributes:
        language: What stands behind the opening fence.
        name: Of the file whose content it is; empty if it is none.
        text: Its lines.
    """

    language: str
    name: str
    text: str


def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: Path) -> list[Block]:
    found = re.findall(r"^```(\w+)(?: (\S+))?\n(.*?)^```", text(page), flags=re.M | re.S)
    return [Block(*block) for block in found]


def of_language(page: Path, language: str) -> list[str]:
    """The blocks in a language that are no files."""
    return [block.text for block in blocks(page) if block.language == language and not block.name]


def put(block: Block, folder: Path) -> None:
    """Write the file that a block shows, or change it if the block is a diff."""
    path = folder / block.name
    if block.language == "diff":
        content = path.read_text(encoding="utf-8")
        hunks = re.split(r"^@@ -\d+,(\d+) \+\d+,(\d+) @@\n", block.text, flags=re.M)[1:]
        for less, more, hunk in zip(hunks[::3], hunks[1::3], hunks[2::3], strict=True):
            lines = hunk.splitlines(keepends=True)
            before = [line[1:] for line in lines if line[0] != "+"]
            after = [line[1:] for line in lines if line[0] != "-"]
            # By which `patch` reads it.
            assert (len(before), len(after)) == (int(less), int(more)), hunk
            assert content.count("".join(before)) == 1, before
            content = content.replace("".join(before), "".join(after))
        path.write_text(content, encoding="utf-8")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(block.text, encoding="utf-8")


def checkout(folder: Path) -> Path:
    """Copy what a checkout needs to run, so that a page may change it; returns the folder."""
    for name in ("trimix_lm_eval", "tasks"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("large_ins"))
    models = Path("trimix_lm_eval/loading/demo/large_ins")
    (folder / models).symlink_to(ROOT / models)
    return folder
