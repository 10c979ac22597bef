"""preview_quantization.py, as a user runs it, and what it must refuse."""

import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import get_calib
import preflight
import preview_quantization
from qwen_vl_axera.compiler.schema import load_config
from qwen_vl_axera.graph.files import load_graph
from qwen_vl_axera.graph.operators import statistics
from qwen_vl_axera.quantization.preview import MOST_STEPS, thinned
from tests.conftest import ROOT, run_main
from tests.quantization.conftest import SIZE, write_frames


@pytest.fixture
def run(massive, capsys):
    def run(*more, case=massive, evaluate=None):
        clips = [case.evaluation] if evaluate is None else evaluate
        arguments = [case.checkpoint, "--workdir", case.workdir, *(["--evaluate", *clips] if clips else []), *more]
        return run_main(preview_quantization.main, capsys, *arguments)

    return run


@pytest.fixture
def copy(massive, tmp_path):
    """The massive case, to be broken."""
    from tests.quantization.conftest import Case

    return Case(massive.checkpoint, Path(shutil.copytree(massive.workdir, tmp_path / "work")), massive.evaluation)


def settings_of(workdir: Path) -> dict[str, dict]:
    report = json.loads((workdir / "quantization.json").read_text())
    return {entry["name"]: entry for entry in report["settings"]}


def test_a_mix_is_judged_on_clips_that_did_not_choose_it(run, copy, tmp_path):
    clips = [write_frames(tmp_path / f"unseen{number}", number) for number in range(20, 23)]
    code, out, _ = run("--search", case=copy, evaluate=[copy.evaluation, *clips])
    assert code == 0
    found = json.loads((copy.workdir / "quantization.json").read_text())["search"]
    judged = found["judged"]
    assert judged["clips"] == ["unseen20", "unseen22"]  # every other one
    assert judged["low"] <= judged["loss"] <= judged["high"]
    assert not found["reached"] or judged["high"] <= found["target_loss"]
    assert "clips that did not choose it" in out and "give 4 clips more with --evaluate" in out
    code, _, err = run("--search", case=copy, evaluate=[copy.evaluation, clips[0], clips[1], clips[0]])
    assert code == 0  # twice, but both judge
    code, _, err = run("--search", case=copy, evaluate=[clips[0], clips[0]])
    assert code == 2 and "would judge what it has chosen" in err


def test_the_search_finds_the_spiky_layer_and_writes_a_recipe(run, massive, capsys):
    code, out, err = run("--search")
    assert (code, err) == (0, "")
    assert "judged on the very frames that chose it: give 7 clips more" in out
    report = json.loads((massive.workdir / "quantization.json").read_text())
    spiky = "blocks.3.mlp.down_proj"
    # Ranked first where it is planted, by the census as well as by the damage to tokens.
    assert report["census"]["spikes"][0]["layer"] == spiky
    assert max(report["search"]["sensitivity"], key=lambda entry: entry["damage"])["layers"] == [spiky]
    assert spiky in report["search"]["wide"]
    assert any("massive tokens" in entry["finding"] for entry in report["census"]["findings"])

    settings = settings_of(massive.workdir)
    # One meaning of the share at 8 bits: of all products of the graph, attention's as well.
    share = sum(entry["macs"] for entry in report["search"]["sensitivity"]) / report["search"]["macs"]
    assert settings["linear layers at 8 bits"]["mac8"] == pytest.approx(share, abs=1e-12) and share < 1
    assert statistics(load_graph(massive.graph))["multiplications"] == report["search"]["macs"]
    floor = report["floor"]
    assert settings["all at 8 bits"]["mean_token_cosine"] < 0.9
    for figure in ("mean_token_cosine", "centred_cosine"):
        assert settings["mixed"][figure] >= floor[figure] - 0.005
    assert settings["mixed"]["mac8"] > 0.8
    for setting in ("weights alone in S8", "vendor", "all at 8 bits", "mixed"):
        assert setting in out

    # The recipe is one that the compiler's schema and preflight accept, and means what was simulated.
    recipe = massive.workdir / "config_video_mixed.json"
    assert load_config(ROOT / "config_video.json").quant.enable_smooth_quant
    assert not load_config(recipe).quant.enable_smooth_quant  # it was simulated without
    assert settings["vendor"]["notes"] and not settings["mixed"]["notes"]
    _, checks, _ = run_main(
        preflight.main, capsys, massive.checkpoint, "--workdir", massive.workdir, "--config", recipe, "--json"
    )
    found = [check for check in json.loads(checks)["checks"] if check["name"].startswith(("config", "archive"))]
    assert "failed" not in {check["status"] for check in found}
    assert "config: unknown-layer" not in {check["name"] for check in found}
    (mine := massive.workdir / "mine.json").write_bytes(recipe.read_bytes())
    code, _, _ = run("--config", mine)
    again = settings_of(massive.workdir)
    for name in ("mine", "mixed"):  # the one of the search is simulated anew as long as it is there
        assert again[name]["mean_token_cosine"] == settings["mixed"]["mean_token_cosine"]
    recipe.unlink()


def test_the_report_holds_what_was_promised(run, demo):
    code, out, _ = run("--json", case=demo)
    assert code == 0
    report = json.loads(out)
    assert report == json.loads((demo.workdir / "quantization.json").read_text())
    assert {entry["grade"] for entry in report["assumptions"]} <= {"M", "C", "D", "A", "inf"}
    names = {"name", "config", "mac8", "mean_token_cosine", "min_token_cosine", "centred_cosine", "relative_error"}
    for entry in (report["floor"], *report["settings"]):
        assert names | {"steps", "blocks", "clipped", "border_bytes"} <= set(entry)
        assert len(entry["steps"]) == 4
        assert len(entry["blocks"]) == 4
    vendor, *_, eight = report["settings"]
    assert (vendor["mac8"], eight["mac8"]) == (0, 1)
    assert vendor["relative_time"] == [1, 1]
    assert 1 / 3 <= eight["relative_time"][0] < eight["relative_time"][1] <= 1
    assert "371 ms at 308x308" in report["time"]
    # The demo model stands 8 bits.
    assert eight["mean_token_cosine"] > 0.999


def test_unfused_operators_are_an_assumption_that_shows(run, demo):
    _, out, _ = run("--json", "--unfused", "norm", case=demo)
    rules = [entry["rule"] for entry in json.loads(out)["assumptions"]]
    assert "the nodes of an RMSNorm are quantised" in rules
    assert "SiLU and GELU are one operator each" in rules


def test_what_was_calibrated_on_is_never_evaluated(run, massive, frames, tmp_path):
    code, _, err = run(evaluate=[frames[0]])
    assert code == 2
    assert "are in the calibration set" in err
    # The very frames under other names, one of them alone, are known by their pixels, too.
    renamed = tmp_path / "renamed"
    shutil.copytree(massive.evaluation, renamed)
    shutil.copyfile(frames[1] / "5.png", renamed / "2.png")
    code, _, err = run(evaluate=[renamed])
    assert code == 2
    assert "1 frames are in the calibration set" in err


def test_frames_of_the_sample_that_got_the_range_are_known(run, massive):
    first = json.loads((massive.workdir / "calib" / "manifest.json").read_text())["samples"][0]
    assert first["range"]
    code, _, err = run(evaluate=[Path(first["source"][0])])
    assert (code, "are in the calibration set" in err) == (2, True)


def rewrite_archive(case, change) -> None:
    """Packs the archive anew from changed samples."""
    samples = [np.load(path) for path in sorted((case.workdir / "calib").glob("*.npy"))]
    with tarfile.open(case.workdir / "calib" / "hidden_states.tar", "w") as tar:
        for number, values in enumerate(change(samples)):
            data = io.BytesIO()
            np.save(data, values)
            member = tarfile.TarInfo(f"sample_{number:05d}.npy")
            member.size = data.tell()
            data.seek(0)
            tar.addfile(member, data)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda samples: samples[:1], "1 sample to calibrate on"),
        (lambda samples: [values[:, :, :40] for values in samples], "the graph takes [1, 3, 144, 392]"),
        (lambda samples: [samples[0] * np.nan, *samples[1:]], "NaN or infinite"),
    ],
)
def test_archives_that_calibrate_nothing(run, copy, change, words):
    rewrite_archive(copy, change)
    code, _, err = run(case=copy)
    assert code == 2
    assert words in err
    assert len(err.splitlines()) == 1


def test_a_range_without_end_is_refused(run, copy):
    rewrite_archive(copy, lambda samples: [samples[0] * np.float32(1e36), *samples[1:]])
    code, _, err = run("--unfused", "norm", case=copy)  # whose squares are infinite
    assert (code, "no range can be taken" in err) == (2, True)


def test_a_missing_archive_names_the_command(run, copy):
    shutil.rmtree(copy.workdir / "calib")
    code, _, err = run(case=copy)
    assert (code, "run get_calib.py" in err) == (2, True)


def test_nothing_to_judge_on_is_bad_input(run):
    code, _, err = run(evaluate=[])
    assert (code, "--evaluate" in err) == (2, True)


def test_a_selector_that_matches_nothing_is_refused(run, tmp_path):
    config = json.loads((ROOT / "config_video.json").read_text())
    config["quant"]["layer_configs"].append({"layer_names": ["blocks.9.mlp.down_proj"], "data_type": "U16"})
    (tmp_path / "mine.json").write_text(json.dumps(config))
    code, _, err = run("--config", tmp_path / "mine.json")
    assert code == 2
    assert "no layer 'blocks.9.mlp.down_proj'" in err


def test_clipping_is_reported(run, copy, capsys):
    """Calibrated on grey pictures alone, the evaluation frames leave the ranges."""
    grey = copy.workdir.parent / "grey"
    grey.mkdir()
    for number in range(8):
        Image.fromarray(np.full((*SIZE, 3), 60 + number, np.uint8)).save(grey / f"{number}.png")
    sides = [str(side) for side in SIZE]
    assert get_calib.main(["--inputs", str(grey), "--size", *sides, "--workdir", str(copy.workdir)]) == 0
    capsys.readouterr()
    code, out, _ = run("--json", case=copy)
    clipped = json.loads(out)["settings"][0]["clipped"]
    assert code == 0
    assert clipped["share"] > 0.001
    assert all(share > 0.001 for share in clipped["worst"].values())


def test_the_notes_of_the_mix_come_first(run, copy):
    config = json.loads((ROOT / "config_video.json").read_text())
    (copy.workdir / "config_video_mixed.json").write_text(json.dumps(config))
    code, out, _ = run(case=copy)
    notes = [line for line in out.splitlines() if line.startswith("note: ")]
    assert code == 0
    assert notes[:2] == [f"note: {name}: quant.enable_smooth_quant is not simulated" for name in ("mixed", "vendor")]
    assert "time: an estimate relative to all at 16 bits" in out


@pytest.mark.parametrize(
    "lengths", [[1] * 32, [2] * 32, [4] * 32, [1] * 64, [40], [3, 40], [1] * 8, [4] * 4, [100, 1, 1]]
)
def test_every_clip_keeps_its_part_of_the_steps_that_are_simulated(lengths):
    taken = thinned(lengths)
    clips = [number for number, length in enumerate(lengths) for _ in range(length)]
    kept = {clips[step] for step in taken}
    assert taken == sorted(set(taken)) and len(taken) <= MOST_STEPS and max(taken) < sum(lengths)
    assert kept == set(range(min(len(lengths), MOST_STEPS)))
    assert len([number for number in kept if number % 2]) == min(len(lengths), MOST_STEPS) // 2
