"""Text from tokens as they come, never showing what a later token may change."""

from __future__ import annotations

from collections.abc import Callable, Sequence

UNFINISHED = "\ufffd"
"""What decoders put for bytes that are no UTF-8, such as the first half of a character."""


class TextStream:
    """The text of a growing list of tokens, released piece by piece.

    Held back are characters of which not all bytes came yet, and what may be the beginning of a
    stop string. All pieces together are the text up to the first stop string.
    """

    def __init__(self, decode: Callable[[list[int]], str], stop: Sequence[str] = ()) -> None:
        self.text = ""
        self.stopped = False
        self._decode = decode
        self._stop = stop
        self._tokens: list[int] = []
        # Decoding starts a few tokens early, since some decoders drop a space at the start; what
        # the tokens from _first to _read give was released before.
        self._first = self._read = 0
        self._held = ""

    def push(self, token: int) -> str:
        """Take a token; give the text that is certain now."""
        self._tokens.append(token)
        fresh = self._undecoded()
        if not fresh or fresh.endswith(UNFINISHED):
            return ""
        self._first, self._read = self._read, len(self._tokens)
        return self._release(fresh)

    def finish(self) -> str:
        """Give what was held back, when no token will come any more."""
        rest = self._release(self._undecoded()) if not self.stopped else ""
        self._read = len(self._tokens)
        held, self._held = ("" if self.stopped else self._held), ""
        self.text += held
        return rest + held

    def _undecoded(self) -> str:
        released = self._decode(self._tokens[self._first : self._read])
        return self._decode(self._tokens[self._first :])[len(released) :]

    def _release(self, fresh: str) -> str:
        text = self._held + fresh
        found = [at for stop in self._stop if (at := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            self._held, text = "", text[: min(found)]
        else:
            keep = max((_overlap(text, stop) for stop in self._stop), default=0)
            self._held, text = text[len(text) - keep :], text[: len(text) - keep]
        self.text += text
        return text


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that begins `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
