"""Numbers over a whole test set, and their standard errors.

What lm-eval calls aggregations: functions of the list that `process_results` has collected.
lm-eval knows standard errors for its own aggregations only, so those of ours come as metrics of
their own, named ``…_stderr``, which is where lm-eval and its groups look for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

#: Bootstrap resamples, and the seed they are drawn with.
RESAMPLES = 1000
_SEED = 0

Pairs = Sequence[tuple[str, str]]


def chrf_pp(pairs: Pairs) -> float:
    """Corpus chrF++ (Popović 2017) as TriMix reports it, from 0 to 100: word order 2, lower-cased.

    lm-eval's own ``chrf`` counts characters only, and its ``chrf++`` keeps the case. The pairs are
    reference and hypothesis of each document.
    """
    references, hypotheses = zip(*pairs, strict=True)
    return float(_chrf().corpus_score(hypotheses, [references]).score)


def chrf_pp_score(pairs: Pairs) -> float:
    """`chrf_pp` from 0 to 1, for groups with other metrics."""
    return chrf_pp(pairs) / 100


def chrf_pp_stderr(pairs: Pairs) -> float | str:
    """Bootstrap standard error of `chrf_pp`; ``N/A`` for a single document.

    chrF++ is a function of n-gram counts summed over documents, so documents are drawn with
    replacement and their counts added up, without going back to the text.
    """
    import numpy as np

    references, hypotheses = zip(*pairs, strict=True)
    metric = _chrf()
    # Counts of n-grams per document; sacrebleu's own significance tests start from them, too.
    counts = np.array(metric._extract_corpus_statistics(list(hypotheses), [list(references)]))
    return _bootstrap(
        len(pairs),
        lambda drawn: metric._compute_score_from_stats(counts[drawn].sum(0).tolist()).score,
    )


def chrf_pp_score_stderr(pairs: Pairs) -> float | str:
    """`chrf_pp_stderr` of the score from 0 to 1."""
    error = chrf_pp_stderr(pairs)
    return error if isinstance(error, str) else error / 100


def weighted_f1(pairs: Pairs) -> float:
    """F1 of each label, from 0 to 1, averaged with the label's share of the documents as weight.

    An answer that is no label counts against recall only. The pairs are true and predicted label
    of each document.
    """
    from sklearn.metrics import f1_score

    golds, predictions = zip(*pairs, strict=True)
    labels = sorted(set(golds))
    return float(f1_score(golds, predictions, labels=labels, average="weighted", zero_division=0))


def weighted_f1_stderr(pairs: Pairs) -> float | str:
    """Bootstrap standard error of `weighted_f1`; ``N/A`` for a single document."""
    import numpy as np

    labels = sorted({gold for gold, _ in pairs})
    number = {label: i for i, label in enumerate(labels)}
    gold = np.array([number[gold] for gold, _ in pairs])
    predicted = np.array([number.get(prediction, len(labels)) for _, prediction in pairs])
    # One row per label: where it is the true one, where it is predicted, where both.
    true = gold == np.arange(len(labels))[:, None]  # [labels, documents]
    given = predicted == np.arange(len(labels))[:, None]

    def f1(drawn: np.ndarray) -> float:
        support = true[:, drawn].sum(1)
        both = support + given[:, drawn].sum(1)
        hits = (true & given)[:, drawn].sum(1)
        return float((support * 2 * hits / np.maximum(both, 1)).sum() / len(drawn))

    return _bootstrap(len(pairs), f1)


def _chrf() -> Any:
    from sacrebleu.metrics import CHRF

    return CHRF(word_order=2, lowercase=True)


def _bootstrap(documents: int, score: Any) -> float | str:
    """Standard deviation of a score, a function of indices, over resampled documents."""
    import numpy as np

    if documents < 2:
        return "N/A"  # what lm-eval writes, and leaves out of the errors of groups
    generator = np.random.default_rng(_SEED)
    scores = [score(generator.integers(documents, size=documents)) for _ in range(RESAMPLES)]
    return float(np.std(scores, ddof=1))
