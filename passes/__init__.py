"""Rewrites of a program, one file a pass, and the pipeline that checks what each promised."""

from planish.passes.cast import Cast
from planish.passes.contract import Pass
from planish.passes.fuse_conv_bn import FuseConvBn
from planish.passes.gptq import Gptq
from planish.passes.isolate import Isolate
from planish.passes.quantize_weights import QuantizeWeights

__all__ = ["PASSES", "Cast", "FuseConvBn", "Gptq", "Isolate", "QuantizeWeights", "name_of"]

PASSES: dict[str, type[Pass]] = {
    "fuse_conv_bn": FuseConvBn,
    "quantize_weights": QuantizeWeights,
    "gptq": Gptq,
    "cast": Cast,
    "isolate": Isolate,
}
"""Every pass by the name that recipes and the command line use."""


def name_of(pass_: Pass) -> str:
    """The name of a pass in `PASSES`; the name of its class for one that is not there."""
    names = {kind: name for name, kind in PASSES.items()}
    return names.get(type(pass_), type(pass_).__name__)
