"""Keys and values at fixed addresses, for decoding steps that are captured as CUDA graphs.

A row's token at position p lies in slot p, counted from the end of the prefix that it shares with
other rows, if it does. So which slots a query sees follows from positions alone, a draft that was
rejected is overwritten by the token that took its place, and nothing ever has to be packed. A batch
has a fixed number of rows and of slots; rows that are not in use compute along, and what they hold
is of no consequence.

A prefix that rows share is held once. Rows with one prefix are a family, and ask for it together,
in one matrix product (as in `kv_cache`): each has a seat in its family, so that the product has a
fixed shape whatever the number of its members.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from trimix_lm_eval.engine.kv_cache import KVCache, Prefix, Scores, exact_product
from trimix_lm_eval.engine.model_runner import ModelRunner
from trimix_lm_eval.engine.one_row import as_one_row

if TYPE_CHECKING:  # old versions of transformers have no such layers
    from trimix_lm_eval.engine.state_layers import States
    from trimix_lm_eval.engine.static_states import StaticStates


class StaticShape(NamedTuple):
    """How large caches are.

    Attributes:
        rows: B rows.
        slots: S slots of each row.
        families: F prefixes.
        seats: W rows that have one prefix, at most; of a single family all B.
        shared: P slots of each prefix; 0 where none is shared.
    """

    rows: int
    slots: int
    families: int
    seats: int
    shared: int


class Places(NamedTuple):
    """Where the tokens of a step are, on one device.

    Attributes:
        positions: ``[B, n]`` their positions.
        slots: ``[B, n]`` their slots, counted behind a shared prefix.
        lengths: ``[B]`` tokens of each row's shared prefix; 0 where there is none.
        family: ``[B]`` which prefix each row has; any where there is none.
        seat: ``[B]`` the row's seat in that family.
        members: ``[F, W]`` the row that has a seat; any where it is empty.
    """

    positions: Tensor
    slots: Tensor
    lengths: Tensor
    family: Tensor
    seat: Tensor
    members: Tensor

    def at(self, index: int) -> Places:
        """Those of one of the step's tokens."""
        columns = slice(index, index + 1)
        return self._replace(positions=self.positions[:, columns], slots=self.slots[:, columns])

    def by_family(self, asked: Tensor) -> Tensor:
        """``[G, B, m, *]`` of rows as ``[G * F, W * m, *]`` of families."""
        if len(self.members) > 1:
            asked = asked[:, self.members].flatten(0, 1)  # [G * F, W, m, *]
        return asked.flatten(1, 2)

    def by_row(self, answers: Tensor, groups: int, m: int) -> Tensor:
        """``[G * F, W * m, *]`` of several families as ``[G, B, m, *]`` of rows."""
        return answers.unflatten(1, (-1, m)).unflatten(0, (groups, -1))[:, self.family, self.seat]


class Step:
    """Where the tokens of a forward pass go: told to the cache, read by its layers.

    Args:
        rows: ``[B]`` the numbers of all rows.
    """

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows
        self.places: Places


class StaticLayer(DynamicLayer):
    """One layer.

    Args:
        step: Where the tokens of the pass that runs go; it is the cache's, too.
        like: Keys and values of the layer, ``[*, G, *, D]`` each; D may differ.
        shape: How large it is.

    Attributes:
        held: Keys and values, ``[G, B, S, D]`` each: as queries are laid out that ask together.
        prefixes: Those of shared prefixes, ``[G, F, P, D]`` each.
    """

    def __init__(self, step: Step, like: Sequence[Tensor], shape: StaticShape) -> None:
        super().__init__()
        self._step = step
        _, groups, _, _ = like[0].shape
        # Zeros: what is not seen is multiplied by 0, and must be a number.
        self.held = [x.new_zeros(groups, shape.rows, shape.slots, x.shape[3]) for x in like]
        size = (groups, shape.families, shape.shared)
        self.prefixes = [x.new_zeros(*size, x.shape[3]) for x in like]
        self.keys, self.values = (x.transpose(0, 1) for x in self.held)
        self._groups = torch.arange(groups, device=like[0].device)[:, None, None]
        self.dtype, self.device, self.is_initialized = like[0].dtype, like[0].device, True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Write ``[B, G, n, D]`` states into the slots of the step; returns all slots."""
        where = (self._groups, self._step.rows[:, None], self._step.places.slots)
        for held, states in zip(self.held, (key_states, value_states), strict=True):
            held.index_put_(where, states.transpose(0, 1))
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """None that the model could count positions by: they are given."""
        return 0

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor,
        scores: Scores,
        prefixes: Sequence[Tensor],
    ) -> Tensor:
        """Attention, the heads of a group as more queries of one head.

        Args:
            query: ``[B, heads, n, D]``
            key: ``[B, G, S, D]``
            value: ``[B, G, S, D]``
            mask: ``[B, 1, heads / G * n, P + S]``, see `StepMasks`.
            scores: What becomes of them.
            prefixes: Keys and values of the prefixes, ``[F, G, P, D]`` each.

        Returns:
            ``[B, n, heads, D]``
        """
        batch, heads, n, size = query.shape
        asked = query.reshape(batch, key.shape[1], -1, size)  # [B, G, m, D]
        if mask.shape[2] < asked.shape[2]:
            mask = mask.repeat(1, 1, asked.shape[2] // mask.shape[2], 1)
        if prefixes[0].shape[2] or not scores.plain:
            # As they are held, unless the layer has computed them from what is held.
            states = [x.transpose(0, 1).flatten(0, 1) for x in (*prefixes, key, value)]
            out = self._attend_shared(asked.transpose(0, 1), states, mask, scores, n)
            out = out.transpose(0, 1)
        else:
            attend = torch.nn.functional.scaled_dot_product_attention
            out = attend(asked, key, value, attn_mask=mask, scale=scores.scale)
        return out.reshape(batch, heads, n, -1).transpose(1, 2).contiguous()

    def _attend_shared(
        self, asked: Tensor, states: Sequence[Tensor], mask: Tensor, scores: Scores, n: int
    ) -> Tensor:
        """Attention of ``[G, B, m, D]`` queries to their family's prefix and to slots of their own.

        Scores are fp32, as inside the kernels of ``sdpa``.

        Args:
            asked: The queries, ``m = heads / G * n``.
            states: Keys and values ``[G * F, P, D]`` of prefixes, and ``[G * B, S, D]`` of rows.
            mask: As `attend` takes it, for all m.
            scores: What becomes of them.
            n: Tokens that ask.

        Returns:
            ``[G, B, m, D]``
        """
        places, asked = self._step.places, asked.contiguous()
        keys, values, own_keys, own_values = states
        groups, batch, m, _ = asked.shape
        width, several = keys.shape[1], len(places.members) > 1
        total = width + own_keys.shape[1]
        products = asked.new_empty(groups, batch, m, total, dtype=torch.float32)
        exact_product(asked.flatten(0, 1), own_keys.mT, products[..., width:].flatten(0, 1))
        if width and several:
            theirs = asked.new_empty(
                len(keys), places.members.shape[1] * m, width, dtype=products.dtype
            )
            exact_product(places.by_family(asked), keys.mT, theirs)
            products[..., :width] = places.by_row(theirs, groups, m)
        elif width:
            exact_product(asked.flatten(1, 2), keys.mT, products[..., :width].flatten(1, 2))
        products, mask = (x.unflatten(2, (-1, n)) for x in (products, mask.transpose(0, 1)))
        weights = scores.weights(products, mask, (groups, 1, -1, 1, 1))
        weights = weights.flatten(2, 3).to(values.dtype)
        out = torch.bmm(weights[..., width:].flatten(0, 1), own_values)  # [G * B, m, D]
        if not width:
            return out.unflatten(0, (groups, -1))
        if several:
            theirs = torch.bmm(places.by_family(weights[..., :width]), values)
            return out.unflatten(0, (groups, -1)).add_(places.by_row(theirs, groups, m))
        together = out.view(groups, batch * m, -1)
        together.baddbmm_(weights[..., :width].flatten(1, 2), values)
        return together.view(groups, batch, m, -1)


class StaticCache(DynamicCache):
    """The cache of one source.

    Args:
        like: A cache of the same source that holds something.
        shape: How large it is.
        depth: Tokens of a round behind which states are kept, at most.

    Attributes:
        step: Where the tokens of the next forward pass are.
        numbers: As of `KVCache`.
        layout: Which of the model's layers keep states; None if none does.
        states: Of the rows; None if no layer keeps any.
    """

    def __init__(self, like: Any, shape: StaticShape, depth: int = 1) -> None:
        super().__init__()
        held: KVCache | StaticCache = getattr(like, "kv", like)
        device = held.layers[0].keys.device
        self.numbers: Sequence[int] | None = held.numbers
        self.step = Step(torch.arange(shape.rows, device=device))
        self.layers: list[StaticLayer] = [
            StaticLayer(self.step, (x.keys, x.values), shape) for x in held.layers
        ]
        self.layout = getattr(like, "layout", None)
        self.states: StaticStates | None = None
        self._whole: DynamicCache | None = None
        if self.layout is not None:
            from trimix_lm_eval.engine.static_states import StaticStates

            self.states = StaticStates(self.layout, like.row_states, shape.rows, depth, device)
            self._whole = DynamicCache()
            self._whole.layer_class_to_replicate = None
            self._whole.layers = self.layout.together(self.layers, self.states.layers)

    @property
    def whole(self) -> DynamicCache:
        """What the model takes."""
        return self if self._whole is None else self._whole

    @property
    def row_states(self) -> States:
        """The states of a row."""
        assert self.states is not None
        return [[x[0, 0] for x in layer] for layer in self.states.saved]

    def take_rows(self, other: Any, rows: Tensor, positions: Tensor) -> None:
        """Copy the rows of another cache, whose slots are packed.

        Args:
            other: That cache.
            rows: ``[R]`` where its rows go.
            positions: ``[R]`` of each row's last token, which is yet to be run.
        """
        if self.states is not None:
            self.states.take_rows([mine[-1].states for mine in other.rows], positions, rows)
        for layer, theirs in zip(self.layers, getattr(other, "kv", other).layers, strict=True):
            count = min(theirs.keys.shape[2], layer.keys.shape[2])
            for held, states in zip(layer.held, (theirs.keys, theirs.values), strict=True):
                held[:, :, :count].index_copy_(1, rows, states[:, :, :count].transpose(0, 1))
                # What was there before may be NaN, and 0 times NaN is NaN.
                held[:, :, count:].index_fill_(1, rows, 0)

    def take_prefix(self, prefix: Prefix, family: int) -> None:
        """Copy a shared prefix to the place of a family."""
        for layer, pair in zip(self.layers, prefix, strict=True):
            for held, states in zip(layer.prefixes, pair, strict=True):
                held[:, family, : states.shape[1]] = states

    def take_all(self, other: StaticCache) -> None:
        """Copy all of another, smaller cache of this kind to the same places."""
        if self.states is not None and other.states is not None:
            self.states.take_all(other.states)
        for mine, theirs in zip(self.layers, other.layers, strict=True):
            pairs = [(mine.held, theirs.held), (mine.prefixes, theirs.prefixes)]
            for held, source in (pair for both in pairs for pair in zip(*both, strict=True)):
                held[:, : source.shape[1], : source.shape[2]] = source

    def copy_rows(self, rows: Tensor, into: Tensor) -> None:
        """Copy the ``[R]`` rows to the rows ``into``, which hold what they held before at once."""
        for layer in self.layers:
            for held in layer.held:
                held.index_copy_(1, into, held[:, rows])


class StepMasks:
    """The masks of a decoding step, made once for all passes of sources that want the same.

    Args:
        runner: One of these sources.
        places: Where the step's tokens are.
        shape: How large caches are. Multiples of 16 slots, or kernels of attention pad the mask.
        numbers: 0, 1, 2, …, on the device: at least as many as there are slots.
    """

    def __init__(
        self, runner: ModelRunner, places: Places, shape: StaticShape, numbers: Tensor
    ) -> None:
        lengths = places.lengths[:, None]
        keys = numbers[: shape.slots] + lengths  # positions of all slots, [B, S]
        if shape.shared:
            shared = numbers[: shape.shared].expand(shape.rows, -1)
            # What is no token of a prefix is later than everything.
            shared = shared.masked_fill(shared >= lengths, torch.iinfo(torch.long).max)
            keys = torch.cat([shared, keys], dim=1)  # [B, P + S]
        keys = keys[:, None, None]
        asking = places.positions[:, None, :, None]
        self.masks = {
            kind: None if how is None else _additive(asking, keys, runner.dtype, *how)
            for kind, how in runner.mask_kinds().items()
        }

    def of(self, runner: ModelRunner, index: int | None = None) -> Any:
        """What a source takes: a mask ``[B, 1, heads / G * n, P + S]``, or one by kind of layer.

        Args:
            runner: The source.
            index: One of the step's tokens; None is all of them.
        """
        # Heads that share a key ask as queries of one, where the attention is ours.
        repeats = _heads_per_key(runner.config) if runner.shares_prefixes else 1
        masks = dict(self.masks)
        for kind, mask in self.masks.items():
            if mask is None:
                continue
            if index is None:
                masks[kind] = mask.repeat(1, 1, repeats, 1)
            else:
                masks[kind] = mask[:, :, index : index + 1].expand(-1, -1, repeats, -1)
        return masks if runner.masks_by_type else masks[""]


def _heads_per_key(config: Any) -> int:
    """How many heads share a key; 1 where layers differ, each of which then repeats the mask."""
    try:
        heads = getattr(config, "num_attention_heads", 1)
        return int(heads // (getattr(config, "num_key_value_heads", None) or heads))
    except RuntimeError:  # transformers' AmbiguousGlobalPerLayerAttributeError
        return 1


def _additive(
    query: Tensor, key: Tensor, dtype: torch.dtype, window: int | None, block: int | None
) -> Tensor:
    """``[B, 1, n, P + S]``, 0 where a query at its position sees a key, else the lowest number."""
    hidden = key > query
    if window is not None:
        hidden = hidden | (key <= query - window)
    if block is not None:
        hidden = hidden | (key // block != query // block)
    mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
    return mask.masked_fill_(hidden, torch.finfo(dtype).min)


def run_static(
    runner: ModelRunner, ids: Tensor, places: Places, cache: StaticCache, masks: Any
) -> Tensor:
    """Run tokens at the slots of their positions: no shape or address depends on values.

    Args:
        runner: The source.
        ids: ``[B, n]`` tokens.
        places: Where they are.
        cache: Of the source; written to.
        masks: What `StepMasks` gives for these tokens.

    Returns:
        ``[B, n, H]`` final hidden states.
    """
    cache.step.places = places
    # Of a source with an attention of its own no prefix is shared.
    static = {"trimix_static": cache} if runner.shares_prefixes else {}
    seen: Any = cache.whole
    ids = runner.input_ids(ids)
    given = {"input_ids": ids, "position_ids": places.positions}
    if runner.one_row:
        seen, given = as_one_row(runner.body, cache, ids, places.positions)
    output = runner.body(
        **given,
        attention_mask=masks,
        use_cache=True,
        **{runner.cache_name: seen},
        **static,
    )
    states: Tensor = output.last_hidden_state
    return states.view(*ids.shape, -1)
