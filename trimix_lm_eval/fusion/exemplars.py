"""The answers of the exemplars in a few-shot prompt, which some policies see alone.

Text in, character spans out: the prompt's last line is the cue, e.g. ``Answer:``. In every earlier
block, what follows that cue is an answer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence


def answer_spans(prompt: str, ends: Sequence[str] = ()) -> list[tuple[int, int]]:
    """Find the answers of a prompt's exemplars.

    An answer runs from the cue to the next blank line, or to the first of ``ends`` (the special
    tokens that close a turn of a chat template). If no earlier line begins with the whole last
    line, as in ``Q: … A:`` on one line, the last word alone is the cue.

    Args:
        prompt: Exemplars and test input; the answer to the test input is not there.
        ends: Strings that end an answer besides a blank line.

    Returns:
        ``[start, end)`` character positions, in order; empty if there are no exemplars.
    """
    body = prompt.rstrip()
    cue_at = body.rfind("\n") + 1
    cue = body[cue_at:]
    if not cue:
        return []
    spans = _after(rf"(?m)^{re.escape(cue)}", prompt, cue_at, ends)
    if spans:
        return spans
    # The question stands on the cue's line: in a chat, up to the token that closes its turn.
    closing = [at for at in (cue.find(e) for e in ends if e) if at > 0]
    word = cue.split()[-1]
    if closing:
        cue = cue[min(closing) :]
        spans = _after(re.escape(cue), prompt, len(body) - len(cue), ends)
    elif word != cue and word.endswith(":"):
        spans = _after(rf"(?<!\S){re.escape(word)}", prompt, len(body) - len(word), ends)
    return spans


def _after(pattern: str, prompt: str, limit: int, ends: Sequence[str]) -> list[tuple[int, int]]:
    """Spans from each match before ``limit`` to the end of its block."""
    lines = prompt[len(prompt.rstrip()) :].count("\n")  # line breaks between cue and answer
    close = re.compile("|".join([r"\n[ \t]*\n", *(re.escape(e) for e in ends if e)]))
    spans = []
    for match in re.finditer(pattern, prompt[:limit]):
        start = match.end()
        gap = prompt[start : start + lines]
        start += len(gap) - len(gap.lstrip("\n"))
        found = close.search(prompt, start, limit)
        end = found.start() if found else None
        # Without an end the match belongs to the block of the test input: not an exemplar.
        if end is not None and prompt[start:end].strip():
            spans.append((start, end))
    return spans
