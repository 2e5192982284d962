"""One tool quantizes one model: run by `quantization.py` with the Python that has the tool.

    PYTHON quantization_tools.py quantize TOOL METHOD MODEL TOKENS OUT
    PYTHON quantization_tools.py evaluate TOOL OUT TOKENS

Each tool is imported where it is used: a Python has only one of them. Each gets the same model in
float32 and the same calibration samples, and is asked for 4-bit symmetric weights in groups of 64
of all linear layers but the head. The last line printed is JSON.
"""

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch

BITS, GROUP = 4, 64
BATCH = 4


def tokens_of(path: str) -> torch.Tensor:
    """Samples, int64 [S, T], as `quantization.py` stored them."""
    return torch.tensor(json.loads(Path(path).read_text()))


def planish(method: str, model: str, tokens: torch.Tensor, out: Path) -> float:
    """`planish.optimize` with a recipe: of the zoo, or written here."""
    from planish import optimize  # noqa: PLC0415

    weights = {"bits": BITS, "group_size": GROUP}
    recipes: dict[str, Any] = {
        "rtn": [{"quantize_weights": {**weights, "clip_search": False}}],
        "rtn+search": [{"quantize_weights": weights}],
        "gptq": [{"gptq": weights}],
        "gptq-plain": [{"gptq": {**weights, "drift_correction": 0}}],
        "awq": [{"awq": weights}, {"quantize_weights": weights}],
        "awq+gptq": [{"awq": weights}, {"gptq": weights}],
    }
    samples = [{"input_ids": rows} for rows in tokens.split(BATCH)]
    start = time.perf_counter()
    result = optimize(model, {"passes": recipes[method]}, samples=samples, output=out)
    print(f"{time.perf_counter() - start:.0f} s with capture, checks and files")
    return sum(step.seconds for step in result.steps)


def llmcompressor(method: str, model: str, tokens: torch.Tensor, out: Path) -> float:
    """llm-compressor's one-shot run, with its defaults but for bits and groups."""
    from datasets import Dataset  # noqa: PLC0415
    from llmcompressor import oneshot  # noqa: PLC0415
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415

    if method == "gptq":
        from llmcompressor.modifiers.quantization import GPTQModifier as Modifier  # noqa: PLC0415
    else:
        from llmcompressor.modifiers.awq import AWQModifier as Modifier  # noqa: PLC0415
    scheme = {
        "targets": ["Linear"],
        "weights": {
            "num_bits": BITS,
            "type": "int",
            "symmetric": True,
            "strategy": "group",
            "group_size": GROUP,
        },
    }
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    data = Dataset.from_list(
        [{"input_ids": row, "attention_mask": [1] * len(row)} for row in tokens.tolist()]
    )
    start = time.perf_counter()
    oneshot(
        model=loaded,
        tokenizer=AutoTokenizer.from_pretrained(model),
        dataset=data,
        recipe=[Modifier(config_groups={"group_0": scheme}, ignore=["lm_head"])],
        max_seq_length=tokens.shape[1],
        num_calibration_samples=len(tokens),
        batch_size=BATCH,
    )
    seconds = time.perf_counter() - start
    loaded.save_pretrained(out, save_compressed=True)
    return seconds


def gptqmodel(method: str, model: str, tokens: torch.Tensor, out: Path) -> float:
    """GPTQModel with its defaults but for bits and groups."""
    from gptqmodel import GPTQModel, QuantizeConfig  # noqa: PLC0415

    assert method == "gptq"
    config = QuantizeConfig(bits=BITS, group_size=GROUP, sym=True)
    loaded = GPTQModel.load(model, config, device="cpu", dtype=torch.float32)
    data = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in tokens.tolist()]
    start = time.perf_counter()
    loaded.quantize(data, batch_size=BATCH)
    seconds = time.perf_counter() - start
    loaded.save(str(out))
    return seconds


def load(tool: str, folder: str) -> Any:
    """What a tool wrote, as its own library loads it, on the CPU."""
    if tool == "gptqmodel":
        from gptqmodel import BACKEND, GPTQModel  # noqa: PLC0415

        return GPTQModel.load(folder, device="cpu", backend=BACKEND.TORCH)
    from transformers import AutoModelForCausalLM  # noqa: PLC0415

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def perplexity(model: Any, windows: torch.Tensor) -> float:
    """Of windows [W, T] apart from each other: exp of the mean loss over T - 1 tokens of each."""
    total = 0.0
    with torch.no_grad():
        for window in windows:
            logits = model(input_ids=window[None]).logits[0, :-1].float()
            total += float(torch.nn.functional.cross_entropy(logits, window[1:], reduction="sum"))
    return math.exp(total / (windows.shape[0] * (windows.shape[1] - 1)))


def peak_memory() -> float:
    """The most memory that this process held, in MB."""
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1000


TOOLS = {"planish": planish, "llmcompressor": llmcompressor, "gptqmodel": gptqmodel}


def main() -> None:
    """Do what the arguments say."""
    what, tool, *given = sys.argv[1:]
    if what == "evaluate":
        folder, tokens = given
        found: dict[str, float] = {"perplexity": perplexity(load(tool, folder), tokens_of(tokens))}
    else:
        method, model, tokens, out = given
        seconds = TOOLS[tool](method, model, tokens_of(tokens), Path(out))
        found = {"seconds": seconds, "peak_memory_mb": peak_memory()}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
