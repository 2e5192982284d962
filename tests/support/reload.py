"""What transformers computes from a folder; as a program, in a process of its own."""

import json
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor


def reloaded(folder: Path) -> Tensor:
    """Load a checkpoint that lacks nothing, run it on `inputs`, and give its first output."""
    config = json.loads((folder / "config.json").read_text())
    kind = getattr(transformers, config["architectures"][0])
    model, info = kind.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"], info
    assert not info["unexpected_keys"], info
    with torch.no_grad():
        result: Tensor = model.eval()(**load_file(folder / "inputs"))[0]
    return result.contiguous()


if __name__ == "__main__":
    home = Path(sys.argv[1])
    save_file({"got": reloaded(home)}, home / "outputs")
