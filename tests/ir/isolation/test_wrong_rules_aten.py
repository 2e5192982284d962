"""Wrong rules, put in on purpose: the comparisons with the operators have to notice each."""

from collections.abc import Callable, Iterable
from itertools import chain

import pytest

from planish.ir import ops
from planish.ir.flow import lookup
from planish.ir.flow.call import Call, Result
from planish.ir.flow.known import Counting
from planish.ir.flow.vocabulary import (
    Expression,
    Fill,
    Operand,
    Reads,
    Reshape,
    Shape,
    Slice,
    aligned,
    contraction,
    permuted,
    pointwise,
)
from planish.ir.isolation import digits
from planish.ir.isolation.dependence import Dependence
from planish.ir.isolation.interpret import Interpreter
from planish.ir.rules.aten import RULES, movement, normalization
from support import indexing_calls, movement_calls, product_calls, reduction_calls
from support.fuzz import judged
from support.random_programs import programs
from support.refute import refute

assert ops  # it declares planish's operators

SAMPLES = list(
    chain(
        indexing_calls.SAMPLES,
        movement_calls.SAMPLES,
        product_calls.SAMPLES,
        reduction_calls.SAMPLES,
    )
)


def refuted(operators: Iterable[str]) -> bool:
    """Whether some comparison with these operators fails."""
    names = {f"aten.{name}" for name in operators}
    some = [sample for sample in SAMPLES if sample.operator in names]
    assert some
    return any(refute(sample).wrong for sample in some)


def _alone(call: Call) -> Result:
    value, *_ = call.tensors()
    return tuple(pointwise("copy", value, shape=one.shape) for one in call.outputs)


def _gathered(call: Call) -> Expression:
    value, index = call["self"], call["index"]
    call.tensors()
    same = tuple(range(len(index.shape)))
    return Reads(call.shape, (Operand(value, same), Operand(index, same)), "gather")


def _scattered(call: Call) -> Expression:
    value, index, *rest = call.tensors()
    rank = len(value.shape)
    return Reads(value.shape, tuple(aligned(one, rank) for one in (value, index, *rest)), "scatter")


def _ungrouped(call: Call) -> Expression:
    value, weight, *_ = call.tensors()
    places = tuple(f"place{n}" for n in range(len(call.shape) - 2))
    return contraction(call.shape, (value, (0, 1, *places)), (weight, (1, "in", *places)))


def _unshifted(call: Call) -> Expression:
    value = call["self"]
    call.tensors()
    dim = call.dim(call["dim"], len(value.shape))
    return Slice(value, dim, 0, call["step"], call.shape[dim])


def _unordered(call: Call) -> Expression:
    good = movement.cat(call)
    return type(good)(tuple(reversed(good.operands)), good.dim)  # type: ignore[attr-defined,call-arg]


def _transposed(call: Call) -> Expression:
    value = call["self"]
    call.tensors()
    return permuted(value, list(reversed(range(len(value.shape)))))


def _inferring(call: Call) -> Result:
    value, *_ = call.tensors()
    return tuple(
        pointwise("linear", value) if n == 0 else Fill(one.shape)
        for n, one in enumerate(call.outputs)
    )


def _one_matrix(call: Call) -> Expression:
    one, _ = call.tensors()
    return Reads(call.shape, (Operand(one, (0, 1, "inner")),), "contract")


def _first_row(call: Call) -> Expression:
    call.tensors()
    return Reshape(Slice(call["self"], 0, 0, 1, 1), call.shape)


WRONG: dict[str, tuple[Callable[[Call], Result], str]] = {
    "a softmax by element": (_alone, "softmax.int _softmax.default"),
    "a running sum by element": (_alone, "cumsum.default"),
    "sorting by element": (_alone, "sort.default"),
    "chosen indices as one's own": (_alone, "topk.default"),
    "a flip as a copy": (_alone, "flip.default"),
    "a roll as a copy": (_alone, "roll.default"),
    "a gather that trusts its index": (_gathered, "gather.default"),
    "a scatter without other writers": (_scattered, "scatter.src scatter_add.default"),
    "statistics of the batch as given": (_inferring, "native_batch_norm.default"),
    "channels by themselves without groups": (_ungrouped, "conv1d.default"),
    "a slice from the first element": (_unshifted, "slice.Tensor"),
    "parts in another order": (_unordered, "cat.default"),
    "a transposition of all dimensions": (_transposed, "permute.default"),
    "a product of one matrix": (_one_matrix, "bmm.default"),
    "always the first row": (_first_row, "select.int"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_rules_are_refuted(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rule, operators = WRONG[name]
    for operator in operators.split():
        monkeypatch.setitem(RULES, f"aten.{operator}", rule)
        assert refuted([operator])


def test_a_reshape_that_keeps_places_is_refuted(monkeypatch: pytest.MonkeyPatch) -> None:
    def kept(one: digits.Map, old: object, new: object) -> digits.Map:  # noqa: ARG001
        return one if all(d.dim < len(new) for d in one.digits) else digits.make(0, [])  # type: ignore[arg-type]

    monkeypatch.setattr(digits, "reshaped", kept)
    assert refuted(["view.default"])


def test_slices_without_an_offset_are_refuted(monkeypatch: pytest.MonkeyPatch) -> None:
    right = digits.sliced

    def shifted(one: digits.Map, *rest: object) -> digits.Map | None:
        after = right(one, *rest)  # type: ignore[arg-type]
        return None if after is None else digits.Map(one.offset, after.digits)

    monkeypatch.setattr(digits, "sliced", shifted)
    assert refuted(["narrow.default"])


def test_broadcasting_any_size_is_refuted(monkeypatch: pytest.MonkeyPatch) -> None:
    def lenient(self: Interpreter, one: digits.Map, operand: Operand, reads: Reads) -> object:  # noqa: ARG001
        tags = {d.dim: operand.tags[d.dim] for d in one.digits}
        if any(isinstance(tag, str) for tag in tags.values()):
            return None, None  # what is read whole is forgotten
        return digits.moved(one, tags), None  # type: ignore[arg-type]

    monkeypatch.setattr(Interpreter, "_along", lenient)
    assert refuted(["sum.dim_IntList"])
    assert refuted(["layer_norm.default"])


def test_joining_any_parts_is_refuted(monkeypatch: pytest.MonkeyPatch) -> None:
    def union(self: Interpreter, concat: object) -> Dependence:
        found = [self.of(one) for one in concat.operands]  # type: ignore[attr-defined]
        return self._joined(found)  # pyright: ignore[reportPrivateUsage]

    monkeypatch.setattr(Interpreter, "_concat", union)
    assert refuted(["cat.default", "constant_pad_nd.default"])


def test_an_index_that_is_taken_for_counting_is_refuted(monkeypatch: pytest.MonkeyPatch) -> None:
    def trusted(known: object) -> Counting:  # noqa: ARG001
        return Counting(0, (1,))

    monkeypatch.setattr(lookup, "progression", trusted)
    assert refuted(["index_select.default"])


def test_statistics_that_read_nothing_are_refuted(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(call: Call) -> Result:
        good = normalization.layer_norm(call)
        call.tensors()
        first = good[0] if isinstance(good, tuple) else good
        return (first, *(Fill(one.shape) for one in call.outputs[1:]))

    monkeypatch.setitem(RULES, "aten.native_layer_norm.default", nothing)
    assert refuted(["native_layer_norm.default"])


@pytest.mark.slow
@pytest.mark.parametrize("operator", ["cumsum.default", "flip.default", "sort.default"])
def test_random_programs_refute_wrong_rules(operator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RULES, f"aten.{operator}", _alone)
    assert judged(programs(0), 60).wrong


@pytest.mark.slow
def test_random_programs_refute_views_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    right = digits.reshaped

    def lenient(one: digits.Map, old: Shape, new: Shape) -> digits.Map | None:
        """A view with the same sizes in another order, taken for a permutation."""
        if sorted(map(str, old)) != sorted(map(str, new)):
            return right(one, old, new)
        return digits.moved(one, {dim: new.index(size) for dim, size in enumerate(old)})

    monkeypatch.setattr(digits, "reshaped", lenient)
    assert judged(programs(0), 60).wrong
