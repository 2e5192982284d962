import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "ir": set[str](),
    "passes": {"ir"},
    "lowering": {"ir"},
    "report": {"ir"},
    "recipes": {"ir", "passes"},
    "runtime": {"ir", "lowering"},
}
FILES = [path for folder in MAY_IMPORT for path in (ROOT / folder).rglob("*.py")]


def imported(tree: ast.AST) -> Iterator[str]:
    """Give every module that a file names in an import, wherever the import stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_each_folder_imports_only_what_is_below_it(path: Path) -> None:
    folder = path.relative_to(ROOT).parts[0]
    allowed = MAY_IMPORT[folder] | {folder}
    ours = [name.split(".") for name in imported(ast.parse(path.read_text()))]
    wrong = [
        ".".join(name)
        for name in ours
        if name[0] == "planish" and name[1:2] and name[1] not in allowed
    ]
    assert not wrong


def test_the_table_names_every_package() -> None:
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages == set(MAY_IMPORT)


def test_imports_are_found_wherever_they_stand() -> None:
    source = "import a.b\ndef f():\n    from c import d\n    import e, g"
    assert list(imported(ast.parse(source))) == ["a.b", "c.d", "e", "g"]
