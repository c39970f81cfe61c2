"""The six invariants of the README, as properties over random requests, batches and chunks."""

import dataclasses
import json
import shutil

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.loaded import by_index, load
from trimix_lm_eval.engine import scorer
from trimix_lm_eval.engine.model_runner import Ensemble
from trimix_lm_eval.engine.request import Prompt, ScoringRequest
from trimix_lm_eval.engine.sampler import SamplingParams
from trimix_lm_eval.fusion.policies.fixed import Fixed
from trimix_lm_eval.llm import TriMix
from trimix_lm_eval.utils.windows import rolling_windows

FAMILIES = ("llama", "gemma3")
POLICIES = {
    "fixed": {"alpha": 0.4, "beta": 0.8},
    "large_ins": {},
    "ppl": {},
    "ppl_answer": {},
    "ent": {},
    "gate": {"floor": 0.05},
    "mixture": {"alpha": 0.3, "beta": 0.5},
    "core": {},
    "packllm": {},
    "bayes": {"share": 0.1},
}
close = {"rel": 1e-5, "abs": 1e-5}


def weighted_as(score, policy):
    """Has its weights, or, where they are no points of a grid, these but for rounding."""
    weights = score.choice.weights
    if policy in ("packllm", "bayes"):
        return pytest.approx(weights.by_source(), abs=1e-6)
    return weights.by_source()


def property_test(examples):
    return settings(
        derandomize=True,
        deadline=None,
        max_examples=examples,
        suppress_health_check=list(HealthCheck),
    )


words = st.sampled_from(["the", " in", " there", "x", "?", "\n", " བོད", "སྐད།", " winter,", "é"])
text = st.lists(words, min_size=1, max_size=4).map("".join)
context = st.one_of(
    st.just(""),
    text,
    st.lists(text, min_size=1, max_size=2).map(
        lambda parts: "".join(f"Q: {p}\nA: {p[:3]}\n\n" for p in parts) + "Q: x\nA:"
    ),
)
batches = st.fixed_dictionaries(
    {
        "batch_size": st.integers(1, 5),
        "chunk_tokens": st.sampled_from([3, 7, 40, 2048]),
        "logit_positions": st.integers(1, 3) | st.just(1000),
        "speculative": st.sampled_from(["off", "auto", 1, 2, 3, 5]),
    }
)
masks = st.sampled_from([None, 0.2])
#: The context length: that of the models, or one that many a prompt does not fit into.
cuts = st.sampled_from([None, 24])


@st.composite
def questions(draw):
    """Pairs of context and continuation, some with a context in common, in any order."""
    pairs = []
    for shared in draw(st.lists(context, min_size=1, max_size=3)):
        options = draw(st.lists(text, min_size=1, max_size=3))
        pairs += [(shared, option) for option in options]
    return draw(st.permutations(pairs))


def values(scores):
    return [score.log_likelihood for score in scores]


def tokens(model, word):
    return tuple(model.codec.encode(word, add_special_tokens=False))


# -------------------------------------------------------------------------------- 1


@pytest.fixture(scope="module")
def plain(pico):
    """Models without padding rows, as `hf` needs them to compare: family to (Trio, {role: hf})."""
    from lm_eval.models.huggingface import HFLM

    made = {}

    def get(family):
        if family not in made:
            folders = pico(family, padded=False)
            singles = {
                role: HFLM(
                    pretrained=folders[role],
                    dtype="float32",
                    softmax_dtype="float32",
                    device="cpu",
                    batch_size=1,
                    logits_cache=False,
                )
                for role in ("large_ins", "small_cpt", "small_base")
            }
            made[family] = load(folders), singles
        return made[family]

    return get


def instances(kind, arguments):
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, args, i) for i, args in enumerate(arguments)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("role", ["large_ins", "small_cpt", "small_base"])
def test_1_a_corner_is_what_hf_gives(plain, family, role):
    three, singles = plain(family)
    hf = singles[role]

    @property_test(4)
    @given(questions(), batches, st.lists(text, min_size=1, max_size=3))
    def check(pairs, how, texts):
        model = three.weighted(role, **how)
        expected = hf.loglikelihood(instances("loglikelihood", pairs), disable_tqdm=True)
        got = model.loglikelihood(pairs)
        assert values(got) == pytest.approx([value for value, _ in expected], **close)
        assert [s.is_greedy for s in got] == [greedy for _, greedy in expected]
        rolling = hf.loglikelihood_rolling(
            instances("loglikelihood_rolling", [(t,) for t in texts]), disable_tqdm=True
        )
        assert values(model.loglikelihood_rolling(texts)) == pytest.approx(rolling, **close)
        until = {"until": ["\n\n"], "max_gen_toks": 6, "do_sample": False}
        texts_hf = hf.generate_until(
            instances("generate_until", [(t, until) for t in texts]), disable_tqdm=True
        )
        assert model.generate(texts, max_new_tokens=6, stop=("\n\n", "</s>")) == texts_hf

    check()


# -------------------------------------------------------------------------------- 2


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("policy", POLICIES)
def test_2_scores_depend_on_nothing_but_the_request(trio, family, policy):
    three = trio(family)

    @property_test(8)
    @given(questions(), batches, cuts)
    def check(pairs, how, cut):
        options = {"max_length": cut, **POLICIES[policy]}
        alone = three.weighted(policy, **options)
        together = three.weighted(policy, **how, **options).loglikelihood(pairs)
        for pair, score in zip(pairs, together, strict=True):
            (expected,) = alone.loglikelihood([pair])
            assert score.log_likelihood == pytest.approx(expected.log_likelihood, **close)
            assert score.is_greedy == expected.is_greedy
            assert score.choice.weights.by_source() == weighted_as(expected, policy)

    check()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("policy", ["fixed", "ppl", "gate"])
def test_2_rolling_depends_on_nothing_but_the_document(trio, family, policy):
    three, options = trio(family), POLICIES[policy]

    @property_test(5)
    @given(st.lists(text, min_size=1, max_size=4), batches, st.sampled_from([None, 7, 12]))
    def check(texts, how, max_length):
        alone = three.weighted(policy, max_length=max_length, **options)
        model = three.weighted(policy, max_length=max_length, **how, **options)
        expected = [alone.loglikelihood_rolling([t])[0] for t in texts]
        got = model.loglikelihood_rolling(texts)
        assert values(got) == pytest.approx(values(expected), **close)

    check()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("policy", ["fixed", "ppl", "ent", "gate"])
def test_2_tokens_depend_on_nothing_but_the_prompt(trio, family, policy):
    """Greedy or sampled, drafted or not, beside whatever other rows."""
    three = trio(family)
    row = st.builds(
        SamplingParams,
        max_new_tokens=st.integers(1, 9),
        temperature=st.sampled_from([0.0, 0.0, 0.7, 3.0]),
        top_k=st.sampled_from([0, 5]),
        top_p=st.sampled_from([1.0, 0.8]),
        seed=st.integers(0, 3),
        stop=st.lists(st.sampled_from(["a", "the", "\n", "é"]), max_size=2).map(tuple),
    )

    @property_test(10)
    @given(st.lists(st.tuples(context, row), min_size=1, max_size=5), batches, masks, cuts)
    def check(jobs, how, mask, cut):
        options = {"max_length": cut, **POLICIES[policy]}
        alone = three.weighted(policy, speculative="off", plausibility=mask, **options)
        model = three.weighted(policy, plausibility=mask, **how, **options)
        together = by_index(model.iter_generate(jobs))
        for i, job in enumerate(jobs):
            expected = by_index(alone.iter_generate([job]))[0]
            assert together[i].text == expected.text
            if policy != "gate":
                assert together[i].choice.weights.by_source() == weighted_as(expected, policy)

    check()


@property_test(10)
@given(questions(), batches)
def test_2_refined_too(trio, pairs, how):
    """Its point is real-valued: rounding moves it where the valley is flat, scores hardly."""
    three = trio("llama")
    alone = three.weighted("ppl", refine="quadratic")
    together = three.weighted("ppl", refine="quadratic", **how).loglikelihood(pairs)
    for pair, score in zip(pairs, together, strict=True):
        (expected,) = alone.loglikelihood([pair])
        assert score.log_likelihood == pytest.approx(expected.log_likelihood, rel=1e-4, abs=1e-4)


@property_test(12)
@given(
    st.floats(-0.5, 1.5, width=16),
    st.floats(-0.5, 1.5, width=16),
    st.none() | st.floats(-0.5, 1.5, width=16),
    questions(),
    batches,
)
def test_2_any_weights(trio, alpha, beta, gamma, pairs, how):
    three = trio("llama")
    point = {"alpha": alpha, "beta": beta, "gamma": gamma}
    for pair, score in zip(
        pairs, three.weighted("fixed", **how, **point).loglikelihood(pairs), strict=True
    ):
        prompt, target = three.model.codec.pair(*pair)
        ids = [*prompt.ids, *target]
        if len(ids) - 1 > three.model.max_length:
            continue  # cut, which the reference does not do
        nll = three.naive.nll(three.naive.fused(ids, **point), ids, len(prompt.ids))
        assert score.log_likelihood == pytest.approx(-float(nll.sum()), rel=1e-5, abs=1e-4)


# -------------------------------------------------------------------------------- 3


@pytest.fixture(scope="module")
def loud(pico, tmp_path_factory):
    """Models whose padding rows outshout every token, in one source more than in the other."""
    from transformers import AutoModelForCausalLM

    root = tmp_path_factory.mktemp("loud")
    for role, folder in pico("llama").items():
        shutil.copytree(folder, root / role)
        model = AutoModelForCausalLM.from_pretrained(folder)
        with torch.no_grad():
            rows = model.get_output_embeddings().weight
            rows[265:] *= 300.0 if role.startswith("large") else 200.0
            model.get_input_embeddings().weight[265:] *= 50.0
        model.save_pretrained(root / role)
    return load({role: str(root / role) for role in pico("llama")})


@pytest.mark.parametrize("policy", POLICIES)
def test_3_padding_rows_have_no_voice(trio, loud, policy):
    """Loud or quiet, they change no number and are never produced."""
    quiet = trio("llama")
    whole = loud.naive.models["large_ins"](torch.tensor([[1, 2, 3, 4]])).logits[0]
    assert (whole.argmax(-1) >= 265).all(), "they would win"

    @property_test(5)
    @given(questions(), batches, st.lists(text, min_size=1, max_size=3), cuts)
    def check(pairs, how, texts, cut):
        options = {"max_length": cut, **POLICIES[policy]}
        a = loud.weighted(policy, **how, **options)
        b = quiet.weighted(policy, **how, **options)
        assert a.loglikelihood(pairs) == b.loglikelihood(pairs)
        assert values(a.loglikelihood_rolling(texts)) == values(b.loglikelihood_rolling(texts))
        assert a.generate(texts, max_new_tokens=4) == b.generate(texts, max_new_tokens=4)
        warm = {"max_new_tokens": 4, "temperature": 5.0}
        assert a.generate(texts, **warm) == b.generate(texts, **warm)

    check()


def test_3_fusion_runs_in_fp32_over_the_tokenizers_vocabulary(pico, monkeypatch):
    from trimix_lm_eval.engine import model_runner

    seen = []
    fuse = model_runner.fuse

    def spy(logits, weights):
        out = fuse(logits, weights)
        seen.extend((x.dtype, x.shape[-1]) for x in [*logits, out])
        return out

    monkeypatch.setattr(model_runner, "fuse", spy)
    model = TriMix.from_pretrained(**pico("llama"), policy="ppl", dtype="bfloat16")
    assert model.fuser.ensemble.sources[0].dtype == torch.bfloat16
    model.loglikelihood([("the inn", " there")])
    model.generate(["the inn"], max_new_tokens=2)
    assert set(seen) == {(torch.float32, 265)}


# -------------------------------------------------------------------------------- 4


@pytest.mark.parametrize("policy", [*POLICIES, "refined"])
def test_4_logits_exist_for_a_chunk_at_a_time(trio, policy, monkeypatch):
    options = {"refine": "quadratic"} if policy == "refined" else POLICIES[policy]
    name = "ppl" if policy == "refined" else policy
    sizes, heads = [], []
    compute_logits = Ensemble.compute_logits

    def spy(self, which, hidden):
        out = compute_logits(self, which, hidden)
        sizes.append(out.numel())
        return out

    monkeypatch.setattr(Ensemble, "compute_logits", spy)
    three = trio("llama")
    for source in three.model.fuser.ensemble.sources:
        head = source.model.get_output_embeddings()
        monkeypatch.setattr(
            head, "forward", lambda x, run=head.forward: heads.append(len(x)) or run(x)
        )
    for positions in (1, 2, 5):
        model = three.weighted(
            name, batch_size=3, logit_positions=positions, chunk_tokens=30, **options
        )
        model.loglikelihood([("the inn " * 10, " winter in there"), ("x" * 70, "y"), ("z", "yy")])
        model.loglikelihood_rolling(["the inn " * 12, "x"])
        model.generate(["the inn " * 10, "x", "y"], max_new_tokens=6)
        assert sizes
        assert max(sizes) <= positions * 265
        assert max(heads) <= positions
        sizes.clear()
        heads.clear()


# -------------------------------------------------------------------------------- 5


@pytest.mark.parametrize("policy", ["ppl", "ppl_answer", "ent"])
@property_test(10)
@given(context, text, text, batches)
def test_5_the_answer_never_changes_the_weights(trio, policy, question, one, other, how):
    model = trio("llama").weighted(policy, **how)
    # White space at the border belongs to the continuation, and tokens may span the border.
    scores = [model.loglikelihood([(question + "|", " " + answer)])[0] for answer in (one, other)]
    assert scores[0].choice == scores[1].choice


@pytest.mark.parametrize("policy", [*POLICIES, "refined"])
@pytest.mark.parametrize("prompt", ["x", "the inn", "Q: the inn\nA: there\n\nQ: x\nA:"])
def test_5_the_scores_of_all_next_tokens_sum_to_one(trio, policy, prompt):
    """A weight that looked at its answer would make the sum exceed 1."""
    options = {"refine": "quadratic"} if policy == "refined" else POLICIES[policy]
    model = trio("llama").weighted("ppl" if policy == "refined" else policy, **options)
    asked = Prompt(*model.codec.prompt(prompt))
    requests = [ScoringRequest(asked, (token,)) for token in range(265)]
    found = by_index(scorer.score(model.fuser, requests, 64, 96))
    total = sum(torch.tensor(found[i].log_likelihood).double().exp() for i in range(265))
    assert float(total) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("policy", ["ppl", "gate", "refined", "mixture", "bayes"])
@pytest.mark.parametrize(
    ("length", "max_length"), [(0, 96), (1, 96), (8, 96), (13, 96), (6, 6), (12, 6)]
)
def test_5_rolling_scores_of_all_continuations_sum_to_one(trio, policy, length, max_length):
    """Prequential scores are a probability: over all next tokens they add up to 1.

    Where there are several windows the last holds the next token alone, so that the windows of
    the past are the same in every document.
    """
    from trimix_lm_eval.engine.rolling import score_rolling

    options = {"refine": "quadratic"} if policy == "refined" else POLICIES[policy]
    model = trio("llama").weighted("ppl" if policy == "refined" else policy, **options)
    past = list(tokens(model, "the inn where brother winters"))[:length]
    prefix = model.codec.prefix_id
    documents = [rolling_windows([*past, token], prefix, max_length) for token in range(265)]
    documents.append(rolling_windows(past, prefix, max_length) if past else [])
    found = by_index(score_rolling(model.fuser, documents, 64))
    base = found[265].log_likelihood
    total = sum(torch.tensor(found[i].log_likelihood - base).double().exp() for i in range(265))
    assert float(total) == pytest.approx(1.0, abs=1e-4)


@property_test(10)
@given(text, text)
def test_5_the_future_never_changes_the_past(trio, past, future):
    """The scores of a document's first tokens, read off the collector that keeps every one."""
    from trimix_lm_eval.engine.prefill import PromptCollectors, prefill
    from trimix_lm_eval.engine.rolling import _TokenCollector
    from trimix_lm_eval.fusion.collectors import prequential

    model = trio("llama").weighted("ppl")
    points = model.fuser.configs[0].policy.points()
    kept = []
    for ids in (tokens(model, past), tokens(model, past) + tokens(model, future)):
        collector = _TokenCollector(model.fuser, points, [])
        prompt = Prompt((model.codec.prefix_id, *ids[:-1]), tail=ids[-1])
        prefill(model.fuser.ensemble, [prompt], [PromptCollectors({0: collector})])
        nll = torch.cat(collector.nll, dim=1)
        chosen = prequential(nll, points)
        kept.append((chosen, nll.gather(0, chosen[None])[0]))
    n = len(kept[0][0])
    assert torch.equal(kept[0][0], kept[1][0][:n])
    torch.testing.assert_close(kept[0][1], kept[1][1][:n], rtol=1e-5, atol=1e-5)


# -------------------------------------------------------------------------------- 6


def test_6_a_number_can_be_traced(trio, pico):
    three = trio("llama")
    found = three.weighted("fixed", alpha=0.3, beta=0.6).describe()
    assert json.loads(json.dumps(found)) == found
    told = {"label": "", "honesty": "label_free", "cost": Fixed.cost, "differing": []}
    point = {"alpha": 0.3, "beta": 0.6, "gamma": None}
    assert found["policy"] == {"name": "fixed", **point, **told}
    assert list(found["sources"]) == ["large_ins", "small_cpt", "small_base"]
    for role, source in found["sources"].items():
        assert source["path"] == pico("llama")[role]
        assert source["commit"] or source["digest"]
        assert source["dtype"] == "float32"
    digests = {s["digest"] for s in found["sources"].values()}
    assert len(digests) == 3


CHANGES = {
    "policy": {"policy": "proxy_tuning"},
    "alpha": {"alpha": 0.31},
    "alpha, hardly": {"alpha": 0.30000001},
    "beta": {"beta": 0.61},
    "gamma": {"gamma": 0.5},
    "mask": {"plausibility": 0.1},
    "mask's fraction": {"plausibility": 0.2},
    "mask's source": {"plausibility": 0.1, "plausibility_source": "small_cpt"},
    "length": {"max_length": 50},
    "grid": {"policy": "ppl"},
    "own grid": {"policy": "ppl", "grid": "0.1:0.5"},
    "own grid, hardly": {"policy": "ppl", "grid": "0.1:0.50000001"},
    "own grid with gamma": {"policy": "ppl", "grid": "0.1:0.5:0.2"},
    "refined": {"policy": "ppl", "refine": "quadratic"},
    "task": {"policy": "ppl_task"},
    "prompts": {"policy": "ppl_task", "prompts": 7},
    "gate": {"policy": "gate"},
    "delta": {"policy": "gate", "floor": 0.1},
}


def test_6_whatever_changes_a_number_changes_the_description(trio):
    three = trio("llama")
    found = {"nothing": three.weighted("fixed", alpha=0.3, beta=0.6).describe()}
    for name, change in CHANGES.items():
        options = {"policy": "fixed", **change}
        if options["policy"] == "fixed":
            options = {"alpha": 0.3, "beta": 0.6, **options}
        found[name] = three.weighted(**options).describe()
    seen: dict[str, str] = {}
    for name, description in found.items():
        same = seen.setdefault(json.dumps(description, sort_keys=True), name)
        assert same == name, f"{name} is described as {same}"


@pytest.mark.parametrize(
    "change",
    [{"add_bos_token": True}, {"seed": 1}, {"prefix_token_id": 65}, {"think_end_token": "x"}],
)
def test_6_settings_of_text_are_described(trio, change):
    model = trio("llama").weighted("fixed")
    asked = dataclasses.replace(model.settings, **change)
    changed = TriMix(asked, model.tokenizer, model.fuser, model.report)
    assert changed.describe() != model.describe()


def test_6_a_changed_checkpoint_is_another(trio, pico, tmp_path):
    three = trio("llama")
    model = three.weighted("fixed")
    before = model.describe()["sources"]["small_cpt"]["digest"]
    copy = tmp_path / "copy"
    shutil.copytree(pico("llama")["small_cpt"], copy)
    spec = dataclasses.replace(model.settings.sources["small_cpt"], path=str(copy))
    sources = {**model.settings.sources, "small_cpt": spec}
    asked = dataclasses.replace(model.settings, sources=sources)
    moved = TriMix(asked, model.tokenizer, model.fuser, model.report)
    assert moved.describe()["sources"]["small_cpt"]["digest"] == before, "the same, elsewhere"
    weights = copy / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(bytes(data))
    assert moved.describe()["sources"]["small_cpt"]["digest"] != before
