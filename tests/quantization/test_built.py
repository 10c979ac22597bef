"""A proposed recipe through a build: the layers that the search named are held against what the compiler gave them."""

import json
import os
import subprocess

import pytest

from qwen_vl_axera.compiled.build import read_build
from qwen_vl_axera.compiled.edges import EDGES
from qwen_vl_axera.compiled.quantized import QUANTIZED
from qwen_vl_axera.compiler.schema import load_config
from qwen_vl_axera.files import write_json
from qwen_vl_axera.graph.files import load_graph
from qwen_vl_axera.quantization.preview import mixed_config
from qwen_vl_axera.quantization.search import mixed_layer_configs
from tests.conftest import ROOT

STAND_IN = ROOT / "tests" / "stand_in" / "pulsar2"
WIDE = ["blocks.1.mlp.down_proj", "blocks.3.mlp.down_proj"]


@pytest.fixture
def build(massive, tmp_path):
    """Builds with some layers at 16 bits; `spoil` may change what the compiler says that it did."""
    recipe = tmp_path / "config_video_mixed.json"
    write_json(recipe, mixed_config(ROOT / "config_video.json", mixed_layer_configs(WIDE)))

    def run(spoil=None, **switches):
        command = [STAND_IN, "build", "--input", massive.graph, "--config", recipe, "--output_dir", tmp_path / "built"]
        environment = os.environ | {f"STAND_IN_{name}": value for name, value in switches.items()}
        subprocess.run(list(map(str, command)), cwd=massive.workdir, env=environment, check=True, capture_output=True)
        if spoil:
            (tmp_path / "built" / EDGES).unlink()  # the record alone is read
            path = tmp_path / "built" / QUANTIZED
            record = json.loads(path.read_text())
            spoil(record)
            path.write_text(json.dumps(record))
        return read_build(tmp_path / "built", load_config(recipe), load_graph(massive.graph))

    return run


def test_layers_that_the_search_named_got_their_16_bits(build):
    report = build()
    *_, gemms, named = report.selectors
    assert gemms.status == named.status == report.precision == "ok"
    assert (named.selected, named.obeyed) == (2, 2)


def test_named_layers_that_stayed_at_8_bits_fail(build):
    report = build(**{"8BITS": "Gemm"})
    assert report.precision == "failed" and report.selectors[-1].status == "failed"


def test_a_named_layer_that_is_gone_is_said(build):
    """Its name is no evidence of its width."""

    def rename(record):
        for part in ("tensor_configs", "dispatchings"):
            record[part]["op_1:onnx.FullyConnected"] = record[part].pop(WIDE[0])

    report = build(rename)
    assert report.selectors[-1].missing == WIDE[:1] and report.precision == "warning"


def test_one_named_layer_that_stayed_at_8_bits_fails(build):
    def narrow(record):
        for entry in record["tensor_configs"][WIDE[0]].values():
            if entry["bit_width"] == 16:
                entry["bit_width"] = 8

    report = build(narrow)
    assert report.precision == "failed"
    assert report.selectors[-1].others == WIDE[:1]
