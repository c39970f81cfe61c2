"""The options of questions after their contexts: as trees, so that what they share runs once.

The options of a question often begin alike, and some differ only in the end of their contexts. All
that follows the common beginning is laid out behind it as one row of tokens, in which each token
sees those above it in the tree and no others (tree attention, Miao et al. 2024, "SpecInfer"): one
forward pass, no copy of a cache, and no token twice. `request.TreePlaces` tells the token table.

A prediction is one hidden state and the token whose probability is asked for: options that begin
alike have their first predictions in common, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from trimix_lm_eval.engine.input_batch import InputBatch
from trimix_lm_eval.engine.logprobs import compute_logprobs
from trimix_lm_eval.engine.model_runner import Fuser, LogitView, blame, mean_choice
from trimix_lm_eval.engine.prefill import evenly, padded, shared_length
from trimix_lm_eval.engine.request import Score, TreePlaces
from trimix_lm_eval.fusion.collectors import Choice
from trimix_lm_eval.fusion.logits import to_device

#: Tokens that follow a context at once, at most, unless a single option has more.
TREE_TOKENS = 512
#: So many predictions are kept as hidden states before they are scored.
MOST_PREDICTIONS = 8192

#: What the policy of each fusion config has chosen.
Choices = tuple[Choice | None, ...]
#: (index of the request, index of the fusion config, score)
Scored = tuple[int, int, Score]


class Continuation(NamedTuple):
    """What follows a context.

    Attributes:
        request: Its index.
        rest: The tokens between that context and the continuation, which are not scored.
        tokens: The tokens that are.
    """

    request: int
    rest: tuple[int, ...]
    tokens: tuple[int, ...]


class Prefilled(NamedTuple):
    """Some of the prompts of a batch after they were run.

    Attributes:
        rows: Which of the prompts they are.
        batch: A row each.
        ends: One ``[R, H]`` tensor per source: hidden states at their last tokens.
    """

    rows: list[int]
    batch: InputBatch
    ends: list[Tensor]


def score_options(
    fuser: Fuser,
    contexts: Sequence[Prefilled],
    options: Sequence[Sequence[Continuation]],
    choices: Sequence[Choices],
) -> list[Scored]:
    """Score what follows some contexts.

    Args:
        fuser: The sources and the fusion configs.
        contexts: After they were run.
        options: Of each context, at least one.
        choices: Of each context.
    """
    predictions = _Predictions(fuser, options, choices)
    scores = []
    for some in contexts:
        for places, trees in tree_passes([options[row] for row in some.rows]):
            predictions.run(some, places, trees)
            if len(predictions.asked) >= MOST_PREDICTIONS:
                scores += predictions.scores()
    return scores + predictions.scores()


# ---------------------------------------------------------------- trees of tokens


class TextTree(NamedTuple):
    """Some texts as a tree of N tokens, each before all that follows it.

    Attributes:
        texts: Which texts they are.
        paths: Of each of them, the indices of its tokens.
        ids: The token ids.
        depth: How many tokens stand above each.
        until: The index behind the last token that follows each.
    """

    texts: list[int]
    paths: list[list[int]]
    ids: list[int]
    depth: list[int]
    until: list[int]

    @classmethod
    def empty(cls) -> TextTree:
        """No texts yet."""
        return cls([], [], [], [], [])

    def close(self, nodes: Sequence[int]) -> None:
        """Let nothing more follow these tokens."""
        for node in nodes:
            self.until[node] = len(self.ids)


def text_trees(texts: Sequence[tuple[int, ...]], most: int) -> Iterator[TextTree]:
    """Texts as trees of at most so many tokens; one that is longer is a tree by itself.

    Args:
        texts: Token ids, at least one text; they may be empty or equal.
        most: Tokens.

    Yields:
        Trees that have each text once; those that begin alike are in one, as far as it has room.
    """
    tree, path, last = TextTree.empty(), list[int](), tuple[int, ...]()
    for i in sorted(range(len(texts)), key=texts.__getitem__):
        text = texts[i]
        common = shared_length(last, text)
        if tree.ids and len(tree.ids) + len(text) - common > most:
            tree.close(path)
            yield tree
            tree, path, common = TextTree.empty(), [], 0
        tree.close(path[common:])
        new = len(text) - common
        path = [*path[:common], *range(len(tree.ids), len(tree.ids) + new)]
        tree.ids.extend(text[common:])
        tree.depth.extend(range(common, len(text)))
        tree.until.extend([0] * new)
        tree.texts.append(i)
        tree.paths.append(path)
        last = text
    tree.close(path)
    yield tree


def tree_passes(
    options: Sequence[Sequence[Continuation]],
) -> Iterator[tuple[list[int], list[TextTree]]]:
    """What follows each context, as passes of one tree for each of some rows, uneven ones apart.

    The last token of an option predicts nothing that is asked for: it is in no tree.
    """
    texts = [[(*rest, *target)[:-1] for _, rest, target in mine] for mine in options]
    trees = [list(text_trees(mine, TREE_TOKENS)) for mine in texts]
    for part in range(max(map(len, trees))):
        rows = [row for row, mine in enumerate(trees) if part < len(mine)]
        for some in evenly([len(trees[row][part].ids) for row in rows]):
            chosen = sorted(rows[i] for i in some)
            yield chosen, [trees[row][part] for row in chosen]


# ---------------------------------------------------------------- predictions of their tokens


class _Predictions:
    """Predictions that are asked for, each of them once, and the options that are made of them.

    Args:
        fuser: The sources and the fusion configs.
        options: Of each context.
        choices: Of each context.

    Attributes:
        asked: Place of the hidden state, token and context of each prediction, and how many tokens
            stand between that context and the text that it is of, to its index.
        made_of: Context, request and predictions of each option.
    """

    def __init__(
        self, fuser: Fuser, options: Sequence[Sequence[Continuation]], choices: Sequence[Choices]
    ) -> None:
        self.fuser, self.options, self.choices = fuser, options, choices
        self.vectors = torch.tensor([[fuser.vector(c) for c in mine] for mine in choices])
        self._clear()

    def _clear(self) -> None:
        self.asked: dict[tuple[int, int, int, int], int] = {}
        self.made_of: list[tuple[int, int, list[int]]] = []
        self.hidden: list[list[Tensor]] = [[] for _ in self.fuser.ensemble.sources]
        self.count = 0

    def _add(self, hidden: Sequence[Tensor]) -> range:
        """Add hidden states, a tensor per source; returns their places."""
        for pieces, piece in zip(self.hidden, hidden, strict=True):
            pieces.append(piece)
        self.count += len(hidden[0])
        return range(self.count - len(hidden[0]), self.count)

    def run(self, contexts: Prefilled, rows: list[int], trees: list[TextTree]) -> None:
        """Run one tree after each of some contexts, and note what its options are made of.

        Args:
            contexts: What is run after them is forgotten again.
            rows: Which of their rows, in order.
            trees: What follows each of these.
        """
        ends = self._add(contexts.ends)
        places: list[list[int]] = [[] for _ in rows]
        if any(tree.ids for tree in trees):
            places = self._feed(contexts, rows, trees)
        for row, tree, place in zip(rows, trees, places, strict=True):
            which = contexts.rows[row]
            for text, path in zip(tree.texts, tree.paths, strict=True):
                request, rest, target = self.options[which][text]
                before = [ends[row], *(place[node] for node in path)][len(rest) :]
                pairs = zip(before, target, strict=True)
                keys = [(at, token, which, len(rest)) for at, token in pairs]
                mine = [self.asked.setdefault(key, len(self.asked)) for key in keys]
                self.made_of.append((which, request, mine))

    def _feed(self, contexts: Prefilled, rows: list[int], trees: list[TextTree]) -> list[list[int]]:
        """Run trees; for each row the places of its tokens among the hidden states."""
        ids, valid = padded([tree.ids for tree in trees])
        depth, until = (padded(part)[0] for part in zip(*(tree[3:] for tree in trees), strict=True))
        wanted = torch.zeros_like(valid)
        for at, (row, tree) in enumerate(zip(rows, trees, strict=True)):
            options = self.options[contexts.rows[row]]
            for text, path in zip(tree.texts, tree.paths, strict=True):
                wanted[at, path[max(0, len(options[text].rest) - 1) :]] = True
        whole = len(rows) == len(contexts.rows)
        batch = contexts.batch if whole else contexts.batch.fork(rows)
        slots = batch.table.slots
        batch.begin_draft()
        batch.table.branch(TreePlaces(depth, until), valid)
        places = torch.zeros_like(ids)
        for at, columns, hidden in batch.feed(ids, valid, wanted):
            added = self._add(hidden)
            places[at, columns] = torch.arange(added.start, added.stop)
        batch.rewind(slots)
        found: list[list[int]] = places.tolist()
        return found

    def scores(self) -> list[Scored]:
        """Score the options that were run, and forget them."""
        keys, made_of = list(self.asked), self.made_of
        hidden = self.hidden
        self._clear()
        if not made_of:
            return []
        place, token, which, _ = torch.tensor(keys).unbind(dim=1)
        states = [torch.cat(pieces) for pieces in hidden]
        first = {at: request for _, request, mine in reversed(made_of) for at in mine}
        with blame(first.__getitem__):
            view = LogitView(self.fuser.ensemble, [h[to_device(place, h.device)] for h in states])
            targets = to_device(token, self.fuser.ensemble.device)
            vectors = self.vectors[which].transpose(0, 1)  # [R, N, S]
            before = [-1] * len(keys)
            for *_, mine in made_of:
                for earlier, later in pairwise(mine):
                    before[later] = earlier
            found = compute_logprobs(self.fuser, view, targets, vectors, before)
        lengths = [len(mine) for *_, mine in made_of]
        at = torch.tensor([i for *_, mine in made_of for i in mine])
        scores = []
        for config, one in enumerate(found):
            split = zip(*(column[at].split(lengths) for column in one), strict=True)
            for (context, request, _), (logprobs, greedy, used) in zip(made_of, split, strict=True):
                choice = self.choices[context][config] or mean_choice(self.fuser, config, used)
                score = Score(float(logprobs.double().sum()), bool(greedy.all()), choice)
                scores.append((request, config, score))
        return scores
