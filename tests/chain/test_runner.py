"""A step run or skipped: what is redone and why, and that no interruption makes it trust half a result."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from qwen_vl_axera import cli
from qwen_vl_axera.chain import fingerprints
from qwen_vl_axera.chain.runner import run_step
from qwen_vl_axera.chain.steps import Step
from qwen_vl_axera.errors import CheckFailed, InputError
from tests.conftest import ROOT

PATIENCE = 30  # seconds until a process that should have ended or begun counts as hanging

# Upper-cases a file and counts its runs; the command of most steps here.
COPY = """
import os, pathlib, sys
source, target = map(pathlib.Path, sys.argv[1:3])
target.write_text(source.read_text().upper())
runs = target.with_name("runs")
runs.write_text(runs.read_text() + "x" if runs.exists() else "x")
print("made", target.name)
"""
# Writes half of its output, says so through a file, and goes on only when told to.
SLOW = """
import pathlib, sys, time
source, target, flag, gate = map(pathlib.Path, sys.argv[1:5])
target.write_text("half")
flag.touch()
while not gate.exists():
    time.sleep(0.02)
target.write_text(source.read_text().upper())
"""
# One step in a process of its own, as export_video.sh has it.
RUN = """
import sys
from pathlib import Path
from qwen_vl_axera import cli
from qwen_vl_axera.chain.runner import run_step
from qwen_vl_axera.chain.steps import Step
workdir, mode, source, target, *command = sys.argv[1:]
step = Step("make", "", command, [Path(source)], [Path(target)])
sys.exit(cli.run(lambda _: run_step(step, Path(workdir), Path(workdir) / "steps.json", mode)))
"""


class Place:
    """A work directory with one input and one output, and the ways to run a step there."""

    def __init__(self, directory: Path):
        self.directory, self.workdir = directory, directory / "work"
        self.source, self.target = directory / "clip.mp4", directory / "work" / "out.txt"
        self.flag, self.gate = directory / "half", directory / "gate"
        (self.workdir / ".steps").mkdir(parents=True)
        self.source.write_text("frames")
        for name, text in (("copy", COPY), ("slow", SLOW)):
            (directory / f"{name}.py").write_text(text)

    def command(self, script="copy", *extra):
        return [sys.executable, str(self.directory / f"{script}.py"), str(self.source), str(self.target), *extra]

    def step(self, name="make", script="copy", *extra):
        return Step(name, "", self.command(script, *extra), [self.source], [self.target])

    def run(self, mode="resume", script="copy", *extra, name="make"):
        """In this process; returns the exit code that a script would have."""
        step = self.step(name, script, *extra)
        return cli.run(lambda _: run_step(step, self.workdir, self.workdir / "steps.json", mode))

    def start_slow(self, mode="resume"):
        argv = [sys.executable, "-c", RUN, str(self.workdir), mode, str(self.source), str(self.target)]
        argv += self.command("slow", str(self.flag), str(self.gate))
        process = subprocess.Popen(argv, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
        wait_for(self.flag.exists)
        return process

    @property
    def runs(self) -> int:
        counter = self.workdir / "runs"
        return len(counter.read_text()) if counter.exists() else 0

    @property
    def stamp(self) -> Path:
        return self.workdir / ".steps" / "make.json"


def wait_for(condition):
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


@pytest.fixture
def place(tmp_path):
    place = Place(tmp_path)
    yield place
    place.gate.touch()  # lets a command end that a failed test has left behind


@pytest.fixture
def said(capfd):
    """What was said on stderr since the last question, and the exit code it came with."""

    def ask(code, *words, expected=0):
        text = capfd.readouterr().err
        assert code == expected, text
        assert len(text.splitlines()) == 1, text
        for word in words:
            assert word in text
        return text

    return ask


def test_a_second_run_is_skipped_with_resume_only(place, said, capfd):
    assert place.run() == 0 and capfd.readouterr().out == "made out.txt\n"
    assert place.target.read_text() == "FRAMES"
    assert place.run() == 0 and place.runs == 1
    assert "make: up to date" in capfd.readouterr().err
    assert place.run("force") == 0 and place.runs == 2
    assert place.run("run") == 0 and capfd.readouterr().err == "" and place.runs == 3


def test_stamp_names_what_made_the_output(place):
    place.run()
    stamp = json.loads(place.stamp.read_bytes())
    assert stamp["fingerprint"] == fingerprints.fingerprint(stamp["parts"])
    assert stamp["returncode"] == 0 and stamp["seconds"] >= 0 and stamp["peak_bytes"] > 1 << 20
    assert stamp["outputs"][str(place.target)]["size"] == len("FRAMES")
    digest = subprocess.run(["sha256sum", str(place.source)], capture_output=True, text=True).stdout.split()[0]
    assert stamp["parts"][f"input {place.source}"] == {"size": 6, "sha256": digest}
    assert stamp["parts"]["command"][:2] == ["python", str(place.directory / "copy.py")]


def test_changed_input_is_named(place, said):
    place.run()
    said(0)
    place.source.write_text("others")
    said(place.run(), f"make: input {place.source} changed")
    assert place.target.read_text() == "OTHERS"


def test_same_content_with_a_new_time_is_no_change(place, said):
    place.run()
    os.utime(place.source)
    said(0)
    said(place.run(), "up to date")


@pytest.mark.parametrize("damage", ["changed", "missing", "replaced by a dangling link"])
def test_damaged_output_is_made_again(place, said, damage):
    place.run()
    if damage == "changed":
        place.target.write_text("FRAMES by somebody else")
    else:
        place.target.unlink()
    if damage.startswith("replaced"):
        place.target.symlink_to(place.workdir / "nowhere")
    said(0)
    reason = "not the one that the last run made" if damage == "changed" else "missing"
    said(place.run(), f"output {place.target}", reason)
    assert place.target.read_text() == "FRAMES" and place.runs == 2


def test_changed_arguments_are_named_before_an_output_is_replaced(place, said, capfd):
    place.run("run", "copy", "--size", "308", "308")
    capfd.readouterr()
    code = place.run("run", "copy", "--size", "448", "448")
    said(code, f"replacing {place.target}", "made from other inputs", "--size changed from 308 308")
    said(place.run("resume", "copy", "--size", "392", "448"), "--size changed from 448 to 392")
    said(place.run("resume", "copy", "--opset", "16"), "command changed from --size 392 448 to --opset 16")
    assert place.run("force", "copy", "--size", "56", "56") == 0 and capfd.readouterr().err == ""


def test_output_of_unknown_origin_is_told_before_it_is_replaced(place, said):
    place.target.write_text("by hand")
    said(place.run("run"), f"replacing {place.target}", "no record")


def test_failing_command_passes_its_code_on_and_leaves_no_stamp(place, said, capfd):
    place.run()
    (place.directory / "copy.py").write_text("import sys; print('why', file=sys.stderr); sys.exit(7)")
    assert place.run() == 7 and capfd.readouterr().err.splitlines()[-1] == "why"
    assert not place.stamp.exists()
    (place.directory / "copy.py").write_text(COPY)
    said(place.run(), "no record of a run that ended well")


def test_command_ended_by_a_signal(place, said):
    (place.directory / "copy.py").write_text("import os; os.kill(os.getpid(), 9)")
    said(place.run("force"), "SIGKILL", "enough memory", expected=128 + 9)


@pytest.mark.parametrize("script", ["pass", "import sys; open(sys.argv[2] + '.tmp', 'w')"])
def test_output_that_is_not_made(place, said, script):
    (place.directory / "copy.py").write_text(script)
    said(place.run("force"), f"did not make {place.target}", expected=1)
    assert not place.stamp.exists()


def test_output_of_other_inputs_that_is_left_alone_is_not_trusted(place, said):
    place.run()
    place.source.write_text("others")
    (place.directory / "copy.py").write_text("pass")
    said(0)
    said(place.run("force"), f"left {place.target} as it was before", expected=1)
    assert not place.stamp.exists()


def test_output_that_its_command_compares_may_be_left_alone(place):
    place.run()
    place.source.write_text("others")
    step = replace(place.step(), command=["true"], keeps=[place.target])
    assert run_step(step, place.workdir, place.workdir / "steps.json", "resume") == 0
    assert place.stamp.exists() and place.runs == 1


def test_output_may_be_left_alone_when_nothing_changed(place):
    (place.directory / "copy.py").write_text(COPY.replace("target.write_text", "target.exists() or target.write_text"))
    assert place.run() == place.run("force") == place.run() == 0
    assert place.runs == 2


def test_input_that_changes_meanwhile_is_not_recorded(place, said):
    (place.directory / "copy.py").write_text(COPY + "source.write_text('later')\n")
    said(place.run("force"), f"input {place.source} changed while the command ran", expected=1)
    assert not place.stamp.exists()


def test_kill_in_the_middle_then_resume(place, said):
    process = place.start_slow("force")
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=PATIENCE)
    assert place.target.read_text() == "half" and not place.stamp.exists()

    place.gate.touch()
    said(place.run("resume", "slow", str(place.flag), str(place.gate)), "no record of a run that ended well")
    assert place.target.read_text() == "FRAMES"


@pytest.mark.parametrize("whole_group", [True, False])
def test_ended_in_the_middle(place, whole_group):
    process = place.start_slow()
    (os.killpg if whole_group else os.kill)(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 128 + signal.SIGTERM
    assert errors.splitlines()[-1] == "make: interrupted by SIGTERM"
    assert not place.stamp.exists()
    place.gate.touch()
    assert place.run() == 0 and place.target.read_text() == "FRAMES"


@pytest.mark.parametrize("name", ["with space", "quo\"te's $HOME `x`", "-dash", "视频片段", "two\nlines", b"latin\xff"])
def test_hostile_paths(tmp_path, said, name):
    place = Place(tmp_path / os.fsdecode(name))
    place.source = place.source.rename(place.directory / os.fsdecode(name))
    assert place.run() == 0 and place.target.read_text() == "FRAMES"
    said(0)
    said(place.run(), "up to date")
    place.source.write_text("others")
    said(place.run(), "changed")


def test_summary_has_one_entry_for_each_step(place):
    summary = place.workdir / "steps.json"
    place.run()
    first = json.loads(summary.read_bytes())
    place.run()
    place.run(name="other")
    entries = json.loads(summary.read_bytes())
    assert [(entry["name"], entry["skipped"]) for entry in entries] == [("make", True), ("other", False)]
    assert entries[0] == first[0] | {"skipped": True}  # what is skipped keeps what it had cost
    assert entries[0]["command"] == place.command()
    assert entries[1]["seconds"] >= 0 and entries[1]["peak_bytes"] > 1 << 20


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"[]", b'{"fingerprint": 1}', b"\xff\xfe", b"[" * 100_000, "costs", "link", "fifo"]
)
def test_damaged_stamp_is_no_stamp(place, said, damage):
    place.run()
    good = place.stamp.read_bytes()
    place.stamp.unlink()
    elsewhere = place.directory / "elsewhere.json"
    elsewhere.write_bytes(good)
    if damage == "link":
        place.stamp.symlink_to(elsewhere)
    elif damage == "fifo":
        os.mkfifo(place.stamp)
    elif damage == "costs":
        place.stamp.write_text(json.dumps(json.loads(good) | {"seconds": "long"}))
    else:
        place.stamp.write_bytes(damage)
    said(0)
    said(place.run(), "no record of a run that ended well")
    assert place.runs == 2 and elsewhere.read_bytes() == good
    said(place.run(), "up to date")


def test_forged_fingerprint_does_not_crash(place, said):
    place.run()
    stamp = json.loads(place.stamp.read_bytes())
    place.stamp.write_text(json.dumps(stamp | {"fingerprint": "0" * 64}))
    said(0)
    said(place.run(), "record of the last run is damaged")


@pytest.mark.parametrize("parts", [{"command": {"files": 1}}, {"input x": {"files": 3}}, {"package python": [1]}])
def test_parts_that_make_no_sense_do_not_block(place, said, parts):
    place.run()
    stamp = json.loads(place.stamp.read_bytes())
    place.stamp.write_text(json.dumps(stamp | {"fingerprint": "0" * 64, "parts": stamp["parts"] | parts}))
    said(0)
    assert place.run() == 0 and place.runs == 2


def test_missing_input(place, said):
    place.source.unlink()
    said(place.run(), f"input {place.source} is missing", expected=2)


def test_pipe_as_input(place, said):
    place.source.unlink()
    os.mkfifo(place.source)
    said(place.run(), "pipe or a device", expected=2)


def test_no_such_command(place):
    with pytest.raises(InputError, match="cannot start 'no-such-tool'"):
        run_step(Step("x", "", ["no-such-tool"]), place.workdir, place.workdir / "steps.json")


def test_directory_as_output(place):
    made = place.workdir / "calib"
    run = partial(run_step, workdir=place.workdir, summary=place.workdir / "steps.json", mode="resume")
    command = ["bash", "-c", f"mkdir -p '{made}' && date +%N > '{made}/a.npy'"]
    step = Step("calib", "", command, writes=[made])
    assert run(step) == 0
    sample = (made / "a.npy").read_bytes()
    assert run(step) == 0 and (made / "a.npy").read_bytes() == sample
    (made / "b.npy").touch()
    assert run(step) == 0 and (made / "a.npy").read_bytes() != sample
    shutil.rmtree(made)
    made.mkdir()
    with pytest.raises(CheckFailed, match="as it was before"):
        run_step(Step("calib", "", ["true"], writes=[made]), place.workdir, place.workdir / "steps.json")
