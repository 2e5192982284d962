"""Families to try something on: by default those that differ most."""

import pytest

from support.models import FAMILIES

COMMON = {
    "llama",
    "qwen3",
    "gemma3",
    "phi3",
    "falcon",
    "mixtral",
    "mamba2",
    "bert",
    "swin",
    "resnet",
}
SOME = [name if name in COMMON else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
"""Every family; by default those that differ most."""
