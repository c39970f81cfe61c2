"""What was read, what is done with it and what came of it, for reading."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from trimix_lm_eval.training.cpt import scripts
from trimix_lm_eval.training.cpt.cleaning import REASONS
from trimix_lm_eval.training.cpt.config import Config
from trimix_lm_eval.training.cpt.plan import TrainingPlan

#: Below this share of letters in the expected script, a text is taken to be something else.
_MOSTLY = 0.5
#: Steps below which a cosine is hardly one.
_FEW_STEPS = 20
#: Bits of a byte that nothing is known of.
_GUESSED = 8
#: Tokens per character above which a tokenizer has next to no pieces of a script, but its bytes.
_BYTES = 1.5
_WIDTH = 11


def of_corpus(report: Mapping[str, Any], config: Config) -> Iterator[str]:
    """What became of the text."""
    for title, key in (("text", "text"), ("English", "english")):
        if key in report:
            yield from _of_text(title, report[key], config)
    parts = [
        f"{_count(report[key]['documents'], 'document')} ({report[key]['bytes']:,} bytes) {what}"
        for key, what in (
            ("held_out", "choose the checkpoint"),
            ("test", "are measured and choose nothing"),
        )
        if report[key]["documents"]
    ]
    yield _entry("held out", "; ".join(parts))
    yield from _warnings(report["text"], config)


def _of_text(title: str, account: Mapping[str, Any], config: Config) -> Iterator[str]:
    files = account["files"]
    yield _entry(title, f"{_count(len(files), 'file')}, {_count(account['lines'], 'line')}")
    for file in files:
        if "copy of" in file:
            yield _entry("", f"{file['name']} is a copy of {file['copy of']}: not read again")
        elif not file["lines"]:
            yield _entry("", f"{file['name']} is empty")
    yield _entry(
        "",
        f"{account['kept']:,} kept, in {_count(account['documents'], 'document')} of "
        f"{account['characters']:,} characters, {account['bytes']:,} bytes, "
        f"{account['tokens']:,} tokens",
    )
    if account["held out"]:
        yield _entry("", f"{account['held out']:,} held out")
    for reason, lost in account["dropped"].items():
        why = f" ({REASONS[reason]})" if reason in REASONS else ""
        yield _entry("", f"{lost['lines']:,} dropped: {reason}{why}")
    if any(reason != "empty" for reason in account["dropped"]):
        yield _entry("", f"what was dropped is in {config.work / 'data' / 'dropped.jsonl'}")
    shares = [f"{name} {share:.1%}" for name, share in account["scripts"].items() if share >= 0.001]
    yield _entry("scripts", ", ".join(shares) or "no letters")
    yield _entry(
        "tokenizer",
        f"{account['tokens per character']:.2f} tokens per character, "
        f"{account['bytes per token']:.2f} bytes per token",
    )


def _warnings(account: Mapping[str, Any], config: Config) -> Iterator[str]:
    """What may be wrong with the text of the language, and is left to the user."""
    per_character = account["tokens per character"]
    if per_character > _BYTES:
        yield (
            f"warning: the tokenizer cuts a character into {per_character:.1f} tokens: it hardly "
            "knows this script. Training takes as many times longer (max_bytes reads less of the "
            "text), and a context holds as many times less"
        )
    names = [scripts.NAMES[code] for code in scripts.expected(config.language)]
    share = sum(account["scripts"].get(name, 0.0) for name in names)
    if names and share < _MOSTLY:
        yield (
            f"warning: {share:.0%} of the letters are {' or '.join(names)}, the script of "
            f"{config.language}: is this the right text, and the right code?"
        )
    elif account["lines mostly in another script"]:
        yield (
            f"note: {_count(account['lines mostly in another script'], 'line')} mostly in another "
            "script, kept"
        )
    if account["lines not in NFC"]:
        done = "were normalised" if config.nfc else "are kept as they are; nfc: true normalises"
        yield f"note: {_count(account['lines not in NFC'], 'line')} not in NFC {done}"
    if account["lines with private-use characters"]:
        yield (
            f"warning: {_count(account['lines with private-use characters'], 'line')} with "
            "private-use characters, kept: text for a font of its own should be converted first"
        )


def of_plan(plan: TrainingPlan, config: Config, packed: bool) -> Iterator[str]:
    """What the run will do."""
    english = f" and {plan.english:,} of English" if plan.english else ""
    yield _entry(
        "training",
        f"{_count(plan.steps, 'step')} of {plan.batch:,} x {plan.length:,} tokens = "
        f"{plan.epochs:.3g} times {_count(plan.rows, 'row' if packed else 'block')}{english}",
    )
    if not packed:
        yield _entry(
            "",
            "each document in a row of its own, rows of one length in a block: in one row this "
            "model would see the document before",
        )
    what = f"LoRA of rank {config.lora_rank}" if config.lora_rank else "all weights"
    yield _entry(
        "",
        f"{what}, learning rate {config.learning_rate:g} to {config.min_learning_rate:g}, warm-up "
        f"{_count(plan.warmup, 'step')}; measured every {_count(plan.every, 'step')}",
    )
    wanted = max(1, config.batch_tokens // config.sequence_length)
    if plan.length < config.sequence_length:
        yield f"note: sequence_length is {plan.length:,}, the context of {config.base}"
    elif plan.batch > wanted:
        yield f"note: batches have {plan.batch} rows, not {wanted}: as many for each process"
    if plan.steps < _FEW_STEPS:
        yield (
            f"warning: {_count(plan.steps, 'step')} will hardly train the model; a smaller "
            "batch_tokens or more epochs make more steps (`trimix new-language` chooses them)"
        )


def of_english(report: Mapping[str, Any], plan: TrainingPlan) -> Iterator[str]:
    """Whether there is enough English."""
    if not plan.english:
        return
    times = report["english"]["tokens wanted"] / report["english"]["tokens"]
    if times > 1:
        yield f"note: all English there is, is read {times:.1f} times to keep the ratio"


def of_base(before: Mapping[str, float]) -> Iterator[str]:
    """How well the base knows held-out text, before anything is trained."""
    bits = before["held_out"]
    yield _entry("before", f"{bits:.4f} bits per byte of held-out text")
    if bits > _GUESSED:
        yield (
            f"warning: that is more than {_GUESSED} bits, what guessing a byte takes: the base has "
            "hardly seen such text, and what a large model of its family says of it is no better"
        )


def of_result(measured: Mapping[str, Any]) -> Iterator[str]:
    """What training has changed in bits per byte, by text."""
    for name, numbers in measured.items():
        before, after = numbers["before"], numbers["after"]
        yield _entry(
            name.replace("_", " "),
            f"{before:.4f} bits per byte before, {after:.4f} after ({after / before - 1:+.1%})",
        )
    if any(numbers["after"] >= numbers["before"] for numbers in measured.values()):
        yield "warning: training has not made the model better at held-out text"


def _entry(title: str, text: str) -> str:
    return f"{title:<{_WIDTH}}{text}"


def _count(number: int, name: str) -> str:
    return f"{number:,} {name}{'' if number == 1 else 's'}"
