"""YAML as recipes read it: values, places, and what is refused."""

from typing import Any

import pytest

from planish.recipes.document import Mark, dump, parse


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("off", "off"),
        ("yes", "yes"),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("8", 8),
        ("-1", -1),
        ("010", 10),
        ("0x10", 16),
        ("0o10", 8),
        ("1e-3", 0.001),
        (".5", 0.5),
        ("'8'", "8"),
        ("1_000", "1_000"),
        ("2001-01-01", "2001-01-01"),
        ("12:30", "12:30"),
        ("9" * 30, 10**30 - 1),
        ("-.inf", float("-inf")),
        ("re:.*\\.[0-9]+$", "re:.*\\.[0-9]+$"),
        ("[a, [1]]", ["a", [1]]),
        ("{a: {b: c}}", {"a": {"b": "c"}}),
        (">\n  two\n  lines", "two lines\n"),
    ],
)
def test_plain_words_mean_what_they_do_in_yaml_1_2(text: str, value: Any) -> None:
    document = parse(f"key: {text}\n")
    assert document.problems == []
    assert document.value == {"key": value}
    assert type(document.value["key"]) is type(value)


def test_places_of_keys_and_values() -> None:
    document = parse("a: 1\nb:\n  - c\n  - d: [2]\n")
    assert document.keys == {
        ("a",): Mark(1, 1),
        ("b",): Mark(2, 1),
        ("b", 1, "d"): Mark(4, 5),
    }
    assert document.values["a",] == Mark(1, 4)
    assert document.values["b", 0] == Mark(3, 5)
    assert document.values["b", 1, "d", 0] == Mark(4, 9)


REFUSED = {
    "a: 1\nb: 2\na: 3\n": [(("a",), "given twice, first at line 1", Mark(3, 1))],
    "a: &x 1\nb: *x\nc: *x\n": [
        ((), "an alias (*x); write it out", Mark(2, 4)),
        ((), "an alias (*x); write it out", Mark(3, 4)),
    ],
    "a: !!python/object/apply:os.system [id]\n": [
        (
            (),
            "a tag (tag:yaml.org,2002:python/object/apply:os.system); recipes have none",
            Mark(1, 4),
        )
    ],
    "a: !mine 3\n": [((), "a tag (!mine); recipes have none", Mark(1, 4))],
    "? [a]\n: b\n": [((), "a key must be a word", Mark(1, 3))],
    "[" * 100: [((), "more than 20 levels deep", Mark(1, 21))],
    "a: [1\n": [
        (
            (),
            "not valid YAML: while parsing a flow sequence, expected ',' or ']', but got "
            "'<stream end>'",
            Mark(2, 1),
        )
    ],
    "a:\n\tb: 1\n": [
        (
            (),
            "not valid YAML: while scanning for the next token, found character '\\t' that cannot "
            "start any token",
            Mark(2, 1),
        )
    ],
    "a\n---\nb\n": [
        (
            (),
            "not valid YAML: expected a single document in the stream, but found another document",
            Mark(2, 1),
        )
    ],
    "a: b\nc: \x07\n": [
        ((), "not text that YAML allows: special characters are not allowed", Mark(2, 4))
    ],
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_refused(text: str) -> None:
    document = parse(text)
    found = [(problem.path, problem.what, problem.mark) for problem in document.problems]
    assert found == REFUSED[text]


def test_a_mistake_does_not_hide_the_others() -> None:
    document = parse("a: 1\na: 2\nb: 1\nb: 2\n")
    assert [problem.path for problem in document.problems] == [("a",), ("b",)]
    assert document.value == {"a": 1, "b": 1}


def test_an_expanding_bomb_is_refused_before_it_is_built() -> None:
    lines = ["a0: &a0 [x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 40)]
    assert len(parse("\n".join(lines)).problems) == 39 * 9


TRICKY = ["off", "yes", "no", "on", "null", "~", "true", "1e3", "0o7", "0x1", ".5", "1_000"]
TRICKY += ["12:30", "2001-01-01", "=", "<<", "*", "!x", "&a", "-", "?", "|", ">", "%", "@", "é"]


@pytest.mark.parametrize(
    "value",
    [
        *TRICKY,
        *("", " x", "x ", "a: b", "a #b", "- a", "'", '"', "a\nb", "re:.*\\d", "[a]", "{a}"),
        *(True, False, None, 0, -3, 10**12, 0.5, 1e-5, 1e22, float("inf")),
        [],
        ["a", 1],
        {"a": None},
    ],
)
def test_what_is_written_is_read_back(value: Any) -> None:
    document = parse(dump({"key": value, "list": [value]}))
    assert document.problems == []
    assert document.value == {"key": value, "list": [value]}


def test_a_value_is_written_again_where_it_occurs_again() -> None:
    shared = ("a",)
    assert dump({"x": shared, "y": shared}) == "x: [a]\ny: [a]\n"


def test_tuples_are_written_on_one_line() -> None:
    assert dump({"a": ("x", "off"), "b": [1]}) == "a: [x, 'off']\nb:\n- 1\n"
