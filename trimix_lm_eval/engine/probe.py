"""How a model is to be run, found out by trial when it is loaded; no request comes here.

A short text is run plainly, and again with padding, holes and a cache. If the two agree the model
obeys explicit masks and positions, and invariants 1 and 2 hold for it; else it is run plainly for
good, row by row without a cache. No family of models is known by its name.

Longer than most modules: each trial is a few lines, and they share one text and one tolerance.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from trimix_lm_eval.engine.input_batch import TokenTable
from trimix_lm_eval.engine.kv_cache import FEW_QUERIES, install_attention, uninstall_attention
from trimix_lm_eval.engine.model_runner import ModelRunner, unchanged
from trimix_lm_eval.utils.errors import TrimixError, first_line, is_out_of_memory, warn_once

#: What models call their cache: it was renamed in transformers 5.24, model by model.
_CACHE_NAMES = ("cache", "past_key_values", "cache_params")
#: Tokens beyond which no window is probed for.
_LONGEST_WINDOW = 1024
#: Tokens of a text, and how many of them are selected, where a model attends to a selection.
_SELECTED_OF, _SELECTED = 192, 32
#: Tokens that are run one by one.
_SINGLE = 8
#: Slots beyond which nobody looks for a difference.
_FAR = 2**20


@torch.inference_mode()
def load_runner(
    name: str,
    model: Any,
    vocab_size: int,
    own_attention: bool = True,
    own_ids: tuple[int | None, ...] | None = None,
) -> ModelRunner:
    """Make the runner of a model, having found out by trial how it is to be run.

    Args:
        name: The role of the source, e.g. ``large_ins``.
        model: A transformers causal LM in evaluation mode, where it is to stay.
        vocab_size: Leading token ids that exist in the tokenizer; the rest is padding.
        own_attention: Whether `shared_prefix_attention` may take the place of ``sdpa``; False if
            the user chose an implementation.
        own_ids: The model's id of each token id, where the two differ; see `ModelRunner`.

    Returns:
        The runner.

    Raises:
        TrimixError: The model does not fit, there is no memory to run it in, or it fails on a
            short text.
    """
    try:
        runner = _tried(name, model, vocab_size, own_attention)
        runner.own_ids = own_ids  # trials are by the model's own ids, any of which do
        return runner
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise TrimixError(
            f"{name} was loaded, and leaves no memory to run a short text in: {first_line(error)}",
            f"load it in fewer bits ({name}_quantization=int8 or nf4), or put a source elsewhere "
            "(small_device=cuda:1)",
        ) from error


def _tried(name: str, model: Any, vocab_size: int, own_attention: bool) -> ModelRunner:
    """What `load_runner` returns."""
    uninstall_attention(model)  # of one that was loaded for another run, too
    runner = ModelRunner(name, model, vocab_size)
    takes = inspect.signature(runner.body.forward).parameters
    names = [name for name in _CACHE_NAMES if name in takes]
    runner.cache_name = names[0] if names else runner.cache_name
    _look_for_states(runner)
    length = 24 + _local_window(runner.config)
    ids = torch.arange(length) * 7919 % min(vocab_size, runner.config.vocab_size)
    whole = _first_logits(runner, ids)
    expected = whole[length // 2 :, :vocab_size].float()
    runner.rounding = _rounding(runner, ids, expected)
    _refuse_bidirectional(runner, ids, whole[: length // 2])
    has_states = runner.new_state_cache is not None
    narrow = _with_narrow_time_steps(runner, ids) if has_states else None
    installed = own_attention and install_attention(model)
    for way in _ways(runner, installed or not runner.masked):
        if not way.shares:
            uninstall_attention(model)
        runner.shares_prefixes, runner.one_row, runner.one_by_one, runner.short_chunks = way
        why = _disagreement(runner, ids, expected)
        if not why:
            best = way.shares and not (way.one_row or way.one_by_one)
            runner.why_not = "" if best else runner.why_not
            if narrow is not None and not runner.one_by_one:
                runner.never_one = not _goes_on_by_one(runner, ids, narrow)
            return runner
        if not (runner.why_not or way.short_chunks):
            runner.why_not = why
    runner.one_row = runner.one_by_one = runner.short_chunks = False
    runner.plain, runner.token_bytes, runner.row_bytes = True, 0, 0
    runner.new_state_cache = None
    runner.splits = _splits(runner, ids, expected)
    warn_once(
        f"{name} ({runner.config.model_type}) does not follow explicit attention masks ({why}); it "
        "is run row by row without a cache. Results are exact, but slow."
    )
    return runner


def _first_logits(runner: ModelRunner, ids: Tensor) -> Tensor:
    """``[T, V]`` logits of the first text that a model is given; one that fails on it is refused.

    Raises:
        TrimixError: It does not run, or the logits of the second half are NaN.
    """
    try:
        logits = _plain_logits(runner, ids)
    except Exception as error:  # a foreign forward may raise anything
        if is_out_of_memory(error):
            raise
        what = str(error) if isinstance(error, RuntimeError) else repr(error)
        raise TrimixError(
            f"{runner.name} was loaded, but fails on a short text: {what}",
            "check dtype, quantization and attn_implementation of this source, and its config.json",
        ) from error
    if bool(logits[len(ids) // 2 :, : runner.vocab_size].isnan().any()):
        raise TrimixError(
            f"{runner.name} gives logits that are NaN, on any text.",
            f"try another dtype ({runner.name}_dtype=float32 or bfloat16; float16 overflows in "
            "some models), or download its weights again",
        )
    return logits


def described(runner: ModelRunner) -> dict[str, Any]:
    """How a model is run, in words and numbers that JSON has."""
    keys = "keys and states" if runner.masked else "states"
    memory = keys if runner.new_state_cache is not None else "keys"
    return {
        "class": type(runner.model).__name__,
        "memory": "none" if runner.plain else memory,
        "prompts_shared": runner.shares_prefixes,
        "drafts": not (runner.plain or runner.one_by_one),
        "why_not": runner.why_not,
        "difference": None if runner.plain else float(f"{runner.difference:.2g}"),
        "tolerance": float(f"{_tolerance(runner):.2g}"),
    }


class _Way(NamedTuple):
    """How a model may be run: what `ModelRunner` says of the attributes of these names."""

    shares: bool
    one_row: bool = False
    one_by_one: bool = False
    short_chunks: bool = False


def _ways(runner: ModelRunner, shares: bool) -> Iterator[_Way]:
    """What to try with a model, the best first; ``shares`` is whether rows may share prefixes."""
    for shared in (True, False) if shares else (False,):
        if runner.new_state_cache is not None:
            yield _Way(shared, short_chunks=True)
        yield _Way(shared)
        if runner.new_state_cache is not None:
            # The first forms of Mamba scan several tokens from the beginning of a text only.
            yield _Way(shared, one_by_one=True)
        elif shared:
            yield _Way(shared, one_row=True)


def _rounding(runner: ModelRunner, ids: Tensor, expected: Tensor) -> float:
    """How far a model's logits move, relative to their size, if its embeddings are rounded anew.

    Args:
        runner: Of the model.
        ids: ``[T]`` the text.
        expected: ``[T / 2, V]`` logits of its second half.
    """
    half = torch.finfo(runner.dtype).eps / 2

    def moved(module: Any, given: Any, states: Tensor) -> Tensor:
        signs = torch.ones_like(states).cumsum(dim=-1).remainder(2) * 2 - 1
        return states + states * signs * half

    hook = runner.model.get_input_embeddings().register_forward_hook(moved)
    try:
        other = _plain_logits(runner, ids)[len(ids) // 2 :, : runner.vocab_size]
    finally:
        hook.remove()
    return _apart(other.float(), expected)


def _look_for_states(runner: ModelRunner) -> None:
    """Find out by the cache that a model makes whether any of its layers keep states."""
    try:
        from trimix_lm_eval.engine.state_cache import CacheLayout, StateCache

        layout = CacheLayout(DynamicCache(config=runner.config))
    except Exception:  # a version without such layers, or a config that says nothing of its cache
        return
    if not layout.stateful:
        return

    def new_cache(rows: int) -> StateCache:
        table = TokenTable(rows, runner.device)
        how = runner.shares_prefixes, runner.one_by_one, runner.never_one
        return StateCache(layout, table, *how)

    runner.new_state_cache, runner.masked = new_cache, bool(layout.keyed)


def _refuse_bidirectional(runner: ModelRunner, ids: Tensor, before: Tensor) -> None:
    """Refuse a model in which later tokens change the logits of earlier ones.

    Args:
        runner: Of the model.
        ids: ``[T]`` the text.
        before: ``[T / 2, V]`` logits of its first half.

    Raises:
        TrimixError: Another second half changes them.
    """
    half = len(before)
    other = torch.cat([ids[:half], ids[:1].expand(len(ids) - half)])
    # The shapes are the same, and so is the rounding, but for experts, who are grouped otherwise.
    if _apart(_plain_logits(runner, other)[:half], before) > _tolerance(runner) / 10:
        raise _not_causal(runner, "later tokens change")
    with _few_selected(runner) as selects:
        if selects:
            _refuse_by_number(runner)


def _refuse_by_number(runner: ModelRunner) -> None:
    """Refuse a model in which the number of later tokens changes the logits of earlier ones.

    So it is where tokens are selected by scores that are often the same, as 0 is: which of equals
    are selected depends on how many there are.
    """
    length = min(_SELECTED_OF, getattr(runner.config, "max_position_embeddings", _SELECTED_OF))
    ids = torch.arange(length) * 7919 % min(runner.vocab_size, runner.config.vocab_size)
    first = ids[: 2 * length // 3]
    alone = _plain_logits(runner, first)
    if _apart(_plain_logits(runner, ids)[: len(first)], alone) > _tolerance(runner):
        raise _not_causal(runner, "how many tokens follow changes")


def _not_causal(runner: ModelRunner, what: str) -> TrimixError:
    return TrimixError(
        f"{runner.name} ({runner.config.model_type}) is no causal language model: {what} what it "
        "says of earlier ones.",
        "give a model that is trained to predict the next token",
    )


def _plain_logits(runner: ModelRunner, ids: Tensor) -> Tensor:
    """``[T, V]`` logits of a text as the model gives them, without a cache."""
    logits: Tensor = runner.model(input_ids=ids[None].to(runner.device), use_cache=False).logits[0]
    return logits


def _apart(logits: Tensor, expected: Tensor) -> float:
    """How far logits are from those expected, relative to their size."""
    return float((logits - expected).float().norm() / expected.float().norm())


@contextmanager
def _few_selected(runner: ModelRunner) -> Iterator[bool]:
    """Have a model that attends to a selection of tokens select very few, as if a text were long.

    Yields:
        Whether it is such a model.
    """
    names = [x for x in vars(runner.config) if x.startswith("index") and "topk" in x]
    found = [
        (module, name, most)
        for module in runner.model.modules()
        for name in names
        if type(most := getattr(module, name, None)) is int
    ]
    try:
        for module, name, most in found:
            setattr(module, name, min(most, _SELECTED))
        yield bool(found)
    finally:
        for module, name, most in found:
            setattr(module, name, most)


def _disagreement(runner: ModelRunner, ids: Tensor, expected: Tensor) -> str:
    """Find the masks and the finish under which a runner gives the expected logits.

    Args:
        runner: Told what was found.
        ids: ``[T]`` the text.
        expected: ``[T / 2, V]`` logits of its second half.

    Returns:
        Why none does; nothing if one does.
    """
    best, why = math.inf, ""
    typed = bool(getattr(runner.config, "layer_types", None))
    for by_type in dict.fromkeys((typed, False) if runner.masked else (False, typed)):
        runner.masks_by_type, runner.finish = by_type, unchanged
        try:
            raw = _cached_logits(runner, ids)
        except Exception as error:  # a foreign forward may raise anything
            if is_out_of_memory(error):
                raise
            why = why or f"{type(error).__name__}: {first_line(error)}"
            continue
        for finish in _finishes(runner.config):
            off = _apart(finish(raw), expected)
            if off < best:
                best, found = off, (by_type, finish)
    if best > _tolerance(runner):
        return f"logits differ by {best:.2g} of their size" if best < math.inf else why
    runner.masks_by_type, runner.finish = found
    runner.difference = best
    return ""


def _splits(runner: ModelRunner, ids: Tensor, expected: Tensor) -> bool:
    """Find the finish with which head and body of a plain model give its logits, if any does."""
    try:
        whole = runner.body(input_ids=ids[None].to(runner.device), use_cache=False)
        states = whole.last_hidden_state[0, len(ids) // 2 :]
        for finish in _finishes(runner.config):
            runner.finish = finish
            off = _apart(runner.compute_logits(states), expected)
            if off < (1e-4 if runner.dtype == torch.float32 else 1e-2):  # the same operations
                return True
    except Exception as error:  # a foreign forward may raise anything
        if is_out_of_memory(error):
            raise
    runner.finish = unchanged
    return False


def _with_narrow_time_steps(runner: ModelRunner, ids: Tensor) -> Tensor:
    """``[_SINGLE, V]`` logits of the first tokens of a text's second half, time steps narrowed."""
    with _narrow_time_steps(runner):
        half = len(ids) // 2
        return _plain_logits(runner, ids[: half + _SINGLE])[half:]


def _goes_on_by_one(runner: ModelRunner, ids: Tensor, expected: Tensor) -> bool:
    """Whether a model with states gives the same by single tokens, which take a path of their own.

    Args:
        runner: Of the model, found to run by several tokens.
        ids: ``[T]`` the text.
        expected: Logits of `_with_narrow_time_steps`, from before our attention was installed.
    """
    half = len(ids) // 2
    table, cache, found = TokenTable(1, runner.device), runner.new_cache(1), []
    with _narrow_time_steps(runner):
        for start, end in [(0, half), *((at, at + 1) for at in range(half, half + _SINGLE))]:
            table.append(ids[None, start:end], torch.ones(1, end - start, dtype=torch.bool))
            found.append(runner.forward(table, start, cache, torch.tensor([end - start - 1])))
    logits = torch.cat([runner.compute_logits(states) for states in found[1:]])
    return _apart(logits, expected[:, : logits.shape[1]]) <= _tolerance(runner)


@contextmanager
def _narrow_time_steps(runner: ModelRunner) -> Iterator[None]:
    """Have a model that limits the time steps of its states do so at every token.

    In the steps of one token of some (Zamba2, Nemotron-H) the limit is left out, which shows by
    chance only, and little.
    """
    limits = [
        (module, limit)
        for module in runner.model.modules()
        if isinstance(limit := getattr(module, "time_step_limit", None), tuple | list)
        and (limit[0] > 0 or limit[1] < math.inf)
    ]
    try:
        for module, _ in limits:
            module.time_step_limit = (0.5, 0.6)
        yield
    finally:
        for module, limit in limits:
            module.time_step_limit = limit


def _tolerance(runner: ModelRunner) -> float:
    """Rounding that a probe may show, relative to the logits; a wrong mask is far beyond it."""
    if getattr(runner.model, "is_quantized", False):
        return 0.1  # how int8 rounds depends on what else is in the batch
    least = 1e-3 if runner.dtype == torch.float32 else 0.05
    return min(max(least, 20 * runner.rounding), 0.1)


def _cached_logits(runner: ModelRunner, ids: Tensor) -> Tensor:
    """Logits of the second half of a text, fed in pieces with padding before and between.

    The first tokens after the hole are those that a window counted in slots gets wrong. Of the
    pieces after it one is short and one is long (see `kv_cache.FEW_QUERIES`), and if rows can share
    a prefix, the first half is one. Before the last piece come drafts, all of which are rejected.

    Returns:
        ``[T / 2, V]``

    Raises:
        Exception: The model cannot be run this way.
    """
    half, junk = len(ids) // 2, ids.flip(0)
    middle = half + 4
    pieces = [(5, ids[:half], 6), (3, ids[half:middle], 0), (FEW_QUERIES, ids[middle:], 0)]
    table, cache, found = TokenTable(2, runner.device), runner.new_cache(2), []
    for before, real, after in pieces:
        start = table.slots
        cache.told_more = _far(runner.config)
        tokens = torch.cat([junk[:before], real, junk[:after]])
        valid = torch.zeros(len(tokens), dtype=torch.bool)
        valid[before : before + len(real)] = True
        rows = torch.stack([tokens, tokens.roll(1)])
        table.append(rows, torch.stack([valid, torch.ones_like(valid)]))
        found.append(runner.forward(table, start, cache, valid.nonzero().squeeze(1)))
        if len(found) == 1:
            runner.token_bytes = cache.nbytes // table.ids.numel()
            runner.row_bytes = cache.row_bytes
        if len(found) == 1 and runner.shares_prefixes:
            both = [0, 1]
            cache = cache.fork_shared(both, [table.own(row) for row in both], both)
            table = table.fork_shared(both, both)
        if len(found) == 2:
            _reject(runner, table, cache, junk[:3])
    return torch.cat([runner.compute_logits(states) for states in found[1:]])


def _far(config: Any) -> int:
    """How many slots a cache may have: a model that takes them for positions shows it there.

    With some the difference begins only where a text is long.
    """
    return min(getattr(config, "max_position_embeddings", None) or _FAR, _FAR)


def _reject(runner: ModelRunner, table: TokenTable, cache: Any, tokens: Tensor) -> None:
    """Run some tokens after each of two rows, and drop them again."""
    start = table.slots
    cache.begin_draft(table.length.tolist())
    table.append(torch.stack([tokens] * 2), torch.ones(2, len(tokens), dtype=torch.bool))
    runner.forward(table, start, cache, torch.arange(1))
    table.keep(start, torch.zeros(2, dtype=torch.long))
    table.crop(start)
    cache.crop(start - table.shared)
    cache.end_draft()


def _finishes(config: Any) -> Iterator[Callable[[Tensor], Tensor]]:
    """What models do to logits after the output embedding, by the config's own fields."""
    yield unchanged
    cap = getattr(config, "final_logit_softcapping", None)
    if cap:
        yield lambda logits: (logits / cap).tanh() * cap
    scale = getattr(config, "logit_scale", None) or getattr(config, "lm_head_multiplier", None)
    if scale:
        yield lambda logits: logits * scale
    divisor = getattr(config, "logits_scaling", None)
    if divisor:
        yield lambda logits: logits / divisor


def _local_window(config: Any) -> int:
    """How far a model's own kinds of local attention look, as far as its config tells.

    A window that the masks here know nothing of shows in the probe only if the text is longer.
    """
    known = {"sliding_window", "max_window_layers"}
    values = [
        value
        for name, value in vars(config).items()
        if ("window" in name or "local" in name) and name not in known
    ]
    return max((v for v in values if type(v) is int and 0 < v <= _LONGEST_WINDOW), default=0)
