"""The table of docs/policies.md, made of what the classes of the policies say of themselves.

python -m tests.support.policies_page    # after a class has changed: writes the table anew
"""

from __future__ import annotations

from pathlib import Path

from trimix_lm_eval.fusion import policies

PAGE = Path(__file__).parent.parent.parent / "docs" / "policies.md"
HEAD = "| `policy=` | weights | cost | honest when |\n| --- | --- | --- | --- |\n"


def table() -> str:
    """One row for each policy of this package."""
    rows = []
    for name in filter(policies.ours, policies.names()):
        cls = policies.find(name)
        summary = (cls.__doc__ or "").partition("\n")[0].rstrip(".")
        rows.append(f"| `{name}` | {summary} | {cls.cost} | {cls.honest_when} |\n")
    return HEAD + "".join(rows)


def render(page: str) -> str:
    """The page with its table made anew."""
    before, _, rest = page.partition(HEAD)
    lines = rest.splitlines(keepends=True)
    after = next((i for i, line in enumerate(lines) if not line.startswith("|")), len(lines))
    return before + table() + "".join(lines[after:])


if __name__ == "__main__":
    PAGE.write_text(render(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
