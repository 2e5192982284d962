"""Numbers from config.json."""

from pathlib import Path

from planish.runtime.config import read_json, setting


def test_settings() -> None:
    config = {"n_positions": 8, "sizes": [1], "text_config": {"vocab_size": 5, "n_positions": 9}}
    assert setting(config, "max_position_embeddings", "n_positions") == 8
    assert setting(config, "vocab_size") == 5
    assert setting(config, "sizes", "missing") is None


def test_files_without_an_object_are_empty(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    assert read_json(file) == {}
    for content in ("{", "[1]"):
        file.write_text(content)
        assert read_json(file) == {}
    file.write_text('{"a": 1}')
    assert read_json(file) == {"a": 1}
