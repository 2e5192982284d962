"""Lowering to ONNX: a program becomes files."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import onnx
import onnx_ir as ir
from torch import fx

from planish.ir.program import Program
from planish.ir.quant import QuantizedTensor, dequantize
from planish.lowering.onnx.joined import joined
from planish.lowering.onnx.model import build
from planish.lowering.onnx.target import CPU, Target

MODEL_FILE = "model.onnx"
DATA_FILE = "model.onnx.data"

EXTERNAL_ABOVE = 50_000_000
"""Bytes of tensors from which on they get a file of their own.

That one is written a tensor at a time and read as it is needed, while a model file is built,
checked and loaded whole in memory, several times over; it holds at most 2 GiB, too.
"""


ROUNDED_ACTIVATIONS = (
    "ONNX Runtime's kernels for packed weights round activations to 8 bits, a block at a time "
    "(MatMulNBits, accuracy level 4), about 0.6% error in each layer: the ONNX model's tokens can "
    "differ from those of the checkpoint, which computes in floating point."
)

WIDENED_FLOATS = (
    "weights in MXFP4 are stored as 8-bit integers, which stand for the same numbers and take over "
    "twice the bytes of the checkpoint: ONNX Runtime's CPU kernels know no 4-bit floats."
)


@dataclass(frozen=True)
class OnnxFiles:
    """What lowering wrote.

    Attributes:
        paths: the model first, then its data file if there is one.
        nbytes: of all of them.
        notes: what the user should know, e.g. that the model computes in another dtype.
    """

    paths: tuple[Path, ...]
    nbytes: int
    notes: tuple[str, ...]


def lower(
    program: Program,
    folder: Path,
    target: Target = CPU,
    *,
    decode: tuple[Program, Target] | None = None,
    external_above: int = EXTERNAL_ABOVE,
) -> OnnxFiles:
    """Write `model.onnx`, and `model.onnx.data` for large models, into a folder, which is made.

    The same program gives the same bytes.

    Args:
        program: any program; of language models the model has the customary inputs and outputs.
        folder: where to.
        target: what the model is for.
        decode: another form of the same language model, which the model runs where one new token
            is read, and what that is for.
        external_above: bytes of tensors above which they are written to a file of their own.

    Raises:
        planish.lowering.onnx.model.UnsupportedOperator: naming the node and its operator.
    """
    model, notes = build(program, target)
    if decode is not None:
        tokens, more = build(decode[0], replace(decode[1], one_token=True))
        model, notes = joined(model, tokens), [*dict.fromkeys((*notes, *more))]
    nodes = model.graph.all_nodes()
    if target.accuracy_level == 4 and any(node.op_type == "MatMulNBits" for node in nodes):
        notes = [*notes, ROUNDED_ACTIVATIONS]
    programs = [program] if decode is None else [program, decode[0]]
    if any(_is_microscaled(node, one) for one in programs for node in one.nodes(dequantize)):
        notes = [*notes, WIDENED_FLOATS]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / MODEL_FILE
    graphs = (model.graph, *model.graph.subgraphs())
    stored = sum(_nbytes(value) for graph in graphs for value in graph.initializers.values())
    is_large = stored > external_above
    ir.save(model, path, external_data=DATA_FILE if is_large else None)
    paths = (path, folder / DATA_FILE) if is_large else (path,)
    onnx.checker.check_model(path)
    return OnnxFiles(paths, sum(file.stat().st_size for file in paths), tuple(notes))


def _is_microscaled(node: fx.Node, program: Program) -> bool:
    return QuantizedTensor.read_by(node, program.tensors)[1].scheme.microscaled


def _nbytes(value: ir.Value) -> int:
    return value.const_value.nbytes if value.const_value is not None else 0
