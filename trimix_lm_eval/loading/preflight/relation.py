"""How the vocabulary of each source is related to that in use, and which fusions that allows.

Logits are added id by id, so one id must mean one token in every source, and all sources must cut
texts in the same way:

    same      the tokens are those in use; special ones may have other names, or follow at the end
    padded    so they are, but the models' embeddings differ in their number of rows
    permuted  so they are, under other ids: fused through a map of ids, exactly
    extended  one of the two has more ordinary tokens, all of them at its end
    other     anything else; also the same tokens, if texts are cut otherwise

The first three are fused as they are. Of the others the texts can be scored with each source's own
tokenizer (``fusion=sequence``). Where what is shared means the same, they can also be fused token
by token, with the segmentation of one forced on the other: that is biased, and done only if
``tokenizer=`` says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from trimix_lm_eval.loading.preflight.vocabulary import (
    EXAMPLES,
    PROBES,
    Difference,
    Side,
    Vocabulary,
    cut_otherwise,
    differences,
    matches,
    texts_of,
    to_compare,
)
from trimix_lm_eval.loading.sequence import ALONE
from trimix_lm_eval.utils.errors import TrimixError, warn_once

#: What is known of fusing a source on the segmentation of another.
_BIASED = (
    "biased: {} then reads segmentations that it was not trained on (1.9 to 2.6 bits per byte "
    "where its own give 1.055, measured on stand-ins)"
)


class Relation(NamedTuple):
    """How a source's vocabulary is related to that in use.

    Attributes:
        kind: ``same``, ``padded``, ``permuted``, ``extended`` or ``other``.
        source: What messages call the source.
        reference: What they call the tokenizer in use.
        difference: The difference in words, with examples; empty if there is none.
        shared: Leading ids of the tokenizer in use that the source knows.
        rows: Rows of the source's embedding.
        own_ids: Of a permuted one, its id of each id of the tokenizer in use; None where it has
            none.
        tokenizer: With which ``tokenizer=`` it may be fused token by token although that is biased.
        forced: Whom that would force onto another's segmentation.
        chosen: Whether ``tokenizer=`` asks for it.
    """

    kind: str
    source: str
    reference: str
    difference: str
    shared: int
    rows: int
    own_ids: tuple[int | None, ...] | None = None
    tokenizer: str | None = None
    forced: str = ""
    chosen: bool = False

    @property
    def exact(self) -> bool:
        """Whether it can be fused token by token as it is."""
        return self.kind in ("same", "padded", "permuted")

    @property
    def told(self) -> str:
        """What the relation is."""
        return f"vocabulary {self.kind}" + (self.difference and f": {self.difference}")

    @property
    def fusions(self) -> str:
        """Which fusions are possible, and what to write for them."""
        if self.kind == "permuted":
            return "fused token by token through a map of ids, exactly"
        if self.exact:
            return "fused token by token"
        if self.chosen:
            shared = f"over the {self.shared:,} shared ids"
            return f"fused token by token {shared}; {_BIASED.format(self.forced)}"
        own = (
            "fusion=sequence with one point for all (policy=fixed,alpha=…,beta=…), in which each "
            "source cuts texts as it was trained to"
        )
        if self.tokenizer is None:
            return (
                f"possible: only {own}; or this source alone ({ALONE}); or choose models of one "
                "family"
            )
        return (
            f"possible: {own}; or token by token over the {self.shared:,} shared ids with "
            f"tokenizer={self.tokenizer}, {_BIASED.format(self.forced)}"
        )


def relate(reference: Side, source: Side) -> Relation:
    """Find the relation of a source's vocabulary to that in use.

    Args:
        reference: The tokenizer in use.
        source: That of the source.

    Returns:
        The relation. If one of the two lacks special tokens of the other, there is a warning.
    """
    a, b = reference.vocabulary, source.vocabulary
    mine, theirs = to_compare(a, b), to_compare(b, a)
    found = differences(mine, theirs)
    tail = found[0].id if found else min(a.size, b.size)
    more, less = b.ordinary_from(tail), a.ordinary_from(tail)
    made = Relation("other", b.label, a.label, _shown(a, b, found), tail, source.rows or b.size)
    if not found and not _other_ends(a, b) or found and not (more or less):
        return _of_same_ids(made, reference, source)
    if more and less or not found:
        return _of_other_ids(made, reference, source)
    # One of the two has ordinary tokens behind those that are shared, the other has none.
    longer, shorter = (source, reference) if more else (reference, source)
    count = len(more or less)
    where = f"{longer.vocabulary.label} has {count:,} ordinary token(s) at its end that"
    examples = _shown(a, b, found)
    made = made._replace(tokenizer=shorter.path, forced=longer.vocabulary.label)
    cut = cut_otherwise(reference, source, _texts(reference), within=tail)
    if cut:
        difference = f"{where} {shorter.vocabulary.label} lacks, and cuts texts otherwise: {cut}"
        return made._replace(difference=difference)
    difference = f"{where} {shorter.vocabulary.label} lacks: {examples}"
    return made._replace(kind="extended", difference=difference)


def trusted(source: str, reference: Vocabulary, rows: int, why: str = "") -> Relation:
    """The relation of a source of which nothing is to be compared, and perhaps why that is so."""
    return Relation("same", source, reference.label, why, reference.size, rows)


def settle(relation: Relation, chosen: bool) -> Relation:
    """Refuse what cannot be fused token by token; say what is biased.

    Args:
        relation: Of a source.
        chosen: Whether the tokenizer in use was named by ``tokenizer=``.

    Returns:
        The relation that is run.

    Raises:
        TrimixError: It is neither exact, nor has the user asked for it.
    """
    if relation.exact:
        return relation
    what = f"{relation.source}: {relation.told}."
    if not (chosen and relation.forced == relation.source):
        raise TrimixError(what, relation.fusions)
    relation = relation._replace(chosen=True)
    warn_once(f"{what} As tokenizer= says, it is {relation.fusions}. fusion=sequence is not.")
    return relation


def fused_size(reference: Vocabulary, relations: Iterable[Relation], eos: int | None) -> int:
    """How many leading ids every tokenizer knows and every model has a row for.

    Raises:
        TrimixError: A model has no row for a token that ordinary text contains.
    """
    size = reference.size
    for one in relations:
        if one.own_ids is None:
            size = min(size, one.shared, one.rows)
            lost = [(i, t) for t, i in reference.tokens.items() if i >= one.rows]
        else:
            size = min(size, one.shared)
            own = one.own_ids
            lost = [(i, t) for t, i in reference.tokens.items() if (own[i] or 0) >= one.rows]
        ordinary = [pair for pair in lost if pair[0] not in reference.special]
        if ordinary:
            lowest, token = min(ordinary)
            raise TrimixError(
                f"Token {lowest} ({token!r}) of {reference.label} has no row in {one.source}, "
                f"whose vocab_size is {one.rows}.",
                "choose models of one family, or name a tokenizer that fits all with tokenizer=",
            )
        if lost:
            warn_once(
                f"{len(lost)} special token(s) of {reference.label} have no row in {one.source} "
                f"(vocab_size {one.rows}); they are never produced."
            )
    if eos is not None and eos >= size:
        warn_once(
            f"The end-of-text token ({eos}) of {reference.label} is not known to all sources: "
            "generation ends only at stop strings and at max_gen_toks."
        )
    return size


def _of_same_ids(made: Relation, reference: Side, source: Side) -> Relation:
    """The relation of two vocabularies of which one id means one token, as far as both go."""
    cut = cut_otherwise(reference, source, _texts(reference))
    if cut:
        difference = f"it has the tokens of {made.reference}, but cuts texts otherwise: {cut}"
        path = reference.path
        return made._replace(difference=difference, tokenizer=path, forced=made.source)
    a, b = reference.vocabulary, source.vocabulary
    if a.size != b.size:
        more, less = sorted((a, b), key=lambda v: -v.size)
        warn_once(
            f"The tokenizer of {more.label} has {more.size - less.size} token(s) at its end that "
            f"{less.label} lacks; they are never produced."
        )
    rows = reference.rows or a.size
    if made.rows == rows:
        return made._replace(kind="same", difference="")
    why = f"its embedding has {made.rows:,} rows, not {rows:,}"
    return made._replace(kind="padded", difference=why)


def _of_other_ids(made: Relation, reference: Side, source: Side) -> Relation:
    """The relation of two vocabularies of which one id may mean two tokens."""
    a, b = reference.vocabulary, source.vocabulary
    found = matches(a, b, made.rows)
    if found is None or found.without:
        # Of special tokens that are called by each other's names nothing more can be made.
        if not differences(to_compare(a, b), to_compare(b, a), 1):
            return _of_same_ids(made, reference, source)
        if found is None:
            return made
        named = ", ".join(map(repr, found.without[:EXAMPLES]))
        what = f"it has nothing for the special token(s) {named} of {a.label}"
        return made._replace(difference=f"{what}; {made.difference}")
    own = tuple(found.own.get(i) for i in range(a.size))
    cut = cut_otherwise(reference, source, _texts(reference), own)
    if cut:
        what = f"it has the tokens of {a.label} under other ids, and cuts texts otherwise: {cut}"
        return made._replace(difference=what)
    named = _shown(a, b, differences(a.tokens, b.tokens))
    return made._replace(
        kind="permuted",
        difference=f"it has the tokens of {a.label} under other ids: {named}",
        shared=next((i for i in sorted(a.tokens.values()) if own[i] is None), a.size),
        own_ids=own,
    )


def _texts(reference: Side) -> Iterator[str]:
    """Texts that must be cut alike."""
    yield from PROBES
    yield from texts_of(reference)


def _other_ends(a: Vocabulary, b: Vocabulary) -> bool:
    """Whether what begins or ends a text has another id, though both know it by its name."""
    ends = {*a.ends, *b.ends} & a.tokens.keys() & b.tokens.keys()
    return any(a.tokens[token] != b.tokens[token] for token in ends)


def _shown(a: Vocabulary, b: Vocabulary, found: Sequence[Difference]) -> str:
    """Examples of a difference: the id, and its token in each."""

    def name(token: str | None) -> str:
        return "absent" if token is None else repr(token)

    return "; ".join(
        f"token {one.id} is {name(one.b)} in {b.label} but {name(one.a)} in {a.label}"
        if i == 0
        else f"{one.id} is {name(one.b)} but {name(one.a)}"
        for i, one in enumerate(found)
    )
