"""Whether all sources have one tokenizer, and how much of it can be fused.

Logits are added id by id, so one id must mean one token in every source. What does not matter:
padding rows of an embedding, chat templates, padding sides, and what *special* tokens are called.
Special tokens that only some tokenizers add at the end are never fused: the fused vocabulary is
the leading ids that every tokenizer knows and every model has a row for. Anything else that
differs is an error, with one exception: if ``tokenizer=`` is given, the user has said which
tokenization is meant, and what the sources have beyond it draws a warning.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from trimix_lm_eval.utils.errors import TrimixError, warn_once

#: Short texts in the languages at hand: Tibetan, Uyghur, Mongolian, Odia, Tamil, Telugu, Bengali,
#: Kazakh in both scripts, English; digits, newlines, spaces, emoji.
PROBES = (
    "བོད་སྐད་ལ་ཕྱག་འཚལ་ལོ། །",
    "ئۇيغۇر تىلى ناھايىتى گۈزەل.",
    "ᠮᠣᠩᠭᠣᠯ ᠬᠡᠯᠡ ᠪᠢᠴᠢᠭ᠌᠃",
    "ଓଡ଼ିଆ ଭାଷା",
    "தமிழ் மொழி",
    "తెలుగు భాష",
    "বাংলা ভাষা",
    "قازاق ٴتىلى، Қазақ тілі",
    "The quick brown fox isn't lazy; it's 3.14 times as fast!",
    "0123456789 2024-01-31 1,000,000",
    "line one\nline two\n\n\tindented",
    "  two   three    spaces ",
    "🙂👩‍👩‍👧🇲🇳",
)


class Vocabulary(NamedTuple):
    """A tokenizer as far as fusion is concerned: ids of all tokens, and those of special ones.

    Ordinary text never contains a special token.
    """

    label: str
    tokens: dict[str, int]
    special: frozenset[int]

    @classmethod
    def of(cls, tokenizer: Any, label: str) -> Vocabulary:
        """Read a transformers tokenizer."""
        added = getattr(tokenizer, "added_tokens_decoder", {})
        special = {i for i, token in added.items() if token.special}
        return cls(
            label, tokenizer.get_vocab(), frozenset(special | set(tokenizer.all_special_ids))
        )

    @property
    def size(self) -> int:
        """One more than the highest id."""
        return max(self.tokens.values(), default=-1) + 1


class Difference(NamedTuple):
    """The lowest id on which two vocabularies disagree; None stands for no token."""

    id: int
    a: str | None
    b: str | None


def first_difference(a: dict[str, int], b: dict[str, int]) -> Difference | None:
    """The lowest id that does not have the same tokens in two vocabularies, or None."""
    differing = a.items() ^ b.items()
    if not differing:
        return None
    lowest = min(i for _, i in differing)

    def token(vocabulary: dict[str, int]) -> str | None:
        here = [t for t, i in vocabulary.items() if i == lowest]
        # Where several tokens share an id, those in which the two differ come first.
        return min(here, key=lambda t: ((t, lowest) not in differing, t), default=None)

    return Difference(lowest, token(a), token(b))


def compare(reference: Vocabulary, other: Vocabulary, chosen: bool) -> None:
    """Check that a source's vocabulary is the reference's, as far as ordinary text can tell.

    ``chosen`` is whether the reference was named by ``tokenizer=``.

    Raises:
        TrimixError: They differ; names the first token that does.
    """
    shared = min(reference.size, other.size)
    found = first_difference(
        _ordinary(reference, other, shared), _ordinary(other, reference, shared)
    )
    if found is not None:
        what = (
            f"The tokenizers differ: token {found.id} is {_name(found.b)} in {other.label} but "
            f"{_name(found.a)} in {reference.label}."
        )
        if found.id < shared:
            raise TrimixError(what, "fusion needs one vocabulary: choose models of one family")
        if found.a is not None:
            raise TrimixError(
                what, f"give tokenizer=<that of {other.label}>, which has no such token"
            )
        if not chosen:
            raise TrimixError(
                what,
                "choose models of one family, or, if the additional tokens may be left unused, "
                "name the tokenizer to use with tokenizer=",
            )
    if reference.size != other.size:
        more, less = sorted((reference, other), key=lambda v: -v.size)
        warn_once(
            f"The tokenizer of {more.label} has {more.size - less.size} token(s) at its end that "
            f"{less.label} lacks; they are never produced."
        )


def compare_encodings(reference: tuple[str, Any], other: tuple[str, Any], chosen: bool) -> None:
    """Check that two tokenizers with one vocabulary also cut `PROBES` in the same way.

    Each comes with its label. If the reference was chosen by ``tokenizer=``, a difference is a
    warning.

    Raises:
        TrimixError: They cut a text differently.
    """
    for text in PROBES:
        a, b = (t.encode(text, add_special_tokens=False) for _, t in (reference, other))
        if a == b:
            continue
        what = (
            f"The tokenizers differ: {text!r} is {_cut(b)} in {other[0]} but "
            f"{_cut(a)} in {reference[0]}."
        )
        if not chosen:
            raise TrimixError(
                what, "choose models of one family, or name the tokenizer to use with tokenizer="
            )
        warn_once(f"{what} tokenizer= decides.")
        return


def fused_size(
    reference: Vocabulary, others: Iterable[Vocabulary], rows: dict[str, int], eos: int | None
) -> int:
    """How many leading ids every tokenizer knows and every model has a row for.

    ``rows`` are those of the embeddings, by label of the source.

    Raises:
        TrimixError: A model has no row for a token that ordinary text contains.
    """
    size = min([reference.size, *(v.size for v in others), *rows.values()])
    for label, count in rows.items():
        lost = [(i, t) for t, i in reference.tokens.items() if i >= count]
        ordinary = [pair for pair in lost if pair[0] not in reference.special]
        if ordinary:
            lowest, token = min(ordinary)
            raise TrimixError(
                f"Token {lowest} ({token!r}) of {reference.label} has no row in {label}, whose "
                f"vocab_size is {count}.",
                "choose models of one family, or name a tokenizer that fits all with tokenizer=",
            )
        if lost:
            warn_once(
                f"{len(lost)} special token(s) of {reference.label} have no row in {label} "
                f"(vocab_size {count}); they are never produced."
            )
    if eos is not None and eos >= size:
        warn_once(
            f"The end-of-text token ({eos}) of {reference.label} is not known to all sources: "
            "generation ends only at stop strings and at max_gen_toks."
        )
    return size


def _ordinary(own: Vocabulary, other: Vocabulary, shared: int) -> dict[str, int]:
    """The tokens to compare: special ones may be renamed, or follow after the shared ids."""
    exempt = {i for i in own.special if i in other.special or i >= shared}
    return {token: i for token, i in own.tokens.items() if i not in exempt}


def _name(token: str | None) -> str:
    """A token as messages show it."""
    return "absent" if token is None else repr(token)


def _cut(ids: list[int]) -> str:
    """How a text was cut: its first ids."""
    more = ", ..." if len(ids) > 8 else ""
    return f"[{', '.join(map(str, ids[:8]))}{more}]"
