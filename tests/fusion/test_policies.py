"""Each policy's choice against a naive computation of its formula; options and their errors."""

import dataclasses

import pytest
import torch
from scipy.optimize import minimize

from trimix_lm_eval import TriMix
from trimix_lm_eval.fusion import policies
from trimix_lm_eval.fusion.policies import base as registry
from trimix_lm_eval.fusion.policies import parse_grid
from trimix_lm_eval.fusion.policies.fixed import name_of, point_of
from trimix_lm_eval.fusion.weights import PAPER_GRID, PRIOR, SOURCES, Weights
from trimix_lm_eval.loading import settings
from trimix_lm_eval.utils.errors import TrimixError

TRIO = SOURCES[:3]
PRESETS = {
    "large_ins": (1.0, 0.0),
    "small_cpt": (0.0, 1.0),
    "small_base": (0.0, 0.0),
    "proxy_tuning": (1.0, 1.0),
}
CONTEXTS = [
    "The river in the other inn was thinner",
    "Question: བོད་ཡིག\nAnswer:",
    "x y",
    "In winter there were rivers.\n\nThen the hen",
]
GRID_OF_TWO = {"grid": "simplex:5"}
SHOTS = "Q: ab the\nA: the cat\n\nQ: in her\nA: in there, brother\n\nQ: the\nA:"


def ids_of(model, context):
    return list(model.codec.pair(context, " x")[0].ids)


# -------------------------------------------------------------------------------- registry


def test_the_registered_policies():
    assert policies.names() == sorted(
        [*PRESETS, "fixed", "ppl", "ppl_task", "ppl_answer", "ent", "gate", "mixture"]
        + ["contrastive", "packllm", "uncertainty", "safe", "core", "bayes"]
    )


@pytest.mark.parametrize("name", policies.names())
def test_every_policy_says_what_it_is(name):
    policy = policies.build(name)
    text = type(policy).__doc__
    assert policy.name == name
    assert policy.url.startswith("https://")
    assert policy.scope in ("run", "task", "sample", "token")
    if name in PRESETS:
        assert "({:g}, {:g})".format(*PRESETS[name]) in text
    else:
        assert any(sign in text for sign in (" = ", "argmin", "NLL", "``ppl``"))
        assert "onest" in text, "says when it is honest to use"


def test_a_policy_of_ones_own(monkeypatch):
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))

    @policies.register
    @dataclasses.dataclass(frozen=True)
    class Half(policies.Policy):
        """Half of each."""

        name = "half"
        url = "https://example.org"
        share: float = 0.5

        def points(self):
            return (Weights(self.share, 1 - self.share),)

    assert "half" in policies.names()
    built = policies.build("half", share=0.25)
    assert built.choose([]).weights == Weights(0.25, 0.75)
    assert built.sources(SOURCES) == ("large_ins", "small_cpt")
    assert built.url == "https://example.org"


@pytest.mark.parametrize(
    ("policy", "options", "message"),
    [
        ("pppl", {}, "Unknown policy 'pppl'. Did you mean 'ppl'"),
        ("ppl", {"grdi": 1}, "Unknown option of policy=ppl 'grdi'. Did you mean 'grid'"),
        ("large_ins", {"alpha": 1}, "Unknown option of policy=large_ins 'alpha'"),
        ("fixed", {"alpha": "much"}, "alpha='much' is not a number"),
        ("fixed", {"beta": float("nan")}, "beta=nan is not a number"),
        ("fixed", {"gamma": float("inf")}, "gamma=inf is not a number"),
        ("ppl", {"refine": "quadratc"}, "Unknown refine 'quadratc'. Did you mean 'quadratic'"),
        ("ppl", {"refine": "quadratic", "grid": "0.1:0.9;0.3:0.9"}, "needs a grid of all comb"),
        ("ppl", {"optimum": "newton"}, "(?s)optimum is no option any more.*refine=quadratic"),
        ("ppl_task", {"prompts": 0}, "prompts=0"),
        ("ppl_task", {"prompts": "all"}, "prompts='?all"),
        ("ent", {"refine": "quadratic"}, "Unknown option of policy=ent 'refine'"),
        ("gate", {"host": "large"}, "Unknown host 'large'"),
        ("gate", {"scorer": "small"}, "Unknown scorer 'small'"),
        ("gate", {"host": "small_cpt"}, "host and scorer are both small_cpt"),
        ("gate", {"floor": "x"}, "floor='x' is not a number"),
        ("ppl", {"grid": "x"}, "grid='x' is not a list of points"),
    ],
)
def test_errors_of_options(policy, options, message):
    with pytest.raises(TrimixError, match=message) as error:
        policies.build(policy, **options)
    assert "\n  -> " in str(error.value)


def test_what_was_the_usual_optimum_is_taken_silently(caplog):
    """Run configs of before write it; it is what happens without it."""
    assert policies.build("ppl", optimum="grid") == policies.build("ppl")
    asked = settings.parse({"pretrained": "x", "policy": "ppl", "optimum": "grid"})
    assert asked == settings.parse({"pretrained": "x"})
    with pytest.raises(TrimixError, match="(?s)optimum is no option.*refine=quadratic"):
        settings.parse({"pretrained": "x", "optimum": "newton"})
    assert not caplog.records


def test_points_and_their_names():
    for name, (alpha, beta) in PRESETS.items():
        assert point_of(name) == Weights(alpha, beta) and name_of(Weights(alpha, beta)) == name
        assert name_of(Weights(alpha, beta, 0.5)) == "fixed", "another gamma is another point"
    assert name_of(Weights(0.1, 0.9)) == "fixed"
    assert point_of("fixed") is point_of("ppl") is point_of("no such") is None


# -------------------------------------------------------------------------------- the grid


@pytest.mark.parametrize("count", [2, 9, 10, 101])
def test_on_the_simplex_small_base_has_no_weight(count):
    points = parse_grid(f"simplex:{count}")
    assert len(set(points)) == count
    assert all(point.by_source()["small_base"] == 0.0 for point in points)
    assert policies.build("ppl", grid=f"simplex:{count}").sources(SOURCES) == TRIO[:2]


@pytest.mark.parametrize("count", ["1", "1002", "x", "", "2.5"])
def test_no_simplex(count):
    with pytest.raises(TrimixError, match="grid=simplex="):
        parse_grid(f"simplex:{count}")


@pytest.mark.parametrize("policy", ["ppl", "ent", "ppl_task", "packllm", "mixture", "gate"])
def test_two_sources_are_enough(trio, policy):
    """As with three, where the third has no weight."""
    three, grid = trio("llama"), {} if policy in ("packllm", "mixture", "gate") else GRID_OF_TWO
    grid = {"among": "large_ins;small_cpt"} if policy == "packllm" else grid
    given = {role: three.folders[role] for role in TRIO}
    pairs = [(context, " there") for context in CONTEXTS]
    found = []
    for roles in (TRIO[:2], TRIO):
        some = {role: given[role] for role in roles}
        model = TriMix.from_pretrained(**some, device="cpu", policy=policy, **grid)
        found.append([(s.log_likelihood, s.choice) for s in model.loglikelihood(pairs)])
        found.append(model.generate(CONTEXTS, max_new_tokens=6))
    assert found[:2] == found[2:]


def test_a_policy_that_needs_small_base_says_what_does_not(trio):
    given = {role: trio("llama").folders[role] for role in TRIO[:2]}
    with pytest.raises(TrimixError, match="(?s)small_base, not given.*grid=simplex:9"):
        TriMix.from_pretrained(**given, device="cpu", policy="ppl")


@pytest.mark.parametrize(
    ("text", "points"),
    [
        ("paper", PAPER_GRID),
        ("0.1:0.9", (Weights(0.1, 0.9),)),
        ("0.1:0.9; 0.3:1.0 :0.5", (Weights(0.1, 0.9), Weights(0.3, 1.0, 0.5))),
        ([(0.1, 0.9), [0.3, 1, 0.5]], (Weights(0.1, 0.9), Weights(0.3, 1.0, 0.5))),
        (["1:0", "0:1"], (Weights(1.0, 0.0), Weights(0.0, 1.0))),
        ("simplex:3", (Weights(0.0, 1.0), Weights(0.5, 0.5), Weights(1.0, 0.0))),
        ((Weights(0.1, 0.9), Weights(0.1, 0.9, 0.3)), (Weights(0.1, 0.9), Weights(0.1, 0.9, 0.3))),
    ],
)
def test_parse_grid(text, points):
    assert parse_grid(text) == points
    assert parse_grid(parse_grid(text)) == points


@pytest.mark.parametrize(
    "text",
    ["", "papers", "0.1", "0.1:0.9;", "0.1:0.9:0.3:0.2", "a:b", [], [0.1, 0.9], [[0.1]], 5, True]
    + ["nan:0.9", "inf:0", [(0.1, float("nan"))]],
)
def test_no_grid(text):
    with pytest.raises(TrimixError) as error:
        parse_grid(text)
    assert "grid=paper" in str(error.value)
    assert "0.1:0.9;0.3:1.0" in str(error.value)


# -------------------------------------------------------------------------------- sources


@pytest.mark.parametrize(
    ("policy", "options", "names"),
    [
        ("large_ins", {}, ("large_ins",)),
        ("small_cpt", {}, ("small_cpt",)),
        ("small_base", {}, ("small_base",)),
        ("proxy_tuning", {}, TRIO),
        ("fixed", {}, ("large_ins", "small_cpt")),
        ("fixed", {"alpha": 0.7, "beta": 0.3}, ("large_ins", "small_cpt")),
        ("fixed", {"alpha": 0.3, "beta": 0.3}, TRIO),
        ("fixed", {"alpha": 0.3, "beta": 0.3, "gamma": 0.3}, TRIO),
        ("fixed", {"alpha": 0.3, "beta": 0.3, "gamma": 0.7}, SOURCES[:2] + SOURCES[3:]),
        ("fixed", {"alpha": 0.3, "beta": 0.3, "gamma": 0.5}, SOURCES),
        ("ppl", {}, TRIO),
        ("ppl", {"grid": "0.1:0.9;0.3:0.7"}, ("large_ins", "small_cpt")),
        ("ppl", {"refine": "quadratic"}, TRIO),
        ("ppl_task", {"grid": "0.1:0.9:0.5"}, SOURCES),
        ("gate", {}, ("large_ins", "small_cpt")),
        ("gate", {"host": "large_base", "scorer": "small_base"}, ("small_base", "large_base")),
    ],
)
def test_which_sources_are_needed(policy, options, names):
    built = policies.build(policy, **options)
    assert built.sources(reversed(SOURCES)) == names
    for missing in names:
        with pytest.raises(TrimixError, match=f"policy={policy} needs the source {missing}"):
            built.sources(set(SOURCES) - {missing})


@pytest.mark.parametrize(
    ("policy", "options", "names"),
    [
        ("large_ins", {}, ["large_ins"]),
        ("fixed", {"alpha": 0.1, "beta": 0.9}, ["large_ins", "small_cpt"]),
        ("gate", {"host": "large_base"}, ["small_cpt", "large_base"]),
    ],
)
def test_a_source_without_weight_is_never_loaded(pico, policy, options, names):
    """Its folder need not even hold weights."""
    model = TriMix.from_pretrained(**pico("llama"), policy=policy, **options)
    assert list(model.fuser.ensemble.names) == names


def test_a_missing_source_is_an_error_before_anything_loads():
    missing = "policy=ppl needs the sources small_cpt and small_base"
    with pytest.raises(TrimixError, match=missing) as error:
        TriMix.from_pretrained("nowhere")
    assert "small_cpt=<Hub id or folder>" in str(error.value)


# -------------------------------------------------------------------------------- choices


def best_of(nll, points):
    """The point with the lowest mean NLL of ``[P, T]``, clear of any tie."""
    mean = nll.mean(1)
    best = int(mean.argmin())
    others = torch.cat([mean[:best], mean[best + 1 :]])
    assert len(others) == 0 or float(others.min() - mean[best]) > 1e-5, "not a fair test"
    return points[best], float(mean[best])


@pytest.mark.parametrize("grid", ["paper", "0:0;1:0;0.2:0.8;0.4:0.4:0.7;1.2:0.8"])
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_ppl_takes_the_lowest_perplexity_of_the_prompt(trio, family, grid):
    three = trio(family)
    model = three.weighted("ppl", grid=grid, batch_size=2, chunk_tokens=10)
    points = parse_grid(grid)
    for context, score in zip(
        CONTEXTS, model.loglikelihood([(c, " x") for c in CONTEXTS]), strict=True
    ):
        ids = ids_of(model, context)
        point, nll = best_of(three.naive.grid(ids, 1, points), points)
        assert score.choice.weights == point
        assert score.choice.nll == pytest.approx(nll, rel=1e-5)
        assert score.choice.tokens == len(ids) - 1
        fused = three.naive.fused([*ids, *model.codec.pair(context, " x")[1]], *point)
        target = model.codec.pair(context, " x")[1]
        log_p = fused[len(ids) - 1 : -1].log_softmax(-1)
        value = sum(float(log_p[i, t]) for i, t in enumerate(target))
        assert score.log_likelihood == pytest.approx(value, rel=1e-5, abs=1e-5)


def test_ppl_refined_is_near_the_minimum_that_scipy_finds(trio):
    three = trio("llama")
    model = three.weighted("ppl", refine="quadratic", batch_size=2, chunk_tokens=10)
    for context, score in zip(
        CONTEXTS, model.loglikelihood([(c, " x") for c in CONTEXTS]), strict=True
    ):
        ids = ids_of(model, context)

        def mean(theta, ids=ids):
            return float(three.naive.nll(three.naive.fused(ids, *theta), ids, 1).mean())

        starts = ([0.5, 0.5], [0.0, 1.0], [1.0, 0.0])
        best = min(
            (minimize(mean, x, bounds=[(0, 1)] * 2, tol=1e-12) for x in starts),
            key=lambda r: r.fun,
        )
        point, grid = score.choice.weights, three.naive.grid(ids, 1, PAPER_GRID).mean(1)
        assert mean(point[:2]) == pytest.approx(best.fun, abs=1e-3), "within 0.1 % of perplexity"
        assert score.choice.nll == pytest.approx(best.fun, abs=2e-3), "what the parabola says"
        assert score.choice.nll <= float(grid.min()) + 1e-5
        assert score.choice.nlls == pytest.approx(grid.tolist(), rel=1e-5)


def test_ppl_task_takes_the_mean_of_the_means(trio):
    three = trio("llama")
    model = three.weighted("ppl_task", batch_size=3)
    means = []
    for context in CONTEXTS:
        ids = model.codec.prompt(context).ids
        means.append(three.naive.grid(list(ids), 1, PAPER_GRID).mean(1))
    point, nll = best_of(torch.stack(means, dim=1), PAPER_GRID)
    choice = model.choose_for_task(CONTEXTS)
    assert choice.weights == point
    assert choice.nll == pytest.approx(nll, rel=1e-5)
    assert model.choose_for_task(CONTEXTS[::-1]).weights == point


def test_ppl_task_refined_is_near_the_minimum_of_the_mean_of_means(trio):
    three = trio("llama")
    model = three.weighted("ppl_task", refine="quadratic", batch_size=2)
    prompts = [list(model.codec.prompt(c).ids) for c in CONTEXTS]

    def mean(theta):
        naive = three.naive
        parts = [naive.nll(naive.fused(ids, *theta), ids, 1).mean() for ids in prompts]
        return float(torch.stack(parts).mean())

    best = minimize(mean, [0.5, 0.5], bounds=[(0, 1)] * 2, tol=1e-12)
    choice = model.choose_for_task(CONTEXTS)
    assert mean(choice.weights[:2]) == pytest.approx(best.fun, abs=1e-3)
    assert choice.tokens == sum(len(ids) - 1 for ids in prompts)


def answer_tokens(model, text, spans):
    """Positions whose tokens lie in the spans, by decoding token after token (ASCII only)."""
    ids, at, shown = ids_of(model, text), 0, []
    for i, token in enumerate(ids):
        piece = model.tokenizer.decode([token])
        assert text.startswith(piece, at)
        shown += [i] if any(a < at + len(piece) and at < b for a, b in spans) else []
        at += len(piece)
    assert at == len(text)
    return ids, shown


@pytest.mark.parametrize("refine", [None, "quadratic"])
def test_ppl_answer_judges_the_tokens_of_the_answers_only(trio, refine):
    three = trio("llama")
    model = three.weighted("ppl_answer", refine=refine, chunk_tokens=8)
    spans = []
    for answer in (" the cat", " in there, brother"):
        at = SHOTS.index("A:" + answer) + 2
        spans.append((at, at + len(answer)))
    ids, shown = answer_tokens(model, SHOTS, spans)
    (score,) = model.loglikelihood([(SHOTS, " x")])
    picked = torch.tensor(shown) - 1
    assert score.choice.tokens == len(shown)

    def mean(theta):
        return float(three.naive.nll(three.naive.fused(ids, *theta), ids, 1)[picked].mean())

    if refine:
        best = minimize(mean, [0.5, 0.5], bounds=[(0, 1)] * 2, tol=1e-12)
        assert mean(score.choice.weights[:2]) == pytest.approx(best.fun, abs=1e-3)
    else:
        nll = three.naive.grid(ids, 1, PAPER_GRID)
        point, value = best_of(nll[:, picked], PAPER_GRID)
        assert score.choice.weights == point
        assert score.choice.nll == pytest.approx(value, rel=1e-5)
        assert best_of(nll, PAPER_GRID)[0] != point, "the prompt as a whole says otherwise"


def test_ppl_answer_without_exemplars_is_ppl_and_says_so_once(trio, caplog, monkeypatch):
    from trimix_lm_eval.utils import errors

    monkeypatch.setattr(errors, "_warned", set())
    three = trio("llama")
    pairs = [(c, " x") for c in CONTEXTS[:3]]
    answer = three.weighted("ppl_answer").loglikelihood(pairs)
    assert answer == three.weighted("ppl").loglikelihood(pairs)
    assert sum("ppl_answer" in r.message for r in caplog.records) == 1


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_ent_takes_the_lowest_entropy_at_the_end_of_the_prompt(trio, family):
    three = trio(family)
    model = three.weighted("ent", batch_size=2)
    contexts = ["", *CONTEXTS]
    for context, score in zip(
        contexts, model.loglikelihood([(c, " x") for c in contexts]), strict=True
    ):
        ids = ids_of(model, context)
        rows = []
        for point in PAPER_GRID:
            log_p = three.naive.fused(ids, *point)[-1].log_softmax(-1)
            rows.append(-(log_p.exp() * log_p).sum())
        point, _ = best_of(torch.stack(rows)[:, None], PAPER_GRID)
        assert score.choice.weights == point


@pytest.mark.parametrize(
    ("host", "scorer", "delta"),
    [
        ("large_ins", "small_cpt", 0.0),
        ("small_cpt", "large_ins", 0.2),
        ("large_base", "small_base", 0.5),
    ],
)
def test_gate_weighs_every_token(trio, host, scorer, delta):
    three = trio("llama")
    model = three.weighted("gate", host=host, scorer=scorer, floor=delta)
    ids = ids_of(model, CONTEXTS[0])
    target = list(model.codec.pair(CONTEXTS[0], " there")[1])
    h, s = (three.naive.logits(r, ids + target) for r in (host, scorer))
    total, shares = 0.0, []
    for i, token in enumerate(target, start=len(ids) - 1):
        e = float(s[i].softmax(-1)[h[i].argmax()])
        w = min(1.0, 1.0 - e + delta)
        total += float(((1 - w) * h[i] + w * s[i]).log_softmax(-1)[token])
        shares.append(w)
    (score,) = model.loglikelihood([(CONTEXTS[0], " there")])
    assert score.log_likelihood == pytest.approx(total, rel=1e-5, abs=1e-5)
    mean = score.choice.weights.by_source()
    assert mean[scorer] == pytest.approx(sum(shares) / len(shares), abs=2e-4)
    assert mean[host] == pytest.approx(1 - sum(shares) / len(shares), abs=2e-4)


@pytest.mark.parametrize("policy", ["ppl", "ppl_answer", "ent"])
def test_the_options_of_a_question_share_the_choice(trio, policy):
    model = trio("llama").weighted(policy, batch_size=2, max_length=70)
    options = [" x", " the cat in the barn", " བོད", " a longer one than the others are, brother"]
    scores = model.loglikelihood([(SHOTS, o) for o in options])
    assert len({score.choice for score in scores}) == 1


@pytest.mark.parametrize(
    ("options", "point"),
    [
        ({}, PRIOR),
        ({"grid": "1:0;0.3:0.8"}, Weights(0.3, 0.8)),
        ({"refine": "quadratic"}, PRIOR),
    ],
)
def test_a_prompt_of_one_token_takes_the_prior(trio, options, point):
    model = trio("llama").weighted("ppl", **options)
    (score,) = model.loglikelihood([("", "the")])
    assert score.choice.weights == point
    assert (score.choice.nll, score.choice.tokens) == (None, 0)


def test_presets_are_points(trio):
    three = trio("llama")
    for name, (alpha, beta) in PRESETS.items():
        fixed = three.weighted("fixed", alpha=alpha, beta=beta)
        pairs = [(c, " there") for c in CONTEXTS]
        assert three.weighted(name).loglikelihood(pairs) == fixed.loglikelihood(pairs)
