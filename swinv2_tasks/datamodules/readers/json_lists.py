"""Reading a JSON object of long lists entry by entry: never the whole file, nor all that it says, is in memory."""

import codecs
import json
from collections.abc import Iterator
from json.decoder import JSONDecodeError
from pathlib import Path
from typing import Any, BinaryIO

from swinv2_tasks.outside_files import TooLarge, bounded_int, may_have_long_number, open_file

_PIECE = 2**20
"""Bytes that are read at once."""

_SPACE = " \t\n\r"


class JsonLists:
    """The entries of the lists in a file that holds one JSON object.

    Args:
        path: The file.

    Attributes:
        types: What each name of the object stands for, of those that were met so far.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.types: dict[str, type] = {}

    def __iter__(self) -> Iterator[tuple[str, int, Any]]:
        """Yields the name, the index and the entry of each entry of a list; other values are passed over.

        Raises:
            OSError: As for `open_file`.
            ValueError: It is no JSON object, nests too deep, has a number of too many digits, or a name twice.
        """
        with open_file(self.path) as file:
            text = _Text(file)
            text.take("{")
            if text.peek() == "}":
                text.take("}")
                text.end()
                return
            while True:
                name = self._name(text)
                if text.peek() == "[":
                    self.types[name] = list
                    for index, entry in enumerate(text.entries()):
                        yield name, index, entry
                else:
                    self.types[name] = type(text.value())
                if text.take(",}") == "}":
                    text.end()
                    return

    def _name(self, text: "_Text") -> str:
        text.peek()
        name = text.value()
        if not isinstance(name, str):
            raise text.error("Expecting a name in quotation marks")
        if name in self.types:
            raise text.error(f"{name[:40]!r} stands there twice")
        text.take(":")
        return name


class _Text:
    """The text of a file, as much of it as a value takes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        head = file.read(_PIECE)
        encoding = json.detect_encoding(head)
        self._decoder = codecs.getincrementaldecoder(encoding)("surrogatepass")
        self._decode = json.JSONDecoder().raw_decode
        self._last = b""
        self._text = ""
        self._position = 0
        self._before = 0
        self._has_ended = False
        self._append(head)

    def _append(self, piece: bytes) -> None:
        self._last += piece
        if may_have_long_number(self._last):
            self._decode = json.JSONDecoder(parse_int=bounded_int).raw_decode
        self._last = self._last[-200:]  # a number may begin there
        self._has_ended = not piece
        self._before += self._position
        self._text = self._text[self._position :] + self._decoder.decode(piece, final=self._has_ended)
        self._position = 0

    def _read_on(self) -> bool:
        """Reads more; False where there is no more."""
        if self._has_ended:
            return False
        self._append(self._file.read(max(_PIECE, len(self._text) - self._position)))
        return True

    def peek(self) -> str:
        """The next character that is no space; empty at the end."""
        while True:
            while self._position < len(self._text):
                character = self._text[self._position]
                if character not in _SPACE:
                    return character
                self._position += 1
            if not self._read_on():
                return ""

    def take(self, expected: str) -> str:
        """The next character that is no space, which is one of those expected."""
        character = self.peek()
        if not character or character not in expected:
            raise self.error(f"Expecting {' or '.join(map(repr, expected))}")
        self._position += 1
        return character

    def value(self) -> Any:
        """The value that begins here."""
        while True:
            try:
                value, end = self._decode(self._text, self._position)
            except JSONDecodeError as error:  # perhaps since it has not been read to its end
                if not self._read_on():
                    raise self.error(error.msg, error.pos) from None
                continue
            except RecursionError:
                raise TooLarge("its lists and objects are nested too deep") from None
            if end + 2 >= len(self._text) and self._read_on():  # a number may continue, as with e+3
                continue
            self._position = end
            return value

    def entries(self) -> Iterator[Any]:
        """The entries of the list that begins here."""
        self.take("[")
        if self.peek() == "]":
            self.take("]")
            return
        while True:
            self.peek()
            yield self.value()
            if self.take(",]") == "]":
                return

    def end(self) -> None:
        """Makes sure that nothing follows."""
        if self.peek():
            raise self.error("Extra data")

    def error(self, what: str, position: int | None = None) -> ValueError:
        """What is wrong with the text here, or at a position of what is in memory."""
        return ValueError(f"{what}: character {self._before + (self._position if position is None else position)}")
