"""One CSV file, whatever it came as: its content's SHA-256, and its rows with the line that each begins in.

The content is read twice: once for its SHA-256, which is its identity, and once for its rows. The second reading ends
where the first one did and must come to the same digest, so a file that grows or changes meanwhile is noticed. What is
compressed with gzip is known by its first bytes. What cannot be read twice (standard input, a named pipe) is copied to
a temporary file first.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import shutil
import sys
import tempfile
import zlib
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

PIECE = 1 << 18
DELIMITERS = ",;\t|"
GZIP = b"\x1f\x8b"


class FileError(Exception):
    """The file as a whole cannot be loaded; its text says why."""


class Row(NamedTuple):
    line: int  # where it begins; the file's first line is 1
    cells: list[str]
    raw: str  # as it stands in the file; a byte that is not UTF-8 is a lone surrogate (surrogateescape)
    error: str = ""  # why it is no row of CSV; its cells are empty then


class CsvFile:
    """A file that is open for as long as the block lasts. Raises FileError when it cannot be read to its end."""

    def __init__(self, path: str):
        self.name = "stdin" if path == "-" else path
        self.sha256, self.size = "", 0  # of the content, decompressed
        self.delimiter = ""
        self.bytes_read = 0  # of the content, for the rows so far
        self._path = path

    def __enter__(self) -> CsvFile:
        digest = hashlib.sha256()
        with ExitStack() as opened:
            try:
                self._content = self._open(opened)
                while piece := self._content.read(PIECE):
                    digest.update(piece)
                    self.size += len(piece)
            except (OSError, EOFError, zlib.error) as error:
                raise _file_error(error) from error
            self._opened = opened.pop_all()
        self.sha256 = digest.hexdigest()
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def _open(self, opened: ExitStack) -> Any:
        source: Any = sys.stdin.buffer
        if self._path != "-":
            source = opened.enter_context(Path(self._path).open("rb"))  # noqa: SIM115
        if self._path == "-" or not source.seekable():
            copy = opened.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - closed with the block
            shutil.copyfileobj(source, copy)
            copy.seek(0)
            source = copy
        is_gzip = source.read(len(GZIP)) == GZIP
        source.seek(0)
        return opened.enter_context(gzip.GzipFile(fileobj=source)) if is_gzip else source

    def rows(self, delimiter: str = "") -> Iterator[Row]:
        """The header, then what follows it; blank lines are passed over. Without a delimiter the header tells it."""
        self._content.seek(0)
        reader = io.BufferedReader(_SameAgain(self), PIECE)
        text = io.TextIOWrapper(reader, "utf-8-sig", errors="surrogateescape", newline="")
        try:
            lines = _Lines(text)
            self.delimiter = delimiter or max(DELIMITERS, key=next(lines, "").count)
            lines.give_back(0)
            yield from _rows(lines, self.delimiter)
        except (OSError, EOFError, zlib.error) as error:
            raise _file_error(error) from error


class _SameAgain(io.RawIOBase):
    """A file's content as it was when its SHA-256 was taken; raises FileError at its end if it is not."""

    def __init__(self, file: CsvFile):
        self._file = file
        self._digest = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        file = self._file
        left = file.size - file.bytes_read
        piece = file._content.read(min(len(buffer), left))
        self._digest.update(piece)
        file.bytes_read += len(piece)
        is_over = len(piece) == left
        if (is_over and self._digest.hexdigest() != file.sha256) or (not piece and not is_over):
            raise FileError("it was changed while it was being loaded: load it again")
        buffer[: len(piece)] = piece
        return len(piece)


def _file_error(error: OSError | EOFError | zlib.error) -> FileError:
    if isinstance(error, OSError):
        return FileError(f"it cannot be read: {error.strerror or error}")
    return FileError(f"it is cut off or damaged: {error}")


class _Lines:
    """Lines of text. What was taken for a row and is none can be given back, to be read anew."""

    def __init__(self, text: Iterator[str]):
        self._text = text
        self._given_back: deque[str] = deque()
        self.taken: list[str] = []

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._given_back.popleft() if self._given_back else next(self._text)
        self.taken.append(line)
        return line

    def give_back(self, but: int) -> None:
        """All that was taken but its first lines."""
        self._given_back.extendleft(reversed(self.taken[but:]))
        del self.taken[but:]


def _rows(lines: _Lines, delimiter: str) -> Iterator[Row]:
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    line = 1
    while True:
        cells, error = [], ""
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as problem:
            # a quote that is never closed takes in what follows it: only its own line is no row
            error = str(problem)
            lines.give_back(1)
        if cells or error:
            yield Row(line, cells, "".join(lines.taken), error)
        line += len(lines.taken)
        lines.taken.clear()
