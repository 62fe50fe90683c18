"""Which part of an image maps belong to."""

from __future__ import annotations

from typing import NamedTuple


class Span(NamedTuple):
    """One axis of a part: of all `total` pixels those from `start` on, `length` of them."""

    total: int
    start: int
    length: int

    def at(self, scale: int) -> Span:
        """In pixels of maps at 1 / scale of the resolution; all three are multiples of it."""
        return Span(self.total // scale, self.start // scale, self.length // scale)


class Window(NamedTuple):
    """A part of an image, in pixels."""

    rows: Span
    columns: Span

    @staticmethod
    def whole(height: int, width: int) -> Window:
        return Window(Span(height, 0, height), Span(width, 0, width))

    def at(self, scale: int) -> Window:
        return Window(self.rows.at(scale), self.columns.at(scale))
