"""`TokenTable.visible` against a table drawn cell by cell."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trimix_lm_eval.engine.input_batch import TokenTable

CPU = torch.device("cpu")
property_test = settings(derandomize=True, deadline=None, max_examples=150)


@st.composite
def tables(draw):
    """(validity ``[B][S]``, sizes of the appended pieces)."""
    rows = draw(st.integers(1, 3))
    sizes = draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    width = sum(sizes)
    cell = st.booleans()
    valid = [draw(st.lists(cell, min_size=width, max_size=width)) for _ in range(rows)]
    return valid, sizes


def build(valid, sizes):
    table = TokenTable(len(valid), CPU)
    flags = torch.tensor(valid)
    ids = torch.arange(flags.numel()).reshape(flags.shape)
    at = 0
    for size in sizes:
        table.append(ids[:, at : at + size], flags[:, at : at + size])
        at += size
    return table


def positions(flags):
    """Position of each valid slot; None for padding."""
    out, count = [], 0
    for flag in flags:
        out.append(count if flag else None)
        count += flag
    return out


@property_test
@given(tables(), st.none() | st.integers(1, 6), st.none() | st.integers(1, 6), st.data())
def test_visible_is_what_each_token_may_see(drawn, window, block, data):
    valid, sizes = drawn
    table = build(valid, sizes)
    start = data.draw(st.integers(0, table.slots - 1))
    seen = table.visible(start, window, block)
    assert seen.shape == (len(valid), table.slots - start, table.slots)
    for row, flags in enumerate(valid):
        where = positions(flags)
        for query in range(start, table.slots):
            cells = seen[row, query - start].tolist()
            assert cells[query], "every query sees itself"
            for key, cell in enumerate(cells):
                if not flags[key] and key != query:
                    assert not cell, "nobody sees padding"
                if not flags[query] or not flags[key]:
                    continue
                expected = key <= query
                if window is not None:
                    expected = expected and where[query] - where[key] < window
                if block is not None:
                    expected = expected and where[query] // block == where[key] // block
                assert cell == expected, (row, query, key)


@property_test
@given(tables())
def test_positions_count_valid_tokens_only(drawn):
    valid, sizes = drawn
    table = build(valid, sizes)
    assert table.valid.tolist() == valid
    assert table.length.tolist() == [sum(flags) for flags in valid]
    for row, flags in enumerate(valid):
        got = table.positions[row].tolist()
        assert min(got) >= 0
        for have, want in zip(got, positions(flags), strict=True):
            assert want is None or have == want


@property_test
@given(tables(), st.data())
def test_select_repeats_rows_and_can_be_continued(drawn, data):
    valid, sizes = drawn
    table = build(valid, sizes)
    rows = data.draw(st.lists(st.integers(0, len(valid) - 1), min_size=1, max_size=5))
    chosen = table.select(torch.tensor(rows))
    more = torch.tensor([[7, 8]] * len(rows))
    flags = torch.tensor([[True, False]] * len(rows))
    chosen.append(more, flags)
    assert table.slots == sum(sizes), "the table that was copied stays"
    for place, row in enumerate(rows):
        alone = build([valid[row]], sizes)
        alone.ids = table.ids[row : row + 1].clone()
        alone.append(more[:1], flags[:1])
        for name in ("ids", "positions", "valid"):
            assert torch.equal(getattr(chosen, name)[place], getattr(alone, name)[0]), name
        assert chosen.length[place] == alone.length[0]
        assert torch.equal(chosen.visible(0, 2)[place], alone.visible(0, 2)[0])


def test_an_empty_table():
    table = TokenTable(2, CPU)
    assert table.slots == 0
    assert table.length.tolist() == [0, 0]


@pytest.mark.parametrize("window", [None, 1, 2])
def test_padding_on_either_side_changes_nothing(window):
    bare = build([[True] * 4], [4]).visible(0, window)[0]
    left = build([[False] * 3 + [True] * 4], [7]).visible(3, window)[0][:, 3:]
    right = build([[True] * 4 + [False] * 3], [7]).visible(0, window)[0][:4, :4]
    assert torch.equal(bare, left)
    assert torch.equal(bare, right)
