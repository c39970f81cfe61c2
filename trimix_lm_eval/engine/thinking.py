"""Where the thinking of a text ends and its answer begins, of models that think beforehand.

The answer begins behind the first end of the thinking, as for vLLM's reasoning parsers (lm-eval's
``hf`` takes the last, and so loses the half of an answer that names it), and behind the white space
that follows. Stop strings count in the answer only, since thinking is full of line breaks. A text
that ends before its thinking does has no answer. `Sequence` asks here after every token.
"""

from __future__ import annotations

import collections.abc as abc
from typing import Any, NamedTuple


class AnswerStart(NamedTuple):
    """Where the answer begins in the tokens of a text: at once, unless the model thinks before.

    Attributes:
        start: Index of its first token.
        skip: Characters of that token that belong to what ends the thinking.
    """

    start: int = 0
    skip: int = 0


class ThinkingCriteria:
    """Tells where the thinking of a text ends and the answer begins.

    Args:
        tokenizer: Turns ids into text; special tokens are kept, as one may end the thinking.
        end: What ends the thinking: a text, of however many tokens, or the id of one token.
    """

    def __init__(self, tokenizer: Any, end: str | int) -> None:
        self.tokenizer, self.end = tokenizer, end
        text = tokenizer.decode([end]) if isinstance(end, int) else end
        own = (
            {end} if isinstance(end, int) else set(tokenizer.encode(end, add_special_tokens=False))
        )
        #: What models open the thinking with, where it is ended by a tag.
        self.opening = text.replace("/", "", 1) if "/" in text else None
        self.tail = len(text.encode()) + 4  # see `StopStringCriteria`
        added = tokenizer.added_tokens_decoder.items()
        #: Tokens that stand between the turns of a chat.
        self.marks = {i for i, token in added if str(token).strip()} - own
        self.marks.discard(tokenizer.bos_token_id)

    def over(self, prompt: abc.Sequence[int]) -> bool:
        """Whether the prompt ends the thinking, as chat templates do where none is wanted.

        Exemplars may show thinking, too: in a chat, what counts is the last turn, behind the last
        token that was added to the vocabulary; in plain text only the very end of the prompt.
        """
        last = max((at for at, token in enumerate(prompt) if token in self.marks), default=-1)
        turn = list(prompt[last + 1 :])
        if isinstance(self.end, int):
            ended = self.end in turn
            behind = turn[::-1].index(self.end) if ended else 0
            rest = self._text(turn[len(turn) - behind :])
        else:
            _, end, rest = self._text(turn).rpartition(self.end)
            ended = bool(end)
        if last < 0:
            return ended and not rest.strip()
        return ended and not (self.opening and self.opening in rest)

    def advance(self, token_ids: list[int], answer: AnswerStart | None) -> AnswerStart | None:
        """Where the answer begins, told after every token.

        Args:
            token_ids: All new tokens.
            answer: What was found before the last of them; None as long as the thinking goes on.
        """
        size = len(token_ids)
        if answer is not None:  # white space in front is none of its tokens
            blank = answer.start == size - 1 and not self._text(token_ids[-1:]).strip()
            return AnswerStart(size) if blank else answer
        if isinstance(self.end, int):
            return AnswerStart(size) if token_ids[-1] == self.end else None
        _, end, rest = self._text(token_ids[-self.tail :]).partition(self.end)
        if rest.strip():
            return AnswerStart(size - 1, max(0, len(self._text(token_ids[-1:])) - len(rest)))
        return AnswerStart(size) if end else None

    def _text(self, ids: abc.Sequence[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=False))
