"""Every variable of export_video.sh is read, or refused, before step 1."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from qwen_vl_axera.chain.options import VARIABLES, Run, check_places, flags, make_directories, read_run, read_variables
from qwen_vl_axera.chain.steps import LENGTHS
from qwen_vl_axera.errors import InputError
from tests.conftest import ROOT

CONFIG = ROOT / "config_video.json"


def test_defaults_are_the_documented_commands():
    values = read_variables({})
    found = [values[name] for name in ("PREFILL_LEN", "KV_CACHE_LEN", "PARALLEL", "CHIP")]
    assert found == [512, 1023, 32, "AX650"]


def test_values():
    values = read_variables({"SIZE": "140 252", "FPS": "0.5", "GENERATE": "1", "CHIP": "AX620E", "NUM_FRAMES": ""})
    assert (values["SIZE"], values["FPS"], values["GENERATE"], values["CHIP"]) == ((140, 252), 0.5, True, "AX620E")


@pytest.mark.parametrize(
    ("cache", "last"),
    [("255", 128), ("1023", 896), ("2047", 1920)],
)
def test_chunks_fill_the_cache_but_for_an_answer(cache, last):
    values = read_variables({"LAST_KV_CACHE_LEN": "chunked", "KV_CACHE_LEN": cache})
    assert values["PREFILL_LEN"] == 128
    assert values["LAST_KV_CACHE_LEN"] == list(range(128, last + 1, 128))
    assert int(cache) + 1 - last >= 128
    assert flags(values, *LENGTHS)[:5] == ["--prefill-len", "128", "--kv-cache-len", cache, "--last-kv-cache-len"]


def test_extra_words_are_those_of_a_shell():
    values = read_variables({"BUILD_FLAGS": "--compiler.npu_perf --name 'a b'"})
    assert flags(values, "BUILD_FLAGS") == ["--extra=--compiler.npu_perf", "--extra=--name", "--extra=a b"]


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"SIZE": "300 308"}, "SIZE=300 308: expected multiples of 28; the nearest is 308 308"),
        ({"SIZE": "308"}, 'expected height and width, such as "308 308"'),
        ({"SIZE": "28 5600"}, "below 200 times the other"),
        ({"SIZE": "56 224"}, "SIZE: size 56 224: the board's runtime knows its area alone"),
        ({"IMAGE_SIZE": "448"}, "IMAGE_SIZE=448: expected height and width"),
        ({"IMAGE_SIZE": "56 224"}, "IMAGE_SIZE: size 56 224: the board's runtime knows its area alone"),
        ({"IMAGE_SIZE": "308 308", "SIZE": "308 308"}, "the video's model is of this size and takes pictures, too"),
        ({"NUM_FRAMES": "0"}, "NUM_FRAMES=0: expected a whole number above 0"),
        ({"NUM_FRAMES": "8", "FPS": "1"}, "NUM_FRAMES and FPS: set one of them"),
        ({"FPS": "fast"}, "FPS=fast: expected a number above 0"),
        ({"FPS": "nan"}, "FPS=nan: expected a number above 0"),
        ({"GENERATE": "yes"}, "GENERATE=yes: expected 0 or 1"),
        ({"NUM_SAMPLES": "-1"}, "NUM_SAMPLES=-1"),
        ({"PREFILL_LEN": "x; rm -rf ."}, "PREFILL_LEN=x"),
        ({"PREFILL_LEN": "٣"}, "PREFILL_LEN"),
        ({"PARALLEL": "1.5"}, "PARALLEL=1.5"),
        ({"PREFILL_LEN": "2048"}, "does not fit a kv cache of 1023"),
        ({"CHIP": "AX651"}, "CHIP=AX651: expected a chip that"),
        ({"CHIP": "M57"}, "both know: AX650, AX620E"),
        ({"QUANTIZE": "all8"}, "QUANTIZE=all8: expected vendor or mixed"),
        ({"QUANTIZE": "mixed", "CONFIG": "mine.json"}, "CONFIG and QUANTIZE=mixed: set one of them"),
        ({"WINDOW_MODE": "sparse"}, "WINDOW_MODE=sparse: expected grouped, folded, unrolled or dense"),
        ({"INPUT": "raw"}, "INPUT=raw: expected pixels or normalized"),
        ({"OPSET": "15"}, "OPSET=15: expected 16, 17 or 18"),
        ({"PROBE": "no"}, "PROBE=no: expected 0 or 1"),
        ({"LAST_KV_CACHE_LEN": "256 128"}, "256 128: expected rising numbers"),
        ({"LAST_KV_CACHE_LEN": "128 2048"}, "does not fit a kv cache of 1023"),
        ({"LAST_KV_CACHE_LEN": ","}, "LAST_KV_CACHE_LEN=,: expected a whole number above 0"),
        ({"DOCKER_FLAGS": "'"}, "DOCKER_FLAGS=': expected words as a shell reads them"),
        ({"LAST_KV_CACHE_LEN": "chunk"}, "LAST_KV_CACHE_LEN=chunk: expected a whole number above 0"),
        ({"LAST_KV_CACHE_LEN": "chunked", "KV_CACHE_LEN": "200"}, "a KV_CACHE_LEN of 255 is the least"),
        ({"LAST_KV_CACHE_LEN": "chunked", "LLM_BUILD2": "1"}, "llm_build2 knows no --last-kv-cache-len"),
        ({"WEIGHT_TYPE": "s2"}, "WEIGHT_TYPE=s2: expected s8, s4"),
        ({"POST_WEIGHT_TYPE": "s4"}, "POST_WEIGHT_TYPE=s4: expected s8, bf16"),
        ({"BUILD_FLAGS": "--a 'b"}, "BUILD_FLAGS=--a 'b: expected words as a shell reads them"),
        ({"CHIP": "LAMBERT"}, "both know: AX650, AX620E"),
    ],
)
def test_refused(variables, message):
    with pytest.raises(InputError, match=re.escape(message)):
        read_variables(variables)


def test_every_variable_is_in_the_help():
    text = (ROOT / "export_video.sh").read_text(encoding="utf-8").split("set -euo")[0]
    for name in VARIABLES:
        assert re.search(rf"\b{name} \(|\b{name} ", text), name


def test_places_that_would_damage_what_is_read(tiny_dir, frames_dir, tmp_path):
    def refused(words, workdir=tmp_path, out=tmp_path / "out", videos=(frames_dir,), **variables):
        with pytest.raises(InputError, match=words):
            check_places(Run(tiny_dir, workdir, out, videos, CONFIG, read_variables(variables)))

    check_places(Run(tiny_dir, tmp_path, tmp_path / "out", [frames_dir], CONFIG, read_variables({})))
    refused("OUT=.* the checkpoint", out=tiny_dir)
    refused("OUT=.* the checkpoint", out=tiny_dir / "out")
    refused("WORKDIR=.* the checkpoint", workdir=tiny_dir)
    refused("OUT=.* lies in the input", out=frames_dir / "out")
    refused("no such file or directory", videos=[tmp_path / "none.mp4"])
    refused("expected a name without control characters", workdir=tmp_path / "two\nlines")
    (tmp_path / "pictures").mkdir()
    refused(r"WORKDIR=.*/pictures lies in the input", videos=[tmp_path / "pictures"], IMAGE_SIZE="84 84")
    (tmp_path / "file").touch()
    refused("OUT=.*found something else", out=tmp_path / "file")


def test_arguments(tiny_dir, tmp_path):
    run = read_run([str(tiny_dir), "--resume", "--", "-a.mp4", "--force"], {"WORKDIR": str(tmp_path)})
    assert (run.mode, run.workdir, [str(video) for video in run.videos]) == ("resume", tmp_path, ["-a.mp4", "--force"])
    assert run.out == tiny_dir.with_name(f"{tiny_dir.name}-AX650") and run.config == CONFIG
    with pytest.raises(InputError, match=r"directory of a Qwen2\.5-VL checkpoint"):
        read_run([str(tmp_path)], {})
    demo = read_run(["--demo"], {"WORKDIR": str(tmp_path), "NUM_FRAMES": "4"})
    assert (demo.values["SIZE"], demo.values["NUM_FRAMES"], demo.values["GENERATE"]) == ((168, 168), 4, True)
    assert demo.out == tmp_path / "demo_model-AX650"


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a directory that not even root can write")
def test_a_place_that_nobody_can_write():
    with pytest.raises(InputError, match="/proc/none cannot be made"):
        make_directories(Path("/proc/none"))


def test_it_runs_before_there_is_an_environment():
    """-S and -I: the standard library alone."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from qwen_vl_axera.chain.options import read_variables\n"
    command = [sys.executable, "-I", "-S", "-c", code + "read_variables()"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
