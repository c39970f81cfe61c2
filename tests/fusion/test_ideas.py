"""Policies of other papers, and mixtures: each against its formula, written down plainly.

The references take one row of `Naive`, no cache, no batch, and loop over positions.
"""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from tests.conftest import byte_tokenizer
from trimix_lm_eval.engine.model_runner import Fuser
from trimix_lm_eval.fusion import policies
from trimix_lm_eval.fusion.collectors import Choice, PromptCollector
from trimix_lm_eval.fusion.config import FusionConfig
from trimix_lm_eval.fusion.weights import SOURCES, Weights
from trimix_lm_eval.llm import TriMix
from trimix_lm_eval.utils.errors import TrimixError

PAIRS = [
    ("The river in the other inn was thinner", " there"),
    ("In winter there were rivers.\n\nThen the hen", " and the barn"),
    ("x", "y"),
    ("Question: བོད་ཡིག\nAnswer:", " སྐད"),
]
PROMPTS = ["The hen", "x", "There were rivers in the barn.\n"]


def mixture(naive, ids, start, alpha=0.5, beta=0.5):
    shares = {"large_ins": alpha, "small_cpt": beta, "small_base": 1 - alpha - beta}
    rows = [w * naive.logits(role, ids).softmax(-1) for role, w in shares.items()]
    return sum(rows).log()


def contrastive(naive, ids, start, contrast=0.5, written=False):
    large = naive.logits("large_ins", ids)
    fused = (1 + contrast) * large - contrast * naive.logits("small_base", ids)
    if not written:
        return fused
    p = large.softmax(-1)
    return fused.masked_fill(p < 0.1 * p.amax(-1, keepdim=True), -math.inf)


def packllm(naive, ids, start, tau=1.0, among=("large_ins", "small_cpt", "small_base")):
    every = [naive.logits(role, ids) for role in among]
    if start < 2:  # nothing of the prompt was predicted
        return sum(every) / len(every)
    losses = torch.stack([naive.nll(x[:start], ids[:start], 1).mean() for x in every])
    weights = (-losses / tau).softmax(0)
    return sum(w * x for w, x in zip(weights, every, strict=True))


def entropy(row):
    p = row.softmax(-1)
    return float(-(p * p.log()).sum())


def two(naive, ids, host="large_ins", scorer="small_cpt"):
    return zip(naive.logits(host, ids), naive.logits(scorer, ids), strict=True)


def uncertainty(naive, ids, start, tau=1.0, **pair):
    rows = []
    for h, s in two(naive, ids, **pair):
        a, b = math.exp(-entropy(h) / tau), math.exp(-entropy(s) / tau)
        rows.append((a * h + b * s) / (a + b))
    return torch.stack(rows)


def safe(naive, ids, start, consensus=0.5, **pair):
    rows = []
    for h, s in two(naive, ids, **pair):
        p, q, best = h.softmax(-1), s.softmax(-1), int(h.argmax())
        agreed = (float(p[best]) + float(q[best])) / 2 > consensus
        rows.append((p if agreed else (p + q) / 2).log())
    return torch.stack(rows)


def core(naive, ids, start, sharpness=2.0, best=10, **pair):
    rows, least = [], math.exp(-sharpness)
    for h, s in two(naive, ids, **pair):
        p, q = h.softmax(-1), s.softmax(-1)
        c = ((-sharpness * (p - (p + q) / 2).abs()).exp() - least) / (1 - least)
        known = sorted({*p.topk(best).indices.tolist(), *q.topk(best).indices.tolist()})
        trust = [1 / entropy(h), 1 / entropy(s)]
        w = max(trust[0] / sum(trust), 0.5)
        rows.append((w * p + (1 - w) * c / c[known].mean() * q).log())
    return torch.stack(rows)


def bayes(naive, ids, start, share=0.01, among=("large_ins", "small_cpt", "small_base")):
    every = [naive.logits(role, ids).log_softmax(-1) for role in among]
    w = [1 / len(among)] * len(among)
    rows = []
    for t in range(len(ids)):  # w are the weights of the token after ids[t]
        rows.append(sum(a * x[t].exp() for a, x in zip(w, every, strict=True)).log())
        if t + 1 < len(ids):
            told = [a * math.exp(float(x[t][ids[t + 1]])) for a, x in zip(w, every, strict=True)]
            w = [(1 - share) * a / sum(told) + share / len(among) for a in told]
    return torch.stack(rows)


#: Policy, options, reference, and the sources that it needs.
IDEAS = [
    ("mixture", {}, mixture),
    ("mixture", {"alpha": 0.2, "beta": 0.5}, mixture),
    ("mixture", {"alpha": 0.0, "beta": 1.0}, mixture),
    ("contrastive", {}, contrastive),
    ("contrastive", {"contrast": 0.1}, contrastive),
    ("packllm", {}, packllm),
    ("packllm", {"tau": 0.05, "among": ("large_ins", "small_cpt")}, packllm),
    ("packllm", {"among": ("small_base", "large_base", "small_cpt")}, packllm),
    ("bayes", {}, bayes),
    ("bayes", {"share": 0.3, "among": ("small_base", "small_cpt")}, bayes),
    ("bayes", {"share": 0.0, "among": ("large_base", "small_cpt", "small_base")}, bayes),
    ("uncertainty", {}, uncertainty),
    ("uncertainty", {"tau": 0.1, "host": "small_base"}, uncertainty),
    ("safe", {}, safe),
    ("safe", {"host": "small_cpt", "scorer": "large_ins", "consensus": 0.1}, safe),
    ("core", {}, core),
    ("core", {"sharpness": 5.0, "best": 3, "host": "small_cpt", "scorer": "small_base"}, core),
]
every_idea = pytest.mark.parametrize(("name", "options", "reference"), IDEAS)


def ordered(options):
    """With sources in the order of the policy's."""
    among = options.get("among")
    return (
        options
        if among is None
        else {**options, "among": policies.build("packllm", among=among).among}
    )


@every_idea
@pytest.mark.parametrize("batch_size", [1, 3])
def test_log_likelihoods_are_those_of_the_formula(trio, name, options, reference, batch_size):
    three = trio("llama")
    model = three.weighted(name, batch_size=batch_size, chunk_tokens=7 * batch_size, **options)
    scores = model.loglikelihood(PAIRS)
    for pair, score in zip(PAIRS, scores, strict=True):
        prompt, target = model.codec.pair(*pair)
        ids, start = [*prompt.ids, *target], len(prompt.ids)
        fused = reference(three.naive, ids, start, **ordered(options))
        nll = three.naive.nll(fused, ids, start)
        assert score.log_likelihood == pytest.approx(-float(nll.sum()), rel=1e-5, abs=1e-5)
        best = [int(fused[t - 1].argmax()) == ids[t] for t in range(start, len(ids))]
        assert score.is_greedy == all(best)


@every_idea
@pytest.mark.parametrize(("batch_size", "speculative"), [(1, "off"), (3, "auto"), (2, 3)])
def test_texts_are_those_of_the_formula(trio, name, options, reference, batch_size, speculative):
    three, steps = trio("llama"), 10
    model = three.weighted(name, batch_size=batch_size, speculative=speculative, **options)
    for prompt, text in zip(PROMPTS, model.generate(PROMPTS, max_new_tokens=steps), strict=True):
        ids = list(model.codec.prompt(prompt).ids)
        start, new = len(ids), []
        how = ordered(options) | ({"written": True} if reference is contrastive else {})
        for _ in range(steps):
            new.append(int(reference(three.naive, ids, start, **how)[-1].argmax()))
            if new[-1] == byte_tokenizer().eos_token_id:
                break
            ids.append(new[-1])
        assert text == byte_tokenizer().decode(new, skip_special_tokens=True), prompt


@every_idea
def test_drafts_change_no_sampled_text(trio, name, options, reference):
    three = trio("llama")
    how = {"max_new_tokens": 12, "temperature": 0.8, "top_p": 0.9, "seed": 7}
    found = {
        tuple(
            three.weighted(name, batch_size=size, speculative=k, **options).generate(PROMPTS, **how)
        )
        for size, k in ((1, "off"), (3, "off"), (2, 2), (3, 5))
    }
    assert len(found) == 1


@pytest.mark.parametrize("reference", [mixture, contrastive, uncertainty, safe, core])
def test_rolling_scores_are_those_of_the_formula(trio, reference):
    """Of `packllm`, which has no prompt here, see docs/policies.md."""
    three = trio("llama")
    model = three.weighted(reference.__name__, batch_size=2, max_length=20, logit_positions=3)
    texts = ["The river in the other inn was thinner", "y", "བོད་ཡིག and the hen"]
    for text, score in zip(texts, model.loglikelihood_rolling(texts), strict=True):
        total = 0.0
        for context, target in model.codec.windows(text, 20):
            ids = [*context, *target]
            fused = reference(three.naive, ids, len(context))
            total -= float(three.naive.nll(fused, ids, len(context)).sum())
        assert score.log_likelihood == pytest.approx(total, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("plausibility", [None, 0.3])
@pytest.mark.parametrize("share", [0.0, 0.05])
def test_the_weights_of_bayes_follow_a_text_over_all_its_windows(trio, share, plausibility):
    three, text = trio("llama"), "The hen: བོད་ཡིག and there"
    among = SOURCES[:3]
    masked = {} if plausibility is None else {"plausibility": plausibility}
    model = three.weighted("bayes", max_length=9, share=share, **masked)
    w, total = [1 / 3] * 3, 0.0
    for context, target in model.codec.windows(text, 9):
        ids = [*context, *target]
        every = [three.naive.logits(role, ids).softmax(-1) for role in among]
        for t in range(len(context), len(ids)):
            told = [a * float(x[t - 1][ids[t]]) for a, x in zip(w, every, strict=True)]
            p, large = sum(told), every[0][t - 1]
            if plausibility is not None:
                fused = sum(a * x[t - 1] for a, x in zip(w, every, strict=True))
                kept = large > plausibility * large.max()
                p = p / float(fused[kept].sum()) if kept[ids[t]] else 0.0
            total += math.log(p) if p else -math.inf
            w = [(1 - share) * a / sum(told) + share / 3 for a in told]
    (score,) = model.loglikelihood_rolling([text])
    assert score.log_likelihood == pytest.approx(total, rel=1e-5)
    if plausibility is None:
        point = score.choice.weights.by_source()
        assert [point[name] for name in among] == pytest.approx(w, abs=1e-4)


def test_a_token_that_a_source_without_weight_excludes_has_no_probability(trio):
    """The mask looks at a source that bayes gives weight 0: minus infinity, and not NaN."""
    all_three = trio("llama").weighted("ppl", max_length=9)  # as a sweep has them loaded
    config = FusionConfig(policies.build("bayes", among="small_cpt;small_base"), 0.3)
    fuser = Fuser(all_three.fuser.ensemble, (config,))
    model = TriMix(all_three.settings, all_three.tokenizer, fuser, all_three.report)
    (score,) = model.loglikelihood_rolling(["The hen: བོད་ཡིག and there"])
    assert score.log_likelihood == -math.inf


def test_weights_follow_each_option_of_a_question(trio):
    """Options that begin alike, and that differ in context: what all have in common chooses."""
    three = trio("llama")
    model = three.weighted("bayes", batch_size=2, share=0.1)
    ends = (" there", " the river", " the", " the rivers and", "n")
    pairs = [("The hen", end) for end in ends] + [("The hen the", " river"), ("The hen th", "e r")]
    scores = {
        i: score for i, _, score in model.iter_loglikelihood(pairs, questions=[0] * len(pairs))
    }
    shown = len(model.codec.pair(*pairs[0])[0].ids)
    for i, pair in enumerate(pairs):
        prompt, target = model.codec.pair(*pair)
        ids, start = [*prompt.ids, *target], len(prompt.ids)
        every = [three.naive.logits(x, ids).softmax(-1) for x in SOURCES[:3]]
        w, total = [1 / 3] * 3, 0.0
        for t in [*range(1, shown), *range(start, len(ids))]:
            told = [a * float(x[t - 1][ids[t]]) for a, x in zip(w, every, strict=True)]
            total += math.log(sum(told)) if t >= start else 0.0
            w = [0.9 * a / sum(told) + 0.1 / 3 for a in told]
        assert scores[i].log_likelihood == pytest.approx(total, rel=1e-5)


def test_what_has_become_of_weights_must_be_as_many(trio):
    @dataclasses.dataclass(frozen=True)
    class Narrow(policies.find("bayes")):
        """w' = 1"""

        name = "narrow"
        honesty = "label_free"

        def update(self, weights, logprobs, names):
            return weights if len(weights) == 1 else weights[:, :1]

    model = trio("llama").many([FusionConfig(Narrow())], batch_size=3)
    with pytest.raises(TrimixError, match=r"update\(\) returned the shape .* positions by sources"):
        model.generate(PROMPTS, max_new_tokens=4)


@dataclasses.dataclass(frozen=True)
class OfAll(policies.MixturePolicy):
    """Equal weights of all sources that it sees, then each by its last token; no name is asked."""

    name = "of_all"
    scope = "sample"
    honesty = "label_free"

    def points(self):
        return Weights(1.0, 0.0), Weights(0.0, 1.0)

    def collector(self, names):
        return SeenSources(len(names))

    def choose(self, collectors):
        (share,) = {c.share for c in collectors} or {0.5}
        return Choice(Weights.of_sources({"large_ins": share, "small_cpt": 1 - share}))

    def update(self, weights, logprobs, names):
        return logprobs.softmax(dim=1)


class SeenSources(PromptCollector):
    def __init__(self, count):
        self.share = 1 / count

    def absorb(self, other):
        self.count = other.count

    def read(self, view, targets):
        for _, logits in view.chunks():
            self.share = 1 / len(logits)


@dataclasses.dataclass(frozen=True)
class TokenOfAll(policies.Policy):
    """Per token, the more weight the more probable a source's favourite is."""

    name = "token_of_all"
    scope = "token"
    honesty = "label_free"

    def sources(self, available):
        return "large_ins", "small_cpt"

    def token_weights(self, logits, names):
        return torch.stack([x.softmax(-1).amax(-1) for x in logits], dim=1).softmax(dim=1)


@pytest.mark.parametrize("policy", [OfAll(), TokenOfAll()])
def test_a_policy_sees_its_own_sources_whatever_others_run_beside_it(trio, policy):
    three = trio("llama")
    others = [FusionConfig(policies.build("ppl")), FusionConfig(policies.build("bayes"))]
    model = three.many([FusionConfig(policy), *others], batch_size=2)
    assert len(model.fuser.ensemble.names) > 2
    for (i, which, score), (prompt, target) in (
        (found, model.codec.pair(*PAIRS[found[0]])) for found in model.iter_loglikelihood(PAIRS)
    ):
        if which:
            continue
        ids, start = [*prompt.ids, *target], len(prompt.ids)
        both = [three.naive.logits(name, ids).log_softmax(-1) for name in SOURCES[:2]]
        total, w = 0.0, [0.5, 0.5]
        for t in range(start - 1, len(ids) - 1):
            token = ids[t + 1]
            if policy.scope == "token":
                w = torch.stack([x[t].exp().amax() for x in both]).softmax(0)
                fused = sum(a * x[t] for a, x in zip(w, both, strict=True))
                total += float(fused.log_softmax(-1)[token])
            else:
                told = [float(x[t][token]) for x in both]
                total += math.log(sum(a * math.exp(x) for a, x in zip(w, told, strict=True)))
                w = torch.tensor(told).softmax(0).tolist()
        assert score.log_likelihood == pytest.approx(total, rel=1e-5), (i, which)


def test_shares_of_more_than_a_whole_are_refused():
    with pytest.raises(TrimixError, match="shares of more than 1"):
        policies.build("mixture", alpha=0.8, beta=0.3)


@pytest.mark.parametrize("among", ["large_ins", "large_ins;large", 3, ["small_cpt"]])
def test_packllm_weighs_two_sources_or_more(among):
    with pytest.raises(TrimixError, match="among"):
        policies.build("packllm", among=among)


def test_a_rule_of_somebodys_own_must_give_a_score_to_each_token(trio):
    @dataclasses.dataclass(frozen=True)
    class Short(policies.find("mixture")):
        """p = 1"""

        name = "short"
        honesty = "label_free"

        def fuse(self, logits, weights, names):
            return logits[0][:, 1:]

    model = trio("llama").many([FusionConfig(Short())])
    with pytest.raises(TrimixError, match=r"fuse\(\) returned the shape .* positions by tokens"):
        model.loglikelihood(PAIRS[:1])


def test_the_mask_of_contrastive_decoding_gives_way_to_what_is_asked_for():
    mine = FusionConfig(policies.build("contrastive"))
    assert mine.decoding.plausibility == mine.mask == 0.1
    assert mine.scoring.plausibility is None
    asked = FusionConfig(policies.build("contrastive"), 0.3)
    assert asked.decoding.plausibility == asked.scoring.plausibility == 0.3
    assert FusionConfig(policies.build("mixture")).mask is None
