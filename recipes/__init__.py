"""Recipes: YAML files that say what to do with a model, read and checked strictly.

    description: Weights in 4 bits.
    passes:
      - quantize_weights:
          bits: 4
          group_size: 64

`zoo/` holds the ready ones.
"""

from planish.recipes.check import Isolation, Target
from planish.recipes.json_schema import schema
from planish.recipes.recipe import BadRecipe, Recipe, UnknownRecipe, load, zoo

__all__ = [
    "BadRecipe",
    "Isolation",
    "Recipe",
    "Target",
    "UnknownRecipe",
    "load",
    "schema",
    "zoo",
]
