"""The chain of export_video.sh in one process: its options checked, its steps run or skipped, the rest written down.

    python -P -m qwen_vl_axera.chain [CKPT [VIDEO...]] [--demo] [--host-only] [--dry-run] [--resume|--force] [--check]

export_video.sh makes the environment and runs this; its --help explains the options and variables. --check only checks
them, before there is an environment. A step writes .steps/NAME.json and its line in steps.json, in WORKDIR or, for the
picture model, in WORKDIR/pictures. Exit code: that of the step which stops the run; 1 also when one ended well without
making its outputs; 2 for bad input; 130 and 143 when it was interrupted or ended.
"""

import fcntl
import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from qwen_vl_axera import cli
from qwen_vl_axera.chain.options import SAME_SIZE, Run, check_places, make_directories, read_run
from qwen_vl_axera.chain.pictures import remove_other_graphs, with_pictures
from qwen_vl_axera.chain.probed import probed
from qwen_vl_axera.chain.steps import FORM, Model, Step, advice, embedding, language, package
from qwen_vl_axera.compiler.tool import DEFAULT, VARIABLE
from qwen_vl_axera.contract import CAPTURE, LEFT_TO_DO, MODES, QUANTIZATION, REPORT, STAMPS, STEPS
from qwen_vl_axera.doors import check_output, printable
from qwen_vl_axera.errors import CheckFailed, InputError

LOCK = f"{STAMPS}/lock"


def main(argv: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if argv is None else argv)
    run = read_run([word for word in given if word != "--check"] if "--check" in given else given)
    check_places(run)
    check_outputs(run)
    if "--check" in given:
        return cli.EXIT_OK
    chain = Chain(run)
    if run.trial:
        print(f"note: no video given: {run.videos[0]} is captured and calibrates, for a trial only", file=sys.stderr)
    if len(chain.models) > 1 and not with_pictures(run.videos):
        print("note: no picture among the inputs: the videos' frames calibrate the picture model", file=sys.stderr)
    if run.dry_run:
        return chain.go()
    make_directories(*(model.here / STAMPS for model in chain.models), run.out)
    with lock(run.workdir):
        return chain.go()


class Stop(Exception):
    """A step ended badly: its exit code is that of the run."""


class Chain:
    """The steps of a run, one after the other.

    Attributes:
        run: what was asked for.
        models: the vision models, the video's first.
        compiler: what `pulsar2 version` says; None: there is no compiler, or it is not wanted.
        why: why not.
        left: steps for later, where the compiler is; None while they are run.
        done: the recorded steps of this run, with the model that each belongs to.
    """

    def __init__(self, run: Run):
        self.run = run
        self.models = [Model(run, mode) for mode in MODES[: 2 if run.values["IMAGE_SIZE"] else 1]]
        self.compiler, self.why = find_compiler(run)
        self.left: list[Step] | None = None
        self.done: list[tuple[Step, Model]] = []

    def go(self) -> int:
        try:
            self.steps()
        except Stop as stop:
            code = stop.args[0]
        except CheckFailed as error:
            print(f"error: {error}", file=sys.stderr)
            code = cli.EXIT_CHECK_FAILED
        else:
            return cli.EXIT_OK
        if code == cli.EXIT_CHECK_FAILED:  # worth a page, too
            with suppress(Stop, CheckFailed, InputError):
                self.reports(sys.stderr)
        return code

    def steps(self) -> None:
        run, (video, *_) = self.run, self.models
        if self.compiler:
            say(f"NPU compiler: {self.compiler}")
        form = run.values["WINDOW_MODE"] or probed(run.workdir)[0]
        for model in self.models:
            self.do(model.capture(), model)
            if model.mode == "image":
                check_image_size(run)
            self.export(model, form)
            self.do(model.calibration(), model)
            code = self.try_to(model.preflight(), model)  # without the compiler the table is information
            if code and (self.compiler is not None or code != cli.EXIT_CHECK_FAILED):
                raise Stop(code)
        if not run.fallback and (run.workdir / QUANTIZATION).is_file():
            self.do(advice(run))

        self.left = [] if self.compiler is None else None
        config = run.config
        if run.values["PROBE"]:
            self.do(video.probe(), video)
            found, chosen = probed(run.workdir)
            found = run.values["WINDOW_MODE"] or (found if self.left is None else FORM)
            if found != form:
                for model in self.models:
                    self.export(model, found)
            if self.left is None and run.fallback and chosen and chosen != config:
                say(f"the probe chose another configuration (probe.json says why): going on with {chosen}")
                config = chosen
        # Before the vision model, which takes longest: a compiler that names its layers otherwise is noticed here.
        self.do(language(run), video)
        for model in self.models:
            self.do(model.build(config), model)
            self.compare(model, config)
        left, self.left = self.left, None

        self.do(embedding(run), video)
        self.verify()
        self.do(package(run, complete=self.compiler is not None))
        if left is not None:
            self.leave([*left, package(run, complete=True)], form)
        elif not run.dry_run:
            (run.workdir / LEFT_TO_DO).unlink(missing_ok=True)  # of an earlier run without the compiler
        self.heading("report")
        self.reports(sys.stdout)
        if run.dry_run:
            say("\ndry run: nothing was done")
        elif self.compiler is None:
            say(f"\ndone: the host steps; the NPU build is left ({self.why}): run {run.workdir / LEFT_TO_DO}")
        else:
            say(f"\ndone: everything; upload {run.out}")

    def export(self, model: Model, form: str) -> None:
        if len(self.models) > 1 and model.mode == "video" and not self.run.dry_run and self.left is None:
            remove_other_graphs([self.models[1].graph, self.models[1].uint8], self.run.values["INPUT"])
        self.do(model.export(form), model)
        self.do(model.fidelity(), model)

    def compare(self, model: Model, config: Path) -> None:
        code = self.try_to(model.compare(config), model)
        if code == cli.EXIT_CHECK_FAILED:  # what computes something else is no finished step
            (model.here / STAMPS / f"{model.build(config).name}.json").unlink(missing_ok=True)
        if code:
            raise Stop(code)

    def do(self, step: Step, model: Model | None = None) -> None:
        if code := self.try_to(step, model):
            raise Stop(code)

    def try_to(self, step: Step, model: Model | None = None) -> int:
        """Runs a step, or skips it, prints it, or keeps it for later; returns its exit code."""
        if self.left is not None:
            self.left.append(step)
            return 0
        self.heading(step.title)
        if self.run.dry_run:
            say(shlex.join(step.command))
            return 0
        from qwen_vl_axera.chain.runner import run_command, run_step

        if step.name is None:
            return run_command(step)["returncode"]
        here = (model or self.models[0]).here
        self.done = [entry for entry in self.done if (entry[0].name, entry[1].here) != (step.name, here)]
        self.done.append((step, model or self.models[0]))
        return run_step(step, here, here / STEPS, self.run.mode, self.compiler or "")

    def verify(self) -> None:
        """That what every step read and wrote is still what it was: a checkpoint may have changed during the builds.

        Raises:
            CheckFailed: it is not.
        """
        from qwen_vl_axera.chain.fingerprints import read_stamp, step_parts, why_redo

        for step, model in [] if self.run.dry_run else self.done:
            stamp = read_stamp(model.here / STAMPS / f"{step.name}.json")
            if reason := why_redo(stamp, step_parts(step, self.compiler or ""), step.writes):
                raise CheckFailed(f"{step.name}: {reason}, after it had ended: run this again with --resume")

    def leave(self, left: list[Step], form: str) -> None:
        from qwen_vl_axera.chain.left_to_do import left_to_do, write_script

        self.heading("NPU build: left to do")
        text = left_to_do(self.run, left, form)
        if not self.run.dry_run:
            write_script(self.run.workdir / LEFT_TO_DO, text)
        say(text, end="")

    def reports(self, stream: TextIO) -> None:
        for model in self.models:
            if self.run.dry_run:
                say(shlex.join(model.report().command))
            elif (model.here / CAPTURE).is_file():
                from qwen_vl_axera.chain.runner import run_command

                run_command(model.report(), stdout=stream)

    def heading(self, title: str) -> None:
        if title:
            say(f"\n== {title}")


def say(text: str, end: str = "\n") -> None:
    """Prints what the user must be able to rely on having been told.

    Raises:
        InputError: standard output takes nothing.
    """
    try:
        print(printable(text), end=end, flush=True)
    except OSError:
        raise InputError("standard output cannot be written") from None


def find_compiler(run: Run) -> tuple[str | None, str]:
    """The compiler's version, or None and why there is none.

    Raises:
        InputError: what was asked for is not there, or lacks what this run needs.
        CheckFailed: it does not answer.
    """
    if run.host_only:
        return None, "--host-only"
    if not os.environ.get(VARIABLE) and not shutil.which(DEFAULT):
        return None, f"no {DEFAULT} on PATH, and {VARIABLE} is not set"
    if run.dry_run:
        return "", ""
    from qwen_vl_axera.compiler.pulsar2 import has_llm_build2, version
    from qwen_vl_axera.compiler.tool import find_tool

    # Asked now: a compiler that is not there must not be noticed after everything else.
    tool = find_tool(os.environ.get(VARIABLE))
    found = version(tool)
    if run.values["LLM_BUILD2"] and not has_llm_build2(tool):
        raise InputError(f"LLM_BUILD2=1: {tool.name} has no llm_build2: leave it out, or use a newer release")
    return found, ""


def check_outputs(run: Run) -> None:
    """That nothing but regular files will be replaced, asked before hours of work.

    Raises:
        InputError: something else has the name of an output.
    """
    files = [run.workdir / LEFT_TO_DO]
    for model in [Model(run, mode) for mode in MODES[: 2 if run.values["IMAGE_SIZE"] else 1]]:
        files += model.work(STEPS, REPORT, LOCK)
        for step in (model.capture(), model.export(""), model.fidelity(), model.calibration()):
            files += [path for path in step.writes if path.parent.is_dir()]
    for path in filter(os.path.lexists, files):
        check_output(path)


def check_image_size(run: Run) -> None:
    """That the picture model is not the video's once more, whose size may only now be known.

    Raises:
        InputError: it is.
    """
    if run.dry_run:
        return
    from qwen_vl_axera.oracle.record import read_capture

    size = run.values["IMAGE_SIZE"]
    if read_capture(run.workdir).size == size:
        raise InputError(f"IMAGE_SIZE={size[0]} {size[1]}: {SAME_SIZE}")


@contextmanager
def lock(workdir: Path) -> Iterator[None]:
    """Held until the end, by every child, too: two runs in one work directory would overwrite each other's files.

    Raises:
        InputError: another run holds it.
    """
    descriptor = os.open(workdir / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    os.set_inheritable(descriptor, True)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another run is at work in {workdir}: wait for it or end it") from None
        yield
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # a daemon that some command left behind must not keep it
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    sys.exit(cli.run(main))
