"""Policies with mistakes in them: one message that names the policy, and no number."""

from __future__ import annotations

import dataclasses
import functools
import re

import pytest
import torch

from trimix_lm_eval import TriMix
from trimix_lm_eval.fusion import policies
from trimix_lm_eval.fusion.collectors import Choice, PromptCollector
from trimix_lm_eval.fusion.logits import grid_nll
from trimix_lm_eval.fusion.policies import GridPolicy, Policy, checks
from trimix_lm_eval.fusion.policies.perplexity import GridCollector, PromptPerplexity
from trimix_lm_eval.fusion.weights import PAPER_GRID, Weights
from trimix_lm_eval.utils.errors import TrimixError
from trimix_lm_eval.utils.options import option

PAIRS = [("The river in the other inn", " there"), ("x y", " z")]


def fail(*_):
    raise KeyError("zz")


@dataclasses.dataclass(frozen=True)
class Mine(PromptPerplexity):
    """A policy of somebody's whose choice a test sets."""

    name = "mine"
    honesty = "label_free"
    made = None
    grid: object = option("0.1:0.9;0.3:0.7", "points", "Two sources.", lambda _, v: two(v))

    def choose(self, collectors):
        return self.made(collectors)


def two(value):
    return policies.parse_grid(value)


class FailingFurtherDown(GridCollector):
    def read(self, view, targets):
        _, logits = next(view.chunks())
        grid_nll(logits, targets, torch.ones(4, 2, 2))


class FailingRead(GridCollector):
    def read(self, view, targets):
        fail()


class FailingNext(PromptCollector):
    next_only = True

    def read_next(self, view):
        fail()


@dataclasses.dataclass(frozen=True)
class PerToken(Policy):
    """A policy per token of somebody's."""

    name = "per_token"
    scope = "token"
    honesty = "label_free"

    def sources(self, available):
        return ("large_ins", "small_cpt")

    def token_weights(self, logits, names):
        fail()


@pytest.fixture
def answers(trio, monkeypatch):
    """``answers(cls, attribute=value…)``: how a class with these attributes scores two pairs."""

    def of(cls, **attributes):
        three = trio("llama")
        for name, value in attributes.items():
            monkeypatch.setattr(cls, name, value)
        monkeypatch.setattr(policies, "find", lambda name: cls)
        model = three.weighted(cls.name)
        return model, lambda: model.loglikelihood(PAIRS)

    return of


PLACE = f"{__name__}:"
WRONG = [
    (None, "choose() returned None, no Choice of Weights"),
    ((0.5, 0.5), "choose() returned (0.5, 0.5), no Choice"),
    (Choice(None), "choose() returned Choice(weights=None"),
    (Choice((0.1, 0.9, None)), "no Choice of Weights"),
    (Choice(Weights("a", 0.1)), "which cannot be used"),
    (Choice(Weights(float("nan"), 0.1)), "they are not all numbers"),
    (Choice(Weights(0.5, 0.9)), "which cannot be used: The point 0.5:0.9 gives small_base"),
]


@pytest.mark.parametrize(("returned", "message"), WRONG)
@pytest.mark.parametrize("scope", ["sample", "task", "run"])
def test_what_is_no_choice_of_weights_is_refused(answers, scope, returned, message):
    def run():
        model, score = answers(Mine, made=lambda self, _: returned, scope=scope)
        return model.choose_for_task(["a b c"]) if scope == "task" else score()

    with pytest.raises(TrimixError, match=re.escape(message)) as error:
        run()
    assert str(error.value).startswith(f"policy=mine ({PLACE}Mine): ")


UNRECORDABLE = [
    Choice(Weights(0.1, 0.9), nll=torch.tensor(1.5)),
    Choice(Weights(0.1, 0.9), tokens=torch.tensor(3)),
    Choice(Weights(0.1, 0.9), nlls=torch.tensor([1.0, 2.0])),
    Choice(Weights(torch.tensor(0.1), 0.9)),
]


@pytest.mark.parametrize("choice", UNRECORDABLE)
def test_a_choice_that_no_log_can_record_is_refused(answers, choice):
    """At once, not where a line of the log or the end of a sweep stumbles over it."""
    _, score = answers(Mine, made=lambda self, _: choice)
    with pytest.raises(TrimixError, match="^policy=mine .*which cannot be used: Object of"):
        score()


def test_weights_that_are_no_numbers_are_refused(answers):
    """All sources are there, so that nothing else is wrong with them."""
    choice = Choice(Weights(0.1, float("nan")))
    _, score = answers(Mine, made=lambda self, _: choice, points=lambda self: PAPER_GRID)
    with pytest.raises(TrimixError, match="policy=mine .*: they are not all numbers"):
        score()


def test_a_point_between_those_of_the_grid_may_be_chosen(answers):
    _, score = answers(Mine, made=lambda self, _: Choice(Weights(0.2, 0.8)))
    assert [one.choice.weights for one in score()] == [Weights(0.2, 0.8)] * 2


FAILING = [
    (Mine, {"made": fail}, "Mine.choose"),
    (Mine, {"collector": fail}, "fail"),
    (Mine, {"collector": lambda self, names: FailingRead(names, self.grid)}, "FailingRead.read"),
    (Mine, {"collector": lambda self, names: FailingNext()}, "FailingNext.read_next"),
    (PerToken, {}, "PerToken.token_weights"),
]


@pytest.mark.parametrize(("cls", "attributes", "method"), FAILING)
def test_an_error_of_the_policys_own_code_names_it(answers, cls, attributes, method):
    _, score = answers(cls, **attributes)
    with pytest.raises(TrimixError) as error:
        score()
    said = f"policy={cls.name} ({PLACE}{cls.__name__}): {method} failed: KeyError: 'zz'"
    assert str(error.value).startswith(f"{said} (test_code_of_others.py, line ")
    assert isinstance(error.value.__cause__, KeyError)


def test_the_line_is_one_of_the_policy_even_if_it_fails_further_down(answers):
    _, score = answers(Mine, collector=lambda self, names: FailingFurtherDown(names, self.grid))
    with pytest.raises(TrimixError, match=r"\(test_code_of_others.py, line \d+\)"):
        score()


def test_a_method_need_not_be_a_function(answers):
    _, score = answers(Mine, choose=functools.partial(fail))
    with pytest.raises(TrimixError, match="^policy=mine .*: partial failed: KeyError: 'zz'"):
        score()


def of_shape(*shape, value=0.5):
    return lambda self, logits, names: torch.full(shape or (len(logits[0]), len(names)), value)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (of_shape(2), "returned the shape (2,), no tensor of shape"),
        (of_shape(1, 3), "returned the shape (1, 3), no tensor of shape"),
        (lambda self, logits, names: [[0.5, 0.5]], "returned list, no tensor of shape"),
        (of_shape(value=float("nan")), "returned NaN or infinite weights"),
    ],
)
@pytest.mark.parametrize("kind", ["loglikelihood", "rolling", "generate"])
def test_weights_per_token_that_are_none_are_refused(answers, made, message, kind):
    model, _ = answers(PerToken, token_weights=made)
    ask = {
        "loglikelihood": lambda: model.loglikelihood(PAIRS),
        "rolling": lambda: model.loglikelihood_rolling(["The river in the other inn"]),
        "generate": lambda: model.generate(["The river"], max_new_tokens=2),
    }
    with pytest.raises(TrimixError, match=re.escape(f"token_weights() {message}")) as error:
        ask[kind]()
    assert str(error.value).startswith(f"policy=per_token ({PLACE}PerToken): ")


def test_a_policy_per_token_needs_no_points(answers):
    """As docs/add_a_policy.md says: ``sources()`` instead."""
    _, score = answers(PerToken, token_weights=of_shape())
    assert [one.choice.weights for one in score()] == [Weights(0.5, 0.5, 0.5)] * 2


@pytest.mark.parametrize("kind", [TrimixError, MemoryError, KeyboardInterrupt])
def test_errors_that_are_not_the_policys_pass(answers, kind):
    """A batch of one that does not fit is told as such, whoever asked for the memory."""

    def choose(self, _):
        raise kind("as it is")

    _, score = answers(Mine, made=choose)
    with pytest.raises((kind, TrimixError)) as error:
        score()
    assert "policy=mine" not in str(error.value)


class Greedy(GridCollector):
    def read(self, view, targets):
        torch.empty(2**45)  # fails on every CPU, with a RuntimeError


def test_a_collector_that_finds_no_memory_on_a_cpu_is_out_of_memory(answers):
    _, score = answers(Mine, collector=lambda self, names: Greedy(names, self.grid))
    with pytest.raises(TrimixError, match="^Out of memory with a batch of one: .*CPUAllocator"):
        score()


def test_memory_that_runs_out_in_a_collector_is_no_error_of_the_policy():
    for error in (MemoryError(), torch.OutOfMemoryError()):
        with pytest.raises(type(error)):
            checks.blame_policy(Mine(), "read", error)


def test_an_error_of_a_policy_of_this_package_keeps_its_traceback():
    with pytest.raises(KeyError):
        checks.blame_policy(PromptPerplexity(), "choose", KeyError("zz"))


# ---------------------------------------------------------------- options


VALUES = {"a": 1, "set": {1}, "list": [1], "deep": ([1],), "words": ("ab", "c"), "pair": (1, 2)}


@dataclasses.dataclass(frozen=True)
class Optioned(Mine):
    """A policy whose option's check does what it says."""

    name = "optioned"
    honesty = "label_free"
    k: object = option("a", "letter", "Which.", lambda _, v: VALUES[v])


def test_a_check_that_fails_names_the_policy():
    with pytest.raises(TrimixError, match="Optioned.__post_init__ failed: KeyError: 'b'") as error:
        checks.built(Optioned, {"k": "b"})
    assert isinstance(error.value.__cause__, KeyError)


def test_a_value_that_no_file_can_record_is_refused():
    assert checks.built(Optioned, {"k": "a"}).k == 1
    with pytest.raises(TrimixError, match=r"policy=optioned .*option k is \{1\}.* no JSON value"):
        checks.built(Optioned, {"k": "set"})


@pytest.mark.parametrize("value", ["list", "deep"])
def test_a_value_that_a_run_cannot_compare_is_refused(value):
    with pytest.raises(TrimixError, match=r"policy=optioned .*option k .* not hashable: "):
        checks.built(Optioned, {"k": value})


@pytest.mark.parametrize(("value", "recorded"), [("words", ["ab", "c"]), ("pair", [1, 2])])
def test_a_tuple_is_recorded_as_a_list_of_what_it_holds(value, recorded):
    assert checks.built(Optioned, {"k": value}).record()["k"] == recorded


# ---------------------------------------------------------------- points and sources


@pytest.mark.parametrize(
    ("method", "made", "message"),
    [
        ("points", fail, "Mine.points failed: KeyError: 'zz' (test_code_of_others.py"),
        ("points", lambda self: (), "points() returned (), no tuple of Weights"),
        ("points", lambda self: [Weights(0.1, 0.9)], "points() returned [Weights("),
        ("points", lambda self: ((0.1, 0.9),), "points() returned ((0.1, 0.9),), no"),
        ("points", lambda self: (Weights("a", 0.9),), "which fp32 cannot fuse"),
        ("sources", fail, "Mine.sources failed: KeyError: 'zz' (test_code_of_others.py"),
        ("sources", lambda self, available: (), "sources() returned none"),
        ("sources", lambda self, available: ["smal"], "sources() returned {'smal'}"),
    ],
)
def test_points_and_sources_that_are_none_are_refused(monkeypatch, method, made, message):
    monkeypatch.setattr(Mine, method, made)
    with pytest.raises(TrimixError, match=re.escape(message)) as error:
        checks.built(Mine, {})
    assert str(error.value).startswith(f"policy=mine ({PLACE}Mine): ")


def test_a_number_of_prompts_that_lacks_its_property_is_refused(monkeypatch):
    monkeypatch.setattr(Mine, "scope", "task")
    monkeypatch.setattr(Mine, "task_prompts", lambda self: 3)
    with pytest.raises(TrimixError, match="policy=mine .*: task_prompts is <bound method"):
        checks.built(Mine, {})
    monkeypatch.setattr(Mine, "task_prompts", 3)
    assert checks.built(Mine, {}).task_prompts == 3


# ---------------------------------------------------------------- collectors, before any model


class NoAbsorb(PromptCollector):
    def read(self, view, targets):
        pass


class Nothing(PromptCollector):
    pass


class NextOnly(PromptCollector):
    next_only = True


class Unsettled(NoAbsorb):
    def absorb(self, *args):
        pass

    def unsettled(self):
        return None


LACKING = [
    (Unsettled, "its collector Unsettled lacks settle"),
    (NoAbsorb, "its collector NoAbsorb lacks absorb"),
    (Nothing, "its collector Nothing lacks read and absorb"),
    (NextOnly, "its collector NextOnly lacks read_next"),
    (dict, "collector() returned dict, no PromptCollector"),
    (fail, "collector failed: KeyError: 'zz'"),
]


@pytest.mark.parametrize(("kind", "message"), LACKING)
def test_a_collector_that_lacks_something_is_refused_before_any_model_is_loaded(
    pico, monkeypatch, kind, message
):
    from trimix_lm_eval.loading import preflight

    monkeypatch.setattr(Mine, "collector", lambda self, names: kind())
    monkeypatch.setattr(policies, "find", lambda name: Mine)
    monkeypatch.setattr(preflight, "check", lambda *_: pytest.fail("looked at the models"))
    with pytest.raises(TrimixError, match=re.escape(message)) as error:
        TriMix.from_pretrained(**pico("llama"), policy="mine")
    assert str(error.value).startswith(f"policy=mine ({PLACE}Mine): ")


def test_collectors_of_this_package_have_all_that_is_needed():
    for name in policies.names():
        policy = policies.build(name)
        checks.check_collector(policy, ("large_ins", "small_cpt", "small_base"))


def test_no_collector_is_fine():
    @dataclasses.dataclass(frozen=True)
    class Blind(GridPolicy):
        """The first point, whatever is there."""

        name = "blind"

    assert Blind().points() == PAPER_GRID
    checks.check_collector(Blind(), ("large_ins",))
