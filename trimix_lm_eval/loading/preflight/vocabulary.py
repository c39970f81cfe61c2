"""A tokenizer as far as fusion is concerned, and where two of them differ.

What does not matter: padding rows of an embedding, chat templates, padding sides, and what
*special* tokens are called. Special tokens that only some tokenizers add at the end are never
fused: the fused vocabulary is the leading ids that every tokenizer knows and every model has a row
for. `relation` says what follows from a difference.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

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


#: Examples that are shown of a difference.
EXAMPLES = 3
#: Tokens of a vocabulary that texts are made of, and about half as many texts as are made.
_SAMPLE, _TEXTS = 2048, 256
#: What a special token may be for: what begins a text, what ends one, and all else.
_ROLES = (
    "bos_token",
    "eos_token",
    "pad_token",
    "unk_token",
    "sep_token",
    "cls_token",
    "mask_token",
)


class Vocabulary(NamedTuple):
    """A tokenizer as far as fusion is concerned; ordinary text never contains a special token.

    Attributes:
        label: What messages call it.
        tokens: The ids of all tokens.
        special: The ids of the special ones.
        roles: Special tokens by what they are for, as transformers names it: ``bos_token``,
            ``eos_token``, ``pad_token`` and others.
    """

    label: str
    tokens: dict[str, int]
    special: frozenset[int]
    roles: dict[str, str] = {}  # noqa: RUF012  never written to

    @classmethod
    def of(cls, tokenizer: Any, label: str) -> Vocabulary:
        """Read a transformers tokenizer."""
        added = getattr(tokenizer, "added_tokens_decoder", {})
        special = {i for i, token in added.items() if token.special}
        tokens = tokenizer.get_vocab()
        roles = {role: getattr(tokenizer, role, None) for role in _ROLES}
        return cls(
            label,
            tokens,
            frozenset(special | set(tokenizer.all_special_ids)),
            {role: token for role, token in roles.items() if token is not None and token in tokens},
        )

    @property
    def ends(self) -> list[str]:
        """The tokens that begin and end a text; those that begin it first."""
        return [self.roles[role] for role in _ROLES[:2] if role in self.roles]

    @property
    def size(self) -> int:
        """One more than the highest id."""
        return max(self.tokens.values(), default=-1) + 1

    def ordinary_from(self, first: int) -> list[int]:
        """The ids from one on that are not special, in order."""
        return sorted({i for i in self.tokens.values() if i >= first} - self.special)


class Side(NamedTuple):
    """A tokenizer with what is around it.

    Attributes:
        vocabulary: What it knows.
        tokenizer: Of transformers.
        path: What ``tokenizer=`` takes to name it.
        rows: Of the embedding of the model that it comes with; None of a tokenizer alone.
    """

    vocabulary: Vocabulary
    tokenizer: Any
    path: str
    rows: int | None


class Difference(NamedTuple):
    """An id on which two vocabularies disagree; None stands for no token."""

    id: int
    a: str | None
    b: str | None


def differences(a: dict[str, int], b: dict[str, int], most: int = EXAMPLES) -> list[Difference]:
    """The lowest ids that do not have the same tokens in two vocabularies; so many at most."""
    differing = a.items() ^ b.items()

    def token(vocabulary: dict[str, int], wanted: int) -> str | None:
        here = [t for t, i in vocabulary.items() if i == wanted]
        # Where several tokens share an id, those in which the two differ come first.
        return min(here, key=lambda t: ((t, wanted) not in differing, t), default=None)

    lowest = sorted({i for _, i in differing})[:most]
    return [Difference(i, token(a, i), token(b, i)) for i in lowest]


def to_compare(own: Vocabulary, other: Vocabulary) -> dict[str, int]:
    """Tokens that must agree: special ones may be renamed, or follow after the shared ids."""
    shared = min(own.size, other.size)
    exempt = {i for i in own.special if i in other.special or i >= shared}
    return {token: i for token, i in own.tokens.items() if i not in exempt}


class Matches(NamedTuple):
    """Which id of one vocabulary is which of another.

    Attributes:
        own: The source's id of each id in use that it has.
        without: Special tokens in use that it has nothing for and that cannot be left out.
    """

    own: dict[int, int]
    without: list[str]


def matches(reference: Vocabulary, source: Vocabulary, rows: int) -> Matches | None:
    """Match two vocabularies; None if their ordinary tokens are not the same.

    Ordinary tokens are matched by what they are, special ones by their names; where these differ,
    by what they are for, and others by their ids. A special token without a match may follow at
    the end only, where it is not fused, and must not be what texts begin with. The same holds for
    one that the source's model has no row for.
    """
    ordinary = [
        {token for token, i in one.tokens.items() if i not in one.special}
        for one in (reference, source)
    ]
    if not (ordinary[0] <= source.tokens.keys() and ordinary[1] <= reference.tokens.keys()):
        return None
    own: dict[int, int] = {}
    for token in reference.tokens.keys() & source.tokens.keys():
        i, there = reference.tokens[token], source.tokens[token]
        if there >= rows and i in reference.special:
            continue
        if own.setdefault(i, there) != there:
            return None  # tokens that share an id in one of the two only
    taken = set(own.values())
    for role, token in reference.roles.items():
        i, same = reference.tokens[token], source.tokens.get(source.roles.get(role, ""))
        if i not in own and same is not None and same < rows and same not in taken:
            own[i] = same
            taken.add(same)
    for i in (reference.special & source.special) - taken - own.keys():
        if i < rows:
            own[i] = i
    if len(set(own.values())) < len(own):
        return None
    last = max(reference.ordinary_from(0), default=-1)
    begins = {reference.tokens[token] for token in reference.ends[:1]}
    lacking = sorted((i, token) for token, i in reference.tokens.items() if i not in own)
    return Matches(own, [token for i, token in lacking if i < last or i in begins])


def cut_otherwise(
    reference: Side,
    source: Side,
    texts: Iterable[str],
    own_ids: Sequence[int | None] | None = None,
    within: int | None = None,
) -> str:
    """Texts that two tokenizers cut differently, in words; nothing if there is none.

    Args:
        reference: The tokenizer in use.
        source: The other.
        texts: To be cut.
        own_ids: The other's ids, if they are other ones.
        within: Texts in which one of the two needs an id from here on are left out.
    """

    def found() -> Iterator[str]:
        for text in texts:
            a, b = (
                list(one.tokenizer.encode(text, add_special_tokens=False))
                for one in (reference, source)
            )
            if within is not None and max([*a, *b], default=0) >= within:
                continue
            expected = a if own_ids is None else [own_ids[i] for i in a]
            if expected != b:
                same = 0
                while expected[same : same + 1] == b[same : same + 1]:
                    same += 1
                yield (
                    f"{text!r} is {_cut(b, same)} in {source.vocabulary.label} but "
                    f"{_cut(a, same)} in {reference.vocabulary.label}"
                )

    return "; ".join(islice(found(), EXAMPLES))


def _cut(ids: Sequence[int], start: int) -> str:
    """How a text was cut: its first ids from one on."""
    before, after = ("…, " if start else ""), (", …" if len(ids) > start + 8 else "")
    return f"[{before}{', '.join(map(str, ids[start : start + 8]))}{after}]"


def texts_of(side: Side) -> Iterator[str]:
    """Texts in which two tokens overlap by a character, from all over a vocabulary.

    Which of the two is cut out depends on what else makes two tokenizers with the same tokens
    differ: the order of merges.
    """
    ids = side.vocabulary.ordinary_from(0)
    decoded = (str(side.tokenizer.decode([i])) for i in ids[:: max(1, len(ids) // _SAMPLE)])
    pieces = [piece for piece in decoded if len(piece) > 1 and "\ufffd" not in piece]
    by_first: dict[str, list[str]] = {}
    for piece in pieces:
        by_first.setdefault(piece[0], []).append(piece)
    for piece in pieces[:: max(1, len(pieces) // _TEXTS)]:
        for other in by_first.get(piece[-1], [])[:2]:
            yield piece + other[1:]
