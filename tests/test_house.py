"""Rooms import from lower floors only, both pages that name the floors agree, and pages name files that exist."""

import ast
import re
from pathlib import Path

import pytest

from tests.support import ROOT

PACKAGE = ROOT / "megatron_octo"
BASEMENT = {"errors", "__init__"}
"""Modules that every room may import."""


def floors_of(page: Path) -> list[set[str]]:
    """The floors from the top down, as a page's line "Imports go down only" names them."""
    found = re.search(r"Imports go down only:(.*?)\.", page.read_text(), re.S)
    assert found, f"{page} does not say how imports go"
    return [set(re.findall(r"\w+", floor)) for floor in found[1].split(">")]


FLOORS = floors_of(ROOT / "docs/design.md")
LEVEL = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    modules = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules += [f"{node.module}.{alias.name}" for alias in node.names]
    parts = [module.split(".") for module in modules if module.startswith("megatron_octo")]
    return {part[1] for part in parts if len(part) > 1}


def test_both_pages_name_the_same_floors():
    assert floors_of(ROOT / "CONTRIBUTING.md") == FLOORS


def test_every_room_is_on_a_floor():
    rooms = {room_of(path) for path in PACKAGE.rglob("*.py")} - BASEMENT
    assert rooms == set(LEVEL)


@pytest.mark.parametrize("room", sorted(LEVEL))
def test_a_room_imports_from_lower_floors_only(room):
    for path in PACKAGE.rglob("*.py"):
        if room_of(path) != room:
            continue
        for other in imported_rooms(path) & set(LEVEL) - {room}:
            assert LEVEL[other] > LEVEL[room], f"{path.relative_to(ROOT)} imports {other}"


_NAMED = re.compile(r"`((?:[\w.-]+/)+[\w-]+\.(?:py|sh|cpp|cu|cuh|h|yaml|md))`")
_OF_A_RUN = ("runs/", "stages/", "data/tokenizer", "hf/")
"""Beginnings of paths in a run folder."""


@pytest.mark.parametrize("page", sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]), ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page):
    for name in _NAMED.findall(page.read_text()):
        if name.startswith(_OF_A_RUN) or ".." in name:
            continue
        assert (ROOT / name).is_file() or (PACKAGE / name).is_file(), f"{page.name} names {name}"
