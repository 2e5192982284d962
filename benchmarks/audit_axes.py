"""Where requests lie in those real models that hold them along other axes than the first.

Each is what the model's own documentation says of its inputs: the state of a recurrent layer is
`[layers or (hidden, cell), batch, width]`, the sampling rate is one number for the whole batch, and
Silero's `16k_sequence` reads the pieces of one recording, one after another, as rows.
"""

from collections.abc import Mapping
from typing import Any

_STATE: Mapping[str, Any] = {"batch_axes": {"state": 1}, "output_axes": {"stateN": 1}}
_RATE: Mapping[str, Any] = {**_STATE, "shared": ["sr"]}

AXES: Mapping[str, Mapping[str, Any]] = {
    "silero_vad.onnx": _RATE,
    "silero_vad_16k_op15.onnx": _RATE,
    "silero_vad_16k_sequence.onnx": {
        "batch_axes": {"input": None, "h": 1, "c": 1},
        "output_axes": {"hn": 1, "cn": 1},
    },
    "silero_vad_half.onnx": _STATE,
    "silero_vad_op18_ifless.onnx": _RATE,
    "silero_vad_openvino_16k.onnx": _STATE,
}
"""Arguments of `planish.audit`, by file."""
