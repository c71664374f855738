"""Text and labels from the files people keep them in.

    .txt             a text a line
    .jsonl           an object a line
    .csv  .tsv       columns by the names in the first row, or by number where there are none
    .parquet         columns by name; needs pyarrow
Each may be compressed: .txt.gz and so on, parquet excepted.
"""

import csv
import gzip
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from momacli.data.leaving_out import LeaveOut, refuse
from momacli.errors import DataError

TEXT_SUFFIXES = (".txt", ".jsonl", ".csv", ".tsv", ".parquet")

_LONGEST = 1 << 26
"""Characters of a line, or of a field of a table."""

_Record = dict[str, Any]


@dataclass(frozen=True)
class Columns:
    """Which columns hold what, by name; by number, from 1, in a file without a header.

    text: one column, or two separated by a comma for models that take pairs. By default the
        column `text`, or the only one beside the label.
    """

    text: str | None = None
    label: str | None = None


@dataclass(frozen=True)
class Table:
    """Rows of text in their order; a pair's second text and labels where asked for."""

    files: tuple[Path, ...]
    texts: Sequence[str]
    pairs: Sequence[str] | None
    labels: Sequence[str | int] | None


def is_table(path: Path) -> bool:
    """Whether a file is text by its name."""
    return _suffix(path) in TEXT_SUFFIXES


def read_table(
    path: Path, columns: Columns, *, labeled: bool = False, leave_out: LeaveOut = refuse
) -> Table:
    """Read a file, or all files of a folder in the order of their names.

    leave_out: told of each line that cannot be read, which is then passed over; by default it
        refuses the file.

    Raises DataError naming file, line and column where something is missing.
    """
    files = [path]
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and is_table(file))
        if not files:
            suffixes = " ".join(TEXT_SUFFIXES)
            raise DataError(f"{path} holds no text", hint=f"texts are files with {suffixes}")
    texts: list[str] = []
    pairs: list[str] = []
    labels: list[str | int] = []
    for file in files:
        records = _records(file, columns, leave_out)
        first = next(records, None)
        if first is None:
            continue
        names = _text_columns(file, first, columns)
        label = columns.label or "label"
        for number, record in enumerate(_again(first, records), start=1):
            values = [_text(file, number, record, name) for name in names]
            texts.append(values[0])
            pairs += values[1:]
            if labeled:
                labels.append(_label(file, number, record, label))
    if not texts:
        raise DataError(f"{path} holds no text: there is nothing in it")
    if pairs and len(pairs) != len(texts):
        raise DataError(f"{path}: some files hold pairs of texts and some single ones")
    return Table(tuple(files), texts, pairs or None, labels if labeled else None)


def _suffix(path: Path) -> str:
    name = path.name.lower().removesuffix(".gz")
    return name[name.rfind(".") :] if "." in name else ""


def _records(file: Path, columns: Columns, leave_out: LeaveOut) -> Iterator[_Record]:
    kind = _suffix(file)
    if kind not in TEXT_SUFFIXES:
        raise DataError(
            f"{file} is no text that moma reads", hint=f"one of {' '.join(TEXT_SUFFIXES)} is needed"
        )
    try:
        if kind == ".txt":
            yield from _lines(file, leave_out)
        elif kind == ".jsonl":
            yield from _json_lines(file, leave_out)
        elif kind == ".parquet":
            yield from _parquet(file)
        else:
            yield from _delimited(file, "\t" if kind == ".tsv" else ",", columns, leave_out)
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}") from error
    except (EOFError, csv.Error) as error:
        raise DataError(f"{file} cannot be read: {error}") from error


@contextmanager
def _opened(file: Path, newline: str | None = None) -> Iterator[IO[str]]:
    opener = gzip.open if file.suffix.lower() == ".gz" else open
    with opener(
        file, "rt", encoding="utf-8-sig", errors="surrogateescape", newline=newline
    ) as stream:
        yield stream


def _sound_lines(file: Path, stream: IO[str], leave_out: LeaveOut) -> Iterator[tuple[int, str]]:
    """Number and content of each line that is UTF-8 and cannot fill the memory."""
    number = 0
    while line := stream.readline(_LONGEST + 1):
        number += 1
        if len(line) > _LONGEST:
            while line and not line.endswith("\n"):
                line = stream.readline(_LONGEST)
            leave_out(f"{file}, line {number} is longer than {_LONGEST} characters")
        elif not _is_utf8(line):
            leave_out(f"{file}, line {number} is not UTF-8")
        else:
            yield number, line


def _is_utf8(text: str) -> bool:
    """Whether no byte of the text was one that UTF-8 does not know."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _lines(file: Path, leave_out: LeaveOut) -> Iterator[_Record]:
    """Every line that is not blank; only a newline ends a line."""
    with _opened(file) as stream:
        for _, line in _sound_lines(file, stream, leave_out):
            if line.strip():
                yield {"text": line.rstrip("\n")}


def _json_lines(file: Path, leave_out: LeaveOut) -> Iterator[_Record]:
    with _opened(file) as stream:
        for number, line in _sound_lines(file, stream, leave_out):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as error:
                leave_out(f"{file}, line {number}: {error}")
            except RecursionError:
                leave_out(f"{file}, line {number} is nested too deeply")
            else:
                if isinstance(record, dict):
                    yield record
                else:
                    leave_out(f"{file}, line {number} is not a JSON object")


def _delimited(
    file: Path, delimiter: str, columns: Columns, leave_out: LeaveOut
) -> Iterator[_Record]:
    """Rows by the header's names, or by number if columns are asked for by number."""
    wanted = [*(columns.text or "").split(","), columns.label or ""]
    numbered = any(name.strip().isdigit() for name in wanted)
    csv.field_size_limit(_LONGEST)
    with _opened(file, newline="") as stream:
        lines = (line for _, line in _sound_lines(file, stream, leave_out))
        rows = csv.reader(lines, delimiter=delimiter)
        header: list[str] | None = None
        for row in rows:
            if not row:
                continue
            if numbered:
                yield {str(number): value for number, value in enumerate(row, start=1)}
            elif header is None:
                header = row
            elif len(row) != len(header):
                raise DataError(
                    f"{file}, line {rows.line_num}: {len(row)} columns, the header has "
                    f"{len(header)}",
                    hint="a file without a header is read with --text-column NUMBER",
                )
            else:
                yield dict(zip(header, row, strict=True))


def _parquet(file: Path) -> Iterator[_Record]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise DataError(
            f"reading {file} needs pyarrow, which is not installed",
            hint="pip install pyarrow, or keep the texts as .jsonl",
        ) from error
    try:
        with ParquetFile(file) as opened:
            for batch in opened.iter_batches():
                yield from batch.to_pylist()
    except ArrowException as error:
        raise DataError(f"{file} cannot be read: {error}") from error


def _text_columns(file: Path, record: _Record, columns: Columns) -> list[str]:
    if columns.text is not None and _suffix(file) != ".txt":
        names = [name.strip() for name in columns.text.split(",")]
        if len(names) > 2:
            raise DataError(f"one text column or two were expected, found {len(names)}: {names}")
        return names
    if "text" in record:
        return ["text"]
    label = columns.label or "label"
    found = [name for name, value in record.items() if name != label and isinstance(value, str)]
    if len(found) == 1:
        return found
    raise DataError(
        f"{file} has no column text",
        details=[str(name) for name in record],
        hint="say which with --text-column NAME, or NAME,NAME for pairs",
    )


def _text(file: Path, number: int, record: _Record, name: str) -> str:
    if name not in record:
        raise _missing(file, number, record, name, "--text-column")
    value = record[name]
    if not isinstance(value, str):
        raise DataError(f"{file}, row {number}: column {name} holds {value!r}, not a text")
    if not _is_utf8(value):  # half a surrogate pair, escaped in JSON
        raise DataError(f"{file}, row {number}: column {name} holds characters that are none")
    return value


def _label(file: Path, number: int, record: _Record, name: str) -> str | int:
    if name not in record:
        raise _missing(file, number, record, name, "--label-column")
    value = record[name]
    if not isinstance(value, (str, int)):
        raise DataError(f"{file}, row {number}: column {name} holds {value!r}, not a class")
    return value


def _missing(file: Path, number: int, record: _Record, name: str, option: str) -> DataError:
    return DataError(
        f"{file}, row {number} has no column {name}",
        details=[str(key) for key in record],
        hint=f"say which with {option}",
    )


def _again(first: _Record, rest: Iterator[_Record]) -> Iterator[_Record]:
    yield first
    yield from rest
