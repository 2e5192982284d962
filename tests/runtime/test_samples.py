"""The samples that models get where the caller gives none."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from planish import api
from planish.ir.capture.huggingface import from_checkpoint
from planish.ir.errors import PlanishError
from planish.ir.program import Program
from planish.lowering import artifact
from planish.runtime.tokenizer import Tokenizer
from planish.samples import (
    CHECKED,
    DEFAULT_LENGTH,
    DEFAULT_MORE,
    DEFAULT_TEXT,
    LENGTH,
    as_calibration,
    as_samples,
    default_samples,
    with_samples,
)

WHOLE = DEFAULT_LENGTH + DEFAULT_MORE


@pytest.fixture(scope="module")
def program(checkpoint: Path) -> Program:
    return api.capture(checkpoint)


def test_they_are_text_and_its_continuation(program: Program, checkpoint: Path) -> None:
    first, more = program.samples
    read = torch.cat([first["input_ids"], more["input_ids"]], dim=1)
    tokenizer = Tokenizer(checkpoint)
    paragraphs = DEFAULT_TEXT.read_text().strip().split("\n\n")
    assert read.tolist() == [tokenizer.encode(text)[:WHOLE] for text in paragraphs]
    fresh = {name: first[name][:, :, :0] for name in first if name.startswith("past_")}
    whole = program.run(
        input_ids=read,
        attention_mask=torch.ones_like(read),
        position_ids=torch.arange(WHOLE).expand(read.shape).contiguous(),
        **fresh,
    )
    continued = program.run(**more)
    torch.testing.assert_close(
        continued["logits"], whole["logits"][:, -DEFAULT_MORE:], rtol=1e-4, atol=1e-4
    )


def test_the_same_bytes_twice(checkpoint: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        api.optimize(checkpoint, "w8a16", output=tmp_path / name, target="torch", isolation="off")
    one, two = (artifact.files_of(tmp_path / name) for name in ("one", "two"))
    assert one == two
    manifests = [(tmp_path / name / artifact.MANIFEST).read_bytes() for name in ("one", "two")]
    assert manifests[0] == manifests[1]


def test_an_encoder_has_one(
    tokenizer: transformers.PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    config = transformers.BertConfig(
        vocab_size=260,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=20,
    )
    transformers.BertModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    (sample,) = api.capture(tmp_path).samples
    assert sample["input_ids"].shape == (4, 20)  # no longer than the model reads
    assert set(sample) == {"input_ids", "attention_mask", "token_type_ids"}


def test_random_tokens_where_no_tokenizer_fits(checkpoint: Path, tmp_path: Path) -> None:
    without = tmp_path / "without"
    without.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(checkpoint / name, without)
    plain = from_checkpoint(without)
    assert default_samples(plain) is plain.samples
    small = transformers.LlamaConfig(
        vocab_size=90,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    other = tmp_path / "other"
    transformers.LlamaForCausalLM(small).save_pretrained(other)
    for path in checkpoint.glob("tokenizer*"):
        shutil.copy(path, other)
    program = from_checkpoint(other)  # whose tokenizer has more tokens than the model
    assert default_samples(program) is program.samples


def test_a_text_calibrates_with_more_than_it_checks(
    program: Program, checkpoint: Path, tmp_path: Path
) -> None:
    text = DEFAULT_TEXT.read_text() * 40
    (tmp_path / "text.txt").write_text(text)
    tokens = Tokenizer(checkpoint).encode(text)
    found = as_calibration(tmp_path / "text.txt", program)
    rows = torch.cat([sample["input_ids"] for sample in found])
    assert rows.shape[1] == 512
    assert len(rows) == min(128, len(tokens) // rows.shape[1])
    assert rows.flatten().tolist() == tokens[: rows.numel()]
    assert all(len(sample["input_ids"]) <= 4 for sample in found)
    checks = as_samples(tmp_path / "text.txt", program)
    assert [tuple(check["input_ids"].shape) for check in checks] == [(1, LENGTH)] * CHECKED


@pytest.mark.parametrize("plain", [True, False])
def test_the_first_tokens_are_those_of_the_whole_text(checkpoint: Path, plain: bool) -> None:
    tokenizer = Tokenizer(checkpoint)
    text = DEFAULT_TEXT.read_text() * 3
    whole = tokenizer.encode_plain(text) if plain else tokenizer.encode(text)
    for count in (0, 1, 300, len(whole) - 1, len(whole), 2 * len(whole)):
        assert tokenizer.first(text, count, plain=plain) == whole[:count]


def test_of_a_long_text_no_more_is_read_than_is_wanted(checkpoint: Path) -> None:
    read: list[int] = []

    class Watched(str):
        def __getitem__(self, key: Any) -> str:
            read.append(key.stop)
            return super().__getitem__(key)

    assert Tokenizer(checkpoint).first(Watched(DEFAULT_TEXT.read_text() * 1000), 200)
    assert 0 < sum(read) < 10_000


def test_rows_of_a_text_begin_as_texts_begin(checkpoint: Path) -> None:
    tokenizer = Tokenizer(checkpoint)
    assert tokenizer.rows([1, 2, 3, 4, 5], 9, 2) == [[1, 2], [3, 4]]
    tokenizer.prefix = [257]
    assert tokenizer.rows([257, 1, 2, 3, 4, 5], 9, 3) == [[257, 1, 2], [257, 3, 4]]
    assert tokenizer.rows([1, 2, 3, 4, 5], 1, 3) == [[257, 1, 2]]


def test_given_batches_all_calibrate_and_few_rows_are_checked(program: Program) -> None:
    rows = torch.arange(18).reshape(3, 6)
    given = [{"input_ids": rows + n} for n in range(6)]
    both = with_samples(program, given)
    assert [len(sample["input_ids"]) for sample in both.calibration] == [3] * 6
    checked = [sample["input_ids"].tolist() for sample in both.samples]
    assert checked == [rows.tolist(), (rows[:2] + 1).tolist()]
    assert all(len(tensor) == 2 for tensor in both.samples[1].values())


def test_rows_are_not_cut_where_inputs_count_them_differently(program: Program) -> None:
    odd = {name: tensor[:1] for name, tensor in program.samples[0].items()}
    odd["input_ids"] = torch.zeros(6, 4, dtype=torch.int64)
    (kept,) = with_samples(program, [odd] * 2).samples
    assert kept["input_ids"].shape == (6, 4)


def test_batches_of_tokens_are_filled_in_and_what_is_given_stays(program: Program) -> None:
    tokens = torch.randint(0, 50, (2, 7))
    mask = torch.ones(2, 7, dtype=torch.int64)
    mask[0, :2] = 0
    whole, masked = as_samples(
        [{"input_ids": tokens}, {"input_ids": tokens, "attention_mask": mask}], program
    )
    assert set(whole) == {spec.name for spec in program.inputs}
    assert torch.equal(whole["input_ids"], tokens)
    assert bool(whole["attention_mask"].all())
    assert torch.equal(masked["attention_mask"], mask)
    assert program.run(**masked)["logits"].shape[:2] == (2, 7)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ("some text", "is a str"),
        ({"input_ids": torch.zeros(2, 0, dtype=torch.int64)}, "holds no tokens"),
        ({"input_ids": torch.zeros(1, 8, dtype=torch.int64), "pixels": torch.zeros(1)}, "pixels"),
        ({"input_ids": torch.zeros(1, 8)}, "torch.float32 of shape"),
        ({"attention_mask": torch.ones(1, 8)}, "takes the inputs"),
    ],
)
def test_each_batch_has_to_fit(batch: Any, message: str, program: Program) -> None:
    fitting = {"input_ids": torch.arange(64)[None]}
    with pytest.raises(PlanishError, match=message):
        with_samples(program, [fitting, batch])
