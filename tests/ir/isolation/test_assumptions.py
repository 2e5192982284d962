"""What a verdict assumes of several inputs is said once."""

from planish.ir.flow.graph import Flow
from planish.ir.flow.polynomial import Polynomial
from planish.ir.flow.vocabulary import Value
from planish.ir.isolation.assumptions import assumptions
from planish.ir.isolation.labels import Labels

CACHES = [f"past.{layer}.{part}" for layer in range(12) for part in ("key", "value")]


def said(*names: str, **labels: object) -> tuple[str, ...]:
    size = Polynomial.symbol("B")
    inputs = tuple(Value(name, (size, 4)) for name in names)
    flow = Flow(stored=(), nodes=(), inputs=inputs, outputs={})
    return assumptions(flow, Labels(**labels), {})  # type: ignore[arg-type]


def test_inputs_that_differ_in_numbers_are_named_once() -> None:
    first, _ = said("input_ids", "attention_mask", *CACHES)
    assert first == (
        "input_ids, attention_mask, past.*.key, past.*.value hold the batch along axis 0"
    )


def test_one_input_is_named_by_its_own_name() -> None:
    assert said("past.0.key")[0] == "past.0.key holds the batch along axis 0"


def test_a_pattern_says_nothing_of_inputs_of_another_kind() -> None:
    shared, rest, _ = said("past.0", "past.1", "past.2", shared=("past.1",))
    assert {shared, rest} == {
        "past.1 is the same for all requests (as declared)",
        "past.0, past.2 hold the batch along axis 0",
    }
