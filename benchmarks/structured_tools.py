"""One tool makes one model smaller and is judged: run by `structured.py` with the tool's Python.

    PYTHON structured_tools.py TOOL METHOD RATIO MODEL SAMPLES WINDOWS

Each tool is imported where it is used: a Python has only one of them. Each gets the same model in
float32 and the same calibration samples; method `float32` changes nothing, and shows that the
tool's Python computes the same model. The last line printed is JSON.
"""

import json
import math
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

BATCH = 4
"""How many samples SliceGPT is given together."""

HEALING = {"steps": 2000, "minutes": 20.0, "learning_rate": 0.0001, "batch": 2, "every": 50}
"""As in the recipe `compact-healed`, but for 20 minutes."""


class Made(NamedTuple):
    """What a tool made.

    Attributes:
        logits: gives logits [T, V] of tokens [T].
        parameters: how many numbers the model has; what is shared counts once.
        multiply_adds: for one token without a cache.
        seconds: what making it took, without loading.
    """

    logits: Callable[[Tensor], Tensor]
    parameters: int
    multiply_adds: int
    seconds: float


def tokens_of(path: str) -> Tensor:
    """Samples, int64 [S, T], as `structured.py` stored them."""
    return torch.tensor(json.loads(Path(path).read_text()))


def recipe(method: str, ratio: float) -> str | dict[str, Any]:
    """What Planish does by the name of a method: a recipe of the zoo, or a pass, maybe healed."""
    if method.endswith("+healed"):
        made = recipe(method.removesuffix("+healed"), ratio)
        assert isinstance(made, dict)
        return {"passes": [*made["passes"], {"distill": HEALING}]}
    kind, _, detail = method.partition("/")
    if kind == "slice":
        bases, _, more = detail.partition("+")
        options = {"bases": bases, "repair": "repair" in more}
        if "split" in more:
            options["tied"] = "split"
        return {"passes": [{"slice": {"ratio": ratio, **options}}]}
    if kind in ("channels", "heads", "queries"):
        options = {"ratio": ratio, "repair": detail != "as-cut"}
        if kind == "queries":
            options["unit"] = "queries"
        if detail in ("taylor", "global"):
            options["importance"] = "taylor"
        if detail == "global":
            options["scope"] = "global"
        name = "prune_channels" if kind == "channels" else "prune_heads"
        return {"passes": [{name: options}]}
    if kind == "depth":
        return {"passes": [{"prune_depth": {"ratio": ratio, "choose": detail}}]}
    return kind


def planish(method: str, ratio: float, model: str, tokens: Tensor) -> Made:
    """Passes of Planish, by the recipe of a method."""
    from planish import capture  # noqa: PLC0415
    from planish.ir.cost import costs, parameters, total  # noqa: PLC0415
    from planish.passes import name_of  # noqa: PLC0415
    from planish.passes.pipeline import apply  # noqa: PLC0415
    from planish.recipes import load  # noqa: PLC0415
    from planish.samples import _inputs, with_samples  # noqa: PLC0415

    program = with_samples(capture(model), [{"input_ids": rows} for rows in tokens.split(1)])
    passes = load(recipe(method, ratio)).passes if method != "float32" else ()
    after, steps = apply(program, passes, names=name_of, isolation=False)
    sizes = {size.name: {"P": 0}.get(size.name, 1) for size in after.sizes}
    flops = total(costs(after, sizes).values()).flops

    def logits(window: Tensor) -> Tensor:
        return after.run(**_inputs(after, window[None]))["logits"][0]

    return Made(logits, parameters(after), flops // 2, sum(step.seconds for step in steps))


def torchpruning(method: str, ratio: float, model: str, tokens: Tensor) -> Made:
    """Torch-Pruning's dependency graph and pruner, which are not given how to repair.

    `example`: every width by the size of coupled weights, as its example for language models:
    coordinates of the stream, channels of MLPs, queries; of MLPs alone, `mlp-magnitude` by that,
    `mlp-taylor` by weights times gradients of the samples, `mlp-activation` by activations.
    """
    import torch_pruning as tp  # noqa: PLC0415
    from transformers import AutoModelForCausalLM  # noqa: PLC0415

    loaded = AutoModelForCausalLM.from_pretrained(
        model,
        dtype=torch.float32,
        attn_implementation="eager",  # so that its graph sees which keys queries share
    ).eval()
    loaded.config.use_cache = False
    start = time.perf_counter()
    if method != "float32":
        kinds = tp.importance
        by = {
            "mlp-taylor": kinds.GroupTaylorImportance,
            "mlp-activation": kinds.ActivationImportance,
        }.get(method, kinds.GroupMagnitudeImportance)()
        options = example_widths(loaded, ratio) if method == "example" else mlp_widths(loaded)
        pruner = tp.pruner.BasePruner(
            loaded,
            tokens[:1, :16],
            importance=by,
            pruning_ratio=ratio,
            output_transform=lambda given: given.logits,
            **options,
        )
        if method == "mlp-taylor":
            for rows in tokens:
                loaded(input_ids=rows[None], labels=rows[None]).loss.backward()
        if method == "mlp-activation":
            with by.compute_importance(loaded), torch.no_grad():
                for rows in tokens:
                    loaded(input_ids=rows[None])
        pruner.step()
        for layer in loaded.model.layers:  # which the pruner, of weights alone, knows nothing of
            attention = layer.self_attn
            shared = attention.q_proj.out_features // attention.k_proj.out_features
            attention.num_key_value_groups = shared
    seconds = time.perf_counter() - start
    table, head = loaded.get_input_embeddings(), loaded.get_output_embeddings()
    if torch.equal(table.weight, head.weight):  # pruning gives each a tensor of its own
        head.weight = table.weight
    return of_module(loaded, seconds)


def example_widths(model: Any, ratio: float) -> dict[str, Any]:
    """All widths but those of heads; heads by their number, as the queries of each key head."""
    heads = {}
    for layer in model.model.layers:
        attention = layer.self_attn
        heads[attention.q_proj] = model.config.num_attention_heads
        heads[attention.k_proj] = heads[attention.v_proj] = model.config.num_key_value_heads
    return {
        "ignored_layers": [model.get_output_embeddings()],
        "num_heads": heads,
        "prune_num_heads": True,
        "prune_head_dims": False,
        "head_pruning_ratio": ratio,
        "round_to": 4,
    }


def mlp_widths(model: Any) -> dict[str, Any]:
    """Channels of MLPs alone."""
    free = {layer for one in model.model.layers for layer in (one.mlp.gate_proj, one.mlp.up_proj)}
    kept = [one for one in model.modules() if isinstance(one, torch.nn.Linear) and one not in free]
    return {"ignored_layers": [*kept, model.get_input_embeddings()], "round_to": 16}


def slicegpt(method: str, ratio: float, model: str, tokens: Tensor) -> Made:
    """SliceGPT's own code, in float32, by the steps and the defaults of its script.

    `random` turns each basis at random within what is kept, its script's default; `pca` does not.
    """
    from slicegpt import layernorm_fusion, rotate  # noqa: PLC0415
    from slicegpt.adapters.llama_adapter import LlamaModelAdapter  # noqa: PLC0415
    from slicegpt.slicing_scheduler import ConstSlicingScheduler  # noqa: PLC0415
    from transformers import LlamaConfig, LlamaForCausalLM  # noqa: PLC0415

    config = LlamaConfig.from_pretrained(model)
    written = json.loads((Path(model) / "config.json").read_text())
    config.rope_theta = written["rope_parameters"]["rope_theta"]  # its transformers reads it here
    loaded = LlamaForCausalLM.from_pretrained(model, config=config, torch_dtype=torch.float32)
    loaded.config.torch_dtype = torch.float32
    loaded.config.use_cache = False
    loaded.eval()
    batches = [
        {"input_ids": rows, "attention_mask": torch.ones_like(rows)} for rows in tokens.split(BATCH)
    ]
    start = time.perf_counter()
    if method != "float32":
        adapter = LlamaModelAdapter(loaded)
        layernorm_fusion.replace_layers(adapter)
        layernorm_fusion.fuse_modules(adapter)
        width = int((1 - ratio) * adapter.hidden_size)
        schedule = ConstSlicingScheduler(width - width % 8)
        rotate.rotate_and_slice(adapter, batches, schedule, final_orientation=method)
    return of_module(loaded, time.perf_counter() - start)


def of_module(model: Any, seconds: float) -> Made:
    """What a model of transformers is."""

    def logits(window: Tensor) -> Tensor:
        return model(input_ids=window[None]).logits[0]

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        logits(torch.zeros(1, dtype=torch.int64))
    numbers = sum(one.numel() for one in model.parameters())
    return Made(logits, numbers, counter.get_total_flops() // 2, seconds)


def perplexity(logits: Callable[[Tensor], Tensor], windows: Tensor) -> float:
    """Of windows [W, T] apart from each other: exp of the mean loss over T - 1 tokens of each."""
    total = 0.0
    with torch.no_grad():
        for window in windows:
            given = logits(window)[:-1].float()
            total += float(torch.nn.functional.cross_entropy(given, window[1:], reduction="sum"))
    return math.exp(total / (windows.shape[0] * (windows.shape[1] - 1)))


def peak_memory() -> float:
    """The most memory that this process held, in MB."""
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1000


TOOLS = {"planish": planish, "torchpruning": torchpruning, "slicegpt": slicegpt}


def main() -> None:
    """Do what the arguments say."""
    tool, method, ratio, model, samples, windows = sys.argv[1:]
    random.seed(0)
    torch.manual_seed(0)
    load = os.getloadavg()[0]
    made = TOOLS[tool](method, float(ratio), model, tokens_of(samples))
    found = {
        "load_at_start": round(load, 2),
        "seconds": round(made.seconds, 1),
        "peak_memory_mb": round(peak_memory()),
        "parameters": made.parameters,
        "multiply_adds": made.multiply_adds,
        "perplexity": perplexity(made.logits, tokens_of(windows)),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
