"""Sources with the same tokens under other ids: they answer like those with the same ids."""

import json
from pathlib import Path

import pytest
import torch
from transformers import BloomConfig, BloomForCausalLM

from tests.conftest import FAMILIES, byte_tokenizer
from tests.support.permuted import permuted
from tests.support.running import TRIO
from trimix_lm_eval import TriMix
from trimix_lm_eval.harness.lm import TriMixLM

#: Options that have a context in common, prompts with a prefix in common, one token, none.
PAIRS = [
    ("The hen went to the barn", " in the"),
    ("The hen went to the barn", " there"),
    ("The hen went to the inn", "\n\nther"),
    ("བོད་", "ཡིག"),
    ("", "hen"),
]
TEXTS = ["The hen went to the barn. " * 5, "ths", "བོད་ཡིག"]


def twin(folders, root, seed=0):
    """A trio with each source's rows in an order of its own."""
    return {role: permuted(folders[role], root / role, seed + i) for i, role in enumerate(TRIO)}


@pytest.fixture(scope="module")
def pairs_of(pico, tmp_path_factory):
    """``pairs_of(family)`` gives a trio's folders and those of its permuted twin."""
    made = {}

    def get(family="llama"):
        if family not in made:
            plain = {role: pico(family)[role] for role in TRIO}
            made[family] = plain, twin(plain, tmp_path_factory.mktemp(f"permuted-{family}"))
        return made[family]

    return get


def both(pair, tokenizer=None, **how):
    """The two trios loaded; the tokenizer in use is that of the first one's large model."""
    plain, other = pair
    asked = {"dtype": "float32", "policy": "ppl", "batch_size": 3, **how}
    if tokenizer is None:
        other = {**other, "large_ins": plain["large_ins"]}
    else:
        asked["tokenizer"] = tokenizer
    made = [TriMix.from_pretrained(**folders, **asked) for folders in (plain, other)]
    assert "permuted" not in {one.kind for one in made[0].report.relations.values()}
    assert made[1].report.relations["small_cpt"].kind == "permuted"
    return made


def assert_same(one, other, rolling=True):
    """All that is asked of a trio, asked of both."""
    for a, b in zip(one.loglikelihood(PAIRS), other.loglikelihood(PAIRS), strict=True):
        assert b.log_likelihood == pytest.approx(a.log_likelihood, rel=1e-6, abs=1e-6)
        assert (b.is_greedy, b.choice.weights) == (a.is_greedy, a.choice.weights)
    if rolling:
        found = [model.loglikelihood_rolling(TEXTS) for model in (one, other)]
        for a, b in zip(*found, strict=True):
            assert b.log_likelihood == pytest.approx(a.log_likelihood, rel=1e-6, abs=1e-6)
    assert one.stop_token_ids == other.stop_token_ids
    prompts = [context for context, _ in PAIRS]
    for how in ({}, {"temperature": 0.9, "seed": 3}):
        texts = [model.complete(prompts, max_new_tokens=8, **how) for model in (one, other)]
        for a, b in zip(*texts, strict=True):
            assert (a.text, a.finish_reason, a.choice.weights) == (
                *(b.text, b.finish_reason, b.choice.weights),
            )


@pytest.mark.parametrize("family", [f for f in FAMILIES if f in ("llama", "gemma4", "qwen3_5")])
def test_permuted_sources_answer_alike(pairs_of, family):
    """Attention; embeddings of every layer; states."""
    one, other = both(pairs_of(family), speculative=4)
    assert not any(source.plain for source in other.fuser.ensemble.sources)
    assert_same(one, other)


def test_permuted_under_a_policy_per_token(pairs_of):
    assert_same(*both(pairs_of(), policy="gate", plausibility=0.1))


def test_ids_that_only_the_source_knows(pairs_of):
    _, other = both(pairs_of(), speculative=0)
    runner = other.fuser.ensemble.sources[1]
    padding = next(i for i in range(304) if i not in runner.own_ids)
    assert runner.common_ids([runner.own_ids[257], padding]) == {257}
    assert runner.input_ids(torch.tensor([[257]])).tolist() == [[runner.own_ids[257]]]
    runner = other.fuser.ensemble.sources[0]
    assert runner.common_ids([257, 310]) == {257, 310}


def test_where_a_permuted_large_model_ends_texts(pairs_of, tmp_path):
    """The ids that it declares are its own, and those of all three are told apart."""
    plain = dict(pairs_of()[0])
    for role in TRIO:
        config = json.loads(Path(plain[role], "generation_config.json").read_text())
        config["eos_token_id"] = [257, 97 + TRIO.index(role)]
        made = tmp_path / role
        made.mkdir()
        for file in Path(plain[role]).iterdir():
            (made / file.name).symlink_to(file)
        (made / "generation_config.json").unlink()
        (made / "generation_config.json").write_text(json.dumps(config))
        plain[role] = str(made)
    pair = plain, twin(plain, tmp_path / "twin", 7)
    one, other = both(pair, plain["large_ins"])
    assert {r.kind for r in other.report.relations.values()} == {"permuted"}
    assert other.stop_token_ids == (frozenset({257, 97, 98, 99}),)
    assert_same(one, other, rolling=False)


def test_a_permuted_source_that_is_run_without_a_cache(tmp_path):
    plain = {}
    for seed, role in enumerate(TRIO):
        torch.manual_seed(seed)
        shape = {"hidden_size": 32, "n_layer": 1, "n_head": 4, "initializer_range": 0.35}
        BloomForCausalLM(BloomConfig(vocab_size=304, **shape)).save_pretrained(tmp_path / role)
        byte_tokenizer().save_pretrained(tmp_path / role)
        plain[role] = str(tmp_path / role)
    one, other = both((plain, twin(plain, tmp_path / "twin")))
    assert all(source.plain for source in other.fuser.ensemble.sources)
    assert_same(one, other)


def test_results_tell_the_relation(pairs_of):
    plain, other = pairs_of()
    asked = {"dtype": "float32", "policy": "ppl", "pretrained": plain["large_ins"]}
    lm = TriMixLM(**asked, small_cpt=other["small_cpt"], small_base=plain["small_base"])
    sources = lm.get_model_info()["trimix"]["runtime"]["sources"]
    kinds = {role: told["vocabulary"] for role, told in sources.items()}
    assert kinds == {"large_ins": "same", "small_cpt": "permuted", "small_base": "padded"}
