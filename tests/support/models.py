"""Tiny models of transformers' architectures: random weights, real structure."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

# Sizes differ from one another wherever an architecture lets them, so that a mistaken axis shows.
# Widths are multiples of 64, so that groups of 32 and 64 divide them. The attention window is
# shorter than the example, so that it matters.
VOCABULARY, WIDTH, MLP, HEADS, KV_HEADS, WINDOW, BATCH, LENGTH = 101, 64, 192, 4, 2, 6, 3, 9

_LOUD = {"initializer_range": 0.125}  # about 1/sqrt(WIDTH): activations neither fade nor grow
_IDS = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_TEXT = {
    **_LOUD,
    **_IDS,
    "hidden_size": WIDTH,
    "intermediate_size": MLP,
    "num_attention_heads": HEADS,
    "max_position_embeddings": 80,
}
_GROUPED = {**_TEXT, "num_key_value_heads": KV_HEADS}
_WIDE_HEADS = {**_GROUPED, "head_dim": 32}
_GEMMA = {**_WIDE_HEADS, "query_pre_attn_scalar": 24, "sliding_window": WINDOW}
_EXPERTS = {**_GROUPED, "num_experts_per_tok": 2}
_MAMBA = {**_LOUD, **_IDS, "hidden_size": WIDTH, "state_size": 8}
_IMAGE = {**_LOUD, "image_size": 32, "num_labels": 10}


@dataclass(frozen=True)
class Family:
    """How to build one architecture.

    Attributes:
        model_type: The name by which transformers knows its configuration.
        task: The suffix of transformers' Auto class.
        options: The configuration, apart from the depth.
        depth: The option that sets the depth; ``depths`` takes one number for each of two stages,
            and nothing where the architecture fixes its depth.
    """

    model_type: str
    task: str
    options: dict[str, Any]
    depth: str = "num_hidden_layers"


def _decoder(model_type: str, options: dict[str, Any], **more: object) -> Family:
    return Family(model_type, "CausalLM", options | more)


def _encoder(model_type: str, task: str, **more: object) -> Family:
    return Family(model_type, task, _TEXT | more)


def _classifier(model_type: str, depth: str, **more: object) -> Family:
    return Family(model_type, "ImageClassification", _IMAGE | more, depth)


FAMILIES = {
    "llama": _decoder("llama", _GROUPED),
    "qwen2": _decoder("qwen2", _GROUPED, tie_word_embeddings=True),
    "qwen3": _decoder("qwen3", _WIDE_HEADS),
    "mistral": _decoder("mistral", _GROUPED, sliding_window=WINDOW),
    "gemma2": _decoder("gemma2", _GEMMA, attn_logit_softcapping=2.0, final_logit_softcapping=3.0),
    "gemma3": _decoder("gemma3_text", _GEMMA, sliding_window_pattern=2),
    "phi": _decoder("phi", _GROUPED),
    "phi3": _decoder("phi3", _GROUPED),
    "opt": _decoder("opt", _TEXT, ffn_dim=MLP, word_embed_proj_dim=WIDTH, init_std=0.125),
    "gpt2": _decoder("gpt2", _TEXT, n_inner=MLP),
    "gpt_neox": _decoder("gpt_neox", _TEXT),
    "falcon": _decoder("falcon", _TEXT, ffn_hidden_size=MLP),
    "mixtral": _decoder("mixtral", _EXPERTS, num_local_experts=5),
    "qwen2_moe": _decoder(
        "qwen2_moe",
        _EXPERTS,
        num_experts=5,
        moe_intermediate_size=128,
        shared_expert_intermediate_size=320,
    ),
    "mamba": _decoder("mamba", _MAMBA),
    "mamba2": _decoder("mamba2", _MAMBA, num_heads=8, head_dim=16, n_groups=2, chunk_size=4),
    "bert": _encoder("bert", "SequenceClassification", num_labels=5),
    "distilbert": _encoder("distilbert", "MaskedLM", hidden_dim=MLP),
    "roberta": _encoder("roberta", "MaskedLM"),
    "modernbert": _encoder(
        "modernbert", "MaskedLM", local_attention=WINDOW, cls_token_id=1, sep_token_id=2
    ),
    "vit": _classifier(
        "vit",
        "num_hidden_layers",
        patch_size=8,
        hidden_size=WIDTH,
        intermediate_size=MLP,
        num_attention_heads=HEADS,
    ),
    "resnet": _classifier("resnet", "depths", embedding_size=8, hidden_sizes=[32, 48]),
    "convnext": _classifier("convnext", "depths", num_stages=2, hidden_sizes=[16, 24]),
    "mobilenet_v2": _classifier("mobilenet_v2", "", image_size=64, depth_multiplier=0.35),
    "swin": _classifier(
        "swin", "depths", patch_size=2, embed_dim=16, num_heads=[2, 4], window_size=4, mlp_ratio=3.0
    ),
    "t5": Family(
        "t5",
        "Seq2SeqLM",
        {
            **_IDS,
            "d_model": WIDTH,
            "d_kv": 32,
            "d_ff": MLP,
            "num_heads": HEADS,
            "relative_attention_num_buckets": 8,
            "relative_attention_max_distance": 20,
            "feed_forward_proj": "gated-gelu",
            "decoder_start_token_id": 0,
        },
        "num_layers",
    ),
}


def tiny(
    family: str, layers: int = 2, seed: int = 0
) -> tuple[transformers.PreTrainedModel, dict[str, Tensor]]:
    """Build a random model of a family in evaluation mode, and inputs that it takes.

    The inputs of text models are ``input_ids`` and ``attention_mask`` of [3, 9], the last row
    padded on the right by two; of image models ``pixel_values`` of [3, 3, size, size], where size
    is 32, for MobileNetV2 64; T5 also takes ``decoder_input_ids`` of [3, 4].
    """
    made = FAMILIES[family]
    depth = {made.depth: [layers] * 2 if made.depth == "depths" else layers} if made.depth else {}
    config = transformers.AutoConfig.for_model(made.model_type, **made.options, **depth)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = getattr(transformers, f"AutoModelFor{made.task}").from_config(config).eval()
        _perturb(model)
        return model, _inputs(made)


def tiny_folder(family: str, folder: Path, layers: int = 2) -> Path:
    """Save a random model of a family as a Hugging Face folder without a tokenizer."""
    tiny(family, layers)[0].save_pretrained(folder)
    return folder


@torch.no_grad()
def _perturb(model: nn.Module) -> None:
    """Move scales, biases and running statistics away from the ones and zeros they start at."""
    for parameter in model.parameters():
        if parameter.dim() < 2:
            parameter.add_(0.1 * torch.randn_like(parameter))
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(std=0.1)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)


def _inputs(family: Family) -> dict[str, Tensor]:
    """Draw inputs."""
    if family.task == "ImageClassification":
        size = family.options["image_size"]
        return {"pixel_values": torch.randn(BATCH, 3, size, size)}
    mask = torch.ones(BATCH, LENGTH, dtype=torch.long)
    mask[-1, -2:] = 0
    text = {"input_ids": torch.randint(3, VOCABULARY, (BATCH, LENGTH)), "attention_mask": mask}
    if family.task == "Seq2SeqLM":
        text["decoder_input_ids"] = torch.randint(3, VOCABULARY, (BATCH, 4))
    return text


def convnet() -> tuple[nn.Module, Tensor]:
    """Build a convolution with BatchNorm, and images for it: a module of a user's own."""
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval(), torch.rand(2, 3, 8, 8)
