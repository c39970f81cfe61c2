"""Explanations as a page that needs nothing but itself, and as JSON.

A token's source is told by the colour of its background, by the kind of line under it, and in
words, so that neither colours nor a mouse are needed. The hues are those of Okabe and Ito (2008),
which people with any kind of colour vision tell apart. Tokens are inline boxes without margins,
borders or padding at their sides: there letters go on joining as their script wants.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from trimix_lm_eval import __version__
from trimix_lm_eval.analysis.explain.measure import owner
from trimix_lm_eval.analysis.explain.records import Explanation, Group, Token
from trimix_lm_eval.utils import templates
from trimix_lm_eval.utils.paths import shown

#: What each role is, for readers who have not met the method.
ROLES = {
    "large_ins": "the large model, trained to follow instructions",
    "small_cpt": "the small model, trained further on the language",
    "small_base": "the small model before that; with a negative weight it is subtracted",
    "large_base": "the large model before it was trained to follow instructions",
}

#: What is written where no source speaks for a token.
NOBODY = "none"


class About(NamedTuple):
    """What is explained, and by which models.

    Attributes:
        title: Of the page.
        facts: Further (name, value) pairs for its head, in order.
        model: What the numbers depend on, see `provenance.describe`.
    """

    title: str
    facts: Sequence[tuple[str, str]]
    model: dict[str, Any]


def as_json(about: About, explanations: Sequence[Explanation]) -> str:
    """The same numbers for programs."""
    whole = {
        "trimix_explain": __version__,
        "title": about.title,
        "facts": dict(about.facts),
        "model": {**about.model, "sources": _sources(about)},
        "explanations": [dataclasses.asdict(one) for one in explanations],
    }
    return json.dumps(whole, ensure_ascii=False, indent=1, allow_nan=False)


def _sources(about: About) -> dict[str, dict[str, Any]]:
    """The sources by role, with places as others may read them."""
    sources = about.model["sources"]
    return {role: {**it, "path": shown(it["path"])} for role, it in sources.items()}


def render(about: About, explanations: Sequence[Explanation]) -> str:
    """The page of one explanation, or of the options of one question."""
    names = [share.source for share in explanations[0].tokens[0].shares]
    policy = about.model["policy"]["name"]
    return templates.render(
        Path(__file__).with_name("page.html.j2"),
        {"percent": percent, "signed": signed, "visible": visible},
        about=about,
        sections=[_section(i, one, explanations, policy) for i, one in enumerate(explanations)],
        one_prompt=len({one.prompt for one in explanations}) == 1,
        sources=[(name, ROLES[name], _sources(about)[name]) for name in names],
        mask=any(token.cutoff for one in explanations for token in one.tokens),
        drafts=any(one.drafting for one in explanations),
        unexpected=any(token.rank != 1 for one in explanations for token in one.tokens),
        given=explanations[0].kind == "given",
        nobody=NOBODY,
        version=__version__,
    )


def _section(
    index: int, it: Explanation, all_of_them: Sequence[Explanation], policy: str
) -> dict[str, Any]:
    counts = Counter(token.owner or NOBODY for token in it.tokens)
    names = [share.source for share in it.tokens[0].shares]
    if counts[NOBODY]:
        names.append(NOBODY)
    # All bars of a text are as wide as the largest sums of contributions against and for a token.
    parts = [[share.contribution for share in token.shares] for token in it.tokens]
    against = max(sum(-x for x in some if x < 0) for some in parts)
    width = against + (max(sum(x for x in some if x > 0) for some in parts) or 1.0)
    zero = 100 * against / width
    heading = "The text"
    if len(all_of_them) > 1:
        heading = f"Option {index + 1} of {len(all_of_them)}"
        known = [-1e9 if o.log_likelihood is None else o.log_likelihood for o in all_of_them]
        if known[index] == max(known):
            heading += ", the most likely one"
    return {
        "key": f"e{index}",
        "it": it,
        "heading": heading,
        "facts": _facts(it, policy),
        "spans": [_span(it, group) for group in it.groups],
        "owners": [(name, counts[name], 100 * counts[name] / len(it.tokens)) for name in names],
        "bars": [_bar(token, zero, width) for token in it.tokens],
        "zero": zero,
    }


def _facts(it: Explanation, policy: str) -> list[str]:
    """How the text came about, in sentences."""
    likelihood = it.log_likelihood
    known = "" if likelihood is None else f", log-likelihood {signed(likelihood)}"
    facts = [f"Policy {policy}, weights {_weights(it)}.", f"{len(it.tokens)} tokens{known}."]
    ends = {
        "length": "because no more tokens were asked for",
        "stop": "with a stop string",
        "eos": "with an end token",
    }
    if it.finish_reason is None:
        facts.append("The text was given, not generated.")
    else:
        facts.append(f"The text is {it.kind} and ends {ends[it.finish_reason]}.")
    if it.drafting:
        tried, stood, refused = dataclasses.astuple(it.drafting)
        dropped = tried - stood - refused
        rest = f", {dropped} behind these were dropped" if dropped else ""
        facts.append(f"small_cpt drafted {tried} tokens: {stood} stood, {refused} refused{rest}.")
    return facts


def _weights(it: Explanation) -> str:
    if it.alpha is None or it.beta is None:
        return "chosen anew at every token"
    gamma = "" if it.gamma in (None, it.alpha) else f", γ = {it.gamma:g}"
    chosen = f"α = {it.alpha:g}, β = {it.beta:g}{gamma}"
    if it.prompt_nll is not None:
        chosen += f" (from {it.prompt_tokens} prompt tokens, mean NLL {it.prompt_nll:.3f} nats)"
    return chosen


def whose(it: Explanation, group: Group) -> str | None:
    """The source with the largest contribution to a group, over all its tokens; None if none is."""
    sums: dict[str, float] = {}
    for share in (share for token in it.tokens[group.first : group.end] for share in token.shares):
        sums[share.source] = sums.get(share.source, 0.0) + share.contribution
    return owner(sums)


def _span(it: Explanation, group: Group) -> dict[str, Any]:
    """A group, by the source that it belongs to."""
    tokens = list(it.tokens[group.first : group.end])
    its = whose(it, group) or NOBODY
    classes = [its]
    if any(token.rank != 1 for token in tokens):
        classes.append("unexpected")
    drafts = [token.draft for token in tokens if token.draft]
    if drafts:
        classes.append("kept" if all(draft.stood for draft in drafts) else "refused")
    last = tokens[-1]
    summary = f"{its} · margin {signed(last.margin)} · {percent(last.probability)}"
    return {"group": group, "summary": summary, "classes": " ".join(classes)}


def _bar(token: Token, zero: float, whole: float) -> list[dict[str, Any]]:
    """Contributions side by side, in percent: those against the token left of 0."""
    left = right = zero
    segments = []
    for share in sorted(token.shares, key=lambda share: -abs(share.contribution)):
        width = 100 * abs(share.contribution) / whole
        against = share.contribution < 0
        left -= width if against else 0
        segments.append(
            {"source": share.source, "left": left if against else right, "width": width}
        )
        right += 0 if against else width
    return segments


def percent(probability: float) -> str:
    """A probability for readers."""
    value = 100 * probability
    if value and value < 0.01:
        return "< 0.01 %"
    return f"{value:.0f} %" if value >= 10 else f"{value:.2g} %"


def signed(number: float) -> str:
    """A number with its sign, the minus as long as the plus."""
    return f"{number:+.2f}".replace("-", "−")


def visible(text: str) -> str:
    """A token's text with its white space to be seen."""
    for char, sign in ((" ", "␣"), ("\n", "↵"), ("\t", "⇥")):
        text = text.replace(char, sign)
    return text
