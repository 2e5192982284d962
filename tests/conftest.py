"""What every test gets: no hub, no window, and no more threads than cores."""

import os
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "agg"
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"

# torch reads the number of threads when it is imported.
from planish import assets


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face folder."""
    return assets.smollm2()


@pytest.fixture(scope="session")
def gemma3() -> Path:
    """Gemma 3 270M, the base model, as a Hugging Face folder; for slow tests only (240 MB)."""
    return assets.gemma3()


@pytest.fixture(scope="session")
def minilm() -> Path:
    """all-MiniLM-L6-v2, a BERT, as a Hugging Face folder."""
    return assets.fetch("minilm")
