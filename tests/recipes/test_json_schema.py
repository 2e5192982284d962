"""The JSON Schema says of a recipe what `load` says."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from planish import recipes
from planish.passes import PASSES
from planish.recipes.document import parse

VALIDATOR = jsonschema.Draft202012Validator(recipes.schema())
ZOO = sorted((Path(recipes.__file__).parent / "zoo").glob("*.yaml"))
QUANTIZE = {"bits": 4, "group_size": 64}


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(recipes.schema())
    assert json.loads(json.dumps(recipes.schema())) == recipes.schema()


@pytest.mark.parametrize("path", ZOO, ids=lambda path: path.stem)
def test_the_zoo_is_valid(path: Path) -> None:
    VALIDATOR.validate(parse(path.read_text(encoding="utf-8")).value)
    VALIDATOR.validate(parse(recipes.load(path).to_yaml()).value)


@pytest.mark.parametrize("name", PASSES)
def test_every_pass_has_a_branch_with_its_options_described(name: str) -> None:
    options = recipes.schema()["$defs"][name]
    assert options["additionalProperties"] is False
    assert set(options["properties"]) == set(PASSES[name].__pydantic_fields__)  # type: ignore[attr-defined]
    assert all(option["description"] for option in options["properties"].values())
    branches = recipes.schema()["properties"]["passes"]["items"]["oneOf"]
    assert [branch["description"] for branch in branches if branch["title"] == name] != [""]


@pytest.mark.parametrize(
    "recipe",
    [
        {"passes": []},
        {"passes": ["fuse_conv_bn"]},
        {"passes": [{"fuse_conv_bn": None}]},
        {"passes": [{"fuse_conv_bn": {"ignore": ["a"]}}], "description": "x"},
        {"passes": [{"quantize_weights": QUANTIZE}], "isolation": "bitwise", "target": "torch"},
        {
            "passes": [
                {"quantize_weights": {"bits": 8, "group_size": None}},
                {"cast": {"dtype": "float16"}},
            ]
        },
    ],
)
def test_both_accept(recipe: Any) -> None:
    recipes.load(recipe)
    VALIDATOR.validate(recipe)


@pytest.mark.parametrize(
    "recipe",
    [
        {},
        {"passes": "fuse_conv_bn"},
        {"passes": ["fuse"]},
        {"passes": ["cast"]},
        {"passes": [{"cast": None}]},
        {"passes": [{"cast": {"dtype": "float64"}}]},
        {"passes": [{"cast": {"dtype": "float16", "to": 1}}]},
        {"passes": [{"fuse_conv_bn": None, "cast": {"dtype": "float16"}}]},
        {"passes": [{"quantize_weights": QUANTIZE | {"bits": 5}}]},
        {"passes": [{"quantize_weights": QUANTIZE | {"group_size": 48}}]},
        {"passes": [{"quantize_weights": QUANTIZE | {"symmetric": "yes"}}]},
        {"passes": [{"quantize_weights": QUANTIZE | {"ignore": "lm_head"}}]},
        {"passes": [{"quantize_weights": {"bits": 4}}]},
        {"passes": [{}]},
        {"passes": [7]},
        {"passes": [], "isolation": "of"},
        {"passes": [], "target": "tensorrt"},
        {"passes": [], "description": 1},
        {"passes": [], "pases": []},
    ],
)
def test_both_refuse(recipe: Any) -> None:
    with pytest.raises(recipes.BadRecipe):
        recipes.load(recipe)
    assert not VALIDATOR.is_valid(recipe)
