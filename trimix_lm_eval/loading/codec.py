"""The codec between text and token ids: contexts, continuations, whole texts, completions.

Splits texts into tokens exactly as lm-eval's ``hf`` model does, so that the two score the same
tokens (invariant 1); each text is looked at on its own, not by the first of its batch. One thing is
other than in ``hf``, on purpose: a BOS at the beginning of what is scored is never scored, whether
the tokenizer put it there or the text has it. In ``hf`` it is predicted after the prefix token,
which is BOS, too, and costs each document some nats that say nothing of the text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from trimix_lm_eval.fusion.exemplars import answer_spans
from trimix_lm_eval.fusion.policies import Policy
from trimix_lm_eval.loading.settings import Settings
from trimix_lm_eval.utils.errors import TrimixError, warn_once
from trimix_lm_eval.utils.windows import Window, rolling_windows


class TokenizedPrompt(NamedTuple):
    """A context as token ids, at least one: the first fields of the engine's `Prompt`.

    ``prompt_mask`` says of each token whether policies that choose by answers only see it; None
    shows them all of it.
    """

    ids: tuple[int, ...]
    prompt_mask: tuple[bool, ...] | None = None


class TextCodec:
    """Text to token ids and back, around a tokenizer of transformers.

    Args:
        tokenizer: Of transformers.
        asked: For what concerns text: BOS, prefix token, end of thinking.
        policies: Of the fusion configs; they say whether they see answers only.
        vocab_size: Token ids that all sources know.
    """

    def __init__(
        self, tokenizer: Any, asked: Settings, policies: Iterable[Policy], vocab_size: int
    ) -> None:
        self.tokenizer, self.vocab_size = tokenizer, vocab_size
        #: The policies that see the answers of exemplars only, by name.
        self.answers_only = sorted({policy.name for policy in policies if policy.answers_only})
        self.prefix_token_id = asked.prefix_token_id
        self.add_bos_token = asked.add_bos_token
        self.think_end_token = asked.think_end_token
        self._last: tuple[str, TokenizedPrompt] = ("", TokenizedPrompt(()))

    @property
    def prefix_id(self) -> int:
        """The token before a text that has no context."""
        for token in (self.prefix_token_id, self.tokenizer.bos_token_id):
            if token is not None:
                return int(token)
        return int(self.tokenizer.eos_token_id)

    @property
    def puts_bos(self) -> bool:
        """Whether the tokenizer, as it is used, puts a BOS before a text by itself."""
        bos = self.tokenizer.bos_token_id
        return bos is not None and self.encode("a")[:1] == [bos]

    def encode(self, text: str, add_special_tokens: bool | None = None) -> list[int]:
        """Token ids, each text looked at on its own: no second BOS where it begins with one."""
        text = whole_characters(text)
        special = self._special(text, add_special_tokens)
        # Not verbose: what is longer than the context is cut into windows, or cut with a warning.
        ids = list(self.tokenizer.encode(text, verbose=False, **special))
        if ids and max(ids) >= self.vocab_size:
            token = self.tokenizer.convert_ids_to_tokens(max(ids))
            raise TrimixError(
                f"A text holds the token {token!r} (id {max(ids)}), which not all sources know.",
                "use models of one vocabulary, or a task (or chat template) without that token",
            )
        return ids

    def _special(self, text: str, add_special_tokens: bool | None = None) -> dict[str, bool]:
        if add_special_tokens is not None:
            return {"add_special_tokens": add_special_tokens}
        starts = (self.tokenizer.decode([self.prefix_id]), self.tokenizer.bos_token)
        if any(start and text.startswith(start) for start in starts):
            return {"add_special_tokens": False}
        if self.add_bos_token is not None:
            return {"add_special_tokens": self.add_bos_token}
        return {}

    def prompt(self, text: str) -> TokenizedPrompt:
        """A context as token ids, with what the policies may see."""
        found = self._context(text)
        return found if found.ids else TokenizedPrompt((self.prefix_id,))

    def _context(self, text: str) -> TokenizedPrompt:
        """The tokens of a context, which may be none."""
        if text != self._last[0]:  # the options of a question come one after another
            ids = self.encode(text) if text else []
            mask = self._prompt_mask(text, len(ids)) if ids else None
            self._last = (text, TokenizedPrompt(tuple(ids), mask))
        return self._last[1]

    def _prompt_mask(self, text: str, length: int) -> tuple[bool, ...] | None:
        """Which tokens are of the exemplars' answers; None if no policy asks or there are none."""
        if not self.answers_only:
            return None
        added = self.tokenizer.added_tokens_decoder.values()
        spans = answer_spans(text, [str(token) for token in added if token.special])
        if not spans:
            warn_once(
                f"policy={'|'.join(self.answers_only)} found no exemplar answers in a prompt: such "
                "prompts are judged as a whole. Exemplars must be separated by a blank line "
                "(lm-eval's fewshot_delimiter) and end in the same cue, e.g. 'Answer:'."
            )
            return None
        text = whole_characters(text)
        encoded = self.tokenizer(text, return_offsets_mapping=True, **self._special(text))
        offsets = encoded["offset_mapping"]
        if len(offsets) != length:
            return None
        mask = tuple(
            any(start < end and start < right and end > left for left, right in spans)
            for start, end in offsets
        )
        return mask if any(mask[1:]) else None

    def pair(self, context: str, continuation: str) -> tuple[TokenizedPrompt, tuple[int, ...]]:
        """Split a pair into tokens as lm-eval does (`TemplateLM.loglikelihood`).

        A BOS that has nothing before it but the prefix token or another BOS is no part of the
        continuation, which is scored.
        """
        if not context:
            target = self.encode(continuation, add_special_tokens=False)
            if target and target[0] == self.prefix_id:
                target = target[1:]
            return TokenizedPrompt((self.prefix_id,)), tuple(self._without_bos(target))
        stripped = context.rstrip()
        if not stripped:
            # White space alone: nothing is left of the context once it moves to the continuation.
            return self.pair("", context + continuation)
        continuation = context[len(stripped) :] + continuation
        ids, mask = self._context(stripped)
        whole = self.encode(stripped + continuation)
        if len(whole) <= len(ids) and continuation:
            # A token spans the border: give it to the continuation, so that it is not lost.
            ids = ids[: common_length(ids, whole)]
            mask = mask[: len(ids)] if mask and ids else None
        rest: Sequence[int] = whole[len(ids) :]
        if not self._without_bos(ids):
            rest = self._without_bos(rest)
        return TokenizedPrompt(ids or (self.prefix_id,), mask), tuple(rest)

    def windows(self, text: str, max_length: int) -> list[Window]:
        """Cut a whole text into the windows that it is scored in; a BOS that it begins with is not.

        None for a text that has no tokens but BOS; see `rolling_windows`.
        """
        return rolling_windows(self._without_bos(self.encode(text)), self.prefix_id, max_length)

    def _without_bos(self, ids: Sequence[int]) -> Sequence[int]:
        """The tokens behind the BOS that they begin with; where there is no BOS, EOS stands for it.

        All of them, where there are several: a BOS is never predicted after a BOS.
        """
        tokenizer = self.tokenizer
        bos = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        first = next((i for i, token in enumerate(ids) if token != bos), len(ids))
        return ids[first:]

    def completion(
        self, ids: Sequence[int], stop: Iterable[str], answer: tuple[int, int] | None = (0, 0)
    ) -> str:
        """The answer in generated token ids, before the first stop string.

        ``answer`` is the index of the token with which the answer begins, behind the thinking, and
        how many characters of it belong to the thinking; None if the thinking has not ended, so
        that there is no answer (see `engine.sequence`).
        """
        if answer is None:
            warn_once(
                "A text ended before its thinking did, so its answer is empty; results count such "
                "texts under config.trimix.unfinished_thoughts. Raise max_gen_toks; for a model "
                "that does not think, leave think_end_token out."
            )
            return ""
        start, skip = answer
        text = str(self.tokenizer.decode(ids[start:], skip_special_tokens=True))[skip:]
        if self.think_end_token is not None:
            text = text.lstrip()
        for term in stop:
            if term:
                text = text.split(term)[0]
        return text


def check_token_ids(asked: Settings, vocab_size: int) -> None:
    """Check that the tokens which settings name by their ids exist."""
    for name, hint in (
        ("prefix_token_id", "leave it out to take BOS, or EOS where there is none"),
        (
            "think_end_token",
            "give the text that ends the thinking, or the id of its token",
        ),
    ):
        token = getattr(asked, name)
        if isinstance(token, int) and token >= vocab_size:
            what = f"{name}={token} is no token: the vocabulary has {vocab_size}."
            raise TrimixError(what, hint)


def seed_for(seed: int, *parts: object) -> int:
    """A seed that depends on what a request is, not on when it is run."""
    text = "\x1f".join([str(seed), *map(str, parts)])
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:6], "big")


def whole_characters(text: str) -> str:
    """The text without halves of surrogate pairs, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        warn_once("A text holds half a surrogate pair: replaced by U+FFFD.")
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def common_length(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common prefix of two token lists."""
    n = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        n += 1
    return n
