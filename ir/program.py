"""`Program`: a captured model as a frozen value."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from planish.ir.errors import PlanishError
from planish.ir.sizes import Extent, Size, SymbolicShapes

if TYPE_CHECKING:
    from planish.ir.edit import Edit


class BadInput(PlanishError):
    """The tensors given to a program do not fit its inputs."""


class IllFormed(PlanishError):
    """A program breaks a rule that every program keeps."""


@dataclass(frozen=True)
class Input:
    """A tensor that the caller gives at each run.

    Attributes:
        name: unique among the inputs.
        dtype: of the tensor.
        shape: one extent a dimension, e.g. `("B", "P+T")`.
        batch_axis: the dimension that counts requests; None for an input shared by all.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[Extent, ...]
    batch_axis: int | None = 0


@dataclass(frozen=True)
class Source:
    """Where a program came from.

    Attributes:
        kind: `"module"` or `"huggingface"`.
        name: the class of the model, e.g. `"LlamaForCausalLM"`.
        task: `"causal-lm"`, `"seq2seq-lm"`, `"encoder"`, `"image"` or `"module"`.
        folder: the checkpoint's folder, if there is one: config and tokenizer are read there.
        config: the contents of `config.json`, if there is one.
        gguf: the name of the GGUF file in that folder, if the model was read from one.
        stored_names: for each tensor of the model, its name in the checkpoint's files.
    """

    kind: str = "module"
    name: str = "module"
    task: str = "module"
    folder: Path | None = None
    gguf: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    stored_names: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Trial:
    """Something that was made and measured before one of several was chosen.

    Attributes:
        what: in words.
        left: the share that it leaves of what is counted.
        lost: of quality; what the model gave before loses 0.
        chosen: whether it was.
    """

    what: str
    left: float
    lost: float
    chosen: bool = False


@dataclass(frozen=True)
class Trials:
    """All that was tried for one choice.

    Attributes:
        counted: what `left` is a share of, such as `"parameters"`.
        unit: of `lost`, such as `"nats a token"`.
        made: in the order in which they were.
    """

    counted: str
    unit: str
    made: tuple[Trial, ...]


@dataclass(frozen=True)
class Change:
    """One rewrite: the node it happened at, what was done, and what was tried to find it."""

    node: str
    what: str
    tried: Trials | None = None


Sample = Mapping[str, Tensor]
"""One batch of inputs, by name."""


@dataclass(frozen=True)
class Program:
    """A functional ATen graph with its tensors, inputs and symbolic sizes. Never changed.

    The graph's placeholders are the inputs, in order; a tensor is read by a `get_attr` node whose
    target is the tensor's name in the checkpoint; the one output node returns a flat tuple.
    `node.meta["val"]` holds a tensor without data (shape and dtype) for each value. To change a
    program, use `edit`, which works on a copy.

    Attributes:
        graph: the graph. Treat it as read-only.
        tensors: by the checkpoint's names; shared between programs, never written to.
        inputs: in the order of the placeholders.
        outputs: the names of what the graph returns, in order.
        shapes: the symbolic sizes and the shape environment they live in.
        source: where the program came from.
        samples: a few batches, on which is checked what passes promise.
        calibration: more of them, for passes that learn from what the model is given; none: the
            samples serve.
        aliases: for tied tensors, every other name of the same tensor.
        changes: what passes rewrote so far, oldest first.
    """

    graph: fx.Graph
    tensors: Mapping[str, Tensor]
    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]
    shapes: SymbolicShapes
    source: Source = Source()
    samples: tuple[Sample, ...] = ()
    calibration: tuple[Sample, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    changes: tuple[Change, ...] = ()

    def __post_init__(self) -> None:
        """Make the mappings read-only, so that a frozen program is frozen in depth."""
        object.__setattr__(self, "tensors", MappingProxyType(dict(self.tensors)))
        object.__setattr__(self, "aliases", MappingProxyType(dict(self.aliases)))

    @property
    def sizes(self) -> tuple[Size, ...]:
        """The symbolic sizes."""
        return self.shapes.sizes

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def parameters(self) -> int:
        """Numbers stored in all floating-point tensors."""
        return sum(t.numel() for t in self.tensors.values() if t.is_floating_point())

    @property
    def has_data(self) -> bool:
        """Whether its tensors have numbers; a plan works on shapes alone (the meta device)."""
        return not any(tensor.is_meta for tensor in self.tensors.values())

    @property
    def output_nodes(self) -> tuple[fx.Node, ...]:
        """The nodes whose values are returned, in the order of `outputs`."""
        return tuple(next(iter(reversed(self.graph.nodes))).args[0])

    def nodes(self, *targets: Callable[..., Any]) -> Iterator[fx.Node]:
        """The nodes that call one of `targets`; without any, all nodes."""
        for node in self.graph.nodes:
            if not targets or (node.op == "call_function" and node.target in targets):
                yield node

    def run(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Evaluate the graph eagerly, without gradients.

        Returns:
            The outputs by name.

        Raises:
            BadInput: if a name, a rank or a dtype does not fit.
        """
        self.check_inputs(inputs)
        evaluation = _Evaluation(self)
        with torch.no_grad():
            values = evaluation.run(
                *(inputs[spec.name] for spec in self.inputs), enable_io_processing=False
            )
        return dict(zip(self.outputs, values, strict=True))

    def check_inputs(self, inputs: Mapping[str, Tensor]) -> None:
        """Refuse inputs of other names, dtypes, ranks or fixed extents than the program's.

        Raises:
            BadInput: saying what is taken, and what was given.
        """
        expected = [spec.name for spec in self.inputs]
        if sorted(expected) != sorted(inputs):
            raise BadInput(
                f"{self.source.name} takes the inputs {', '.join(expected)}; "
                f"given were {', '.join(inputs) or 'none'}."
            )
        for spec in self.inputs:
            given = inputs[spec.name]
            pairs = zip(spec.shape, given.shape, strict=False)
            fits = all(want == have for want, have in pairs if isinstance(want, int))
            if given.dtype != spec.dtype or given.dim() != len(spec.shape) or not fits:
                shape = ", ".join(map(str, spec.shape))
                raise BadInput(
                    f"input {spec.name!r} is {spec.dtype} of shape [{shape}]; given was "
                    f"{given.dtype} of shape {list(given.shape)}."
                )

    @contextmanager
    def edit(self) -> Iterator[Edit]:
        """Change a copy: `with program.edit() as edit: ...`, then take `edit.program`.

        On leaving, nodes and tensors that nothing reads are dropped, the graph is linted and
        shapes are propagated. An exception inside leaves nothing behind.
        """
        from planish.ir.edit import Edit  # noqa: PLC0415  (Edit needs Program)

        this: Any = self  # type checkers may see this file under two names
        edit = Edit(this)
        yield edit
        edit.finish()

    def text(self) -> str:
        """The program as text, one line a node, the same for the same program."""
        from planish.ir.text import program_text  # noqa: PLC0415

        this: Any = self
        return program_text(this)

    __str__ = text

    def save(self, folder: Path | str) -> None:
        """Write `program.json` and `tensors.safetensors` into `folder`, which is made."""
        from planish.ir.serialize import save  # noqa: PLC0415

        this: Any = self
        save(this, Path(folder))

    @staticmethod
    def load(folder: Path | str) -> Program:
        """Read what `save` wrote. Nothing in the files is executed or unpickled.

        Raises:
            planish.ir.serialize.MalformedProgram: if the files are damaged or hold something
                that a program may not.
        """
        from planish.ir.serialize import load  # noqa: PLC0415

        loaded: Any = load(Path(folder))
        program: Program = loaded
        return program


class _Evaluation(fx.Interpreter):
    """Runs a program's graph on real tensors, freeing each value after its last use."""

    def __init__(self, program: Program) -> None:
        super().__init__(torch.nn.Module(), graph=program.graph)
        self._tensors = program.tensors
        # The interpreter moves every number through a "fetch" of the module's attributes only
        # for get_attr nodes; ours read the program's tensors instead.

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Tensor:  # noqa: ARG002
        return self._tensors[target]
