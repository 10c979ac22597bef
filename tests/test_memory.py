"""What is free: of this machine, and of systems that are made up."""

import resource
import subprocess
import sys

import pytest

from qwen_vl_axera import memory
from qwen_vl_axera.errors import InputError
from tests.conftest import ROOT

GB = 10**9


def test_this_machine():
    found = memory.memory()
    assert 0 < found.available <= found.total


def test_more_than_half_of_what_is_free_is_refused():
    memory.check_memory(1, "a byte")
    with pytest.raises(InputError, match=r"a world takes at least .* GB of memory"):
        memory.check_memory(memory.memory().available, "a world")


@pytest.mark.parametrize("version", [0, 1])
def test_a_container(version, tmp_path, monkeypatch):
    """Its limit counts; files that it has read are no memory in use."""
    _, limit, used, prefix = memory.GROUPS[version]
    monkeypatch.setattr(memory, "GROUPS", [(str(tmp_path), limit, used, prefix)])
    free = memory.memory()
    (tmp_path / limit).write_text(f"{GB}\n")
    (tmp_path / used).write_text(f"{9 * GB // 10}\n")
    (tmp_path / "memory.stat").write_text(f"{prefix}active_file {GB // 10}\n{prefix}inactive_file {GB // 2}\nrest\n")
    assert memory.memory() == memory.Memory(GB, GB // 10 + GB // 10 + GB // 2)
    (tmp_path / limit).write_text("max\n")
    assert memory.memory().total == free.total


def test_a_limit_of_the_process():
    code = "from qwen_vl_axera.memory import memory; print(memory().total, memory().available)"

    def limited():
        resource.setrlimit(resource.RLIMIT_AS, (GB, GB))

    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, preexec_fn=limited)
    total, available = map(int, done.stdout.split())
    assert total == GB and 0 < available < GB


def test_a_system_that_says_nothing(monkeypatch):
    monkeypatch.setattr(memory, "_table", lambda path: {})
    assert memory.memory().total > 0
