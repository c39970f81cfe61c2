"""``fusion=sequence``: sources that need no common tokenizer, combined by their scores of texts.

    fusion.py      `SequenceFusion`: one `TriMix` per source, and the weighted sums of their scores
    candidates.py  what one source writes, and how likely it finds what was written

Imported by `harness` and `sweep`; imports `llm`, `engine`, `loading`, `fusion` and `utils`.
"""

from trimix_lm_eval.sequence_fusion.fusion import SequenceFusion, class_of

__all__ = ["SequenceFusion", "class_of"]
