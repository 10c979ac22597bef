"""The compiled model's check, before there is a compiled model."""

from functools import partial

from qwen_vl_axera.fidelity import axmodel
from tests.conftest import run_main

run = partial(run_main, axmodel.main)


def test_without_the_compiler_it_says_so(capsys, monkeypatch, tmp_path):
    monkeypatch.delenv("PULSAR2", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    code, _, errors = run(capsys, "x.axmodel", "x.onnx", "--workdir", tmp_path)
    assert code == 2
    assert errors == (
        "error: no pulsar2 on PATH, and PULSAR2 is not set: the simulator is the compiler's; "
        "set PULSAR2 to a command or docker:IMAGE\n"
    )
