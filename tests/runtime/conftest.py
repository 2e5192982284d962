"""A tiny llama with a byte-level tokenizer: as a model, a checkpoint and two artifacts."""

import shutil
from pathlib import Path

import onnx
import pytest
import torch
import transformers
from onnx import parser
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from planish.ir.capture.huggingface import from_checkpoint
from planish.lowering.onnx.lower import lower
from planish.runtime.session import Session

CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
END, BEGIN = 256, 257


@pytest.fixture(scope="session")
def llama() -> transformers.LlamaForCausalLM:
    config = transformers.LlamaConfig(
        vocab_size=260,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.2,
        eos_token_id=END,
        bos_token_id=BEGIN,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: transformers.LlamaForCausalLM = transformers.LlamaForCausalLM(config).eval()
        return model


@pytest.fixture(scope="session")
def tokenizer() -> transformers.PreTrainedTokenizerFast:
    """One token a byte, so that most characters of other scripts take several."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({symbol: at for at, symbol in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<end>", "<begin>"])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="<end>", bos_token="<begin>", chat_template=CHAT
    )


@pytest.fixture(scope="session")
def checkpoint(
    llama: transformers.LlamaForCausalLM,
    tokenizer: transformers.PreTrainedTokenizerFast,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    llama.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def artifacts(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The captured model beside the files of the checkpoint, for either backend."""
    program = from_checkpoint(checkpoint)
    folders = {target: tmp_path_factory.mktemp(target) for target in ("onnx", "torch")}
    for folder in folders.values():
        for file in checkpoint.iterdir():
            if file.suffix != ".safetensors":
                shutil.copy(file, folder)
    program.save(folders["torch"] / "torch")
    lower(program, folders["onnx"] / "onnx")
    return folders


@pytest.fixture(scope="session", params=["onnx", "torch"])
def session(artifacts: dict[str, Path], request: pytest.FixtureRequest) -> Session:
    return Session.open(artifacts[request.param])


# A language model small enough to be read: what comes next depends on all tokens so far (their
# embeddings are kept as a cache and averaged where the mask is 1) and on a state of fixed size.
RECURRENT = """
<ir_version: 10, opset_import: ["" : 18]>
recurrent (
    int64[batch, length] input_ids, int64[batch, total] attention_mask,
    float[batch, past, 8] past_embedded, float[batch, 8] past_sum
) => (
    float[batch, length, 16] logits, float[batch, total, 8] present_embedded,
    float[batch, 8] present_sum
) <float[16, 8] table> {
    embedded = Gather (table, input_ids)
    present_embedded = Concat <axis = 1> (past_embedded, embedded)
    last = Constant <value = int64[1] {-1}> ()
    one = Constant <value = int64[1] {1}> ()
    weights = Cast <to = 1> (attention_mask)
    column = Unsqueeze (weights, last)
    kept = Mul (present_embedded, column)
    summed = ReduceSum <keepdims = 0> (kept, one)
    count = ReduceSum <keepdims = 1> (weights, one)
    mean = Div (summed, count)
    present_sum = Add (past_sum, mean)
    state = Unsqueeze (present_sum, one)
    hidden = Add (state, embedded)
    transposed = Transpose (table)
    logits = MatMul (hidden, transposed)
}
"""


@pytest.fixture(scope="session")
def recurrent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact with an ONNX model, two kinds of state, no positions and no tokenizer."""
    folder = tmp_path_factory.mktemp("recurrent")
    (folder / "onnx").mkdir()
    model = parser.parse_model(RECURRENT)
    table = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
    model.graph.initializer.append(onnx.numpy_helper.from_array(table.numpy(), "table"))
    onnx.save(model, folder / "onnx" / "model.onnx")
    return folder
