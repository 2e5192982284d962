"""Programs captured from a config alone."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from planish.ir.capture.checkpoint import BadCheckpoint
from planish.ir.capture.meta import from_config
from support.captured import captured
from support.families import SOME
from support.models import tiny_folder


@pytest.mark.parametrize("family", SOME)
def test_the_program_is_the_one_with_weights(family: str, tmp_path: Path) -> None:
    model, real = captured(family, layers=1)
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    planned = from_config(tmp_path)
    assert str(planned) == str(real)
    assert planned.aliases == real.aliases  # without data, all tensors lie at address 0
    assert (planned.inputs, planned.outputs) == (real.inputs, real.outputs)
    assert {tensor.device.type for tensor in planned.tensors.values()} == {"meta"}
    assert {name: tensor.shape for name, tensor in planned.tensors.items()} == {
        name: tensor.shape for name, tensor in real.tensors.items()
    }
    assert (planned.parameters, planned.nbytes) == (real.parameters, real.nbytes)


def test_the_dtype_is_the_config_s_or_else_the_files(tmp_path: Path) -> None:
    folder = tiny_folder("opt", tmp_path, layers=1)
    config, weights = folder / "config.json", folder / "model.safetensors"
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(weights).items()}
    save_file(tensors, weights, {"format": "pt"})
    config.write_text(config.read_text().replace('"dtype": "float32",', ""))
    planned = from_config(folder)
    assert {tensor.dtype for tensor in planned.tensors.values()} == {torch.bfloat16}
    assert planned.source.config["dtype"] == "bfloat16"
    assert torch.get_default_dtype() == torch.float32


def test_a_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadCheckpoint, match=r"holds no config\.json"):
        from_config(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "unheard-of"}')
    with pytest.raises(BadCheckpoint, match="unheard-of"):
        from_config(tmp_path)
