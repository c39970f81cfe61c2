"""Generation: greedy against the naive reference, sampling against transformers' own warpers."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from tests.support.naive import Naive
from tests.support.running import TRIO, instances, model_args
from trimix_lm_eval import TriMix
from trimix_lm_eval.engine import sampler, spec_decode
from trimix_lm_eval.engine.sampler import Draw, RowParams, SamplingParams, apply_top_k_top_p, pick
from trimix_lm_eval.engine.sequence import StopStringCriteria
from trimix_lm_eval.harness.lm import TriMixLM, read_gen_kwargs
from trimix_lm_eval.utils.errors import TrimixError

ALPHA, BETA = 0.4, 0.9
PROMPTS = [
    "The hen",
    "སྐད",
    "x",
    "There were rivers in the barn.\n",
    "In the other",
    "zq zq zq",
    "\n",
]
TIBETAN = "བོད་སྐད"


@pytest.fixture(scope="module")
def folders(pico):
    return pico("llama")


@pytest.fixture(scope="module")
def lm(folders):
    return TriMixLM(**model_args(folders, policy="fixed", alpha=ALPHA, beta=BETA, batch_size=4))


@pytest.fixture(scope="module")
def naive(folders):
    return Naive({role: folders[role] for role in TRIO}, 265)


def make(lm, prompts, **how):
    """Texts for prompts under one set of generation arguments."""
    asked = [(prompt, dict(how)) for prompt in prompts]
    return lm.generate_until(instances("generate_until", asked), disable_tqdm=True)


def sized(folders, batch_size, **more):
    point = {"policy": "fixed", "alpha": ALPHA, "beta": BETA, **more}
    return TriMixLM(**model_args(folders, batch_size=batch_size, **point))


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3", "mixtral"])
def test_greedy_equals_naive_whatever_the_batch_and_the_order(trio, family):
    three, steps = trio(family), 12
    made = {}
    for batch_size in (1, 3, 7):
        model = three.weighted("fixed", alpha=ALPHA, beta=BETA, batch_size=batch_size)
        order = PROMPTS[:]
        random.Random(batch_size).shuffle(order)
        made[batch_size] = dict(
            zip(order, model.generate(order, max_new_tokens=steps), strict=True)
        )
    assert made[1] == made[3] == made[7]
    for prompt in PROMPTS:
        ids = three.naive.greedy(list(model.codec.prompt(prompt).ids), steps, ALPHA, BETA)
        assert made[1][prompt] == model.tokenizer.decode(ids, skip_special_tokens=True)
    assert len(set(made[1].values())) == len(PROMPTS)


@pytest.mark.parametrize("policy", ["ppl", "ent", "gate"])
def test_other_policies_generate_as_the_reference(folders, naive, policy):
    grid = [(0.1, 0.9), (0.9, 0.1), (0.5, 0.5), (1.0, 1.0)]
    text = ";".join(f"{a}:{b}" for a, b in grid)
    more = {} if policy == "gate" else {"grid": text}
    arguments = model_args(folders, policy=policy, batch_size=3, **more)
    if policy == "gate":
        arguments.pop("small_base")
    lm = TriMixLM(**arguments)
    got = make(lm, PROMPTS, max_gen_toks=12)
    for prompt, found in zip(PROMPTS, got, strict=True):
        ids = lm.tok_encode(prompt)
        point = (0.1, 0.9)  # nothing to judge: what is nearest to the prior
        if policy == "ppl" and len(ids) > 1:
            point = grid[int(naive.grid(ids, 1, grid).mean(dim=1).argmin())]
        elif policy == "ent":
            ends = [naive.fused(ids, *p)[-1].log_softmax(-1) for p in grid]
            point = grid[int(torch.stack([-(e.exp() * e).sum() for e in ends]).argmin())]
        new = []
        for _ in range(12):
            whole = [*ids, *new]
            logits = naive.gated(whole) if policy == "gate" else naive.fused(whole, *point)
            token = int(logits[-1].argmax())
            if token == 257:
                break
            new.append(token)
        assert found == lm.tok_decode(new)


# ---------------------------------------------------------------- sampling


def warped(logits: torch.Tensor, temperature: float, top_k: int, top_p: float) -> torch.Tensor:
    """transformers' distribution: temperature, then top-k, then top-p."""
    scores = TemperatureLogitsWarper(temperature)(None, logits[None].clone())
    if top_k:
        scores = TopKLogitsWarper(top_k)(None, scores)
    if top_p < 1:
        scores = TopPLogitsWarper(top_p)(None, scores)
    return scores[0].softmax(-1)


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [
        (1.0, 0, 1.0),
        (0.5, 0, 1.0),
        (2.0, 5, 1.0),
        (1.0, 0, 0.5),
        (0.7, 8, 0.8),
        (1.5, 3, 0.95),
        (1.0, 1, 1.0),
        (1.0, 0, 1e-6),
        (1.0, 1000, 0.999),
    ],
)
def test_what_is_drawn_from_is_what_transformers_warpers_leave(temperature, top_k, top_p):
    generator = torch.Generator().manual_seed(5)
    # More tokens than are looked at before all are sorted, and fewer.
    for size, scale in ((40, 2.0), (3000, 4.0), (3000, 0.1)):
        logits = torch.randn(3, size, generator=generator) * scale
        want = torch.stack([warped(x, temperature, min(top_k, size), top_p) for x in logits])
        got = apply_top_k_top_p(logits / temperature, top_k, top_p).softmax(-1)
        assert torch.allclose(got, want, atol=1e-6)


def test_equals_are_kept_together():
    scores = torch.tensor([[1.0, 0.0, 0.0, -1.0]])
    assert apply_top_k_top_p(scores.clone(), 2, 1.0).isfinite().tolist() == [
        [True, True, True, False]
    ]
    assert apply_top_k_top_p(scores.clone(), 0, 0.6).isfinite().tolist() == [
        [True, True, True, False]
    ]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_no_number_does_not_stop_others_from_being_drawn(bad):
    """It is told later which source gave it; a GPU would be lost by an index outside of a row."""
    logits = torch.tensor([[bad] * 4, [0.0, 50.0, 0.0, 0.0]])
    for top_k in (0, 3):
        how = SamplingParams(temperature=1.0, top_k=top_k, top_p=0.8)
        assert pick(logits.clone(), [Draw(how, 0)] * 2)[1] == 1
        seeds = torch.zeros(2, 2, dtype=torch.int32)
        rows = RowParams(seeds, torch.ones(2), torch.full((2,), top_k or 4), torch.full((2,), 0.8))
        tokens, best = rows.pick(logits, torch.zeros(2, dtype=torch.long), True, True)
        assert tokens[1] == 1 and not best[0].isfinite()


def test_draws_are_gumbel_max():
    """Over 40,000 places, the frequencies are those of the softmax."""
    logits = torch.tensor([1.5, 0.0, -1.0, 0.7, -torch.inf])
    places = 40_000
    draws = [Draw(SamplingParams(temperature=1.0, seed=3), place) for place in range(places)]
    tokens = pick(logits.expand(places, -1), draws)
    counts = torch.bincount(tokens, minlength=5)
    assert counts[4] == 0
    expected = logits.double().softmax(-1)[:4] * places
    assert chisquare(counts[:4].tolist(), expected.tolist()).pvalue > 0.01
    other = pick(
        logits.expand(places, -1), [Draw(SamplingParams(temperature=1.0), d.step) for d in draws]
    )
    agreement = float((tokens == other).double().mean())
    independent = float((logits.softmax(-1) ** 2).sum())
    assert agreement == pytest.approx(independent, abs=0.02), "another seed, independent draws"


@given(
    logits=st.lists(st.integers(-64, 64), min_size=2, max_size=30, unique=True),
    temperature=st.sampled_from([0.3, 1.0, 1.7]),
    top_k=st.sampled_from([0, 1, 2, 7]),
    top_p=st.sampled_from([1.0, 0.9, 0.6, 0.2]),
    seed=st.integers(0, 2**20),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_a_draw_is_always_one_that_transformers_allows(logits, temperature, top_k, top_p, seed):
    values = torch.tensor(logits) / 8.0
    allowed = warped(values, temperature, min(top_k, len(values)), top_p)
    # A token on the very edge of the nucleus may fall on either side by rounding.
    loose = warped(values, temperature, min(top_k, len(values)), min(1.0, top_p + 1e-5))
    token = int(
        pick(values[None], [Draw(SamplingParams(1, (), temperature, top_k, top_p, seed), 0)])
    )
    assert allowed[token] > 0 or loose[token] > 0


@pytest.mark.parametrize("temperature", [5e-324, 1e-320, 1e39, 1e308])
@pytest.mark.parametrize("more", [{}, {"top_p": 0.5}, {"top_k": 3}])
def test_temperatures_beyond_the_logits_numbers(temperature, more):
    """Lower than all: the best token. Higher than all: any token that is not masked."""
    logits = torch.tensor([[1.0, 5.0, -torch.inf, -2.0, 4.0]]).expand(64, -1)
    draws = [Draw(SamplingParams(1, (), temperature, seed=seed, **more), 0) for seed in range(64)]
    tokens = set(pick(logits, draws).tolist())
    assert tokens == {1} if temperature < 1 else len(tokens) > 1 and tokens <= {0, 1, 3, 4}


def test_draws_over_many_seeds_follow_the_fused_softmax(folders, naive):
    """Chi-square of the first token over 800 seeds, against the naive distribution."""
    prompt, temperature, top_k = "The hen", 1.3, 12
    lm = sized(folders, 100)
    logits = naive.fused(lm.tok_encode(prompt), ALPHA, BETA)[-1].float()
    want = warped(logits, temperature, top_k, 1.0)
    texts = {}
    how = {"max_gen_toks": 1, "do_sample": True, "temperature": temperature, "top_k": top_k}
    for text in make(lm, [prompt] * 800, **how):
        texts[text] = texts.get(text, 0) + 1
    # Tokens that are parts of characters decode alike: compare what a text can tell.
    expected: dict[str, float] = {}
    for token in (want > 0).nonzero().flatten().tolist():
        text = "" if token == 257 else lm.tok_decode([token])
        expected[text] = expected.get(text, 0.0) + float(want[token])
    assert set(texts) <= set(expected)
    assert len(expected) >= 3
    observed = [texts.get(text, 0) for text in expected]
    total = sum(expected.values())
    assert total == pytest.approx(1.0, abs=1e-5)
    result = chisquare(observed, [800 * p / total for p in expected.values()])
    assert result.pvalue > 0.01, (observed, expected)


def test_draws_of_a_row_do_not_depend_on_its_batch(folders, lm):
    how = {"max_gen_toks": 20, "do_sample": True, "temperature": 1.1, "top_p": 0.95}
    want = make(lm, PROMPTS, **how)
    assert want == make(lm, PROMPTS, **how), "the same run twice"
    for batch_size in (1, 7):
        assert make(sized(folders, batch_size), PROMPTS, **how) == want
    asked = instances("generate_until", [(p, dict(how)) for p in PROMPTS])
    order = [3, 0, 6, 5, 1, 4, 2]
    got = lm.generate_until([asked[i] for i in order], disable_tqdm=True)
    assert got == [want[i] for i in order]
    assert make(sized(folders, 4, seed=7), PROMPTS, **how) != want


def test_greedy_rows_beside_sampled_rows(lm):
    """Two tasks in one batch: one greedy, one sampled."""
    greedy = {"max_gen_toks": 15}
    sampled = {"max_gen_toks": 15, "do_sample": True, "temperature": 1.0}
    asked = [(p, dict(greedy if i % 2 else sampled)) for i, p in enumerate(PROMPTS)]
    got = lm.generate_until(instances("generate_until", asked), disable_tqdm=True)
    alone = make(lm, PROMPTS, **greedy)
    assert got[1::2] == alone[1::2]
    assert got[0::2] != alone[0::2]


# ---------------------------------------------------------------- where a text ends


def test_stop_strings_over_several_tokens(lm):
    checked = 0
    for prompt, text in zip(PROMPTS, make(lm, PROMPTS, max_gen_toks=40), strict=True):
        pieces = [text[i : i + 3] for i in range(len(text) - 2) if "\ufffd" not in text[i : i + 3]]
        for stop in pieces[:3]:
            (got,) = make(lm, [prompt], max_gen_toks=40, until=["never" * 9, stop])
            assert got == text.split(stop)[0]
            checked += 1
    assert checked >= 6


def test_multi_byte_stop_is_seen_when_its_last_byte_arrives(lm):
    tokenizer = lm.tokenizer
    ids = tokenizer.encode("ཀ" + TIBETAN + "།", add_special_tokens=False)
    stop = StopStringCriteria(tokenizer, [TIBETAN, "unrelated"])
    seen = [stop(ids[:n]) for n in range(1, len(ids) + 1)]
    first = seen.index(True) + 1
    assert first == len(tokenizer.encode("ཀ" + TIBETAN, add_special_tokens=False))
    assert not any(seen[: first - 1])


@pytest.mark.parametrize("stop", ["་", "a་b", "\n\n", "Answer: ", "é", "😀", "ཀཱིཾ", "</s>", "<pad>"])
def test_a_stop_anywhere_in_a_long_text_is_seen_at_once(lm, stop):
    """However many tokens the text already has: only its tail is decoded."""
    tokenizer = lm.tokenizer
    before = "the rivers in the བོད་ཡིག་".replace(stop, "") * 6
    ids = tokenizer.encode(before + stop, add_special_tokens=False)
    assert StopStringCriteria(tokenizer, [stop])(ids)
    assert not StopStringCriteria(tokenizer, [stop])(ids[:-1])


def play(monkeypatch, lm, script):
    """Make the model say exactly these tokens, whatever it would say."""

    def scripted(logits, draws, best=None):
        return torch.tensor([script[min(draw.step, len(script) - 1)] for draw in draws])

    for module in (sampler, spec_decode):
        monkeypatch.setattr(module, "pick", scripted)


def test_end_of_text_and_special_tokens_stop(monkeypatch, lm):
    encode = lm.tokenizer.encode
    a, b = (encode(text, add_special_tokens=False) for text in ("one two", " three"))
    with monkeypatch.context() as patch:
        play(patch, lm, [*a, 257, *b])
        assert make(lm, ["x"], max_gen_toks=30) == ["one two"]
    with monkeypatch.context() as patch:
        play(patch, lm, [*a, 258, *b])
        assert make(lm, ["x"], max_gen_toks=30, until=["<pad>"]) == ["one two"]
    with monkeypatch.context() as patch:  # not asked for: dropped from the text, as hf does
        play(patch, lm, [*a, 258, *b])
        assert make(lm, ["x"], max_gen_toks=len(a) + 1 + len(b)) == ["one two three"]


def test_every_source_may_declare_how_a_text_ends(lm, monkeypatch):
    small = lm.model.fuser.ensemble.sources[1].model
    a = lm.tokenizer.encode("one two", add_special_tokens=False)
    monkeypatch.setattr(small.generation_config, "eos_token_id", [257, 258])
    monkeypatch.setattr(lm, "model", lm.model.part([0]))
    assert lm.model.stop_token_ids == ({257, 258},)
    play(monkeypatch, lm, [*a, 258, 65, 66])
    assert make(lm, ["x"], max_gen_toks=30) == ["one two"]


@pytest.mark.parametrize("until", ["e", ["e"], ["e", ""], [""], [], None])
def test_forms_of_until(lm, until):
    free = make(lm, PROMPTS, max_gen_toks=20)
    got = make(lm, PROMPTS, max_gen_toks=20, until=until)
    want = [text.split("e")[0] for text in free] if until and "e" in until else free
    assert got == want


def test_one_new_token(lm, naive):
    for prompt, text in zip(PROMPTS, make(lm, PROMPTS, max_gen_toks=1), strict=True):
        assert text == lm.tok_decode(naive.greedy(lm.tok_encode(prompt), 1, ALPHA, BETA))


def test_prompt_is_cut_so_that_prompt_and_answer_fit(lm, naive):
    prompt = "It rained on the hens and in the barn. " * 6
    ids = lm.tok_encode(prompt)
    assert len(ids) > 96
    (got,) = make(lm, [prompt], max_gen_toks=30)
    assert got == lm.tok_decode(naive.greedy(ids[-66:], 30, ALPHA, BETA))
    (got,) = make(lm, [prompt], max_gen_toks=95)
    assert got == lm.tok_decode(naive.greedy(ids[-1:], 95, ALPHA, BETA))
    for most in (96, 500):
        with pytest.raises(TrimixError, match="96"):
            make(lm, [prompt], max_gen_toks=most)


def test_empty_prompt_follows_bos(lm, naive):
    (got,) = make(lm, [""], max_gen_toks=10)
    assert got == lm.tok_decode(naive.greedy([256], 10, ALPHA, BETA))


# ---------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"num_beams": 4}, "num_beams=4"),
        ({"repetition_penalty": 1.3}, "repetition_penalty=1.3"),
        ({"typical_p": 0.5}, "accepted: .*temperature.*top_k.*top_p"),
        ({"max_gen_tok": 5}, "Did you mean 'max_gen_toks'"),
        ({"do_sample": True, "temperature": -1.0}, "temperature"),
        ({"do_sample": True, "temperature": 1.0, "top_p": 1.5}, "top_p"),
        ({"do_sample": True, "temperature": 1.0, "top_p": 0.0}, "top_p"),
        ({"do_sample": True, "temperature": 1.0, "top_k": -3}, "top_k"),
        ({"do_sample": True, "temperature": float("nan")}, "temperature"),
        ({"max_gen_toks": 0}, "max_gen_toks"),
        ({"max_gen_toks": -4}, "max_gen_toks"),
        ({"max_gen_toks": "many"}, "max_gen_toks"),
        ({"do_sample": True, "temperature": "hot"}, "temperature"),
    ],
)
def test_wrong_generation_arguments_are_refused(lm, wrong, says):
    with pytest.raises(TrimixError, match=says):
        make(lm, ["x"], **{"max_gen_toks": 5, **wrong})


def test_neutral_arguments_of_other_backends_are_accepted(lm):
    want = make(lm, PROMPTS[:2], max_gen_toks=5)
    neutral = {"num_beams": 1, "repetition_penalty": 1.0, "do_sample": False, "temperature": 0.0}
    assert make(lm, PROMPTS[:2], max_gen_toks=5, **neutral) == want
    for alias in ("max_new_tokens", "max_tokens", "max_completion_tokens"):
        assert make(lm, PROMPTS[:2], **{alias: 5}) == want


def test_what_generation_reads():
    how = read_gen_kwargs({"until": "\n", "max_gen_toks": 7}, "</s>", seed=3)
    assert how.stop == ("\n", "</s>") and how.max_new_tokens == 7 and how.temperature == 0
    assert read_gen_kwargs({"temperature": 0.7}, "</s>", 3).temperature == 0.7
    assert read_gen_kwargs({"do_sample": False, "temperature": 0.7}, "</s>", 3).temperature == 0
    assert read_gen_kwargs({"do_sample": True}, "</s>", 3).temperature == 1.0
    assert read_gen_kwargs({"do_sample": True, "temperature": 0.0}, "</s>", 3).temperature == 0
    for unsaid in ({}, {"max_gen_toks": None}):
        assert read_gen_kwargs(unsaid, "</s>", 3).max_new_tokens == 256


@pytest.mark.parametrize(
    ("until", "stop"),
    [
        (None, ()),
        ([], ()),
        ("a", ("a",)),
        (5, ("5",)),
        (["a", 5], ("a", "5")),
        (["a"] * 2, ("a",) * 2),
    ],
)
def test_stop_strings_as_yaml_may_have_them(until, stop):
    """What is not there is no string ``None``, at which texts would end."""
    assert read_gen_kwargs({"until": until}, "</s>", 3).stop == (*stop, "</s>")


@pytest.mark.parametrize("until", [True, [None], [["a"]], {"a": 1}, {"a"}])
def test_what_is_no_stop_string_is_refused(until):
    with pytest.raises(TrimixError, match="until=.* is no list of strings"):
        read_gen_kwargs({"until": until}, "</s>", 3)


def test_python_face_takes_the_same_options(folders, lm):
    model = TriMix.from_pretrained(
        folders["large_ins"],
        small_cpt=folders["small_cpt"],
        small_base=folders["small_base"],
        policy="fixed",
        alpha=ALPHA,
        beta=BETA,
        batch_size=3,
        device="cpu",
    )
    assert model.generate(PROMPTS, max_new_tokens=9) == make(lm, PROMPTS, max_gen_toks=9)
    one = model.generate(PROMPTS[:1], max_new_tokens=9, temperature=1.0, seed=5)
    assert one == model.generate(PROMPTS[:1], max_new_tokens=9, temperature=1.0, seed=5)


def test_repeated_texts_are_draws_of_their_own(lm):
    how = {"max_new_tokens": 12, "temperature": 1.0}
    texts = lm.model.generate([PROMPTS[1], PROMPTS[2], PROMPTS[1]], **how)
    assert texts[0] != texts[2]
    again = lm.model.generate([PROMPTS[1], PROMPTS[1]], **how)
    assert again == [texts[0], texts[2]]


def test_the_lowest_temperatures_are_greedy(lm):
    greedy = lm.model.generate(PROMPTS, max_new_tokens=8)
    for temperature in (1e-12, 1e-38, 1e-45, 1e-60):
        assert lm.model.generate(PROMPTS, max_new_tokens=8, temperature=temperature) == greedy


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_new_tokens": 2.5},
        {"max_new_tokens": "5"},
        {"temperature": "0.5"},
        {"temperature": None},
        {"temperature": 1.0, "top_k": 2.5},
        {"stop": [5]},
    ],
)
def test_the_python_face_names_what_is_wrong(lm, wrong):
    with pytest.raises(TrimixError, match=list(wrong)[-1]):
        lm.model.generate(["x"], **wrong)


@pytest.mark.parametrize(
    "wrong", [{"do_sample": True, "top_k": 0.5}, {"do_sample": "maybe"}, {"max_gen_toks": 1.9}]
)
def test_fractions_and_strange_words_are_refused(lm, wrong):
    with pytest.raises(TrimixError, match=list(wrong)[-1]):
        make(lm, ["x"], **{"max_gen_toks": 8, **wrong})
    greedy = make(lm, ["x"], max_gen_toks=8)
    assert make(lm, ["x"], max_gen_toks=8, do_sample="false", temperature=0.7) == greedy
