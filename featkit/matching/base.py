"""What every matcher promises. tests/contract/ runs each registered one against it."""

from __future__ import annotations

from typing import ClassVar, Protocol

from featkit.config import Config
from featkit.types import Features, Matches


class Matcher(Protocol):
    """Features x Features -> Matches.

    A subclass declares `Config` and is built as `cls(config, device)`. The matches of a pair do not depend on the
    other pairs of a batch, nor on its size.
    """

    Config: ClassVar[type[Config]]

    def match(self, batch: list[tuple[Features, Features]]) -> list[Matches]:
        """Matches of each pair: `matches0` int32 of length n0, `scores0` float32. Empty features match nothing.

        Raises BadInputError when the descriptors of a pair have different lengths.
        """
        ...
