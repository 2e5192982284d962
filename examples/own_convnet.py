"""Take a model of your own, from `nn.Module` to ONNX, with its BatchNorms folded away.

python examples/own_convnet.py
"""

import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import planish


class SmallNet(nn.Module):
    """Two convolutions with BatchNorm and a classifier: [B, 3, H, W] to [B, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16))
        self.body = nn.Sequential(nn.Conv2d(16, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32))
        self.head = nn.Linear(32, 10)

    def forward(self, images: Tensor) -> Tensor:
        features = torch.relu(self.body(torch.relu(self.stem(images))))
        logits: Tensor = self.head(features.mean((2, 3)))
        return logits


def main() -> None:
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    model = SmallNet()
    for _ in range(8):  # BatchNorm needs statistics that are worth folding
        model(torch.rand(32, 3, 24, 24))
    model.eval()
    example = torch.rand(2, 3, 24, 24)
    with tempfile.TemporaryDirectory() as folder:
        result = planish.optimize(model, "fold", inputs=example, output=Path(folder) / "out")
        print(result.program)
        session = planish.load(Path(folder) / "out")
        images = torch.rand(5, 3, 24, 24)  # another batch size than the example's
        got = session.run(images=images)["output"]
        expected = model(images).detach().numpy()
        print(f"largest difference to PyTorch: {np.abs(got - expected).max():.1e}")
        np.testing.assert_allclose(got, expected, atol=1e-5)


if __name__ == "__main__":
    main()
