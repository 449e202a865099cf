"""Packages import from lower layers only, both pages that name the layers agree, and pages name files that exist."""

import ast
import re
from pathlib import Path

import pytest

from tests.support import ROOT

CODE = ROOT / "megatron_octo"
EVERYWHERE = {"errors", "__init__"}
"""Modules that every package may import."""


def layers_of(page: Path) -> list[set[str]]:
    """The layers from the top down, as a page names them after "imports from lower layers only"."""
    found = re.search(r"imports from lower layers only:(.*?)\.", page.read_text(), re.S)
    assert found, f"{page} does not say how imports go"
    return [set(re.findall(r"\w+", layer)) for layer in found[1].split(">")]


LAYERS = layers_of(ROOT / "docs/design.md")
LEVEL = {package: level for level, packages in enumerate(LAYERS) for package in packages}


def package_of(path: Path) -> str:
    return path.relative_to(CODE).parts[0].removesuffix(".py")


def imported_packages(path: Path) -> set[str]:
    modules = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules += [f"{node.module}.{alias.name}" for alias in node.names]
    parts = [module.split(".") for module in modules if module.startswith("megatron_octo")]
    return {part[1] for part in parts if len(part) > 1}


def test_both_pages_name_the_same_layers():
    assert layers_of(ROOT / "CONTRIBUTING.md") == LAYERS


def test_every_package_is_on_a_layer():
    packages = {package_of(path) for path in CODE.rglob("*.py")} - EVERYWHERE
    assert packages == set(LEVEL)


@pytest.mark.parametrize("package", sorted(LEVEL))
def test_a_package_imports_from_lower_layers_only(package):
    for path in CODE.rglob("*.py"):
        if package_of(path) != package:
            continue
        for other in imported_packages(path) & set(LEVEL) - {package}:
            assert LEVEL[other] > LEVEL[package], f"{path.relative_to(ROOT)} imports {other}"


_NAMED = re.compile(r"`((?:[\w.-]+/)+[\w-]+\.(?:py|sh|cpp|cu|cuh|h|yaml|md))`")
_OF_A_RUN = ("runs/", "stages/", "data/tokenizer", "hf/")
"""Beginnings of paths in a run folder."""


@pytest.mark.parametrize("page", sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]), ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page):
    for name in _NAMED.findall(page.read_text()):
        if name.startswith(_OF_A_RUN) or ".." in name:
            continue
        assert (ROOT / name).is_file() or (CODE / name).is_file(), f"{page.name} names {name}"
