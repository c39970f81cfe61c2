"""The sources of the fusion: models run by explicit positions and masks, logits on demand.

Every forward pass takes positions and a mask from the batch's token table. The mask alone decides
which cached tokens a query sees, so padding, holes and sliding windows are exact (invariant 2), and
one plain cache type serves every architecture. A model is split into its body (tokens to hidden
states) and its head (hidden states to logits). Hidden states are small enough to keep; logits exist
for one chunk of positions at a time, of all sources together (invariant 4), in fp32 and for the
tokenizer's vocabulary only (invariant 3).

Whether a model obeys all this is not guessed from its family: it is tried out when the model is
loaded (`probe`), and one that does not is run plainly, whole rows without a cache.

Longer than most modules, since it is all that a request needs of the models: `ModelRunner` for one
source, `Ensemble` for all of them, `LogitView` for their logits, and `Fuser` for what the fusion
configs make of these.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor

from trimix_lm_eval.engine.kv_cache import KVCache
from trimix_lm_eval.engine.one_row import as_one_row
from trimix_lm_eval.engine.request import Tokens
from trimix_lm_eval.fusion.collectors import Choice, PromptCollector
from trimix_lm_eval.fusion.config import FusionConfig, LogitsProcessor
from trimix_lm_eval.fusion.logits import fuse, plausible, to_device
from trimix_lm_eval.fusion.policies import Policy, checks
from trimix_lm_eval.fusion.weights import Weights, source_vector
from trimix_lm_eval.utils.errors import TrimixError

#: Bytes that the fp32 logits of one chunk may take, over all sources and temporaries.
LOGIT_BYTES = 256 * 2**20
#: The logit of an id that stands for no token.
_NEVER = -1e4
#: Tokens up to which states are computed in chunks of their own (see `_short_chunks`).
_SHORT_CHUNK = 32
#: Tokens (rows times columns) of one forward pass of a long prompt.
CHUNK_TOKENS = 2048

T = TypeVar("T")


class NotFinite(TrimixError):
    """A source's logits are NaN or infinite.

    Args:
        source: The role of the source.
        at: The position where it is noticed; `blame` turns it into the index of a request.
    """

    def __init__(self, source: str, at: int) -> None:
        super().__init__(
            f"{source} gives logits that are NaN or infinite.",
            f"try another dtype ({source}_dtype=float32 or bfloat16; float16 overflows in some "
            "models), or check its weights",
        )
        self.at = at

    def __str__(self) -> str:
        """The message, with the request."""
        return f"Request {self.at}: {super().__str__()}"


@contextmanager
def blame(index_of: Callable[[int], int]) -> Iterator[None]:
    """Translate the position of a `NotFinite` raised inside into the terms of this level.

    Args:
        index_of: From the inner level's index (position, row of a batch) to this level's.
    """
    try:
        yield
    except NotFinite as error:
        error.at = index_of(error.at)
        raise


def always(index: int) -> Callable[[int], int]:
    """An ``index_of`` for `blame`: this index, whatever the inner level says."""
    return lambda _: index


def called(policy: Policy | None, method: Callable[..., T], *args: Any) -> T:
    """Call a method of a policy or of its collector; errors of somebody's own code name it."""
    try:
        return method(*args)
    except Exception as error:
        # What is callable need not be a function.
        checks.blame_policy(policy, getattr(method, "__qualname__", type(method).__name__), error)


def choice_of(policy: Policy, seen: Sequence[PromptCollector], names: tuple[str, ...]) -> Choice:
    """What `Policy.choose` returns; what is no point of the sources ``names`` is an error."""
    choice = called(policy, policy.choose, seen)
    why = None
    if isinstance(choice, Choice) and isinstance(choice.weights, Weights):
        try:
            json.dumps(choice)  # as the weights log will
            source_vector(choice.weights, names)
            return choice
        except (TypeError, ValueError, TrimixError) as error:
            why = error
    raise checks.no_choice(policy, choice, why) from why


class ModelRunner:
    """One causal LM: its body, its head, and how it wants its masks.

    How a model wants to be run is found out by `probe.load_runner`, which makes a runner.

    Args:
        name: The role of the source, e.g. ``large_ins``.
        model: A transformers causal LM in evaluation mode.
        vocab_size: Leading token ids that exist in the tokenizer; the rest is padding.

    Attributes:
        body: What makes final hidden states of tokens.
        masks_by_type: Whether the model takes one mask per type of layer.
        cache_name: What the model's ``forward`` calls its cache.
        finish: What the model does to logits after its output embedding.
        plain: Whether it is run row by row without a cache.
        splits: Whether its head can be run apart from its body, as it must not be for logits of
            whole rows to exist at once; False only of some that are plain.
        shares_prefixes: Whether rows can share a prefix (see `kv_cache`).
        one_row: Whether the rows of a batch are run as one (see `one_row`).
        new_state_cache: Of a model some of whose layers keep states instead of keys, what makes
            its cache for some rows (see `state_cache`); None of others.
        masked: Whether it takes masks, as all do that keep any keys.
        one_by_one: Whether it goes on from its states by one token at a time only.
        never_one: Whether it goes on from them by several tokens only.
        short_chunks: Whether it can be told to compute states in chunks no longer than its input.
        token_bytes: Bytes of its cache per token of a row.
        row_bytes: Bytes of its states per row.
        rounding: How far its logits move, relative to their size, if its embeddings are rounded
            anew.
        difference: How far they are from those of the whole text at once, run as it will be.
        why_not: Why it shares no prefixes, or keeps no cache, if it does not.
        own_ids: Of each token id its own, where the two are not the same; None in it where it has
            none. Tokens are everywhere else by the ids of the tokenizer in use.

    Raises:
        TrimixError: Part of the model lies outside the GPUs.
    """

    def __init__(self, name: str, model: Any, vocab_size: int) -> None:
        self.name, self.model, self.vocab_size = name, model, vocab_size
        self.body = body_of(model)
        self.config = model.config.get_text_config()
        self.device = model.get_input_embeddings().weight.device
        self.dtype = model.dtype
        if self.device.type == "meta":
            raise TrimixError(
                f"{name} does not fit on the GPUs: part of it was left on the CPU or on disk.",
                f"load it in fewer bits ({name}_quantization=int8 or nf4), or use more GPUs",
            )
        self.masks_by_type = bool(getattr(self.config, "layer_types", None))
        self.cache_name = "past_key_values"
        self.finish: Callable[[Tensor], Tensor] = unchanged
        self.plain = self.shares_prefixes = self.one_row = False
        self.splits = self.masked = True
        self.one_by_one = self.never_one = self.short_chunks = False
        self.new_state_cache: Callable[[int], Any] | None = None
        self.token_bytes = self.row_bytes = 0
        self.rounding = self.difference = 0.0
        self.why_not = ""
        self.own_ids: tuple[int | None, ...] | None = None
        self._own_on: dict[torch.device, Tensor] = {}

    def new_cache(self, rows: int) -> Any:
        """An empty cache of some rows that keeps every token; windows are cut by the mask."""
        if self.plain:
            return None
        return self.new_state_cache(rows) if self.new_state_cache is not None else KVCache()

    def forward(self, table: Tokens, start: int, cache: Any, wanted: Tensor | None) -> Tensor:
        """Run the tokens from slot ``start`` on.

        Args:
            table: The token table of B rows, the new tokens included.
            start: The first new slot.
            cache: This source's cache for the same rows; it grows by the new slots.
            wanted: ``[K]`` flat indices into the ``[B, n]`` new tokens; None is all of them.

        Returns:
            ``[K, H]`` final hidden states (of a source that does not split: logits, ``[K, V]``).
        """
        if self.plain:
            return self._recompute(table, start, wanted)
        if self.new_state_cache is not None:
            states: Tensor = cache.run(self._hidden, table, start, wanted)
            return states
        states = self._hidden(table, start, cache, cache).flatten(0, 1)  # [B * n, H]
        return states if wanted is None else states[to_device(wanted, states.device)]

    def _hidden(self, table: Tokens, start: int, cache: Any, kv: KVCache) -> Tensor:
        """Final hidden states ``[B, n, H]`` of the tokens from slot ``start`` on.

        Args:
            table: The token table of the rows, in slots as they are in the cache.
            start: The first new slot.
            cache: What the model takes; it grows by the new slots.
            kv: The keys and values in it.
        """
        ids = self.input_ids(table.ids[:, start:].to(self.device, non_blocking=True))
        positions = to_device(table.positions[:, start:], self.device)
        given = {"input_ids": ids, "position_ids": positions}
        if self.one_row:
            cache, given = as_one_row(self.body, cache, ids, positions)
        output = self.body(
            **given,
            attention_mask=self._mask(table, start),
            use_cache=True,
            **{self.cache_name: cache},
            **({"trimix_shared": kv} if kv.shared else {}),
            **(_short_chunks(ids.shape[1]) if self.short_chunks else {}),
        )
        states: Tensor = output.last_hidden_state
        return states

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """Logits ``[N, V]`` of ``[N, H]`` hidden states: fp32, the tokenizer's vocabulary only."""
        if self.splits:
            # Mamba's states stay in fp32 whatever the weights are.
            hidden = self.finish(self.model.get_output_embeddings()(hidden.to(self.dtype)))
        if self.own_ids is not None:
            own = self._own(hidden.device)[: self.vocab_size]
            return hidden.index_select(1, own).float()
        return hidden[:, : self.vocab_size].float()

    def input_ids(self, ids: Tensor) -> Tensor:
        """Token ids, of any shape, as the model has them, on the device where they are."""
        return ids if self.own_ids is None else self._own(ids.device)[ids]

    def common_ids(self, own: Iterable[int]) -> set[int]:
        """Token ids of some that are the model's own; what only it knows is left out."""
        if self.own_ids is None:
            return set(own)
        wanted = set(own)
        return {i for i, mine in enumerate(self.own_ids) if mine in wanted}

    def _own(self, device: torch.device) -> Tensor:
        """``[T]`` the own id of each token; 0 where there is none, which is neither read nor drawn.

        It is there before anything is captured: each kind of round runs a few times before that.
        """
        if device not in self._own_on:
            ids = torch.tensor([own or 0 for own in self.own_ids or ()])
            self._own_on[device] = to_device(ids, device)
        return self._own_on[device]

    def mask_kinds(self) -> dict[str, tuple[int | None, int | None] | None]:
        """Sliding window and block of each kind of layer; of the kind ``""`` if all are one.

        None of kinds that keep states, and take no mask: there, padding is never run.
        """
        window = getattr(self.config, "sliding_window", None)
        block = getattr(self.config, "attention_chunk_size", None)
        if not self.masks_by_type:
            return {"": (window, block) if self.masked else None}
        kinds = {
            "full_attention": (None, None),
            "sliding_attention": (window, None),
            "chunked_attention": (None, block),
        }
        if self.new_state_cache is None:
            return {kind: kinds[kind] for kind in dict.fromkeys(self.config.layer_types)}
        # Layers of both kinds ask for two masks, by the names that each would have alone.
        asked = dict.fromkeys(["full_attention", "linear_attention", *self.config.layer_types])
        return {kind: kinds.get(kind) for kind in asked}

    def _mask(self, table: Tokens, start: int) -> Any:
        """Additive masks ``[B, 1, n, S]``: one, or one per type of layer."""
        masks = {
            kind: None if how is None else table.mask(start, *how, self.dtype, self.device)
            for kind, how in self.mask_kinds().items()
        }
        return masks if self.masks_by_type else masks[""]

    def _recompute(self, table: Tokens, start: int, wanted: Tensor | None) -> Tensor:
        """What `forward` returns, without a cache: each row from its first token, alone.

        Of a tree of tokens, each branch alone.
        """
        run = self.body if self.splits else self.model
        width = table.slots - start
        if wanted is None:
            wanted = torch.arange(table.ids.shape[0] * width)
        if not len(wanted):
            return torch.zeros(0, self.vocab_size)
        slots, found, places = start + wanted % width, list[Tensor](), list[Tensor]()
        # The last token that is left ends a text, and so do the others that are padding.
        left, valid = torch.ones_like(wanted, dtype=torch.bool), table.valid
        for at in range(len(wanted) - 1, -1, -1):
            if not left[at]:
                continue
            row = int(wanted[at]) // width
            path = table.path(row, int(slots[at]))
            mine = left & (wanted // width == row)
            mine &= torch.isin(slots, path) | ~valid[row, slots]
            ids = table.ids[row][to_device(path, table.ids.device)].to(self.device)
            result = run(input_ids=self.input_ids(ids)[None], use_cache=False)
            states = (result.last_hidden_state if self.splits else result.logits)[0]
            last = (torch.searchsorted(path, slots[mine], right=True) - 1).clamp_min(0)
            found.append(states[to_device(last, states.device)])
            places.append(mine.nonzero()[:, 0])
            left &= ~mine
        order = torch.cat(places).argsort()
        return torch.cat(found)[to_device(order, found[0].device)]


def _short_chunks(tokens: int) -> dict[str, int]:
    """What has gated delta rules not fill up a chunk, of 64 tokens, where few are run."""
    size = 1 << (tokens - 1).bit_length()
    return {"chunk_size": size} if 1 < size <= _SHORT_CHUNK else {}


def body_of(model: Any) -> Any:
    """The part of a causal LM that makes hidden states: all but its head.

    Some models name a part that they do not have, and then give themselves.
    """
    if model.base_model is not model:
        return model.base_model
    embeddings = model.get_input_embeddings()
    for part in model.children():
        if hasattr(part, "base_model") and any(x is embeddings for x in part.modules()):
            return body_of(part)
    return model


def unchanged(logits: Tensor) -> Tensor:
    """The logits as they are: most models do nothing to them after the output embedding."""
    return logits


class Ensemble:
    """The sources, which run in step.

    Args:
        sources: The runners, in the order of the weight vectors.
        unused_ids: Token ids below the vocabulary's size that stand for no token.
    """

    def __init__(self, sources: Sequence[ModelRunner], unused_ids: Sequence[int] = ()) -> None:
        self.sources = list(sources)
        self.names = tuple(source.name for source in self.sources)
        self.device = self.sources[0].device
        self.vocab_size = self.sources[0].vocab_size
        self.unused = list(unused_ids)
        self._unused_on: dict[torch.device, Tensor] = {}
        self.chunk_tokens = CHUNK_TOKENS
        #: Whether decoding steps may be captured as CUDA graphs.
        self.cuda_graphs = True
        #: How many graphs were captured so far, and why some could not be.
        self.graphs_captured = 0
        self.not_captured: str | None = None
        #: Rows per forward pass that memory has room for, as far as is known (see `memory`).
        self.most_rows = sys.maxsize
        #: Prompts that were run for a choice and may be asked for again (see `kept`).
        self.kept: list[Any] = []
        #: Whether a prefix that several rows share can be held once.
        self.shares_prefixes = all(s.shares_prefixes or s.plain for s in self.sources)
        #: Bytes that the caches of all sources grow by per token of a row.
        self.token_bytes = sum(source.token_bytes for source in self.sources)
        per_position = 4 * self.vocab_size * (len(self.sources) + 3)
        self.logit_positions = max(1, LOGIT_BYTES // per_position)

    def compute_logits(self, which: int, hidden: Tensor) -> Tensor:
        """Logits ``[N, V]`` of one source, fp32, on the first source's device."""
        return self.local_logits(which, hidden).to(self.device)

    def local_logits(self, which: int, hidden: Tensor) -> Tensor:
        """Logits ``[N, V]`` of one source, fp32, on the device where its head lies."""
        logits = self.sources[which].compute_logits(hidden)
        if self.unused:
            device = logits.device
            if device not in self._unused_on:
                self._unused_on[device] = to_device(torch.tensor(self.unused), device)
            # The same low value in every source stays that value in the fusion: weights sum to 1.
            logits = logits.index_fill(1, self._unused_on[device], _NEVER)
        return logits


class LogitView:
    """Logits on demand: N positions whose hidden states are kept, one tensor per source.

    Args:
        ensemble: The sources whose heads turn the hidden states into logits.
        hidden: One ``[N, H]`` tensor per source.
        ready: ``[N, V]`` logits that are computed already, by index of the source.
        which: Indices of the sources that are shown; None shows all.
    """

    def __init__(
        self,
        ensemble: Ensemble,
        hidden: Sequence[Tensor],
        ready: Mapping[int, Tensor] | None = None,
        which: Sequence[int] | None = None,
    ) -> None:
        self.ensemble, self.hidden, self.ready = ensemble, list(hidden), ready or {}
        self.which = range(len(self.hidden)) if which is None else which

    def __len__(self) -> int:
        return len(self.hidden[0])

    def chunks(self) -> Iterator[tuple[slice, list[Tensor]]]:
        """Yield a slice of the positions with one ``[n, V]`` fp32 tensor per source."""
        step = self.ensemble.logit_positions
        for start in range(0, len(self), step):
            where = slice(start, min(start + step, len(self)))
            yield where, [self._logits(s, where) for s in self.which]

    def _logits(self, which: int, where: slice) -> Tensor:
        if which in self.ready:
            return self.ready[which][where]
        return self.ensemble.compute_logits(which, self.hidden[which][where])

    def part(
        self, where: slice, keep: Tensor | None = None, logits: Sequence[Tensor] = ()
    ) -> LogitView:
        """A view of some of the positions.

        Args:
            where: The positions; n of them.
            keep: ``[k]`` (on the CPU) the indices of those of them that are kept; None keeps all.
            logits: One ``[n, V]`` tensor per source, if they need not be computed again.
        """
        hidden, ready = [h[where] for h in self.hidden], list(logits)
        if keep is not None:
            at = {device: to_device(keep, device) for device in {x.device for x in hidden + ready}}
            hidden = [h[at[h.device]] for h in hidden]
            ready = [x[at[x.device]] for x in ready]
        known = dict(zip(self.which, ready, strict=False))
        return LogitView(self.ensemble, hidden, known, self.which)

    def of(self, which: Sequence[int]) -> LogitView:
        """The same positions, with the logits of some of the sources only."""
        return LogitView(self.ensemble, self.hidden, self.ready, which)

    def check(self, finite: Tensor) -> None:
        """Raise an error that names the source if a result is not finite.

        Args:
            finite: Whether each result is, in whatever shape.

        Raises:
            NotFinite: It is not, and a source's logits are why.
        """
        if bool(finite.all()):
            return
        for where, logits in self.chunks():
            for which, values in zip(self.which, logits, strict=True):
                bad = ~values.isfinite().all(dim=1)
                if bool(bad.any()):
                    raise NotFinite(
                        self.ensemble.names[which], where.start + int(bad.int().argmax())
                    )


class Fuser:
    """The sources and what is made of their logits.

    A run has one fusion config. A sweep has many, and the sources still run once: fusion configs
    differ only in what is made of the logits. What does not depend on a request is worked out here,
    once.

    Args:
        ensemble: The sources.
        configs: The fusion configs, at least one.

    Attributes:
        decoding: For each fusion config, what it makes of logits and chosen weights to write text.
        scoring: The same for given text.
        choosers: For each fusion config the first one with the same policy, whose choice it takes.
        collecting: The fusion configs whose policies look at prompts and choose for others, too.
        constants: For each fusion config its choice, if that holds for the whole run; else None.

    Raises:
        TrimixError: A point gives a weight to a source that is not there.
    """

    def __init__(self, ensemble: Ensemble, configs: Sequence[FusionConfig]) -> None:
        self.ensemble, self.configs = ensemble, tuple(configs)
        self._own: dict[Policy, tuple[tuple[int, ...], tuple[str, ...]]] = {}
        self.decoding = tuple(config.decoding for config in self.configs)
        self.scoring = tuple(config.scoring for config in self.configs)
        first: dict[Policy, int] = {}
        self.choosers = tuple(first.setdefault(c.policy, i) for i, c in enumerate(self.configs))
        self.collecting = tuple(
            i for i in first.values() if self.configs[i].policy.scope in ("sample", "task")
        )
        self.constants = tuple(
            choice_of(config.policy, [], ensemble.names) if config.policy.scope == "run" else None
            for config in self.configs
        )
        for config in self.configs:
            for point in config.policy.points():
                source_vector(point, ensemble.names)  # an error here costs no work

    def only(self, config: int) -> Fuser:
        """The same sources with one of the fusion configs, given by its index."""
        return Fuser(self.ensemble, (self.configs[config],))

    def fused(
        self, logits: Sequence[Tensor], vectors: Tensor, processor: LogitsProcessor
    ) -> tuple[Tensor, Tensor]:
        """Fused logits ``[N, V]`` and the weights in force ``[N, S]``.

        Args:
            logits: One ``[N, V]`` tensor per source.
            vectors: ``[N, S]`` chosen weights; a policy per token replaces them.
            processor: What is made of them.
        """
        if processor.per_token is not None:
            policy = processor.per_token
            own, names = self.own(policy)
            mine = [logits[i] for i in own]
            vectors = called(policy, policy.token_weights, mine, names)
            if getattr(vectors, "shape", None) != (shape := (len(logits[0]), len(names))):
                raise checks.no_tensor(policy, "token_weights", vectors, shape)
            vectors = self._of_all(vectors, own)
        if processor.fuses is None:
            fused = fuse(logits, vectors)
        else:
            policy = processor.fuses
            own, names = self.own(policy)
            mine = [logits[i] for i in own]
            fused = called(policy, policy.fuse, mine, _columns(vectors, own), names)
            if getattr(fused, "shape", None) != logits[0].shape:
                raise checks.no_tensor(policy, "fuse", fused, tuple(logits[0].shape))
        if processor.plausibility is not None:
            reference = logits[self.ensemble.names.index(processor.reference)]
            fused = plausible(fused, reference, processor.plausibility)
        return fused, vectors

    def updated(self, vectors: Tensor, logprobs: Tensor, processor: LogitsProcessor) -> Tensor:
        """The weights ``[N, S]`` of the next tokens; those in force if they do not follow the text.

        Args:
            vectors: ``[N, S]`` weights in force.
            logprobs: ``[N, S]`` log-probabilities of the tokens that are there now, by source.
            processor: What is made of the weights.
        """
        policy = processor.updates
        if policy is None:
            return vectors
        own, names = self.own(policy)
        mine, told = _columns(vectors, own), _columns(logprobs, own)
        found = called(policy, policy.update, mine, told, names)
        if getattr(found, "shape", None) != mine.shape:
            raise checks.no_tensor(policy, "update", found, tuple(mine.shape))
        return self._of_all(found, own)

    def own(self, policy: Policy) -> tuple[tuple[int, ...], tuple[str, ...]]:
        """The sources that a policy sees, by index and by name: its own.

        Others may be loaded for other fusion configs, and must not change what it makes.
        """
        if policy not in self._own:
            everyone = self.ensemble.names
            used = policy.sources(everyone)
            own = tuple(i for i, name in enumerate(everyone) if name in used)
            self._own[policy] = own, tuple(everyone[i] for i in own)
        return self._own[policy]

    def _of_all(self, weights: Tensor, own: Sequence[int]) -> Tensor:
        """Weights ``[N, len(own)]`` of some sources as those of all, ``[N, S]``."""
        if len(own) == len(self.ensemble.names):
            return weights
        columns = dict(zip(own, weights.unbind(dim=1), strict=True))
        nothing = weights.new_zeros(len(weights))
        everyone = range(len(self.ensemble.names))
        return torch.stack([columns.get(i, nothing) for i in everyone], dim=1)

    def vector(self, choice: Choice | None) -> list[float]:
        """A choice as one weight per source; zeros where weights are per token."""
        if choice is None:
            return [0.0] * len(self.ensemble.names)
        return list(source_vector(choice.weights, self.ensemble.names))


def _columns(table: Tensor, which: Sequence[int]) -> Tensor:
    """Some columns of a ``[N, S]`` table, by slices, which a GPU need not be told of."""
    if len(which) == table.shape[1]:
        return table
    return torch.stack([table[:, i] for i in which], dim=1)


def mean_choice(fuser: Fuser, config: int, used: Tensor) -> Choice:
    """The mean weights of a policy per token, ``[N, S]`` over all sources, as one point."""
    mean = dict(zip(fuser.ensemble.names, used.double().mean(dim=0).tolist(), strict=True))
    if not all(map(math.isfinite, mean.values())):
        raise checks.not_finite(fuser.configs[config].policy)
    alpha, beta = mean.get("large_ins", 0.0), mean.get("small_cpt", 0.0)
    gamma = alpha + mean.get("large_base", 0.0)
    return Choice(Weights(round(alpha, 4), round(beta, 4), round(gamma, 4)))
