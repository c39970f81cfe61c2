"""Our attention against the formula written down: with sinks, soft caps, and states of latents."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from trimix_lm_eval.engine import kv_cache
from trimix_lm_eval.engine.kv_cache import Scores, SharedPrefixes, shared_prefix_attention
from trimix_lm_eval.engine.static_cache import Places, StaticLayer, StaticShape, Step

MANY, FEW, SIZE, OUT = 6, 2, 8, 5
#: How long the prefixes are, and which one each row has.
LENGTHS, OF = [9, 4], [0, 1, 0, None, 1]


def formula(query, key, value, mask, softcap, sinks):
    """One row; ``[heads, n, D]``"""
    key, value = (x.repeat_interleave(MANY // FEW, dim=0).double() for x in (key, value))
    scores = query.double() @ key.mT * SIZE**-0.5
    if softcap is not None:
        scores = (scores / softcap).tanh() * softcap
    scores = scores + mask
    if sinks is not None:
        column = sinks.double()[:, None, None].expand(-1, scores.shape[1], 1)
        scores = torch.cat([scores, column], dim=-1)
        value = torch.cat([value, torch.zeros(MANY, 1, OUT, dtype=value.dtype)], dim=1)
    return (scores.softmax(dim=-1) @ value).float()


@pytest.fixture(params=[1, 3, 40])
def asked(request):
    """Queries, keys and values of rows, prefixes, and a mask of all slots."""
    torch.manual_seed(request.param)
    n, own, width, rows = request.param, request.param + 3, max(LENGTHS), len(OF)
    query = torch.randn(rows, MANY, n, SIZE) * 2
    key, value = torch.randn(rows, FEW, own, SIZE), torch.randn(rows, FEW, own, OUT)
    prefixes = [[(torch.randn(FEW, p, SIZE), torch.randn(FEW, p, OUT))] for p in LENGTHS]
    seen = torch.rand(rows, 1, n, width + own) < 0.8
    for row, which in enumerate(OF):
        seen[row, :, :, 0 if which is None else LENGTHS[which] : width] = False
    seen[..., -1] = True
    mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    return query, key, value, prefixes, mask


def expected(asked, **how):
    query, key, value, prefixes, mask = asked
    found = []
    for row, which in enumerate(OF):
        before = prefixes[which][0] if which is not None else (key[row][:, :0], value[row][:, :0])
        pair = [torch.cat([a, b[row]], dim=1) for a, b in zip(before, (key, value), strict=True)]
        kept = [*range(before[0].shape[1]), *range(max(LENGTHS), mask.shape[-1])]
        found.append(formula(query[row], *pair, mask[row, :, :, kept], **how))
    return torch.stack(found).transpose(1, 2)  # [B, n, heads, D]


HOWS = [(None, None), (1.5, None), (None, "sinks"), (1.5, "sinks")]


@pytest.mark.parametrize(("softcap", "sinks"), HOWS)
@pytest.mark.parametrize("room", [2**28, 2**12])
def test_sinks_and_soft_caps(asked, softcap, sinks, room, monkeypatch):
    """Few queries and many; where there is little room, some rows and queries at a time."""
    monkeypatch.setattr(kv_cache, "WORK_BYTES", room)
    query, key, value, prefixes, mask = asked
    sinks = torch.randn(MANY) if sinks else None
    module = SimpleNamespace(layer_idx=0, num_key_value_groups=MANY // FEW, is_causal=True)
    cache = SimpleNamespace(shared=SharedPrefixes(prefixes, OF), layers=[None])
    how = {"softcap": softcap, "s_aux": sinks, "trimix_shared": cache}
    got, _ = shared_prefix_attention(module, query, key, value, mask, **how)
    want = expected(asked, softcap=softcap, sinks=sinks)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    # All rows as one, as models are run that take slots for positions.
    one_row = query.transpose(0, 1).flatten(1, 2)[None]
    got, _ = shared_prefix_attention(module, one_row, key, value, mask, **how)
    torch.testing.assert_close(got, want.flatten(0, 1)[None], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("softcap", "sinks"), HOWS)
@pytest.mark.parametrize("families", [0, 1, 2])
def test_sinks_and_soft_caps_in_captured_steps(asked, softcap, sinks, families):
    query, key, value, prefixes, mask = asked
    n, rows, width = query.shape[2], len(OF), max(LENGTHS) if families else 0
    of = [min(which or 0, families - 1) for which in OF] if families else [0] * rows
    shape = StaticShape(rows, key.shape[2], max(families, 1), rows, width)
    layer = StaticLayer(step := Step(torch.arange(rows)), (key, value), shape)
    slots = torch.arange(key.shape[2]).expand(rows, -1)
    members = torch.arange(rows).expand(max(families, 1), -1)
    step.places = Places(slots, slots, slots, torch.tensor(of), torch.arange(rows), members)
    layer.update(key, value)
    held = prefixes[:families]
    for family, (pair,) in enumerate(held):
        for all_of_them, states in zip(layer.prefixes, pair, strict=True):
            all_of_them[:, family, : states.shape[1]] = states
    mask = mask[..., max(LENGTHS) - width :].clone()
    if families:  # a row of no family sees none of its prefix
        mask[3, ..., :width] = torch.finfo(torch.float32).min
        mask[1, ..., LENGTHS[of[1]] : width] = mask[4, ..., LENGTHS[of[4]] : width] = mask.min()
    sinks = torch.randn(MANY) if sinks else None
    repeated = mask.repeat(1, 1, MANY // FEW, 1)
    both = [x.transpose(0, 1) for x in layer.prefixes]
    got = layer.attend(
        query, layer.keys, layer.values, repeated, Scores(SIZE**-0.5, softcap, sinks), both
    )
    for row in range(rows):
        pair = [x[:, of[row]] for x in layer.prefixes]
        pair = [torch.cat([a, b[row]], dim=1) for a, b in zip(pair, (key, value), strict=True)]
        want = formula(query[row], *pair, mask[row], softcap, sinks).transpose(0, 1)
        torch.testing.assert_close(got[row], want, rtol=1e-5, atol=1e-5)
    assert got.shape == (rows, n, MANY, OUT)


@pytest.mark.parametrize("more", [{"position_bias": 1}, {"indices": 0}, {"dropout": 0.1}])
def test_what_a_layer_asks_for_and_we_do_not_know_is_an_error(asked, more):
    query, key, value, _, mask = asked
    known = {"sliding_window": 3, "is_causal": True, "dropout": 0.0, "output_router_logits": False}
    module, own = SimpleNamespace(num_key_value_groups=MANY // FEW), mask[..., max(LENGTHS) :]
    shared_prefix_attention(module, query, key, value, own, **known)
    with pytest.raises(TypeError, match=f"asks for {next(iter(more))}"):
        shared_prefix_attention(module, query, key, value, own, **known | more)


def test_without_a_mask_there_are_no_sinks(asked):
    query, key, value, _, _ = asked
    with pytest.raises(TypeError, match="mask of its own"):
        shared_prefix_attention(None, query, key, value, None, s_aux=torch.zeros(MANY))
