"""The tables of docs/policies.md, made of what the classes say of themselves.

    python docs/policies_table.py

writes them anew between the two marks of that page.
"""

from __future__ import annotations

from pathlib import Path

from trimix_lm_eval.fusion import policies
from trimix_lm_eval.utils.options import Option, markdown_table, options_of

PAGE = Path(__file__).with_name("policies.md")
BEGIN, END = "<!-- made of the classes: begin -->", "<!-- made of the classes: end -->"


def tables() -> str:
    """One row for each policy of this package, then one for each of their options."""
    rows = [("`policy=`", "weights", "cost", "honest when"), ("---",) * 4]
    options: dict[Option, list[str]] = {}
    for name in filter(policies.ours, policies.names()):
        cls = policies.find(name)
        summary = (cls.__doc__ or "").partition("\n")[0].rstrip(".")
        rows.append((f"`{name}`", summary, cls.cost, cls.honest_when))
        for one in options_of(cls):
            options.setdefault(one, []).append(f"`{name}`")
    told = [
        one._replace(help=f"{one.help.rstrip('.')}. Of {', '.join(names)}.")
        for one, names in options.items()
    ]
    table = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    return f"{table}\n{markdown_table(told)}"


def renewed(page: str) -> str:
    """A page with what stands between its marks made anew."""
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    return f"{before}{BEGIN}\n{tables()}{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(renewed(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
