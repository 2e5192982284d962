"""Texts of datasets on the hub, from a hub of our own on this machine."""

import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pyarrow
import pyarrow.parquet
import pytest

from planish.runtime import datasets
from planish.runtime.texts import BadFile, read_text

BRANCH = "refs%2Fconvert%2Fparquet"
FILES = [
    "default/test/0000.parquet",
    "default/train/0000.parquet",
    "default/train/0001.parquet",
    "other/train/0000.parquet",
]


class Hub(BaseHTTPRequestHandler):
    """The two answers of the hub that are needed: what files there are, and a file."""

    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.path.startswith(f"/api/datasets/someone/texts/tree/{BRANCH}"):
            listed = [{"type": "file", "path": one, "size": 1, "oid": "0"} for one in FILES]
            self._give(json.dumps(listed).encode(), "application/json")
            return
        start = f"/datasets/someone/texts/resolve/{BRANCH}/"
        if self.path.startswith(start):
            buffer = io.BytesIO()
            table = pyarrow.table({"text": [self.path.removeprefix(start)]})
            pyarrow.parquet.write_table(table, buffer)
            self._give(buffer.getvalue(), "application/octet-stream")
            return
        self.send_error(404, "Repository Not Found")

    def do_HEAD(self) -> None:
        self.do_GET()

    def _give(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{len(self.path)}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Nothing."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[str]]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    constants = "huggingface_hub.constants"
    here = f"http://127.0.0.1:{server.server_port}"
    file = here + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(f"{constants}.ENDPOINT", here)
    monkeypatch.setattr(f"{constants}.HUGGINGFACE_CO_URL_TEMPLATE", file)
    monkeypatch.setattr(f"{constants}.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(f"{constants}.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(f"{constants}.HF_HUB_DISABLE_XET", True)
    Hub.asked.clear()
    yield Hub.asked
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("someone/texts", "default/train/0000.parquet"),
        ("someone/texts/other", "other/train/0000.parquet"),
        ("someone/texts/default/test", "default/test/0000.parquet"),
    ],
)
@pytest.mark.usefixtures("hub")
def test_the_first_file_of_a_split_is_read(name: str, file: str) -> None:
    assert datasets.is_dataset(name)
    assert read_text(datasets.fetch(name)) == file


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("someone/texts/third", "no config 'third': there are default, other"),
        ("someone/texts/default/dev", "no split 'dev': there are test, train"),
        ("someone/nothing", "cannot be read as a dataset"),
    ],
)
@pytest.mark.usefixtures("hub")
def test_what_is_not_there_is_named(name: str, message: str) -> None:
    with pytest.raises(BadFile, match=message):
        datasets.fetch(name)


def test_without_a_network_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(BadFile, match="someone/texts is no file here"):
        datasets.fetch("someone/texts")


def test_files_are_no_datasets(
    hub: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "text").write_text("text")
    monkeypatch.chdir(tmp_path)
    for name in ("some/text", "some/missing.txt", "text", "/abs/path", "../texts", "a/b/c/d/e"):
        assert not datasets.is_dataset(name), name
    assert hub == []
