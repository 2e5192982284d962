"""Folding batch norms: text, numbers on every kind of layer, counts, and refusals."""

import copy
from collections.abc import Callable

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from planish.cifar import images, resnet56, vgg16_bn
from planish.ir.capture.export import from_module
from planish.ir.capture.huggingface import capture_model
from planish.ir.edit import Edit
from planish.ir.program import Program
from planish.passes.contract import NotApplicable
from planish.passes.fuse_conv_bn import FuseConvBn
from planish.passes.pipeline import relative_error
from planish.passes.quantize_weights import QuantizeWeights
from support.models import tiny

aten = torch.ops.aten
NORM = aten._native_batch_norm_legit_no_training.default


def trained(module: nn.Module) -> nn.Module:
    """Give a module in float64 and evaluation mode, its statistics and scales drawn at random."""
    torch.manual_seed(0)
    for name, tensor in module.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2.0)
        elif tensor.is_floating_point():
            tensor.normal_()
    return module.double().eval()


def captured(module: nn.Module, *shapes: tuple[int, ...]) -> Program:
    inputs = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    return from_module(trained(module), inputs)


def sequence(*layers: nn.Module) -> nn.Module:
    names = [f"layer{place}" for place in range(len(layers))]

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, layer in zip(names, layers, strict=True):
                self.add_module(name, layer)

        def forward(self, x: Tensor) -> Tensor:
            for name in names:
                x = self.get_submodule(name)(x)
            return x

    return Net()


def norms(program: Program) -> list[fx.Node]:
    return list(program.nodes(NORM, aten.batch_norm.default))


def refusal(program: Program, *ignore: str) -> str:
    with pytest.raises(NotApplicable) as caught:
        FuseConvBn(ignore)(program)
    return str(caught.value)


IMAGE, SIGNAL, VOLUME, ROWS = (2, 4, 9, 9), (2, 4, 9), (2, 4, 5, 5, 5), (3, 4)
KINDS: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module], tuple[int, ...]]] = {
    "conv1d": (lambda: nn.Conv1d(4, 6, 3), lambda: nn.BatchNorm1d(6), SIGNAL),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, 2, 1), lambda: nn.BatchNorm2d(6), IMAGE),
    "conv3d": (lambda: nn.Conv3d(4, 6, 3), lambda: nn.BatchNorm3d(6), VOLUME),
    "no bias": (lambda: nn.Conv2d(4, 6, 3, bias=False), lambda: nn.BatchNorm2d(6), IMAGE),
    "groups": (lambda: nn.Conv2d(4, 6, 3, groups=2), lambda: nn.BatchNorm2d(6), IMAGE),
    "depthwise": (lambda: nn.Conv2d(4, 8, 3, groups=4), lambda: nn.BatchNorm2d(8), IMAGE),
    "dilated": (lambda: nn.Conv2d(4, 6, 3, dilation=2), lambda: nn.BatchNorm2d(6), IMAGE),
    "same": (lambda: nn.Conv2d(4, 6, 3, padding="same"), lambda: nn.BatchNorm2d(6), IMAGE),
    "transposed 1d": (
        lambda: nn.ConvTranspose1d(4, 6, 3, stride=2),
        lambda: nn.BatchNorm1d(6),
        SIGNAL,
    ),
    "transposed 2d": (
        lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1),
        lambda: nn.BatchNorm2d(6),
        IMAGE,
    ),
    "transposed groups": (
        lambda: nn.ConvTranspose2d(4, 6, 3, groups=2, bias=False),
        lambda: nn.BatchNorm2d(6),
        IMAGE,
    ),
    "transposed 3d": (
        lambda: nn.ConvTranspose3d(4, 6, 2, groups=2),
        lambda: nn.BatchNorm3d(6),
        VOLUME,
    ),
    "linear": (lambda: nn.Linear(4, 6), lambda: nn.BatchNorm1d(6), ROWS),
    "linear, no bias": (lambda: nn.Linear(4, 6, bias=False), lambda: nn.BatchNorm1d(6), ROWS),
    "not affine": (lambda: nn.Conv2d(4, 6, 3), lambda: nn.BatchNorm2d(6, affine=False), IMAGE),
    "large eps": (lambda: nn.Conv2d(4, 6, 3), lambda: nn.BatchNorm2d(6, eps=0.5), IMAGE),
}


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_stay_the_same_to_rounding(kind: str) -> None:
    layer, norm, shape = KINDS[kind]
    before = captured(sequence(layer(), norm()), shape)
    after = FuseConvBn()(before)
    assert len(norms(before)) == 1
    assert norms(after) == []
    assert len(after.changes) == 1
    assert set(after.tensors) == {"layer0.weight", "layer0.bias"}
    for rows in (1, 5):
        x = torch.randn((rows, *shape[1:]), dtype=torch.float64)
        assert relative_error(after.run(x=x)["output"], before.run(x=x)["output"]) < 1e-13


BEFORE = """\
program Net for 1 <= B
  %x: f64[B, 3, 8] = input
  %conv1d: f64[B, 4, 7] = aten.conv1d(%x, @layer0.weight)
  %{norm}: (f64[B, 4, 7], f64[0], f64[0]) = \
aten._native_batch_norm_legit_no_training(%conv1d, @layer1.weight, @layer1.bias, \
@layer1.running_mean, @layer1.running_var, 0.1, 1e-05)
  %getitem: f64[B, 4, 7] = operator.getitem(%{norm}, 0)
  %relu: f64[B, 4, 7] = aten.relu(%getitem)
  return output=%relu
"""
AFTER = """\
program Net for 1 <= B
  %x: f64[B, 3, 8] = input
  %conv1d: f64[B, 4, 7] = aten.conv1d(%x, @layer0.weight, @layer0.bias)
  %relu: f64[B, 4, 7] = aten.relu(%conv1d)
  return output=%relu
"""


def test_text_before_and_after() -> None:
    net = sequence(nn.Conv1d(3, 4, 2, bias=False), nn.BatchNorm1d(4), nn.ReLU())
    before = captured(net, (2, 3, 8))
    after = FuseConvBn()(before)
    (norm,) = norms(before)
    assert before.text() == BEFORE.format(norm=norm)
    assert after.text() == AFTER
    assert [(change.node, change.what) for change in after.changes] == [
        (
            "getitem",
            f"folded %{norm} (layer1) into %conv1d (layer0)",
        )
    ]


def test_a_norm_that_changes_nothing_leaves_the_weights_as_they_are() -> None:
    # Not nothing, which older versions of torch refuse, but lost beside a variance of one.
    net = sequence(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, eps=1e-30)).eval()
    before = from_module(net, torch.randn(IMAGE))
    after = FuseConvBn()(before)
    for name in ("layer0.weight", "layer0.bias"):
        assert torch.equal(after.tensors[name], before.tensors[name])


def test_a_layer_may_be_called_by_keyword() -> None:
    before = captured(sequence(nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6)), IMAGE)

    def keywords(edit: Edit) -> None:
        for node in edit.nodes(NORM, aten.conv2d.default):
            names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
            node.kwargs = dict(zip(names, node.args, strict=False))
            node.args = ()

    after = FuseConvBn()(edited(before, keywords))
    assert norms(after) == []
    assert_same(after, before)


def test_other_spellings_of_the_operators() -> None:
    before = captured(sequence(nn.ConvTranspose2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)), IMAGE)

    def respell(edit: Edit) -> None:
        (conv,) = edit.nodes(aten.conv_transpose2d.input)
        (norm,) = edit.nodes(NORM)
        (result,) = norm.users
        x, weight, bias = conv.args[:3]
        pairs = [1, 1], [0, 0], [1, 1]
        general = edit.call(
            aten.convolution.default, x, weight, bias, *pairs, True, [0, 0], 2, before=conv
        )
        statistics = norm.args[1:5]
        plain = edit.call(
            aten.batch_norm.default, general, *statistics, False, 0.1, 1e-5, True, before=norm
        )
        edit.replace(result, plain, "respelled")

    respelled = edited(before, respell)
    assert_same(respelled, before)
    after = FuseConvBn()(respelled)
    assert norms(after) == []
    assert_same(after, before)


def edited(program: Program, change: Callable[[Edit], None]) -> Program:
    with program.edit() as edit:
        change(edit)
    return edit.program


def assert_same(after: Program, before: Program) -> None:
    sample = before.samples[0]
    for name, value in before.run(**sample).items():
        assert relative_error(after.run(**sample)[name], value) < 1e-13


@pytest.mark.parametrize(
    ("family", "count"), [("resnet", 9), pytest.param("mobilenet_v2", 52, marks=pytest.mark.slow)]
)
def test_every_batch_norm_of_a_family_is_folded(family: str, count: int) -> None:
    model = tiny(family, layers=1)[0]
    assert sum(isinstance(module, nn.BatchNorm2d) for module in model.modules()) == count
    before = capture_model(model)
    after = FuseConvBn()(before)
    assert len(after.changes) == count
    assert norms(after) == []
    sample = before.samples[0]
    error = relative_error(after.run(**sample)["logits"], before.run(**sample)["logits"])
    assert error < 1e-5


@pytest.mark.parametrize(("network", "count"), [(resnet56, 57), (vgg16_bn, 14)])
def test_trained_networks_still_see_the_same(network: Callable[[], nn.Module], count: int) -> None:
    pictures, labels = images()
    before = from_module(network(), pictures[:2])
    after = FuseConvBn()(before)
    assert len(after.changes) == count
    assert norms(after) == []
    expected, got = before.run(images=pictures)["output"], after.run(images=pictures)["output"]
    assert relative_error(got, expected) < 1e-5
    assert torch.equal(got.argmax(1), expected.argmax(1))
    assert (got.argmax(1) == labels).sum() >= 19


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.other = nn.Conv2d(4, 4, 3, padding=1)
        self.other.bias = self.conv.bias


class SharedWeight(Shared):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(self.norm(self.conv(x)))
        return y


class SharedBias(Shared):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.other(self.norm(self.conv(x)))
        return y


class TwoReaders(Shared):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        z: Tensor = self.norm(y) + y.relu()
        return z


class Returned(Shared):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.conv(x)
        return self.norm(y), y


class ComputedStatistics(Shared):
    def forward(self, x: Tensor) -> Tensor:
        mean, variance = self.norm.running_mean, self.norm.running_var
        assert isinstance(mean, Tensor)
        return functional.batch_norm(self.conv(x), 2 * mean, variance)


REFUSALS: dict[type[nn.Module], str] = {
    SharedWeight: "%conv2d (conv): its weight is also read by %conv2d_1 (conv); give each its own "
    "copy and capture again, or name 'conv' under ignore.",
    SharedBias: "%conv2d (conv): its bias is also read by %conv2d_1 (other); give each its own "
    "copy and capture again, or name 'conv' under ignore.",
    TwoReaders: "%conv2d (conv): its output is also read by %relu, which would see the folded "
    "values; name 'conv' under ignore.",
    Returned: "%conv2d (conv): its output is also read by the program's caller, which would see "
    "the folded values; name 'conv' under ignore.",
    ComputedStatistics: "%conv2d (conv): the running_mean of its batch norm "
    "%{norm} is computed, not stored; name 'conv' under ignore.",
}


@pytest.mark.parametrize("kind", REFUSALS)
def test_a_pair_that_cannot_be_folded_is_refused(kind: type[nn.Module]) -> None:
    program = captured(kind(), IMAGE)
    (norm,) = norms(program)
    assert refusal(program) == f"fuse_conv_bn: {REFUSALS[kind].format(norm=norm)}"


def test_two_batch_norms_that_share_their_statistics_are_both_folded() -> None:
    norm = nn.BatchNorm2d(4)
    net = sequence(nn.Conv2d(4, 4, 3), norm, nn.ReLU(), nn.Conv2d(4, 4, 3), norm)
    before = captured(net, IMAGE)
    after = FuseConvBn()(before)
    assert len(after.changes) == 2
    assert_same(after, before)


def test_statistics_of_the_batch_are_refused() -> None:
    net = sequence(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, track_running_stats=False))
    program = captured(net, IMAGE)
    (norm,) = program.nodes(aten._native_batch_norm_legit.no_stats)
    assert refusal(program) == (
        f"fuse_conv_bn: %conv2d (layer0): its batch norm %{norm} (layer1) takes "
        "its statistics from the batch at hand, so there is nothing constant to fold; give it "
        "running statistics (track_running_stats=True) and capture again, or name 'layer0' under "
        "ignore."
    )


def test_a_computed_weight_is_refused() -> None:
    conv = parametrizations.weight_norm(nn.Conv2d(4, 6, 3))
    message = refusal(captured(sequence(conv, nn.BatchNorm2d(6)), IMAGE))
    assert message.startswith("fuse_conv_bn: %conv2d (layer0): its weight is computed by %")
    assert "remove_parametrizations" in message


def test_a_quantized_weight_is_refused() -> None:
    before = captured(sequence(nn.Linear(32, 6), nn.BatchNorm1d(6)), (3, 32))

    quantized = QuantizeWeights(bits=8, group_size=None)(before)
    assert refusal(quantized) == (
        "fuse_conv_bn: %linear (layer0): its weight is quantized; run fuse_conv_bn before "
        "quantize_weights, or name 'layer0' under ignore."
    )


def test_channels_that_are_not_the_layers_are_refused() -> None:
    net = sequence(nn.Linear(4, 5), nn.BatchNorm1d(7))
    program = captured(net, (2, 7, 4))
    (norm,) = norms(program)
    assert refusal(program) == (
        f"fuse_conv_bn: %linear (layer0): its batch norm %{norm} (layer1) normalizes dimension 1 "
        "of its output, which is not the dimension of the layer's channels; name 'layer0' under "
        "ignore."
    )


def blocks() -> Program:
    return captured(
        sequence(nn.Conv1d(4, 4, 1), nn.BatchNorm1d(4), nn.Conv1d(4, 4, 1), nn.BatchNorm1d(4)),
        SIGNAL,
    )


@pytest.mark.parametrize("pattern", ["layer0", "layer0.weight", "*0", "re:.*0"])
def test_ignored_layers_keep_their_batch_norms(pattern: str) -> None:
    before = blocks()
    after = FuseConvBn(ignore=(pattern,))(before)
    (norm,) = norms(after)
    assert norm.meta["module"] == "layer1"
    assert torch.equal(after.tensors["layer0.weight"], before.tensors["layer0.weight"])
    assert_same(after, before)


def test_ignore_helps_where_a_pair_is_refused() -> None:
    program = captured(SharedWeight(), IMAGE)
    assert "leave this pass out" in refusal(program, "conv")


def test_a_pattern_that_matches_nothing_is_refused() -> None:
    assert refusal(blocks(), "layer9") == (
        "fuse_conv_bn: 'layer9' under ignore matches none of the 2 layers that a batch norm "
        "follows; they have names like 'layer0'."
    )


def test_ignoring_everything_is_refused() -> None:
    assert refusal(blocks(), "*") == (
        "fuse_conv_bn: ignore names all 2 layers that a batch norm follows, so there is nothing "
        "to fold; leave this pass out."
    )


def test_a_broken_regular_expression_is_refused() -> None:
    with pytest.raises(ValidationError, match="no regular expression"):
        FuseConvBn(ignore=("re:(",))


def test_a_norm_after_an_activation_is_refused() -> None:
    net = sequence(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.BatchNorm2d(6))
    program = captured(net, IMAGE)
    (norm,) = norms(program)
    assert refusal(program) == (
        "fuse_conv_bn: no batch norm follows a convolution or linear layer directly; "
        f"%{norm} (layer2) normalizes %relu (aten.relu). Past anything but such a layer, folding "
        "would change the function; leave this pass out."
    )


def test_a_norm_of_the_input_is_refused() -> None:
    message = refusal(captured(sequence(nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3)), IMAGE))
    assert "normalizes %x (an input)" in message


def test_a_program_without_batch_norms_is_refused() -> None:
    assert refusal(captured(sequence(nn.Linear(4, 6)), ROWS)) == (
        "fuse_conv_bn: the program has no batch norm, so there is nothing to fold; leave this "
        "pass out."
    )


def test_a_new_bias_takes_a_name_that_is_free() -> None:
    class Crowded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.empty(6, 4, 3))
            self.bias = nn.Parameter(torch.empty(6, 1))
            self.norm = nn.BatchNorm1d(6)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.norm(functional.conv1d(x, self.weight)) + self.bias
            return y

    before = captured(Crowded(), SIGNAL)
    after = FuseConvBn()(before)
    assert set(after.tensors) == {"weight", "bias", "bias_1"}
    assert torch.equal(after.tensors["bias"], before.tensors["bias"])
    assert_same(after, before)


def test_rounding_happens_once_after_float64() -> None:
    net = trained(sequence(nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6)))
    exact = FuseConvBn()(from_module(net, torch.randn(IMAGE, dtype=torch.float64)))
    single = copy.deepcopy(net).float()
    folded = FuseConvBn()(from_module(single, torch.randn(IMAGE)))
    for name, tensor in folded.tensors.items():
        assert tensor.dtype == torch.float32
        assert relative_error(tensor, exact.tensors[name]) < 2e-7


def test_the_folded_layer_keeps_its_node() -> None:
    before = captured(sequence(nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6)), SIGNAL)
    (node,) = FuseConvBn()(before).output_nodes
    assert isinstance(node, fx.Node)
    assert node.meta["module"] == "layer0"
