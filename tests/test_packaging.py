import ast
import re
import sys
import tomllib
from fnmatch import fnmatch
from importlib.metadata import packages_distributions
from itertools import chain
from pathlib import Path

import pytest

import planish
from planish.samples import DEFAULT_TEXT

ROOT = Path(__file__).parent.parent
CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text())
FOLDERS = sorted(path.parent for path in ROOT.glob("*/__init__.py"))
MODULES = sorted(ROOT.glob("*.py"))
SOURCES = [*MODULES, *chain.from_iterable(folder.rglob("*.py") for folder in FOLDERS)]


def test_every_package_is_listed() -> None:
    inits = [ROOT / "__init__.py", *(path for path in SOURCES if path.name == "__init__.py")]
    found = {".".join(("planish", *path.parent.relative_to(ROOT).parts)) for path in inits}
    assert found == set(CONFIG["tool"]["setuptools"]["packages"])


def test_every_source_is_in_a_package() -> None:
    assert [path for path in SOURCES if not (path.parent / "__init__.py").is_file()] == []


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_every_data_file_is_shipped(folder: Path) -> None:
    data = CONFIG["tool"]["setuptools"]["package-data"]
    patterns = [
        f"{package.removeprefix('planish.').replace('.', '/')}/{pattern}"
        for package, listed in data.items()
        for pattern in listed
    ]
    files = [
        path for path in folder.rglob("*") if path.is_file() and path.suffix not in {".py", ".pyc"}
    ]
    names = [path.relative_to(ROOT).as_posix() for path in files]
    assert [name for name in names if not any(fnmatch(name, each) for each in patterns)] == []


def test_the_default_text_is_shipped() -> None:
    assert DEFAULT_TEXT.name in CONFIG["tool"]["setuptools"]["package-data"]["planish"]
    assert DEFAULT_TEXT.is_file()


def test_type_checkers_see_every_source() -> None:
    links = {path.name: path.resolve() for path in (ROOT / "tests/.src/planish").iterdir()}
    expected = {path.name: path for path in (ROOT / "py.typed", *MODULES, *FOLDERS)}
    assert links == expected
    names = {folder.name for folder in FOLDERS}
    names |= {path.parent.name for path in ROOT.glob("examples/*.py")}
    assert names <= set(CONFIG["tool"]["pyright"]["include"])
    assert names <= {Path(file).name for file in CONFIG["tool"]["mypy"]["files"]}


def test_every_folder_has_one_name() -> None:
    banned = CONFIG["tool"]["ruff"]["lint"]["flake8-tidy-imports"]["banned-api"]
    assert {folder.name for folder in FOLDERS} <= set(banned)


def test_every_library_is_declared() -> None:
    imports = {name for path in SOURCES for name in absolute_imports(path)}
    libraries = imports - sys.stdlib_module_names - {"planish"}
    homes = packages_distributions()
    # What only some machines can have is an extra; what imports it says what to install.
    entries = [
        *CONFIG["project"]["dependencies"],
        *CONFIG["project"]["optional-dependencies"]["gpu"],
    ]
    declared = {normal(entry) for entry in entries}
    undeclared = {
        name
        for name in libraries
        if not {normal(home) for home in homes.get(name, [name])} & declared
    }
    assert not undeclared


def test_the_version_is_one() -> None:
    assert CONFIG["project"]["dynamic"] == ["version"]
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert f"## {planish.__version__}" in changelog


def absolute_imports(path: Path) -> set[str]:
    """Give the top-level modules that a file imports."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    froms = {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    return {name.partition(".")[0] for name in plain | froms}


def normal(requirement: str) -> str:
    """Give a requirement's project name in its one spelling."""
    name = re.match(r"[\w.-]+", requirement)
    assert name
    return re.sub(r"[-_.]+", "-", name[0]).lower()
