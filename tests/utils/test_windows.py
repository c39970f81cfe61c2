"""Windows against lm-eval's own functions, and what any way to cut a text must keep."""

from hypothesis import given, settings
from hypothesis import strategies as st
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from trimix_lm_eval.utils.windows import continuation_windows, rolling_windows

property_test = settings(derandomize=True, deadline=None, max_examples=300)
tokens = st.lists(st.integers(0, 9), max_size=40)
lengths = st.integers(1, 12)


@property_test
@given(tokens, lengths)
def test_rolling_windows_are_lm_evals(ids, max_length):
    theirs = map(make_disjoint_window, get_rolling_token_windows(ids, 77, max_length, 1))
    assert rolling_windows(ids, 77, max_length) == [(tuple(a), tuple(b)) for a, b in theirs]


@property_test
@given(tokens.filter(bool), tokens.filter(bool), lengths)
def test_a_continuation_is_predicted_once_after_what_stands_before_it(
    context, continuation, max_length
):
    windows = continuation_windows(context, continuation, max_length)
    assert [t for _, part in windows for t in part] == continuation
    whole, at = [*context, *continuation], len(context)
    for before, part in windows:
        assert len(before) >= 1
        assert len(before) + len(part) - 1 <= max_length
        assert list(before) == whole[at - len(before) : at]
        at += len(part)
    if len(continuation) <= max_length:
        ((before, _),) = windows
        room = max_length + 1 - len(continuation)
        assert list(before) == context[-room:]
