"""Hostile inputs over all scripts: one line, the right exit code, nothing lost, no hang, no payload run."""

import shutil

import pytest

from tests.hostile.programs import CHAIN_PLACE, VARIABLES
from tests.hostile.tables import FAMILIES
from tests.hostile.world import build, check

CASES = {f"{family}: {name}": case for family, make in FAMILIES.items() for name, case in make().items()}


@pytest.fixture(scope="module")
def good(tiny_dir, frames_dir, tmp_path_factory):
    return build(tmp_path_factory.mktemp("good"), tiny_dir, frames_dir)


@pytest.fixture
def world(good, tmp_path, monkeypatch):
    """A copy of it to damage; the current directory."""
    shutil.copytree(good, tmp_path / "w")
    monkeypatch.chdir(tmp_path / "w")
    with monkeypatch.context() as patch:
        for name in ("PULSAR2", *CHAIN_PLACE, *VARIABLES):
            patch.setenv(name, "")  # so that whatever a case sets is taken back
        yield tmp_path / "w"
    shutil.rmtree(tmp_path / "w")


@pytest.mark.parametrize("name", [ascii(name) for name in CASES])
def test_hostile_input(world, capsys, name):
    check(BY_NAME[name], world, capsys)


BY_NAME = {ascii(name): case for name, case in CASES.items()}


def test_there_are_enough_of_them():
    assert len(CASES) == len(BY_NAME) >= 400
