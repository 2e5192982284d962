"""Rewrites of a program, one file a pass, and the pipeline that checks what each promised."""

from planish.passes.awq import Awq
from planish.passes.binarize import Binarize
from planish.passes.bitstack import BitStack
from planish.passes.cast import Cast
from planish.passes.contract import Pass
from planish.passes.distill import Distill
from planish.passes.fuse_conv_bn import FuseConvBn
from planish.passes.gptq import Gptq
from planish.passes.isolate import Isolate
from planish.passes.low_rank import LowRank
from planish.passes.mixed_precision import MixedPrecision
from planish.passes.prune import PruneChannels, PruneEmbedding, PruneExperts, PruneHeads
from planish.passes.prune_depth import PruneDepth
from planish.passes.quantize_activations import QuantizeActivations
from planish.passes.quantize_scan import QuantizeScan
from planish.passes.quantize_weights import QuantizeWeights
from planish.passes.reconstruct import Reconstruct
from planish.passes.rotate import Rotate
from planish.passes.share_blocks import ShareBlocks
from planish.passes.shrink import Shrink
from planish.passes.slice import Slice
from planish.passes.smooth_quant import SmoothQuant
from planish.passes.sparsify import Sparsify

__all__ = [
    "PASSES",
    "Awq",
    "Binarize",
    "BitStack",
    "Cast",
    "Distill",
    "FuseConvBn",
    "Gptq",
    "Isolate",
    "LowRank",
    "MixedPrecision",
    "PruneChannels",
    "PruneDepth",
    "PruneEmbedding",
    "PruneExperts",
    "PruneHeads",
    "QuantizeActivations",
    "QuantizeScan",
    "QuantizeWeights",
    "Reconstruct",
    "Rotate",
    "ShareBlocks",
    "Shrink",
    "Slice",
    "SmoothQuant",
    "Sparsify",
    "name_of",
]

PASSES: dict[str, type[Pass]] = {
    "fuse_conv_bn": FuseConvBn,
    "prune_depth": PruneDepth,
    "prune_channels": PruneChannels,
    "prune_heads": PruneHeads,
    "prune_experts": PruneExperts,
    "prune_embedding": PruneEmbedding,
    "reconstruct": Reconstruct,
    "distill": Distill,
    "smooth_quant": SmoothQuant,
    "awq": Awq,
    "rotate": Rotate,
    "sparsify": Sparsify,
    "low_rank": LowRank,
    "share_blocks": ShareBlocks,
    "shrink": Shrink,
    "slice": Slice,
    "quantize_weights": QuantizeWeights,
    "gptq": Gptq,
    "binarize": Binarize,
    "bitstack": BitStack,
    "mixed_precision": MixedPrecision,
    "quantize_activations": QuantizeActivations,
    "quantize_scan": QuantizeScan,
    "cast": Cast,
    "isolate": Isolate,
}
"""Every pass by the name that recipes and the command line use."""


def name_of(pass_: Pass) -> str:
    """The name of a pass in `PASSES`; the name of its class for one that is not there."""
    names = {kind: name for name, kind in PASSES.items()}
    return names.get(type(pass_), type(pass_).__name__)
