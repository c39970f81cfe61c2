"""Every relative link of the Markdown pages leads somewhere, headings included."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support import pages
from tests.support.pages import ROOT

PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "examples/**/*.md", "tasks/**/*.md")
    + ("model_configs/**/*.md", "benchmarks/**/*.md", "tests/**/*.md")
    for path in ROOT.glob(pattern)
)
FENCED = re.compile(r"^```.*?^```", flags=re.M | re.S)


def anchors(page: Path) -> set[str]:
    """What GitHub makes of a page's headings."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ +(.*)$", FENCED.sub("", pages.text(page)), flags=re.M):
        words = re.sub(r"[^\w\- ]", "", re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)).lower()
        anchor, number = words.strip().replace(" ", "-"), 0
        while f"{anchor}-{number}" in found or (not number and anchor in found):
            number += 1
        found.add(f"{anchor}-{number}" if number else anchor)
    return found


def links(page: Path) -> list[str]:
    plain = re.sub(r"`[^`\n]*`", "", FENCED.sub("", pages.text(page)))
    return re.findall(r"\]\(([^)\s]+)\)", plain)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_relative_links_lead_somewhere(page):
    for link in links(page):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert ROOT in target.parents, f"{link} leaves the checkout"
        if anchor:
            assert anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_files_of_the_checkout_that_are_named_are_there(page):
    folders = "trimix_lm_eval|tasks|examples|docs|tests|benchmarks|model_configs"
    made = {block.name for block in pages.blocks(page)}
    for name in re.findall(rf"`((?:{folders})/[\w./+-]*)`", pages.text(page)):
        if name not in made and not name.startswith("tasks/words/"):
            assert (ROOT / name).exists(), name


def test_the_index_lists_every_page():
    index = ROOT / "docs" / "README.md"
    listed = {link for link in links(index) if "/" not in link}
    there = {page.name for page in (ROOT / "docs").glob("*.md")} - {index.name}
    assert listed == there


def test_a_link_that_leads_nowhere_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Two words, `code`\n[a](b.md) ![c](d.png#e)\n```md\n[no](no.md)\n```\n")
    assert links(page) == ["b.md", "d.png#e"] and anchors(page) == {"two-words-code"}
