"""Loading Hugging Face checkpoints, and saying plainly what is wrong with a bad one."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from planish.ir.errors import PlanishError
from planish.ir.finite import not_finite

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")


class BadCheckpoint(PlanishError):
    """A checkpoint is missing, damaged, or not one that can be loaded."""


def load_model(checkpoint: str | Path) -> PreTrainedModel:
    """Load a model of transformers in the dtype it is stored in, in evaluation mode.

    Args:
        checkpoint: a folder with `config.json` and safetensors (sharded or not) or `.bin` files
            (read with `weights_only=True`), a `.gguf` file, or, when no such path exists, the
            name of a model on the hub.

    Raises:
        BadCheckpoint: if files are missing or damaged, tensors contradict the config, weights
            are not finite, or transformers does not know the architecture.
    """
    if _is_folder(checkpoint):
        check_folder(Path(checkpoint))
    return _load(str(checkpoint), _location(checkpoint), model_class(read_config(checkpoint)))


def _location(checkpoint: str | Path) -> dict[str, Any]:
    """How transformers is told where a checkpoint is."""
    path = Path(checkpoint)
    if path.suffix != ".gguf":
        return {"pretrained_model_name_or_path": str(checkpoint)}
    if not path.is_file():
        raise BadCheckpoint(f"{path}: no such file.")
    return {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}


def _is_folder(checkpoint: str | Path) -> bool:
    """Whether it is, or is meant to be, a folder: neither a GGUF file nor a name on the hub."""
    path = Path(checkpoint)
    return path.suffix != ".gguf" and (path.exists() or _looks_like_path(str(checkpoint)))


def _looks_like_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") > 1


def check_folder(folder: Path) -> None:
    """Check that a folder holds a config and complete weight files, reading only their heads.

    Raises:
        BadCheckpoint: naming the file.
    """
    _check_config(folder)
    for shard in _shards(folder):
        try:
            with safe_open(shard, framework="pt") as file:
                file.keys()
        except FileNotFoundError:
            raise BadCheckpoint(f"{shard} is missing, though the index names it.") from None
        except SafetensorError as error:
            raise BadCheckpoint(
                f"{shard} is damaged or cut short ({error}): download or copy it again."
            ) from None


def _check_config(folder: Path) -> None:
    if not folder.is_dir():
        raise BadCheckpoint(
            f"{folder}: no such folder. Give a checkpoint's folder (config.json and "
            "model.safetensors), a .gguf file, or the name of a model on the hub."
        )
    config = folder / "config.json"
    if not config.is_file():
        raise BadCheckpoint(f"{folder} holds no config.json, so it is no Hugging Face checkpoint.")
    try:
        json.loads(config.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadCheckpoint(f"{config} is not valid JSON: {error}.") from None


def _shards(folder: Path) -> list[Path]:
    if (folder / INDEX).is_file():
        try:
            index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
            return [folder / name for name in sorted(set(index["weight_map"].values()))]
        except (ValueError, KeyError) as error:
            raise BadCheckpoint(f"{folder / INDEX} is no weight index: {error}.") from None
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if any((folder / name).is_file() for name in PICKLED):
        return []
    raise BadCheckpoint(f"{folder} holds no weights: neither {WEIGHTS} nor {INDEX} is there.")


def stored_names(folder: Path) -> list[str]:
    """The names of the tensors in a folder's safetensors files; empty where there are none."""
    if not any((folder / name).is_file() for name in (WEIGHTS, INDEX)):
        return []
    names: list[str] = []
    for shard in _shards(folder):
        with safe_open(shard, framework="pt") as file:
            names += file.keys()
    return names


def stored_dtype(folder: Path) -> torch.dtype | None:
    """The widest floating-point dtype in a folder's first safetensors file that has one, if any."""
    if not any((folder / name).is_file() for name in (WEIGHTS, INDEX)):
        return None
    for shard in _shards(folder):
        with safe_open(shard, framework="pt") as file:
            found = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
        for name, dtype in _FLOATS.items():
            if name in found:
                return dtype
    return None


_FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def read_config(checkpoint: str | Path) -> PretrainedConfig:
    """The config of a checkpoint, wherever it lies. Weights are not touched, nor need they exist.

    Raises:
        BadCheckpoint: if it is missing or damaged, or of no type that transformers knows.
    """
    from transformers import AutoConfig  # noqa: PLC0415  (slow to import)

    if _is_folder(checkpoint):
        _check_config(Path(checkpoint))
    try:
        with quiet():
            config: PretrainedConfig = AutoConfig.from_pretrained(**_location(checkpoint))
    except (OSError, ValueError, KeyError) as error:
        raise BadCheckpoint(f"{checkpoint}: {_first_sentence(error)}") from error
    return config


def model_class(config: PretrainedConfig) -> type[PreTrainedModel]:
    """The class that a config names, or the plain model of its type where it names none.

    Raises:
        BadCheckpoint: if transformers does not have it.
    """
    import transformers  # noqa: PLC0415

    names = config.architectures or []
    decoders: Any = vars(transformers.AutoModelForCausalLM)["_model_mapping"]
    if not names and type(config) in decoders:
        found: Any = decoders[type(config)]
        kind: type[PreTrainedModel] = found[0] if isinstance(found, tuple) else found
        return kind
    known: type[PreTrainedModel] | None = getattr(transformers, names[0], None) if names else None
    if known is None:
        raise BadCheckpoint(
            f"the architecture {names[0] if names else config.model_type!r} is not one that "
            f"transformers {transformers.__version__} has. Code that comes with a checkpoint is "
            "not run; capture such a model from its nn.Module instead."
        )
    return known


def _load(
    checkpoint: str, location: dict[str, Any], kind: type[PreTrainedModel]
) -> PreTrainedModel:
    try:
        with quiet():
            loaded: Any = kind.from_pretrained(**location, dtype="auto", output_loading_info=True)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise BadCheckpoint(
            f"{checkpoint} does not load as {kind.__name__}: {_first_sentence(error)}"
        ) from error
    model: PreTrainedModel = loaded[0]
    missing = sorted(loaded[1]["missing_keys"])
    if missing:
        raise BadCheckpoint(
            f"{checkpoint} lacks {len(missing)} of the tensors that {kind.__name__} has, among "
            f"them {', '.join(missing[:3])}: the files are incomplete, or config.json describes "
            "another model."
        )
    check_finite(model, checkpoint)
    model.eval()
    return model


def check_finite(model: torch.nn.Module, name: str) -> None:
    """Refuse weights that are NaN or infinite: nothing computed from them means anything.

    Raises:
        BadCheckpoint: naming the first such tensor.
    """
    for key, tensor in model.state_dict().items():
        if not tensor.is_floating_point() or tensor.is_meta:
            continue
        if count := not_finite(tensor):
            raise BadCheckpoint(
                f"{name}: {key} holds {count} NaN or infinite values out of {tensor.numel()}. "
                "The checkpoint is broken, or was saved in the middle of a failed training run."
            )


def _first_sentence(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' own progress bars and warnings off the terminal, then restore them."""
    from transformers.utils import logging  # noqa: PLC0415

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def read_stored(folder: Path, names: Collection[str]) -> dict[str, Tensor]:
    """Some tensors of a folder's safetensors files; names that are not there are left out."""
    tensors: dict[str, Tensor] = {}
    if not any((folder / name).is_file() for name in (WEIGHTS, INDEX)):
        return tensors
    for shard in _shards(folder):
        with safe_open(shard, framework="pt") as file:
            here = set(file.keys()) & set(names)
            tensors |= {name: file.get_tensor(name) for name in sorted(here)}
    return tensors


def revert_names(config: Mapping[str, Any], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Undo what transformers renames, stacks or splits on loading a class's checkpoints."""
    from transformers import AutoConfig  # noqa: PLC0415
    from transformers.core_model_loading import revert_weight_conversion  # noqa: PLC0415

    settings = dict(config)
    parsed = AutoConfig.for_model(settings.pop("model_type"), **settings)
    with torch.device("meta"):
        model = model_class(parsed)(parsed)
    return dict(revert_weight_conversion(model, tensors))
