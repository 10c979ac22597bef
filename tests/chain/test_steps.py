"""The step runner: what it skips and redoes, and that no interruption makes it trust half a result."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qwen_vl_axera.chain import fingerprints
from qwen_vl_axera.chain.fingerprints import Step
from qwen_vl_axera.chain.steps import run_step
from qwen_vl_axera.errors import CheckFailed, InputError

ROOT = Path(__file__).resolve().parents[2]
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


class Place:
    """A work directory with one input and one output, and the ways to run a step there."""

    def __init__(self, directory: Path):
        self.directory, self.workdir = directory, directory / "work"
        self.source, self.target = directory / "clip.mp4", directory / "work" / "out.txt"
        self.flag, self.gate = directory / "half", directory / "gate"
        self.workdir.mkdir(parents=True)
        self.source.write_text("frames")
        for name, text in (("copy", COPY), ("slow", SLOW)):
            (directory / f"{name}.py").write_text(text)

    def arguments(self, mode="resume", script="copy", *extra, options=()):
        return [
            *(sys.executable, "-m", "qwen_vl_axera.chain.steps", "--workdir", str(self.workdir), "--mode", mode),
            *("--name", "make", "--input", str(self.source), "--output", str(self.target), *options, "--"),
            *(sys.executable, str(self.directory / f"{script}.py"), str(self.source), str(self.target), *extra),
        ]

    def run(self, *args, **kwargs):
        return execute(self.arguments(*args, **kwargs))

    def start_slow(self, mode="resume", **kwargs):
        command = self.arguments(mode, "slow", str(self.flag), str(self.gate))
        process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, **kwargs)
        wait_for(self.flag.exists)
        return process

    @property
    def runs(self) -> int:
        counter = self.workdir / "runs"
        return len(counter.read_text()) if counter.exists() else 0

    @property
    def stamp(self) -> Path:
        return self.workdir / ".steps" / "make.json"

    def child(self) -> int:
        """The process that the step has started: the last one named in the lock."""
        return int((self.workdir / ".steps" / "lock").read_text().split()[-1])


def execute(command, **kwargs):
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, **kwargs)


def wait_for(condition):
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def gone(pid: int) -> bool:
    try:
        # An orphan may stay a zombie where nothing reaps it.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def assert_one_line(result, code, *words):
    assert result.returncode == code, result.stderr
    assert len(result.stderr.splitlines()) == 1, result.stderr
    for word in words:
        assert word in result.stderr


@pytest.fixture
def place(tmp_path):
    place = Place(tmp_path)
    yield place
    if not place.gate.exists():
        place.gate.touch()  # lets a command end that a failed test has left behind


@pytest.fixture
def default_sigint():
    """A test run in the background of a shell would hand an ignored SIGINT down to its children."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_second_run_is_skipped_with_resume_only(place):
    first = place.run()
    assert first.returncode == 0 and first.stdout == "made out.txt\n"
    assert place.target.read_text() == "FRAMES"
    assert_one_line(place.run(), 0, "make: up to date")
    assert place.runs == 1
    assert place.run("force").returncode == 0 and place.runs == 2
    again = place.run("run")
    assert again.returncode == 0 and again.stderr == "" and place.runs == 3


def test_stamp_names_what_made_the_output(place):
    place.run()
    stamp = json.loads(place.stamp.read_bytes())
    assert stamp["fingerprint"] == fingerprints.fingerprint(stamp["parts"])
    assert stamp["returncode"] == 0 and stamp["seconds"] >= 0 and stamp["peak_bytes"] > 1 << 20
    assert stamp["outputs"][str(place.target)]["size"] == len("FRAMES")
    digest = execute(["sha256sum", str(place.source)]).stdout.split()[0]
    assert stamp["parts"][f"input {place.source}"] == {"size": 6, "sha256": digest}
    assert "qwen_vl_axera/chain/steps.py" in stamp["parts"] and "package torch" in stamp["parts"]


def test_changed_input_is_named(place):
    place.run()
    place.source.write_text("others")
    assert_one_line(place.run(), 0, f"make: input {place.source} changed")
    assert place.target.read_text() == "OTHERS"


def test_same_content_with_a_new_time_is_no_change(place):
    place.run()
    os.utime(place.source)
    assert "up to date" in place.run().stderr


@pytest.mark.parametrize("damage", ["changed", "missing", "replaced by a dangling link"])
def test_damaged_output_is_made_again(place, damage):
    place.run()
    if damage == "changed":
        place.target.write_text("FRAMES by somebody else")
    else:
        place.target.unlink()
    if damage.startswith("replaced"):
        place.target.symlink_to(place.workdir / "nowhere")
    reason = "not the one that the last run made" if damage == "changed" else "missing"
    assert_one_line(place.run(), 0, f"output {place.target}", reason)
    assert place.target.read_text() == "FRAMES" and place.runs == 2


def test_changed_arguments_are_named_before_an_output_is_replaced(place):
    place.run("run", "copy", "--size", "308", "308")
    result = place.run("run", "copy", "--size", "448", "448")
    assert_one_line(result, 0, f"replacing {place.target}", "made from other inputs", "--size changed from 308 308")
    assert_one_line(place.run("resume", "copy", "--size", "392", "448"), 0, "--size changed from 448 to 392")
    assert_one_line(
        place.run("resume", "copy", "--opset", "16"), 0, "command changed from --size 392 448 to --opset 16"
    )
    assert place.run("force", "copy", "--size", "56", "56").stderr == ""


def test_output_of_unknown_origin_is_told_before_it_is_replaced(place):
    place.target.write_text("by hand")
    assert_one_line(place.run("run"), 0, f"replacing {place.target}", "no record")


def test_changed_script_package_and_variable_are_named(place, monkeypatch):
    step = Step("make", ["python3", str(place.directory / "copy.py")], environment=["CHIP"])
    monkeypatch.setenv("CHIP", "AX650")
    before = fingerprints.step_parts(step)
    monkeypatch.setenv("CHIP", "AX620E")
    monkeypatch.setattr(fingerprints.importlib.metadata, "version", lambda name: f"0.{len(name)}")
    (place.directory / "copy.py").write_text("pass")
    told = fingerprints.differences(before, fingerprints.step_parts(step))
    assert "variable CHIP changed from AX650 to AX620E" in told
    assert f"{place.directory / 'copy.py'} changed" in told
    assert any(line.startswith("package torch changed from") and line.endswith("to 0.5") for line in told)


def test_changed_project_source_is_named(place, monkeypatch):
    project = place.directory / "project"
    (project / "qwen_vl_axera").mkdir(parents=True)
    (project / "export.py").write_text("1")
    (project / "qwen_vl_axera" / "graph.py").write_text("1")
    monkeypatch.setattr(fingerprints, "PROJECT", project)
    step = Step("make", ["true"])
    before = fingerprints.step_parts(step)
    (project / "export.py").write_text("2")
    (project / "qwen_vl_axera" / "graph.py").write_text("2")
    told = fingerprints.differences(before, fingerprints.step_parts(step))
    assert told == ["export.py changed", "qwen_vl_axera/graph.py changed"]


def test_interpreter_path_does_not_matter():
    command = ["-m", "json.tool"]
    one, other = (fingerprints.step_parts(Step("x", [python, *command])) for python in ("/a/python3.11", "python"))
    assert one == other
    assert fingerprints.step_parts(Step("x", ["/a/pulsar2", *command]))["command"][0] == "/a/pulsar2"


def test_frame_directory_by_names_and_content(tmp_path):
    frames = tmp_path / "frames"
    (frames / "sub").mkdir(parents=True)
    (frames / "0001.png").write_bytes(b"a")
    (frames / "0002.png").write_bytes(b"b")
    (frames / "sub" / "up").symlink_to(frames)  # a loop must end
    step = Step("x", ["true"], inputs=[frames])
    first = fingerprints.step_parts(step)
    (frames / "0002.png").write_bytes(b"c")
    second = fingerprints.step_parts(step)
    assert fingerprints.differences(first, second) == [f"input {frames} changed (0002.png)"]
    (frames / "0003.png").write_bytes(b"d")
    (frames / "0001.png").rename(frames / "0000.png")
    told = fingerprints.differences(second, fingerprints.step_parts(step))
    assert told == [f"input {frames} changed (0000.png and 2 more)"]


@pytest.fixture
def small_limits(monkeypatch):
    """Everything above 64 bytes counts as large."""
    monkeypatch.setattr(fingerprints, "WHOLE", 64)
    monkeypatch.setattr(fingerprints, "END", 16)


@pytest.mark.parametrize("change", ["first byte", "last byte", "middle", "length"])
def test_large_file(tmp_path, small_limits, change):
    path = tmp_path / "large.mp4"
    path.write_bytes(bytes(1000))
    status, before = path.stat(), fingerprints.describe(path)
    assert before.keys() == {"size", "mtime_ns", "sha256_ends"} and before == fingerprints.describe(path)
    with open(path, "r+b") as file:
        file.seek({"first byte": 0, "last byte": 999, "middle": 500, "length": 1000}[change])
        file.write(b"\1")
    # Only a change in the middle is left to the modification time.
    offset = 1 if change == "middle" else 0
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + offset))
    assert fingerprints.describe(path) != before


def test_checkpoint_by_configuration_and_shard_headers(tmp_path, monkeypatch):
    import numpy as np
    from safetensors.numpy import save_file

    ckpt = tmp_path / "ckpt"
    ckpt.mkdir()
    (ckpt / "config.json").write_text("{}")
    shard = ckpt / "model.safetensors"
    save_file({"w": np.zeros(4096, np.float32)}, shard)
    monkeypatch.setattr(fingerprints, "WHOLE", 1024)
    step = Step("x", ["true"], checkpoints=[ckpt])
    before = fingerprints.data_parts(step)
    assert before[f"checkpoint {ckpt}"]["files"]["model.safetensors"].keys() == {"size", "mtime_ns", "sha256_header"}

    (ckpt / "README.md").write_text("no matter")
    assert fingerprints.data_parts(step) == before

    status = shard.stat()
    save_file({"v": np.zeros(4096, np.float32)}, shard)
    os.utime(shard, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert shard.stat().st_size == status.st_size
    told = fingerprints.differences(before, fingerprints.data_parts(step))
    assert told == [f"checkpoint {ckpt} changed (model.safetensors)"]

    (ckpt / "config.json").write_text('{"a": 1}')
    told = fingerprints.differences(before, fingerprints.data_parts(step))
    assert told == [f"checkpoint {ckpt} changed (config.json and 1 more)"]


def test_failing_command_passes_its_code_on_and_leaves_no_stamp(place):
    place.run()
    (place.directory / "copy.py").write_text("import sys; print('why', file=sys.stderr); sys.exit(7)")
    result = place.run()
    assert result.returncode == 7 and result.stderr.splitlines()[-1] == "why"
    assert not place.stamp.exists()
    (place.directory / "copy.py").write_text(COPY)
    assert_one_line(place.run(), 0, "no record of a run that ended well")


def test_command_ended_by_a_signal(place):
    (place.directory / "copy.py").write_text("import os; os.kill(os.getpid(), 9)")
    result = place.run("force")
    assert_one_line(result, 128 + 9, "SIGKILL", "enough memory")


@pytest.mark.parametrize("script", ["pass", "import sys; open(sys.argv[2] + '.tmp', 'w')"])
def test_output_that_is_not_made(place, script):
    (place.directory / "copy.py").write_text(script)
    assert_one_line(place.run("force"), 1, f"did not make {place.target}")
    assert not place.stamp.exists()


def test_output_of_other_inputs_that_is_left_alone_is_not_trusted(place):
    place.run()
    place.source.write_text("others")
    (place.directory / "copy.py").write_text("pass")
    assert_one_line(place.run("force"), 1, f"left {place.target} as it was before")
    assert not place.stamp.exists()


def test_output_may_be_left_alone_when_nothing_changed(place):
    (place.directory / "copy.py").write_text(COPY.replace("target.write_text", "target.exists() or target.write_text"))
    assert place.run().returncode == 0
    assert place.run("force").returncode == 0
    assert "up to date" in place.run().stderr


def test_input_that_changes_meanwhile_is_not_recorded(place):
    (place.directory / "copy.py").write_text(COPY + "source.write_text('later')\n")
    assert_one_line(place.run("force"), 1, f"input {place.source} changed while the command ran")
    assert not place.stamp.exists()


def test_kill_in_the_middle_then_resume(place):
    place.gate.touch()
    place.run("run", "slow", str(place.flag), str(place.gate))
    assert place.stamp.exists()
    place.gate.unlink()
    place.flag.unlink()

    process = place.start_slow("force", start_new_session=True)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=PATIENCE)
    assert place.target.read_text() == "half"
    assert not place.stamp.exists()

    place.gate.touch()
    wait_for(lambda: gone(place.child()))
    result = place.run("resume", "slow", str(place.flag), str(place.gate))
    assert_one_line(result, 0, "no record of a run that ended well")
    assert place.target.read_text() == "FRAMES"
    assert "up to date" in place.run("resume", "slow", str(place.flag), str(place.gate)).stderr


def test_command_that_outlives_a_killed_run_keeps_the_lock(place):
    process = place.start_slow()
    child = place.child()
    process.kill()
    process.wait(timeout=PATIENCE)
    process.stderr.close()
    assert not gone(child)
    assert_one_line(place.run(), 2, "another run", f"process {child}")
    place.gate.touch()
    wait_for(lambda: gone(child))
    assert place.run().returncode == 0


def test_two_runs_at_once_are_refused(place):
    process = place.start_slow()
    assert_one_line(place.run(), 2, "another run", f"process {process.pid}", str(place.workdir))
    place.gate.touch()
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 0 and place.target.read_text() == "FRAMES"


def test_shell_script_keeps_the_lock_between_its_steps(place):
    (place.workdir / ".steps").mkdir()
    step = place.arguments("run", options=("--lock-fd", "9"))
    script = 'exec 9>>"$0"; flag=$1; gate=$2; shift 2; "$@" && "$@" && touch "$flag" && read -r < "$gate"'
    os.mkfifo(place.gate)
    lock = place.workdir / ".steps" / "lock"
    shell = subprocess.Popen(["bash", "-c", script, lock, place.flag, place.gate, *step], cwd=ROOT)
    wait_for(place.flag.exists)
    assert_one_line(place.run(), 2, "another run", f"process {shell.pid}")
    with open(place.gate, "w") as gate:
        gate.write("\n")
    assert shell.wait(timeout=PATIENCE) == 0 and place.runs == 2
    assert "up to date" in place.run().stderr


def test_daemon_of_a_command_does_not_keep_the_lock(place):
    daemon = "import subprocess, sys; subprocess.Popen(['sleep', '30'], close_fds=False, stdout=-3, stderr=-3)\n"
    (place.directory / "copy.py").write_text(COPY + daemon + "print(subprocess)")
    assert place.run().returncode == 0
    assert "up to date" in place.run().stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("whole_group", [True, False])
def test_interrupted(place, number, whole_group, default_sigint):
    process = place.start_slow(start_new_session=True)
    child = place.child()
    (os.killpg if whole_group else os.kill)(process.pid, number)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 128 + number
    assert errors.splitlines()[-1] == f"make: interrupted by {number.name}"
    assert gone(child) and not place.stamp.exists()
    place.gate.touch()
    assert place.run().returncode == 0 and place.target.read_text() == "FRAMES"


def test_ctrl_c_reaches_a_command_that_cleans_up_only_once(place, default_sigint):
    caught = place.directory / "caught"
    script = f"""
import pathlib, signal, time
count = []
def catch(*_):
    count.append(1)
    pathlib.Path({str(caught)!r}).write_text("x" * len(count))
signal.signal(signal.SIGINT, catch)
pathlib.Path({str(place.flag)!r}).touch()
while not count:
    time.sleep(0.01)
time.sleep(0.3)
"""
    (place.directory / "slow.py").write_text(script)
    process = place.start_slow(start_new_session=True)
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=PATIENCE)
    # It ended with 0, but nobody knows whether it had finished.
    assert process.returncode == 130 and not place.stamp.exists()
    assert caught.read_text() == "x"


@pytest.mark.parametrize("name", ["with space", "quo\"te's $HOME `x`", "-dash", "视频片段", "two\nlines", b"latin\xff"])
def test_hostile_paths(tmp_path, name):
    place = Place(tmp_path / os.fsdecode(name))
    place.source = place.source.rename(place.directory / os.fsdecode(name))
    assert place.run().returncode == 0 and place.target.read_text() == "FRAMES"
    assert_one_line(place.run(), 0, "up to date")
    place.source.write_text("others")
    assert_one_line(place.run(), 0, "changed")


def test_relative_path_with_a_leading_dash(tmp_path):
    (tmp_path / "-clip.mp4").write_text("frames")
    command = [sys.executable, "-m", "qwen_vl_axera.chain.steps", "--mode", "resume", "--name", "x"]
    command += ["--input", "-clip.mp4", "--output", "--out", "--", "cp", "--", "-clip.mp4", "--out"]
    for expected in ("no record", "up to date"):
        result = subprocess.run(
            command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
        )
        assert_one_line(result, 0, expected)
    assert (tmp_path / "--out").read_text() == "frames"


def test_summary_has_one_entry_for_each_step(place):
    summary = place.workdir / "steps.json"
    options = ("--summary", str(summary))
    place.run(options=options)
    first = json.loads(summary.read_bytes())
    place.run(options=options)
    execute([*place.arguments(options=(*options, "--name", "other"))])
    entries = json.loads(summary.read_bytes())
    assert [(entry["name"], entry["skipped"]) for entry in entries] == [("make", True), ("other", False)]
    assert entries[0] == first[0] | {"skipped": True}  # what is skipped keeps what it had cost
    assert entries[0]["command"] == place.arguments()[-4:]
    assert entries[1]["seconds"] >= 0 and entries[1]["peak_bytes"] > 1 << 20


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"[]", b'{"fingerprint": 1}', b"\xff\xfe", b"[" * 100_000, "link", "fifo"]
)
def test_damaged_stamp_is_no_stamp(place, damage):
    place.run()
    good = place.stamp.read_bytes()
    place.stamp.unlink()
    elsewhere = place.directory / "elsewhere.json"
    elsewhere.write_bytes(good)
    if damage == "link":
        place.stamp.symlink_to(elsewhere)
    elif damage == "fifo":
        os.mkfifo(place.stamp)
    else:
        place.stamp.write_bytes(damage)
    assert_one_line(place.run(), 0, "no record of a run that ended well")
    assert place.runs == 2 and elsewhere.read_bytes() == good
    assert_one_line(place.run(), 0, "up to date")


def test_forged_fingerprint_does_not_crash(place):
    place.run()
    stamp = json.loads(place.stamp.read_bytes())
    place.stamp.write_text(json.dumps(stamp | {"fingerprint": "0" * 64}))
    assert_one_line(place.run(), 0, "record of the last run is damaged")


def test_missing_input(place):
    place.source.unlink()
    assert_one_line(place.run(), 2, f"input {place.source} is missing")


def test_pipe_as_input(place):
    place.source.unlink()
    os.mkfifo(place.source)
    assert_one_line(place.run(), 2, "pipe or a device")


def test_no_such_command(tmp_path):
    with pytest.raises(InputError, match="cannot start 'no-such-tool'"):
        run_step(Step("x", ["no-such-tool"]), tmp_path)


@pytest.mark.parametrize("what", ["file", "link"])
def test_stamp_directory_that_is_none(place, what):
    stamps = place.workdir / ".steps"
    stamps.touch() if what == "file" else stamps.symlink_to(place.directory)
    assert_one_line(place.run(), 2, str(stamps))
    assert place.runs == 0


def test_lock_that_is_a_link(place):
    victim = place.directory / "victim"
    victim.write_text("precious")
    (place.workdir / ".steps").mkdir()
    (place.workdir / ".steps" / "lock").symlink_to(victim)
    assert_one_line(place.run(), 2, "cannot be written")
    assert victim.read_text() == "precious"


def test_read_only_work_directory(place, monkeypatch):
    """Root may write anywhere, so the answer of the system is put in its mouth there."""
    place.workdir.chmod(0o555)
    try:
        if os.geteuid() == 0:
            monkeypatch.setattr(os, "access", lambda *_: False)
        with pytest.raises(InputError, match=r"cannot be written .*use another --workdir"):
            run_step(Step("x", ["true"]), place.workdir)
    finally:
        place.workdir.chmod(0o755)


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a directory that not even root can write")
def test_work_directory_that_nobody_can_write(place):
    place.workdir = Path("/proc")
    assert_one_line(place.run(), 2, "/proc/.steps: cannot be written")


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "x" * 65, "a\nb"])
def test_bad_step_name(tmp_path, name):
    with pytest.raises(InputError, match="--name"):
        run_step(Step(name, ["true"]), tmp_path)


def test_bad_calls(tmp_path):
    with pytest.raises(InputError, match="expected a command"):
        run_step(Step("x", []), tmp_path)
    with pytest.raises(InputError, match="expected one of run, resume, force"):
        run_step(Step("x", ["true"]), tmp_path, mode="again")
    with pytest.raises(InputError, match="is no directory"):
        run_step(Step("x", ["true"]), tmp_path, summary=tmp_path / "none" / "steps.json")
    with pytest.raises(InputError, match="checkpoint's own directory"):
        run_step(Step("x", ["true"], checkpoints=[tmp_path]), tmp_path)
    assert run_step(Step("x", ["true"]), tmp_path) == 0
    with pytest.raises(InputError, match="--lock-fd"), open(os.devnull, "rb") as file:
        run_step(Step("x", ["true"]), tmp_path, lock_fd=file.fileno())
    assert_one_line(execute([sys.executable, "-m", "qwen_vl_axera.chain.steps", "--mode", "run"]), 2, "--name")


def test_output_inside_an_input_directory(place):
    frames = place.directory / "frames"
    frames.mkdir()
    with pytest.raises(InputError, match="lies inside the input"):
        run_step(Step("x", ["true"], inputs=[frames], outputs=[frames / "out"]), place.workdir)
    with pytest.raises(InputError, match="lies inside the input"):
        run_step(Step("x", ["true"], inputs=[place.directory]), place.workdir)


def test_directory_as_output(place):
    made = place.workdir / "calib"
    step = Step("calib", ["bash", "-c", f"mkdir -p '{made}' && date +%N > '{made}/a.npy'"], outputs=[made])
    assert run_step(step, place.workdir, "resume") == 0
    sample = (made / "a.npy").read_bytes()
    assert run_step(step, place.workdir, "resume") == 0 and (made / "a.npy").read_bytes() == sample
    (made / "b.npy").touch()
    assert run_step(step, place.workdir, "resume") == 0 and (made / "a.npy").read_bytes() != sample
    shutil.rmtree(made)
    made.mkdir()
    stale = Step("calib", ["true"], outputs=[made])
    with pytest.raises(CheckFailed, match="as it was before"):
        run_step(stale, place.workdir)
