"""What ONNX's operators read, against ONNX Runtime and onnx's own node tests."""

from collections import Counter
from collections.abc import Callable

import pytest
from onnx import defs

from planish.ir.flow.onnx import read_model
from planish.ir.flow.vocabulary import Expression, pointwise
from planish.ir.rules import onnx as table
from planish.ir.rules.onnx.call import OnnxCall
from support import onnx_calls
from support.onnx_oracle import Case, Report, cases, compare, fixed, misfits

OWN = ("", "ai.onnx.ml", onnx_calls.MICROSOFT)
"""What the optimizer alone writes, `test_onnx_optimized.py` has."""

CONTROL = {"If", "Loop", "Scan"}
"""Read by the front end."""

WITHOUT_RULE = {"SequenceMap": "its function body is a loop over sequences"}

NOT_COMPARED = {
    "reads nothing": """
        BlackmanWindow Constant ConstantOfShape HammingWindow HannWindow Range
        OptionalHasElement SequenceLength SequenceEmpty
    """,
    "is random": """
        Bernoulli Multinomial RandomNormal RandomNormalLike RandomUniform RandomUniformLike
    """,
    "mixes all it reads": "DynamicQuantizeLinear MaxUnpool DynamicQuantizeLSTM IsAllFinite",
    "has a result that is as long as the data say": """
        Compress ImageDecoder NonMaxSuppression NonZero StringNormalizer Unique
    """,
    "takes numbers, not tensors": "MelWeightMatrix",
    "is compared in ONNX's own domain": "LinearAttention",
    "only passes on what it is given": "Optional SequenceConstruct SequenceErase SequenceInsert",
    "is in the models of sequences, with others": """
        ConcatFromSequence SequenceAt SplitToSequence
    """,
    "has no kernel on a CPU": """
        BiasAdd BiasDropout BiasSoftmax FusedMatMulActivation GemmFastGelu GroupNorm
        NhwcConv NhwcFusedConv TransposeMatMul QMoE
    """,
    "is not built into ONNX Runtime for CPUs": """
        QLinearReduceMean
    """,
}
"""Operators with a rule that no comparison reaches, and why."""


def made() -> list[Case]:
    return [
        *onnx_calls.standard(),
        *onnx_calls.microsoft(),
        *onnx_calls.quantized(),
        *onnx_calls.alike(),
    ]


def tried(case: Case, seed: int, most: int) -> Report:
    """The case as it is, and with small integers stored in the model."""
    whole = Report()
    for all_integers in (False, True):
        one = compare(fixed(case, all_integers), seed, most)
        whole.compared += one.compared
        whole.wrong += one.wrong
    return whole


def ours(case: Case) -> bool:
    return all(domain in OWN for domain, _ in case.operators)


def test_every_operator_of_onnx_has_a_rule() -> None:
    names = {one.name for one in defs.get_all_schemas() if one.domain == "" and not one.deprecated}
    ruled = {name for domain, name in table.RULES if domain == ""}

    assert names - ruled == CONTROL | WITHOUT_RULE.keys()


def test_derived_shapes_are_those_of_the_results() -> None:
    wrong = []
    for case in filter(ours, cases()):
        constant = fixed(case, all_integers=True)
        wrong += misfits(constant, read_model(constant.model))

    assert wrong == []


def test_shapes_of_fused_operators_are_those_of_the_results() -> None:
    wrong = [text for case in made() for text in misfits(case, read_model(case.model))]

    assert wrong == []


def test_fused_operators_have_rules() -> None:
    unknown = {name for case in made() for name in read_model(case.model).unknown_operators}

    assert unknown == set()


def test_no_element_reacts_to_what_it_is_said_not_to_read() -> None:
    compared: Counter[tuple[str, str]] = Counter()
    wrong: list[str] = []
    for seed, case in enumerate([*filter(ours, cases()), *made()]):
        report = tried(case, seed, most=5)
        wrong += report.wrong
        if len(case.operators) == 1:
            compared[next(iter(case.operators))] += report.compared

    assert wrong == []
    listed = {name for names in NOT_COMPARED.values() for name in names.split()}
    missed = {name for domain, name in table.RULES if domain in OWN and not compared[domain, name]}
    assert missed == listed


@pytest.mark.slow
def test_no_element_reacts_along_any_axis() -> None:
    wrong = [
        text
        for seed, case in enumerate([*filter(ours, cases()), *made()])
        for text in tried(case, seed, most=50).wrong
    ]

    assert wrong == []


def lying(call: OnnxCall) -> Expression:
    """A rule that says that each element reads its own place only."""
    return pointwise("nonlinear", call.input(0))


@pytest.mark.parametrize(
    "make",
    [
        lambda: onnx_calls.call("Softmax", onnx_calls.floats(3, 4), axis=0),
        lambda: onnx_calls.call("CumSum", onnx_calls.floats(3, 4), onnx_calls.whole(0)),
        lambda: onnx_calls.call("LpNormalization", onnx_calls.floats(3, 4), axis=0),
    ],
)
def test_a_rule_that_lies_is_caught(
    make: Callable[[], Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = make()
    ((domain, name),) = case.operators

    def lie(call: OnnxCall) -> Expression:
        call.tensors()
        return lying(call)

    monkeypatch.setitem(table.RULES, (domain, name), lie)

    assert compare(case, 1, 9).wrong
