"""Arguments that nobody means end in one message, whatever they are: no traceback, no hang."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.hostile_values import ANY, DIGITS, VALUES
from trimix_lm_eval.fusion import policies
from trimix_lm_eval.fusion.weights import LARGEST
from trimix_lm_eval.loading.settings import RUN_OPTIONS, parse
from trimix_lm_eval.loading.source_spec import MODEL_OPTIONS, PREFIXES, SOURCE_OPTIONS
from trimix_lm_eval.utils.errors import TrimixError, quoted

OF_RUNS = [
    *(one.name for one in (*RUN_OPTIONS, *MODEL_OPTIONS)),
    *(prefix + one.name for prefix in PREFIXES[::2] for one in SOURCE_OPTIONS),
    "policy",
]
OF_POLICIES = [
    (policy, option)
    for policy in ("fixed", "gate", "ent", "ppl", "ppl_task")
    for option in policies.option_names(policy)
]
#: Messages longer than this nobody reads.
READABLE = 1500


def arguments(policy, name, value):
    """Arguments of a run, one of which is to be tried."""
    return {"pretrained": "demo", "policy": policy, name: value}


def tried(given_arguments):
    """The policy of a run, or the message that its arguments end in."""
    try:
        asked = parse(given_arguments)
        policy = policies.build(asked.policy, **asked.policy_options)
        policy.record()
    except TrimixError as error:
        assert len(str(error)) < READABLE and "\n  -> " in str(error)
        return None
    return policy


@pytest.mark.parametrize("name", OF_RUNS)
def test_arguments_of_runs(name):
    for value in VALUES:
        tried(arguments("large_ins", name, value))


@pytest.mark.parametrize(("policy", "name"), OF_POLICIES)
def test_options_of_policies_and_their_points(policy, name):
    for value in VALUES:
        found = tried(arguments(policy, name, value))
        if found and found.scope != "token":
            assert all(point.in_range() for point in found.points())


@settings(max_examples=200)
@given(st.sampled_from([("large_ins", name) for name in OF_RUNS] + OF_POLICIES), ANY)
def test_any_value_of_any_argument(where, value):
    tried(arguments(*where, value))


@pytest.mark.parametrize(
    ("policy", "name", "value"),
    [
        ("fixed", "alpha", 1e308),
        ("fixed", "alpha", 10**400),
        ("fixed", "beta", -LARGEST - 1),
        ("fixed", "gamma", "1e36"),
        ("ppl", "grid", "1e300:1"),
        ("ent", "grid", [[10**400, 1]]),
        ("ppl_answer", "grid", "1:1:-1e300"),
        ("ppl_task", "grid", f"{DIGITS}:1"),
    ],
)
def test_weights_that_fp32_cannot_fuse_are_refused(policy, name, value):
    with pytest.raises(TrimixError, match=f"(?s){name}=.*1000"):
        policies.build(policy, **{name: value})


def test_the_largest_weights_are_taken():
    assert policies.build("fixed", alpha=LARGEST, beta=-LARGEST).points()[0].in_range()


def test_a_home_that_is_not_there_is_a_folder_that_is_not_there():
    assert parse({"pretrained": "~nosuchuser/x"}).sources["large_ins"].path == "~nosuchuser/x"


def test_what_messages_show_of_a_value():
    assert quoted("ab") == "'ab'" and quoted(10**5000) == "<int that cannot be written>"
    assert quoted("x" * 10**5).startswith("'xxx") and "(100,002 characters)" in quoted("x" * 10**5)


def test_no_message_has_all_of_a_long_word():
    with pytest.raises(TrimixError) as refused:
        parse({"pretrained": "demo", DIGITS: 1})
    assert "…" in str(refused.value) and len(str(refused.value)) < 500
    assert str(TrimixError(f"/{'a/' * 400} is gone")) == f"/{'a/' * 400} is gone"
