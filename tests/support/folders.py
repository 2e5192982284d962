"""What transformers computes from a folder that was written, against the program."""

import json
import subprocess
import sys
from pathlib import Path

import torch
from compressed_tensors.quantization import QuantizationConfig, QuantizationScheme
from safetensors.torch import load_file, save_file

from planish.ir.program import Program
from support import reload


def loads_alike(folder: Path, program: Program, *, fresh: bool = False) -> None:
    """Compare what transformers computes from a folder with the program, without a past.

    A fresh process takes seconds, and one of each kind is enough.
    """
    sample = {
        name: tensor
        for name, tensor in program.samples[0].items()
        if not name.startswith("past_key_values")
    }
    save_file({name: tensor.contiguous() for name, tensor in sample.items()}, folder / "inputs")
    if fresh:
        subprocess.run([sys.executable, reload.__file__, str(folder)], check=True)
        got = load_file(folder / "outputs")["got"]
    else:
        got = reload.reloaded(folder)
    expected = program.run(**program.samples[0])[program.outputs[0]]
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def quantization_of(folder: Path) -> tuple[QuantizationConfig, list[QuantizationScheme]]:
    """Read what a config says of quantization, by the format's own models, and its groups."""
    written = json.loads((folder / "config.json").read_text())["quantization_config"]
    config = QuantizationConfig.model_validate(written)
    groups = [group for group in config.config_groups.values() if not isinstance(group, list)]
    return config, groups
