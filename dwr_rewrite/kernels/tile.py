"""How a kernel cuts its work: numbers that change its speed and never its result."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import Literal

Method = Literal["fma", "mma"]
_TEXT = re.compile(r"(fma|mma)" + "".join(rf"\.{k}(\d+)" for k in "cpdrvws"))


@dataclass(frozen=True, slots=True)
class Tile:
    """One program's share of a convolution.

    Attributes:
        method: ``fma`` multiplies on the ordinary units; ``mma`` makes a banded (Toeplitz) matrix
            of every kernel row and multiplies on the tensor cores.
        channels: channels of a program, side by side; a power of two.
        positions: lanes over rows and columns together; a power of two.
        depth: outputs of a lane along the depth (the first of three axes).
        rows: outputs of a lane along the height.
        columns: outputs of a lane along the width.
        warps: of 32 threads each.
        splits: programs that share out the positions of a gradient of the weight; 1 elsewhere.
    """

    method: Method = "fma"
    channels: int = 1
    positions: int = 128
    depth: int = 1
    rows: int = 1
    columns: int = 1
    warps: int = 4
    splits: int = 1

    def __str__(self) -> str:
        """The text that :meth:`parse` reads: ``fma.c1.p128.d1.r4.v2.w4.s1``."""
        return (f"{self.method}.c{self.channels}.p{self.positions}.d{self.depth}.r{self.rows}"
                f".v{self.columns}.w{self.warps}.s{self.splits}")  # fmt: skip

    @classmethod
    def parse(cls, text: str) -> Tile:
        """Reads what ``str`` gives.

        Raises:
            ValueError: anything else.
        """
        match = _TEXT.fullmatch(text)
        if match is None:
            raise ValueError(f"tile {text!r}: a text such as {Tile()} expected")
        method, *numbers = match.groups()
        names = [field.name for field in fields(cls)][1:]
        found = dict(zip(names, map(int, numbers), strict=True))
        wrong = [name for name, value in found.items() if value < 1]
        wrong += [n for n in ("channels", "positions", "warps") if found[n] & (found[n] - 1)]
        if wrong:
            raise ValueError(f"tile {text!r}: {', '.join(wrong)} out of range")
        return cls("mma" if method == "mma" else "fma", **found)
