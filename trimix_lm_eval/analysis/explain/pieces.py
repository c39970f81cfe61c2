"""Tokens as text: what a token's bytes are, and which tokens make up a character together.

Tokenizers with bytes split the characters of many scripts: a Tibetan letter is three bytes, and
may be three tokens. Such tokens are shown as one group, and so are a letter and the marks on it,
which a reader takes for one. Nothing is ever shown as U+FFFD: bytes that are no character are
written in hexadecimal.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from trimix_lm_eval.analysis.explain.records import Group

_FALLBACK = re.compile(r"<0x([0-9A-F]{2})>")
_VIRAMA = 9  # canonical combining class: joins two consonants into one shape
_JOINER = "\u200d"


def _byte_alphabet() -> dict[str, int]:
    """The character that stands for each byte in byte-level BPE (Radford et al. 2019, GPT-2)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    alphabet = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in printable]
    return alphabet | {chr(256 + i): byte for i, byte in enumerate(others)}


class Pieces:
    """The texts of a tokenizer's tokens; the tokenizer is one of transformers."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._alphabet = _byte_alphabet() if _is_byte_level(tokenizer) else {}

    def bytes(self, token: int) -> bytes:
        """What a token stands for."""
        piece = self.tokenizer.convert_ids_to_tokens(token)
        if piece is None:  # a row of the embedding that the tokenizer does not know
            return f"[{token}]".encode()
        if token in self.tokenizer.added_tokens_decoder:
            return str(piece).encode()
        if self._alphabet and all(char in self._alphabet for char in piece):
            return bytes(self._alphabet[char] for char in piece)
        fallback = _FALLBACK.fullmatch(piece)
        if fallback:
            return bytes([int(fallback[1], 16)])
        return str(piece).replace("\u2581", " ").encode()

    def label(self, token: int) -> str:
        """A token by itself."""
        return "".join(text for text, _ in _characters(self.bytes(token)))

    def groups(self, tokens: Sequence[int]) -> tuple[Group, ...]:
        """A text's tokens, those together that share a character."""
        parts = [self.bytes(token) for token in tokens]
        at = 0
        starts: dict[int, int] = {}  # byte -> index of the token that begins there
        for index, part in enumerate(parts):
            starts.setdefault(at, index)
            at += len(part)
        groups: list[Group] = []
        at, text, first = 0, "", 0
        for shown, size in _characters(b"".join(parts)):
            if at in starts and text and not _joins(text, shown):
                groups.append(Group(text, first, starts[at]))
                text, first = "", starts[at]
            text += shown
            at += size
        return (*groups, Group(text, first, len(parts))) if parts else ()


def _is_byte_level(tokenizer: Any) -> bool:
    """Whether its pieces are spelled in the alphabet of bytes: then Ġ is a space."""
    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    return decoder is not None and decoder.decode(["Ġ"]) == " "


def _joins(before: str, char: str) -> bool:
    """Whether a character belongs to the shape of the text before it."""
    last = before[-1]
    if last in "⟩\n" or unicodedata.category(last)[0] in "ZC" and last != _JOINER:
        return False
    mark = unicodedata.category(char[0])[0] == "M" or char[0] in "\u200c\u200d"
    return mark or unicodedata.combining(last) == _VIRAMA or last == _JOINER


def _characters(raw: bytes) -> list[tuple[str, int]]:
    """Bytes as characters: each as it is shown, and how many bytes it takes."""
    found: list[tuple[str, int]] = []
    at = 0
    while at < len(raw):
        shown, size = f"⟨{raw[at]:02X}⟩", 1
        for length in range(1, 5):
            try:
                char = raw[at : at + length].decode()
            except UnicodeDecodeError:
                continue
            if char == "\ufffd" or (unicodedata.category(char) == "Cc" and char not in "\n\t"):
                char = f"⟨{raw[at : at + length].hex(' ').upper()}⟩"
            shown, size = char, length
            break
        found.append((shown, size))
        at += size
    return found
