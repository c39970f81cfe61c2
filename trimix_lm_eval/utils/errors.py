"""Errors that a user can fix: one message with what happened, where, and what to do.

Everything that a user can cause (a wrong argument, a gated repository, a tokenizer that does not
match) is a `TrimixError`. At the top of a program it is printed as its message alone; a traceback
is kept for what only a programmer can fix.
"""

from __future__ import annotations

import errno
import logging
import re
import sys
from collections.abc import Iterable, Sequence
from types import TracebackType

logger = logging.getLogger("trimix_lm_eval")

#: Characters of a value that messages show in full.
_LONGEST = 200

_warned: set[str] = set()

#: Of a word of more than a thousand characters, what is shown.
_LONG = re.compile(r"(\S{200})\S{800,}(\S{40})")
#: How errors of no kind of their own say that memory ran out: PyTorch's on a CPU ("can't allocate",
#: on Windows "not enough"), the CUDA runtime's, and those of the libraries for GPUs, of which
#: cuBLAS, where it finds no room to begin, says that it was not initialized.
_NO_MEMORY = re.compile(
    r"out of memory|(can't|cannot) allocate memory|not enough memory|\bbad_alloc\b|ALLOC_FAILED\b"
    r"|NOT_INITIALIZED when calling `cublas\w*Create|(_STATUS|_status)_MEMORY_ERROR",
    re.IGNORECASE,
)


class TrimixError(Exception):
    """Something that the user can fix.

    Args:
        what: What happened and where, in one sentence or two.
        hint: What to do about it.
    """

    def __init__(self, what: str, hint: str = "") -> None:
        # What others' libraries say of a value has all of it, however long.
        told = f"{what}\n  -> {hint}" if hint else what
        super().__init__(_LONG.sub(r"\1…\2", told))


def together(errors: Sequence[TrimixError]) -> TrimixError:
    """Several errors as one, each on lines of its own, so that all can be fixed at once."""
    return errors[0] if len(errors) == 1 else TrimixError("\n".join(map(str, errors)))


def unknown(kind: str, given: object, accepted: Iterable[str]) -> TrimixError:
    """The error for a name that is not one of those accepted, with the nearest guess.

    ``kind`` says what it names, e.g. ``"policy"``.
    """
    names = sorted(accepted)
    near = did_you_mean(given, names) if isinstance(given, str) else ""
    what = f"Unknown {kind} {quoted(given)}.{near}"
    return TrimixError(what, f"accepted: {', '.join(names)}")


def quoted(value: object) -> str:
    """A value as messages show it: as Python writes it, and no longer than a line or two.

    Python may be unable to: a whole number of more than 4,300 digits is an error there.
    """
    try:
        written = repr(value)
    except Exception:
        return f"<{type(value).__name__} that cannot be written>"
    middle = f"… ({len(written):,} characters) …"
    return written if len(written) <= _LONGEST else f"{written[:80]}{middle}{written[-20:]}"


def did_you_mean(given: str, accepted: Iterable[str]) -> str:
    """A sentence with the nearest of some names, a blank in front; empty if none is near."""
    from difflib import get_close_matches

    # Of longer ones there is no typo to guess at, and guessing takes time that grows with them.
    near = get_close_matches(given[:_LONGEST], list(accepted), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def first_line(error: BaseException) -> str:
    """The first line of another library's message, or what kind of error it is.

    Of a line that ends in a colon the next one is the point.
    """
    first, *more = str(error).strip().splitlines() or [type(error).__name__]
    return f"{first} {more[0].strip()}" if more and first.endswith(":") else first


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, of a GPU or of the host.

    Only PyTorch's own allocator for GPUs raises an error of its own kind. A CPU's, and libraries
    that allocate by themselves, are known by what they say; of an error that was raised on the way
    out of another (the end of a capture that failed), the first one counts, too.
    """
    import torch

    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if not isinstance(error, RuntimeError):
        return False
    before = error.__cause__ or error.__context__
    told = _NO_MEMORY.search(str(error)) is not None
    return told or (before is not None and is_out_of_memory(before))


def warn_once(message: str, what: str = "") -> None:
    """Log a warning the first time that it is seen in the process.

    Args:
        message: The warning.
        what: What is warned of, where the message has a number that grows; else the message.
    """
    if (what or message) not in _warned:
        _warned.add(what or message)
        logger.warning(message)


def install_excepthook() -> None:
    """Let an uncaught `TrimixError`, or Ctrl-C, print its message without a traceback.

    The stock ``lm_eval`` command does not know our errors, so this is how its users are spared
    the traceback. Every other exception goes to the hook that was there before.
    """
    before = sys.excepthook
    if getattr(before, "prints_trimix_errors", False):
        return

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if isinstance(error, TrimixError):
            print(f"error: {error}", file=sys.stderr)
        elif isinstance(error, KeyboardInterrupt):
            print("interrupted; with --use_cache a rerun goes on from here", file=sys.stderr)
        else:
            before(kind, error, trace)

    hook.prints_trimix_errors = True  # type: ignore[attr-defined]
    sys.excepthook = hook
