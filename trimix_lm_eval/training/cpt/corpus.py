"""Text -> rows of tokens on disk, with an account of it; done once, by one process.

    <output>/cpt/data/text.tokens, english.tokens     see `packing`, also for .ends
    <output>/cpt/data/held_out.jsonl, test.jsonl      documents
    <output>/cpt/data/dropped.jsonl                   every line that is not used, and why
    <output>/cpt/data/report.json                     the account
    <output>/cpt/data/sealed.json                     checksums of all these, see `seals`

The folder appears when all of it is there. One that is damaged is made again, from the same text.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from trimix_lm_eval.training.cpt import holdout, seals, texts
from trimix_lm_eval.training.cpt.cleaning import NEAR, Account, Cleaner, Document, write_dropped
from trimix_lm_eval.training.cpt.config import Config
from trimix_lm_eval.training.cpt.packing import Blocks, Packer, Rows
from trimix_lm_eval.training.cpt.plan import plan
from trimix_lm_eval.utils import io
from trimix_lm_eval.utils.errors import TrimixError
from trimix_lm_eval.utils.progress import progress_bar

#: What training and measuring depend on.
_DECIDING = (
    *("text.tokens", "text.ends", "english.tokens", "english.ends"),
    *("held_out.jsonl", "test.jsonl"),
)
_LEAST = 4  # documents that are held out, whatever the share: one or two tell little
_SOME = 64  # documents of English that are tokenized before their tokens are counted


class Corpus(NamedTuple):
    """What `prepare` made: rows, held-out documents that decide and that do not."""

    text: Rows | Blocks
    english: Rows | Blocks
    held_out: list[str]
    test: list[str]


def load(config: Config, length: int, filler: int, packed: bool) -> Corpus:
    """What was made before, in rows of a length: `Rows` if they are packed, else `Blocks`."""
    folder = config.work / "data"
    kind = Rows if packed else Blocks
    return Corpus(
        kind(folder / "text.tokens", length, filler),
        kind(folder / "english.tokens", length, filler),
        _read_documents(folder / "held_out.jsonl"),
        _read_documents(folder / "test.jsonl"),
    )


def account(config: Config) -> dict[str, Any]:
    """The account of what was made before."""
    found: dict[str, Any] = json.loads(
        (config.work / "data" / "report.json").read_text(encoding="utf-8")
    )
    return found


def prepare(config: Config, found: texts.Inputs, tokenizer: Any, length: int, world: int) -> None:
    """Read, clean, hold out, tokenize: once, or again if what was made is damaged.

    Raises:
        TrimixError: A file cannot be read, or no text is left; or a run has begun with prepared
            text that is damaged and cannot be made again.
    """
    folder = config.work / "data"
    damaged = seals.faults(folder) if folder.is_dir() else None
    if damaged == []:
        return
    if folder.is_dir():
        name = (damaged or [seals.SEAL])[0]
        print(f"warning: {folder / name} is damaged or missing: the text is prepared again")
    new = _made(config, found, tokenizer, length, world)
    if folder.is_dir():
        begun = any((config.work / name).exists() for name in ("before.json", "checkpoints"))
        if begun and not _as_before(folder, new):
            raise TrimixError(
                f"{folder} is damaged, and what is made of the text now is something else.",
                f"delete {config.work} to begin again",
            )
        shutil.rmtree(folder)
    new.rename(folder)


def _as_before(old: Path, new: Path) -> bool:
    """Whether each file made again is what was sealed, or what lies there."""
    known, now = seals.sealed(old), seals.sealed(new)
    return all(
        known.get(name) == now[name] or not seals.changed(old, {name: now[name]})
        for name in _DECIDING
    )


def _made(config: Config, found: texts.Inputs, tokenizer: Any, length: int, world: int) -> Path:
    """Prepare the text beside its place; returns the folder."""
    new = config.work / "data.new"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    with (new / "dropped.jsonl").open("w", encoding="utf-8") as dropped:
        report: dict[str, Any] = {}
        tokens, guard = _text(config, found.text, tokenizer, new, dropped, report)
        wanted = plan(config, length, -(-tokens // length), world).english_rows * length
        if found.english:
            cleaner = Cleaner(dropped, "eng_Latn", config.deduplicate, False, guard.hits)
            report["english"] = _english(cleaner, found.english, tokenizer, new, wanted)
        else:
            Packer(tokenizer, new / "english.tokens").close()
    io.write_json(new / "report.json", report)
    found.check_unchanged()
    seals.seal(new)
    return new


def _text(
    config: Config,
    found: list[texts.Source],
    tokenizer: Any,
    folder: Path,
    dropped: TextIO,
    report: dict[str, Any],
) -> tuple[int, holdout.Decontaminator]:
    """Prepare the text of the language; returns its tokens, and what keeps from held-out text."""
    given = {
        name: holdout.read(path, config.text_field)
        for name, path in (("held_out", config.held_out), ("test", config.test))
        if isinstance(path, Path)
    }
    # Before any are drawn: what a file keeps out must not decide which checkpoint is best.
    guard = holdout.Decontaminator(itertools.chain(*given.values()))
    cleaner = Cleaner(dropped, config.language, config.deduplicate, config.nfc, guard.hits)
    account = cleaner.account
    drawn = holdout.Drawn(config.seed)
    clean = folder / "clean.jsonl"
    with clean.open("w", encoding="utf-8") as out:
        for document in documents(cleaner, found, "reading", config.max_bytes):
            drawn.add(document.text)
            json.dump(document, out, ensure_ascii=False)
            out.write("\n")
    if not account.kept:
        raise no_text(account, "text")
    held: dict[int, str] = {}
    if not isinstance(config.held_out, Path):
        held = drawn.chosen(config.held_out, _LEAST)
        given["held_out"] = list(held.values())
        guard.add(given["held_out"])
    packer = Packer(tokenizer, folder / "text.tokens")
    packer.add(_to_train_on(clean, set(held), guard, account, dropped))
    packer.close()
    clean.unlink()
    if not packer.tokens:
        raise no_text(account, "text")
    report["text"] = {**account.plain(), **_fertility(packer, account)}
    for name in ("held_out", "test"):
        some = given.get(name, [])
        rows = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in some)
        io.write(folder / f"{name}.jsonl", "".join(rows))
        report[name] = {"documents": len(some), "bytes": sum(len(text.encode()) for text in some)}
    return packer.tokens, guard


def _to_train_on(
    clean: Path,
    held: set[int],
    guard: holdout.Decontaminator,
    account: Account,
    dropped: TextIO,
) -> Iterator[str]:
    """The documents that are not held out; the account's sums are of these from then on."""
    total = account.documents
    account.documents = account.characters = account.bytes = 0
    with clean.open(encoding="utf-8") as rows:
        shown = progress_bar(rows, "tokenizing", total=total, unit="document", delay=1)
        for place, row in enumerate(shown):
            file, numbers, lines = json.loads(row)
            if place in held:
                account.kept -= len(lines)
                account.held_out += len(lines)
                continue
            kept = []
            for number, line in zip(numbers, lines, strict=True):
                if guard.hits(line):
                    size = len(line.encode())
                    account.kept -= 1
                    account.drop(NEAR, size)
                    write_dropped(dropped, NEAR, line, file, number, size)
                else:
                    kept.append(line)
            if kept:
                text = "\n".join(kept)
                account.add(text)
                yield text


def _english(
    cleaner: Cleaner, found: list[texts.Source], tokenizer: Any, folder: Path, wanted: int
) -> dict[str, Any]:
    """Prepare as much English as the run reads; what is called so may hold the language, too."""
    packer = Packer(tokenizer, folder / "english.tokens")
    stream = documents(cleaner, found, "reading English")
    while packer.tokens < wanted and (read := list(itertools.islice(stream, _SOME))):
        packer.add(document.text for document in read)
    stream.close()
    packer.close()
    account = cleaner.account
    if not packer.tokens:
        raise no_text(account, "english")
    return {**account.plain(), **_fertility(packer, account), "tokens wanted": wanted}


def documents(
    cleaner: Cleaner, found: list[texts.Source], title: str, most: int | None = None
) -> Generator[Document, None, None]:
    """The documents of all sources, or those up to so many bytes."""
    total = sum(source.size for source in found)
    read = 0
    bar = progress_bar(None, title, total=total or None, unit="B", unit_scale=True, delay=1)
    with bar:
        for source in found:
            for document in cleaner.documents(source):
                size = sum(len(line.encode()) + 1 for line in document.lines)
                bar.update(size)
                yield document
                read += size
                if most is not None and read >= most:
                    return


def _fertility(packer: Packer, account: Account) -> dict[str, Any]:
    """How many tokens text takes: what low-resource languages pay for a tokenizer not theirs."""
    return {
        "tokens": packer.tokens,
        "tokens per character": packer.text_tokens / max(1, account.characters),
        "bytes per token": account.bytes / max(1, packer.text_tokens),
    }


def no_text(account: Account, key: str) -> TrimixError:
    """The error for text of which nothing is left."""
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in account.dropped.most_common())
    return TrimixError(
        f"{key}: no text is left of {account.lines:,} lines in {len(account.files)} files"
        + (f" ({reasons})." if reasons else "."),
        "look at the files; a text in another encoding is converted by "
        "`iconv -f UTF-16 -t UTF-8 old.txt > new.txt`",
    )


def _read_documents(path: Path) -> list[str]:
    with path.open(encoding="utf-8") as rows:
        return [json.loads(row)["text"] for row in rows]
