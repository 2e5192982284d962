"""One tool quantizes one model: run by `quantization.py` with the Python that has the tool.

    PYTHON quantization_tools.py quantize TOOL METHOD GROUP MODEL TOKENS OUT
    PYTHON quantization_tools.py evaluate TOOL OUT TOKENS QUESTIONS

Each tool is imported where it is used: a Python has only one of them. Each gets the same model in
float32 and the same calibration samples, and is asked for 4-bit symmetric weights in groups of
GROUP of all linear layers but the head. The last line printed is JSON.
"""

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch

BITS = 4

BATCH = {"planish": 1, "llmcompressor": 1, "gptqmodel": 4}
"""How many samples each tool runs together: of 1 and 4, what it was faster with."""


def tokens_of(path: str) -> torch.Tensor:
    """Samples, int64 [S, T], as `quantization.py` stored them."""
    return torch.tensor(json.loads(Path(path).read_text()))


def planish(method: str, group: int, model: str, tokens: torch.Tensor, out: Path) -> float:
    """`planish.optimize` with a recipe: of the zoo, or written here."""
    from planish import optimize  # noqa: PLC0415

    weights = {"bits": BITS, "group_size": group}
    recipes: dict[str, Any] = {
        "rtn": [{"quantize_weights": {**weights, "clip_search": False}}],
        "rtn+search": [{"quantize_weights": weights}],
        "gptq": [{"gptq": weights}],
        "gptq-plain": [{"gptq": {**weights, "drift_correction": 0}}],
        "awq": [{"awq": weights}, {"quantize_weights": weights}],
        "awq+gptq": [{"awq": weights}, {"gptq": weights}],
    }
    samples = [{"input_ids": rows} for rows in tokens.split(BATCH["planish"])]
    start = time.perf_counter()
    result = optimize(model, {"passes": recipes[method]}, samples=samples, output=out)
    print(f"{time.perf_counter() - start:.0f} s with capture, checks and files")
    return sum(step.seconds for step in result.steps)


def llmcompressor(method: str, group: int, model: str, tokens: torch.Tensor, out: Path) -> float:
    """llm-compressor's one-shot run, with its defaults but for bits and groups.

    Its AWQ (0.14) pins memory, which torch refuses where there is no accelerator: not done then.
    """
    from datasets import Dataset  # noqa: PLC0415
    from llmcompressor import oneshot  # noqa: PLC0415
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415

    if method == "gptq":
        from llmcompressor.modifiers.quantization import GPTQModifier as Modifier  # noqa: PLC0415
    else:
        from llmcompressor.modifiers.awq import AWQModifier as Modifier  # noqa: PLC0415

        if not torch.accelerator.is_available():
            torch.Tensor.pin_memory = lambda self, *_: self  # type: ignore[method-assign]
    scheme = {
        "targets": ["Linear"],
        "weights": {
            "num_bits": BITS,
            "type": "int",
            "symmetric": True,
            "strategy": "group",
            "group_size": group,
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
        batch_size=BATCH["llmcompressor"],
    )
    seconds = time.perf_counter() - start
    loaded.save_pretrained(out, save_compressed=True)
    return seconds


def gptqmodel(method: str, group: int, model: str, tokens: torch.Tensor, out: Path) -> float:
    """GPTQModel with its defaults but for bits and groups."""
    from gptqmodel import GPTQModel, QuantizeConfig  # noqa: PLC0415

    assert method == "gptq"
    config = QuantizeConfig(bits=BITS, group_size=group, sym=True)
    loaded = GPTQModel.load(model, config, device="cpu", dtype=torch.float32)
    data = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in tokens.tolist()]
    start = time.perf_counter()
    loaded.quantize(data, batch_size=BATCH["gptqmodel"])
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


def multiply_quickly() -> None:
    """Let torch take oneDNN's products of float32, twice as fast on some processors, if exact."""
    settings = torch.backends.mkldnn.matmul
    settings.fp32_precision = "bf16"  # allowed, and taken by processors that have it in matrices
    left, right = torch.randn(512, 512), torch.randn(512, 512)
    exact = left.double() @ right.double()
    if (left @ right - exact).norm() > 1e-5 * exact.norm():
        settings.fp32_precision = "none"


def perplexity(model: Any, windows: torch.Tensor) -> float:
    """Of windows [W, T] apart from each other: exp of the mean loss over T - 1 tokens of each."""
    total = 0.0
    with torch.no_grad():
        for window in windows:
            logits = model(input_ids=window[None]).logits[0, :-1].float()
            total += float(torch.nn.functional.cross_entropy(logits, window[1:], reduction="sum"))
    return math.exp(total / (windows.shape[0] * (windows.shape[1] - 1)))


def letter_scores(model: Any, questions: dict[str, Any]) -> list[list[float]]:
    """How probable each prompt makes each letter: log-likelihoods by question and letter."""
    letters = questions["letters"]
    found = []
    with torch.no_grad():
        for prompt in questions["prompts"]:
            logits = model(input_ids=torch.tensor([prompt]), logits_to_keep=1).logits[0, -1]
            found.append(logits.float().log_softmax(-1)[letters].tolist())
    return found


def evaluate(tool: str, folder: str, tokens: str, questions: str) -> dict[str, Any]:
    """What a model makes of the windows and of the questions."""
    multiply_quickly()
    model = load(tool, folder)
    return {
        "perplexity": perplexity(model, tokens_of(tokens)),
        "letter_scores": letter_scores(model, json.loads(Path(questions).read_text())),
    }


def quantize(
    tool: str, method: str, group: str, model: str, tokens: str, out: str
) -> dict[str, Any]:
    """Let a tool write its model; what that took."""
    seconds = TOOLS[tool](method, int(group), model, tokens_of(tokens), Path(out))
    return {"seconds": seconds, "peak_memory_mb": peak_memory()}


def peak_memory() -> float:
    """The most memory that this process held, in MB."""
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1000


TOOLS = {"planish": planish, "llmcompressor": llmcompressor, "gptqmodel": gptqmodel}


def main() -> None:
    """Do what the arguments say."""
    what, *given = sys.argv[1:]
    print(json.dumps({"quantize": quantize, "evaluate": evaluate}[what](*given)))


if __name__ == "__main__":
    main()
