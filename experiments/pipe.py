"""A pipe, answered as its lines arrive: its lines, and reading ahead of who answers them."""

import dataclasses
import os
import queue
import sys
import threading
from collections.abc import Iterator
from typing import Any

from distilflax.errors import UserError
from distilflax.text import lines as text_lines

_NAME = "standard input"


@dataclasses.dataclass
class Odd:
    """How many lines were not taken as they stood, which is told when they have ended."""

    blank: int = 0
    replaced: int = 0

    def notes(self) -> Iterator[str]:
        if self.blank:
            yield f"{self.blank:,} blank lines were passed over"
        if self.replaced:
            yield (
                f"{self.replaced:,} lines were not UTF-8, and marks stand in the place of their "
                "bytes; convert them, for example with `iconv -f latin1 -t utf-8`"
            )


def lines(odd: Odd, longest: int = text_lines.LONGEST) -> Iterator[tuple[str, str | UserError]]:
    """(`standard input line N`, the line without its end), each as soon as it is there; UTF-8, BOM
    or not, with a mark in the place of bytes that are none, which `odd` counts. Of a line that is
    no text comes the error that says so: those after it may be.

    Raises:
      UserError: a terminal or nothing in the place of a pipe, another encoding, or a line of over
        `longest` bytes.
    """
    if sys.stdin is None or sys.stdin.isatty():
        raise UserError("There is nothing to read; give --text, --input, or lines by a pipe.")
    # A copy of its own: who waits in `sys.stdin` for a line holds its lock, which Python wants when
    # it ends, and aborts without.
    with open(os.dup(sys.stdin.fileno()), "rb") as file:
        for place, raw in text_lines.numbered(file, _NAME, longest):
            try:
                text_lines.check_text(place, raw, longest)
            except UserError as error:
                if len(raw) > longest:
                    raise  # What comes next is the rest of it.
                yield place, error
            else:
                yield place, _decoded(raw, odd).rstrip("\r\n")


def _decoded(raw: bytes, odd: Odd) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        odd.replaced += 1
        return raw.decode("utf-8", "replace")


def chunks(items: Iterator, size: int) -> Iterator[list]:
    """Whatever is there by now, `size` at most: a file comes in full chunks, and a slow pipe line
    by line. A thread reads ahead, and hands over what it raised."""
    waiting: queue.Queue = queue.Queue(4 * size)
    end = object()

    def read() -> None:
        try:
            for item in items:
                waiting.put(item)
            waiting.put(end)
        except BaseException as error:
            waiting.put(error)

    threading.Thread(target=read, daemon=True).start()
    last: Any = None
    while last is None:
        chunk, item = [], waiting.get()
        while True:
            if item is end or isinstance(item, BaseException):
                last = item
                break
            chunk.append(item)
            if len(chunk) == size:
                break
            try:
                item = waiting.get_nowait()
            except queue.Empty:
                break
        if chunk:
            yield chunk
    if isinstance(last, BaseException):
        raise last
