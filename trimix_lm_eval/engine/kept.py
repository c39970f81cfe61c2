"""Prompts that were run for a choice, kept until they are asked for again: they run once.

A policy that chooses for a whole task reads some of its prompts first; those are scored or
continued afterwards like all others. What their passes left in the caches is kept meanwhile, as far
as `KEPT_BYTES` go, and given up as soon as memory runs out (`memory.halve_batch_size`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce

from trimix_lm_eval.engine.input_batch import InputBatch
from trimix_lm_eval.engine.model_runner import Ensemble
from trimix_lm_eval.engine.prefill import PrefixNode, PromptCollectors
from trimix_lm_eval.engine.request import Prompt

#: What prompts that are kept may take, over all sources.
KEPT_BYTES = 2 * 2**30

#: Prompts after they were run, a row each.
Run = tuple[InputBatch, Sequence[Prompt]]


@dataclass(eq=False)
class KeptPrompts(PrefixNode):
    """Prompts that were run side by side: each of them is a prefix, all but its last token.

    The last token is run again, for the hidden states that predict what comes next.

    Attributes:
        rows: By the token ids of each prompt, where it is: the batch, and the row in it.
        nbytes: What they take, over all sources.
    """

    rows: dict[tuple[int, ...], tuple[InputBatch, int]] = field(default_factory=dict)
    nbytes: int = 0

    def evict(self) -> bool:
        """Free these caches; from now on the prompts are run whole."""
        held = bool(self.rows)
        self.rows.clear()
        return held

    def start(
        self, prompts: Sequence[Prompt], collectors: Sequence[PromptCollectors | None]
    ) -> InputBatch | None:
        """A batch to go on from, one row per prompt; there are no collectors here."""
        if not self.rows:
            return None
        places: dict[InputBatch, list[int]] = {}
        for i, prompt in enumerate(prompts):
            places.setdefault(self.rows[prompt.ids][0], []).append(i)
        parts = [self._forked(batch, [prompts[i] for i in mine]) for batch, mine in places.items()]
        whole = reduce(InputBatch.concat, parts)
        order = [i for mine in places.values() for i in mine]
        if order != sorted(order):
            whole = whole.fork([order.index(i) for i in range(len(prompts))])
        return whole

    def _forked(self, batch: InputBatch, prompts: Sequence[Prompt]) -> InputBatch:
        """A copy of the rows of some prompts without their last tokens."""
        rows = [self.rows[prompt.ids][1] for prompt in prompts]
        tokens = [len(prompt.ids) - 1 for prompt in prompts]
        own = [n - batch.prefix_lengths[row] for n, row in zip(tokens, rows, strict=True)]
        return batch.fork(rows, tokens, batch.table.shared, own)

    def rest(self, prompt: Prompt) -> Prompt:
        """The last token."""
        return prompt._replace(ids=prompt.ids[-1:], prompt_mask=None) if self.rows else prompt


def keep(ensemble: Ensemble, node: PrefixNode, runs: Sequence[Run]) -> None:
    """Keep prompts that have just been run, if there is room.

    Args:
        ensemble: The sources.
        node: The prefix from which they were run.
        runs: The prompts.
    """
    known = {ids for one in ensemble.kept for ids in one.rows}
    rows: dict[tuple[int, ...], tuple[InputBatch, int]] = {}
    # A prefix is held once for all that continue it.
    tokens = node.held if all(one.parent is not node for one in ensemble.kept) else 0
    for batch, prompts in runs:
        longest = max(len(prompt.ids) for prompt in prompts)
        tokens += len(prompts) * (longest - node.length) * 5 // 4  # and the room to grow
        for row, prompt in enumerate(prompts):
            if len(prompt.ids) > 1 and prompt.ids not in known:
                rows[prompt.ids] = batch, row
    nbytes = tokens * ensemble.token_bytes
    # States before the last token, and behind it.
    nbytes += 2 * len(rows) * sum(source.row_bytes for source in ensemble.sources)
    if rows and sum(one.nbytes for one in ensemble.kept) + nbytes <= KEPT_BYTES:
        ensemble.kept.append(KeptPrompts(node, rows=rows, nbytes=nbytes))
