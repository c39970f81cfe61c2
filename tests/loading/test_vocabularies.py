"""How vocabularies are related, on tokenizers made for each case."""

import json
import logging

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast

from tests.conftest import byte_tokenizer
from tests.support.permuted import renumbered, shuffled
from trimix_lm_eval.loading.preflight.relation import fused_size, relate, settle
from trimix_lm_eval.loading.preflight.vocabulary import Side, Vocabulary, matches
from trimix_lm_eval.utils import errors
from trimix_lm_eval.utils.errors import TrimixError


def side(tokenizer, name="small", rows=None):
    """A tokenizer as that of a source."""
    rows = len(tokenizer) if rows is None else rows
    return Side(Vocabulary.of(tokenizer, name), tokenizer, f"some/{name}", rows)


def related(a, b, **rows):
    """How the tokenizer of a small model is related to that of a large one."""
    return relate(side(a, "large"), side(b, "small", **rows))


def changed(tokenizer, change, **ends):
    """A tokenizer whose definition was changed by a function."""
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    change(spec)
    ends = {**{role: t for role, t in tokenizer.special_tokens_map.items() if t}, **ends}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(spec)), **ends)


def extended(tokenizer, merges):
    """A tokenizer with tokens more at its end, by merges that ordinary text makes."""

    def more(spec):
        vocab = spec["model"]["vocab"]
        for a, b in merges:
            vocab[a + b] = max(vocab.values()) + 1
            spec["model"]["merges"].append([a, b])

    return changed(tokenizer, more)


def swapped(tokenizer, one, two):
    """A tokenizer with the ids of two tokens exchanged."""
    vocab, own = tokenizer.get_vocab(), list(range(len(tokenizer)))
    own[vocab[one]], own[vocab[two]] = vocab[two], vocab[one]
    return renumbered(tokenizer, own)


def renamed(tokenizer, old, new, **roles):
    """A tokenizer that calls a special token otherwise."""

    def rename(spec):
        spec["model"]["vocab"][new] = spec["model"]["vocab"].pop(old)
        next(t for t in spec["added_tokens"] if t["content"] == old)["content"] = new

    return changed(tokenizer, rename, **roles)


@pytest.fixture(scope="module")
def tok():
    return byte_tokenizer()


@pytest.fixture
def warned(caplog, monkeypatch):
    """What was warned about."""
    monkeypatch.setattr(errors, "_warned", set())
    caplog.set_level(logging.WARNING, logger="trimix_lm_eval")
    return caplog


# ------------------------------------------------------------------------ fused as they are


@pytest.mark.parametrize(("rows", "kind"), [(265, "same"), (304, "padded")])
def test_rows_alone_differ(tok, rows, kind):
    found = related(tok, byte_tokenizer(), rows=rows)
    assert (found.kind, found.exact, found.shared, found.own_ids) == (kind, True, 265, None)
    assert found.fusions == "fused token by token"
    assert ("304 rows, not 265" in found.told) == (kind == "padded")


def test_names_that_reserved_tokens_have_in_turn(tok):
    """As the special tokens of Llama 3.1 are those of Llama 3, some of them called otherwise."""
    one, two = byte_tokenizer(), byte_tokenizer()
    one.add_tokens(["<r0>", "<r1>", "<r2>"], special_tokens=True)
    two.add_tokens(["<pad2>", "<r0>", "<r1>"], special_tokens=True)
    found = related(one, two)
    assert (found.kind, found.shared) == ("same", 268)


@pytest.mark.parametrize("seed", [1, 2])
def test_all_ids_are_others(tok, seed):
    own = shuffled(304, seed)[: len(tok)]
    found = related(tok, renumbered(tok, own), rows=304)
    assert (found.kind, found.shared) == ("permuted", len(tok))
    assert found.own_ids == tuple(own)
    assert found.fusions == "fused token by token through a map of ids, exactly"
    assert fused_size(Vocabulary.of(tok, "large"), [found], 257) == len(tok)


def test_two_tokens_are_swapped(tok):
    found = related(tok, swapped(tok, "a", "b"))
    a, b = tok.get_vocab()["a"], tok.get_vocab()["b"]
    assert found.kind == "permuted"
    assert {i: own for i, own in enumerate(found.own_ids) if i != own} == {a: b, b: a}
    assert f": token {a} is 'b' in small but 'a' in large; {b} is 'a' but 'b'" in found.told


def test_only_begin_and_end_are_swapped(tok):
    """Special tokens may be called otherwise, but not by each other's names."""
    found = related(tok, swapped(tok, "<s>", "</s>"))
    assert found.kind == "permuted"
    assert (found.own_ids[256], found.own_ids[257]) == (257, 256)


@pytest.mark.parametrize("named", ["<s> </s>", "<|begin|> <|end|>"])
def test_special_tokens_first_against_last(tok, named):
    """What begins and ends a text is known by that, whatever it is called."""
    vocab = tok.get_vocab()
    first = renumbered(tok, [(i - 256) % 259 if i < 259 else i for i in range(265)])
    begin, end = named.split()

    other = renamed(tok, "<s>", begin, bos_token=begin)
    other = renamed(other, "</s>", end, eos_token=end)
    found = related(first, other)
    assert found.kind == "permuted"
    assert found.own_ids[:4] == (256, 257, 258, 0)
    assert found.own_ids[first.get_vocab()["the"]] == vocab["the"]


def test_a_special_token_of_another_name_is_known_by_what_it_is_for(tok):
    own = shuffled(len(tok), 3)
    small = renamed(renumbered(tok, own), "<pad>", "<|p|>", pad_token="<|p|>")
    found = related(tok, small)
    assert (found.kind, found.own_ids) == ("permuted", tuple(own))


def test_a_special_token_that_nothing_matches_is_named():
    large = byte_tokenizer()
    large.add_tokens(["<|turn|>"], special_tokens=True)
    large = renumbered(large, [(i + 9) % 266 for i in range(266)])  # no longer the last
    small = renamed(renumbered(large, shuffled(266, 3)), "<|turn|>", "<|other|>")
    found = related(large, small)
    assert found.kind == "other"
    assert "has nothing for the special token(s) '<|turn|>' of large; token " in found.told


def test_a_special_token_at_the_end_of_one_of_two_that_are_permuted(tok, warned):
    large = byte_tokenizer()
    large.add_tokens(["<|turn|>"], special_tokens=True)
    found = related(large, swapped(tok, "a", "b"))
    assert (found.kind, found.shared, found.own_ids[265]) == ("permuted", 265, None)
    assert fused_size(Vocabulary.of(large, "large"), [found], 257) == 265
    large.eos_token = "<|turn|>"
    assert related(large, swapped(tok, "a", "b")) == found
    fused_size(Vocabulary.of(large, "large"), [found], 265)
    assert "end-of-text token (265) of large is not known to all" in warned.text
    large.bos_token = None  # so that a text begins with what the small model does not know
    assert related(large, swapped(tok, "a", "b")).kind == "other"


def test_a_permuted_token_without_a_row(tok, warned):
    vocab = tok.get_vocab()
    found = related(tok, swapped(tok, "a", "er"), rows=264)
    with pytest.raises(TrimixError, match=rf"Token {vocab['a']} \('a'\) of large has no row in sm"):
        fused_size(Vocabulary.of(tok, "large"), [found], None)


# ------------------------------------------------------------------------ tokens that some lack


def test_merges_at_the_end_that_cut_ordinary_text_otherwise(tok, warned):
    """As a vocabulary is extended for a language: what was two tokens is one of the new ones."""
    longer = extended(tok, [("q", "u"), ("qu", "i"), ("x", "y"), ("l", "a")])
    assert longer.encode("quick") != tok.encode("quick")
    found = related(tok, longer)
    assert (found.kind, found.exact, found.shared) == ("extended", False, 265)
    assert "small has 4 ordinary token(s) at its end that large lacks: " in found.told
    assert "token 265 is 'qu' in small but absent in large; 266 is 'qui' but absent" in found.told
    assert "possible: fusion=sequence with one point for all (policy=fixed," in found.fusions
    assert "or token by token over the 265 shared ids with tokenizer=some/large" in found.fusions
    with pytest.raises(TrimixError, match="small: vocabulary extended"):
        settle(found, chosen=False)
    assert not warned.records
    settle(found, chosen=True)
    assert "biased: small then reads segmentations that it was not trained on" in warned.text
    assert fused_size(Vocabulary.of(tok, "large"), [found], 257) == 265


def test_ordinary_tokens_where_the_large_model_has_special_ones(tok):
    large = byte_tokenizer()
    large.add_tokens(["<|turn|>", "<|end|>"], special_tokens=True)
    found = related(large, extended(tok, [("q", "u")]))
    assert (found.kind, found.shared) == ("extended", 265)
    assert "token 265 is 'qu' in small but '<|turn|>' in large" in found.told


def test_the_large_model_has_more(tok):
    found = related(extended(tok, [("q", "u"), ("l", "a")]), tok)
    assert (found.kind, found.forced) == ("extended", "large")
    assert "large has 2 ordinary token(s) at its end that small lacks" in found.told
    assert "with tokenizer=some/small, biased: large then reads" in found.fusions
    for chosen in (True, False):  # the tokenizer in use is the longer one, which cannot be
        with pytest.raises(TrimixError, match="tokenizer=some/small"):
            settle(found, chosen)


def test_fewer_tokens_in_the_middle(tok):
    longer = extended(tok, [("q", "u")])

    def without(spec):
        vocab = spec["model"]["vocab"]
        del vocab["the"], vocab["Ġthe"]
        spec["model"]["merges"] = [m for m in spec["model"]["merges"] if "the" not in "".join(m)]
        for i, token in enumerate(sorted(vocab, key=vocab.get)):
            vocab[token] = i

    found = related(longer, changed(longer, without))
    assert (found.kind, found.tokenizer) == ("other", None)
    assert found.fusions.startswith("possible: only fusion=sequence")
    for chosen in (True, False):
        with pytest.raises(TrimixError, match="small: vocabulary other: token 261 is"):
            settle(found, chosen)


def test_a_longer_vocabulary_that_cuts_with_the_old_tokens_otherwise(tok):
    """What is not explained by the new tokens is another segmentation."""

    def turned(spec):
        spec["model"]["merges"].reverse()

    found = related(tok, changed(extended(tok, [("x", "y")]), turned))
    assert (found.kind, found.tokenizer) == ("other", "some/large")
    assert "and cuts texts otherwise: 'ther' is" in found.told


# ------------------------------------------------------------------------ other vocabularies


def overlapping(order):
    """Two merges of which the first one decides how ``zqz`` is cut."""
    made = extended(byte_tokenizer(), [("z", "q"), ("q", "z")])

    def turned(spec):
        spec["model"]["merges"][-2:] = spec["model"]["merges"][-2:][::order]

    return changed(made, turned)


def test_same_tokens_with_other_merges(tok):
    def turned(spec):
        spec["model"]["merges"].reverse()

    found = related(tok, changed(tok, turned))
    assert (found.kind, found.tokenizer) == ("other", "some/large")
    assert "it has the tokens of large, but cuts texts otherwise: 'ther' is" in found.told
    found = related(tok, swapped(changed(tok, turned), "a", "b"))
    assert (found.kind, found.tokenizer) == ("other", None)
    assert "under other ids, and cuts texts otherwise" in found.told


def test_merges_that_only_the_tokens_themselves_show():
    a, b = overlapping(1), overlapping(-1)
    assert a.encode("zqz") != b.encode("zqz")
    found = related(a, swapped(b, "a", "b"))
    assert found.kind == "other" and "'zqz' is" in found.told
    assert related(a, swapped(a, "a", "b")).kind == "permuted"


def test_byte_level_bpe_against_unigram(tok):
    pieces = [("<unk>", 0.0), ("</s>", 0.0)] + [(c, -3.0) for c in "▁abcdefghijklmnopqrstuvwxyz"]
    made = Tokenizer(models.Unigram([*pieces, ("▁the", -2.0)], unk_id=0))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    unigram = PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="</s>", unk_token="<unk>", bos_token="</s>"
    )
    found = related(tok, unigram)
    assert (found.kind, found.tokenizer) == ("other", None)
    assert found.told.count(" but ") == 3


def test_unigram_with_its_pieces_in_another_order():
    pieces = [("<unk>", 0.0), ("</s>", 0.0)] + [(c, -3.0) for c in "▁abcdefghijklmnopqrstuvwxyz"]

    def made(order):
        backend = Tokenizer(models.Unigram(order(pieces), unk_id=order(pieces).index(pieces[0])))
        backend.pre_tokenizer = pre_tokenizers.Metaspace()
        return PreTrainedTokenizerFast(
            tokenizer_object=backend, eos_token="</s>", unk_token="<unk>"
        )

    found = related(made(list), made(lambda order: order[::-1]))
    assert (found.kind, found.own_ids) == ("permuted", tuple(range(28, -1, -1)))


def test_a_special_token_missing_in_the_middle():
    a = Vocabulary("a", {"x": 0, "<s>": 1, "y": 2}, frozenset({1}))
    b = Vocabulary("b", {"x": 0, "y": 2}, frozenset())
    found = relate(Side(a, None, "a", 3), Side(b, None, "b", 3))
    assert found.kind == "other"
    with pytest.raises(TrimixError, match="token 1 is absent in b but '<s>' in a"):
        settle(found, chosen=True)


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ({"x": 0, "X": 0, "y": 1}, {"x": 1, "X": 2, "y": 0}),
        ({"x": 0, "X": 1, "y": 2}, {"x": 1, "X": 1, "y": 0}),
    ],
)
def test_tokens_that_share_an_id_in_one_only(one, two):
    a, b = Vocabulary("a", one, frozenset()), Vocabulary("b", two, frozenset())
    assert matches(a, b, 9) is None


def test_tokens_that_share_an_id_in_both():
    a = Vocabulary("a", {"x": 0, "X": 0, "y": 1}, frozenset())
    b = Vocabulary("b", {"x": 1, "X": 1, "y": 0}, frozenset())
    assert matches(a, b, 9) == ({0: 1, 1: 0}, [])


class SlowTokenizer(PreTrainedTokenizer):
    """Letters, in some order; in Python."""

    def __init__(self, letters, **ends):
        self.letters = ["<unk>", *letters]
        super().__init__(unk_token="<unk>", **ends)

    @property
    def vocab_size(self):
        return len(self.letters)

    def get_vocab(self):
        own = {letter: i for i, letter in enumerate(self.letters)}
        return own | {str(token): i for i, token in self.added_tokens_decoder.items()}

    def _tokenize(self, text, **_):
        return list(text)

    def _convert_token_to_id(self, token):
        return self.letters.index(token) if token in self.letters else 0

    def _convert_id_to_token(self, index):
        return self.letters[index]


def test_slow_tokenizers():
    letters = "abcdefghijklmnopqrstuvwxyz. "
    a = SlowTokenizer(letters, eos_token="</s>")
    assert related(a, SlowTokenizer(letters, eos_token="</s>")).kind == "same"
    found = related(a, SlowTokenizer(letters[::-1], eos_token="</s>"))
    assert found.kind == "permuted" and sorted(found.own_ids) == list(range(len(a)))
    longer = related(a, SlowTokenizer(letters + "!?", eos_token="</s>"))
    assert (longer.kind, longer.shared) == ("extended", len(a) - 1)
    assert related(a, byte_tokenizer()).kind == "other"
