"""One convolution as it runs: what is measured, and what the cost model is asked about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from math import prod
from typing import Any, Literal, get_args

from dwr_rewrite.spec import DTYPES, ConvSpec

Direction = Literal["forward", "grad_input", "grad_weight"]
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)
"""The three convolutions of a training step."""

Layout = Literal["nchw", "channels_last"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)


@dataclass(frozen=True, slots=True)
class Workload:
    """A convolution of known size, in one direction.

    Attributes:
        spec: its geometry, with every spatial length known and its padding as numbers.
        batch: images.
        direction: which convolution of a training step.
        layout: of the input and the output.
        tf32: float32 factors are rounded to TF32 before they are multiplied.
        stored: the packed weight is stored; otherwise it is packed from the compact one every time.

    Raises:
        ValueError: a length is not known, or a field is out of range.
    """

    spec: ConvSpec
    batch: int
    direction: Direction = "forward"
    layout: Layout = "nchw"
    tf32: bool = False
    stored: bool = True

    def __post_init__(self) -> None:
        """Checks the fields."""
        if None in self.spec.spatial or isinstance(self.spec.padding, str):
            raise ValueError(f"spatial {self.spec.spatial}, padding {self.spec.padding}: numbers "
                             f"expected")  # fmt: skip
        if self.batch < 1:
            raise ValueError(f"batch {self.batch}: at least 1 expected")
        if self.direction not in DIRECTIONS or self.layout not in LAYOUTS:
            raise ValueError(f"direction {self.direction!r} or layout {self.layout!r} is not known")
        if self.tf32 and self.spec.dtype != "float32":
            raise ValueError(f"TF32 is a way to multiply float32, not {self.spec.dtype}")
        if self.stored and self.direction != "forward":
            raise ValueError("only the weight of a forward convolution is stored packed")

    @property
    def input_shape(self) -> tuple[int, ...]:
        """[N, C, spatial...]."""
        return (self.batch, self.spec.channels, *_known(self.spec.spatial))

    @property
    def output_shape(self) -> tuple[int, ...]:
        """[N, C*m, spatial...]."""
        return (self.batch, self.spec.out_channels, *_known(self.spec.output_spatial()))

    @property
    def elements(self) -> int:
        """Elements of the input and the output, which any direction reads or writes once."""
        return prod(self.input_shape) + prod(self.output_shape)

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return DTYPES[self.spec.dtype]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; :meth:`from_dict` reads them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Workload:
        """From JSON, where tuples are lists.

        Raises:
            ValueError: a field is missing, unknown or out of range.
        """
        spec = row.get("spec")
        if not isinstance(spec, Mapping) or set(row) != {field.name for field in fields(cls)}:
            raise ValueError(f"a workload has {', '.join(f.name for f in fields(cls))}; found "
                             f"{', '.join(row)}")  # fmt: skip
        try:
            rest: dict[str, Any] = {**row}
            rest["spec"] = ConvSpec(**{name: _tuples(value) for name, value in spec.items()})
            return cls(**rest)
        except TypeError as error:
            raise ValueError(f"the geometry of a workload: {error}") from None


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list | tuple) else value


def _known(lengths: tuple[int | None, ...]) -> tuple[int, ...]:
    return tuple(length for length in lengths if length is not None)
