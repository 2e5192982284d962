"""Captured tiny models, one of each family, made once a test run."""

from functools import cache

from transformers import PreTrainedModel

from planish.ir.capture.huggingface import capture_model
from planish.ir.program import Program
from support.models import tiny


@cache
def captured(family: str, layers: int = 2) -> tuple[PreTrainedModel, Program]:
    """Return a random tiny model of a family (`support.models.FAMILIES`) and its program."""
    model, _ = tiny(family, layers)
    return model, capture_model(model)
