"""Recipes: loading from names, paths, dicts and passes; every mistake at once; the zoo."""

import re
from pathlib import Path
from typing import Any, ClassVar

import pytest
from pydantic.dataclasses import dataclass

from planish import recipes
from planish.ir.program import Program
from planish.passes import PASSES
from planish.passes.cast import Cast
from planish.passes.contract import OPTIONS, Contract, Pass
from planish.passes.fuse_conv_bn import FuseConvBn
from planish.passes.quantize_weights import QuantizeWeights

GOOD = """\
# Weights first.
description: >
  Mixed.
isolation: off
target: torch
passes:
  - fuse_conv_bn
  - quantize_weights: {bits: 4, group_size: 64, targets: ["*.mlp.*"]}
  - quantize_weights:
      bits: 8
      group_size: null
  - cast:
      dtype: bfloat16
"""
MADE = recipes.Recipe(
    name="good",
    passes=(
        FuseConvBn(),
        QuantizeWeights(bits=4, group_size=64, targets=("*.mlp.*",)),
        QuantizeWeights(bits=8, group_size=None),
        Cast("bfloat16"),
    ),
    description="Mixed.",
    isolation="off",
    target="torch",
)


def write(folder: Path, text: str, name: str = "good.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def mistakes(folder: Path, text: str) -> list[str]:
    """The lines of the error for a file, without the folder's name."""
    with pytest.raises(recipes.BadRecipe) as caught:
        recipes.load(write(folder, text, "r.yaml"))
    return str(caught.value).replace(f"{folder}/", "").splitlines()


def test_a_file(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    assert recipes.load(path) == recipes.load(str(path)) == MADE
    assert recipes.load(path).text == GOOD


def test_a_dict_a_sequence_and_a_recipe() -> None:
    options = {"bits": 4, "group_size": 64, "targets": ("*.mlp.*",)}
    made = recipes.load({"passes": ["fuse_conv_bn", {"quantize_weights": options}]})
    assert made.passes == MADE.passes[:2]
    assert (made.name, made.isolation, made.target) == ("python", "enforce", "onnx")
    assert recipes.load(MADE.passes).passes == MADE.passes
    assert recipes.load({"passes": (FuseConvBn(), "fuse_conv_bn")}).passes == (FuseConvBn(),) * 2
    assert recipes.load([]).passes == ()
    assert recipes.load(MADE) is MADE


CANONICAL = """\
description: Mixed.
isolation: 'off'
target: torch
passes:
- fuse_conv_bn:
    ignore: []
- quantize_weights:
    bits: 4
    group_size: 64
    symmetric: true
    type: int
    targets: ['*.mlp.*']
    ignore: []
    overrides: []
    clip_search: true
    bias_correction: false
    embeddings: false
    lm_head: false
- quantize_weights:
    bits: 8
    group_size: null
    symmetric: true
    type: int
    targets: [Linear]
    ignore: []
    overrides: []
    clip_search: true
    bias_correction: false
    embeddings: false
    lm_head: false
- cast:
    dtype: bfloat16
"""


def test_the_canonical_text_spells_everything_out_and_reads_back(tmp_path: Path) -> None:
    assert MADE.to_yaml() == CANONICAL
    assert recipes.load(write(tmp_path, CANONICAL)) == MADE


ZOO = [
    "auto-4.5bit",
    "bf16",
    "bitstack",
    "compact",
    "compact-healed",
    "fold",
    "fp8",
    "isolate",
    "mamba-w8a8",
    "prefill-decode-cpu",
    "prune-depth",
    "prune-width",
    "slice-10",
    "slice-25",
    "slice-w4",
    "ternary",
    "w4a16",
    "w4a16-awq",
    "w4a16-cpu",
    "w4a16-gptq",
    "w4a8",
    "w7a8-cpu",
    "w8a16",
    "w8a8",
    "w8a8-cpu",
]


@pytest.mark.parametrize("name", ZOO)
def test_the_zoo(name: str, tmp_path: Path) -> None:
    recipe = recipes.load(name)
    assert recipe.name == name
    assert recipes.zoo()[name] == recipe.description != ""
    assert recipes.load(write(tmp_path, recipe.to_yaml(), f"{name}.yaml")) == recipe


def test_the_zoo_says_what_its_names_promise() -> None:
    assert list(recipes.zoo()) == ZOO
    (w4,) = recipes.load("w4a16").passes
    (w8,) = recipes.load("w8a16").passes
    assert w4 == QuantizeWeights(bits=4, group_size=64, symmetric=True, clip_search=True)
    assert w8 == QuantizeWeights(bits=8, group_size=None, symmetric=True)
    assert recipes.load("bf16").passes == (Cast("bfloat16"),)
    assert recipes.load("fold").passes == (FuseConvBn(),)


def test_the_recipes_of_the_documentation(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8")
    first, second = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert len(recipes.load(write(tmp_path, first)).passes) == 2
    assert len(recipes.load(write(tmp_path, second)).decode) == 1


EVERYTHING_WRONG = """\
descripton: x
description: 3
isolation: enforced
target: tensorrt
passes:
  - cast:
      dtype: bfloat
      dtype: float16
  - cast
  - fuse-conv-bn
  - cast:
    dtype: bfloat16
  - quantize_weights: {bits: 5, group_size: 63, symetric: true, clip_search: y}
  - quantize_weights:
      bits: "4"
      group_size: 64
      targets: Linear
      ignore: [lm_head, 7, "re:("]
  - 7
  - fuse_conv_bn: [1]
  - fuse_conv_bn: {}
    cast: {dtype: float16}
  - fuse_conv_bn: {ignor: []}
  - {}
"""
FOUND = """\
r.yaml:1:1: descripton: no such key; did you mean description?
r.yaml:2:14: description: must be text, not 3
r.yaml:3:12: isolation: cannot be "enforced"; did you mean enforce?
r.yaml:4:9: target: cannot be "tensorrt"; choose from onnx, torch, triton
r.yaml:7:14: passes[0].cast.dtype: cannot be "bfloat"; did you mean bfloat16?
r.yaml:8:7: passes[0].cast.dtype: given twice, first at line 7
r.yaml:9:5: passes[1]: the option dtype is missing
r.yaml:10:5: passes[2]: no pass is named "fuse-conv-bn"; did you mean fuse_conv_bn?
r.yaml:12:5: passes[3].dtype: is an option of cast; indent it further than cast
r.yaml:13:30: passes[4].quantize_weights.bits: cannot be 5; choose from 8, 7, 4, 3, 2
r.yaml:13:45: passes[4].quantize_weights.group_size: cannot be 63; choose from 32, 64, 128, null
r.yaml:13:49: passes[4].quantize_weights.symetric: no such option; did you mean symmetric?
r.yaml:13:78: passes[4].quantize_weights.clip_search: cannot be "y"; choose from true, false, inputs
r.yaml:15:13: passes[5].quantize_weights.bits: cannot be "4"; did you mean 4?
r.yaml:17:16: passes[5].quantize_weights.targets: must be a list, not "Linear"
r.yaml:18:25: passes[5].quantize_weights.ignore[1]: must be text, not 7
r.yaml:19:5: passes[6]: must be the name of a pass, or name: options, not 7
r.yaml:20:19: passes[7].fuse_conv_bn: must be a mapping of options, not [1]
r.yaml:22:5: passes[8].cast: stands beside fuse_conv_bn; an item of the list is one pass, begun by \
a dash
r.yaml:23:20: passes[9].fuse_conv_bn.ignor: no such option; did you mean ignore?
r.yaml:24:5: passes[10]: must be the name of a pass, or name: options, not {}
"""


def test_every_mistake_at_once_with_its_place(tmp_path: Path) -> None:
    assert mistakes(tmp_path, EVERYTHING_WRONG) == FOUND.splitlines()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "r.yaml: a recipe is a mapping with the key passes"),
        ("fuse_conv_bn", "r.yaml:1:1: a recipe is a mapping with the key passes"),
        (
            "- fuse_conv_bn",
            "r.yaml:1:1: a list; a recipe is a mapping, with the list under the key passes",
        ),
        ("description: x", "r.yaml:1:1: the key passes is missing"),
        ("passes:", "r.yaml:1:8: passes: must be a list of passes, not null"),
        ("passes: {cast: }", 'r.yaml:1:9: passes: must be a list of passes, not {"cast": null}'),
        ("passes: [*x]", "r.yaml:1:10: an alias (*x); write it out"),
        (
            'passes:\n  - fuse_conv_bn: {ignore: ["re:("]}',
            "r.yaml:2:28: passes[0].fuse_conv_bn.ignore: 're:(' is no regular expression: "
            "missing ), unterminated subpattern at position 0",
        ),
    ],
)
def test_one_mistake(tmp_path: Path, text: str, expected: str) -> None:
    assert mistakes(tmp_path, text) == [expected]


def test_what_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(b"passes: \xff\n")
    with pytest.raises(recipes.BadRecipe, match="not text in UTF-8"):
        recipes.load(path)


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        (
            {"passes": [{"cast": {"dtype": "float64"}}], "x": 1},
            [
                "python: x: no such key; choose from description, isolation, target, passes, "
                "decode",
                'python: passes[0].cast.dtype: cannot be "float64"; did you mean float16?',
            ],
        ),
        ([5], ["python: passes[0]: must be the name of a pass, or name: options, not 5"]),
        (
            {"passes": [{"cast": {"dtype": {1, 2}}}]},
            ["python: passes[0].cast: its options must be text, numbers, booleans, lists or null"],
        ),
    ],
)
def test_mistakes_made_in_python(recipe: Any, expected: list[str]) -> None:
    with pytest.raises(recipes.BadRecipe) as caught:
        recipes.load(recipe)
    assert str(caught.value).splitlines() == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "w4a61",
            'no recipe is named "w4a61"; did you mean w4a16? A recipe of your own is given by the '
            "path of its .yaml file.",
        ),
        (
            "tiny",
            f'no recipe is named "tiny"; choose from {", ".join(ZOO)}. A recipe of your own is '
            "given by the path of its .yaml file.",
        ),
        ("there/is/none.yaml", "there/is/none.yaml: no such file."),
    ],
)
def test_an_unknown_recipe(name: str, expected: str) -> None:
    with pytest.raises(recipes.UnknownRecipe) as caught:
        recipes.load(name)
    assert str(caught.value) == expected


@dataclass(frozen=True, config=OPTIONS)
class Own(Pass):
    """A pass that is not in the table."""

    contract: ClassVar[Contract] = Contract(numerics="exact", isolation="kept")

    def __call__(self, program: Program) -> Program:
        return program


def test_a_pass_of_ones_own_runs_from_python_and_is_written_by_its_class() -> None:
    recipe = recipes.load([Own()])
    assert recipe.passes == (Own(),)
    assert recipe.to_yaml().endswith("passes:\n- Own\n")
    assert Own not in PASSES.values()
