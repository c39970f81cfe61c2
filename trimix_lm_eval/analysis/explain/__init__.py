"""Why each token of a text is there: which source it owes its place to, and by how much.

The fused logits are a weighted sum, so the lead of a token over the runner-up is one, too:

    z[token] - z[runner-up] = sum over sources s of  w_s * (z_s[token] - z_s[runner-up])

Each term is the contribution of a source to the margin. `explain` generates a text and explains it,
`explain_given` explains continuations that are given, `explain_text` a text without a prompt;
`page.render` makes a page of it, and ``trimix explain`` does all of this.

Imported by `cli`; imports `llm`, the engine and what is below it, and `analysis.results`.

    command.py    ``trimix explain``
    samples.py    a logged sample of lm-eval, read back
    page.py       explanations as a self-contained page (page.html.j2) and as JSON
    run.py        `explain`, `explain_given` and `explain_text`
    measure.py    all positions of a text through all sources once: the numbers
    pieces.py     tokens as text, and which of them make up a character together
    records.py    what is found out: dataclasses, no tensors
"""

from trimix_lm_eval.analysis.explain.records import Explanation
from trimix_lm_eval.analysis.explain.run import explain, explain_given, explain_text

__all__ = ["Explanation", "explain", "explain_given", "explain_text"]
