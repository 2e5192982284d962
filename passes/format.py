"""How weights are stored, in the words of recipes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator
from pydantic.dataclasses import dataclass

from planish.ir.quant import QuantScheme
from planish.passes.contract import OPTIONS
from planish.passes.layers import Patterns


@dataclass(frozen=True, config=OPTIONS)
class Format:
    """A way in which weights may be stored."""

    # Descriptions are not docstrings here, since passes that inherit options keep only these.
    bits: Annotated[
        Literal[8, 7, 4, 3, 2],
        Field(
            description="Bits of a stored number. 7 beside rounded activations: on x86 processors "
            "without VNNI, integer kernels are faster where two products fit into 16 bits."
        ),
    ]
    group_size: Annotated[
        Literal[32, 64, 128] | None,
        Field(
            description="How many neighbouring input features share a scale; it must divide the "
            "number of input features. null: one scale for each output feature "
            "(per-channel)."
        ),
    ]
    symmetric: Annotated[
        bool,
        Field(
            description="Whether zero is always the middle of the range. Otherwise each group also "
            "stores a zero point, which follows skewed weights better."
        ),
    ] = True
    type: Annotated[
        Literal["int", "float"],
        Field(
            description="Whether codes are integers or floating-point numbers: of 8 bits, as E4M3 "
            "(FP8), or of 4 bits in groups of 32, as E2M1 with powers of two for scales (MXFP4). "
            "Those are symmetric."
        ),
    ] = "int"

    @field_validator("type")
    @classmethod
    def _has_such_floats(cls, value: str, info: ValidationInfo) -> str:
        given = info.data
        fp8 = given.get("bits") == 8
        mxfp4 = given.get("bits") == 4 and given.get("group_size") == 32
        if value == "float" and not (given.get("symmetric") and (fp8 or mxfp4)):
            raise ValueError(
                "floating-point codes have 8 bits (FP8, E4M3) or 4 bits and group_size 32 (MXFP4, "
                "E2M1), and are symmetric."
            )
        return value

    @property
    def scheme(self) -> QuantScheme:
        """How each weight is rounded."""
        return QuantScheme(self.bits, self.group_size, self.symmetric, self.type == "float")


def _at_least_one(targets: tuple[str, ...]) -> tuple[str, ...]:
    if not targets:
        raise ValueError("name at least one layer.")
    return targets


@dataclass(frozen=True, config=OPTIONS, kw_only=True)
class Override(Format):
    """A format for some of the layers that a pass rounds."""

    targets: Annotated[
        Patterns,
        AfterValidator(_at_least_one),
        Field(description="Which of them: names, globs or patterns after 're:'."),
    ]
