"""How the time of capture and passes grows with depth: a Llama of SmolLM2's width, random weights.

    python benchmarks/capture_scaling.py

CPU seconds, which a busy machine changes less than wall time, go to
`benchmarks/results/capture_scaling.json`.
"""

import json
import time
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from planish.ir.capture.huggingface import capture_model
from planish.passes import name_of
from planish.passes.pipeline import apply
from planish.passes.quantize_weights import QuantizeWeights

RESULTS = Path(__file__).parent / "results" / "capture_scaling.json"
DEPTHS = (1, 5, 15, 30)  # the first warms up


def main() -> None:
    """Time each depth and write the results."""
    rows = []
    for depth in DEPTHS:
        config = LlamaConfig(
            hidden_size=576,
            intermediate_size=1536,
            num_hidden_layers=depth,
            num_attention_heads=9,
            num_key_value_heads=3,
            vocab_size=49152,
            tie_word_embeddings=True,
        )
        model = LlamaForCausalLM(config).eval()
        start = time.process_time()
        program = capture_model(model)
        captured = time.process_time()
        apply(program, [QuantizeWeights(bits=4, group_size=64)], names=name_of)
        rows.append(
            {
                "layers": depth,
                "nodes": len(program.graph.nodes),
                "capture_cpu_seconds": round(captured - start, 2),
                "quantize_cpu_seconds": round(time.process_time() - captured, 2),
            }
        )
        print(rows[-1], flush=True)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"torch": torch.__version__, "rows": rows[1:]}, indent=2) + "\n")


if __name__ == "__main__":
    main()
