"""Step 3, test_onnx_video_by_sec.py, as a user runs it: the report, and what makes it fail."""

import json
import re
import shutil
from functools import partial

import numpy as np
import onnx
import pytest
from PIL import Image

import test_onnx_video_by_sec
from qwen_vl_axera.checkpoint.tensors import Checkpoint
from qwen_vl_axera.contract import DESCRIBE, LOCATE
from qwen_vl_axera.fidelity import truth
from qwen_vl_axera.fidelity.record import THRESHOLDS
from qwen_vl_axera.fidelity.tables import text_table
from qwen_vl_axera.fidelity.verdict import Run
from qwen_vl_axera.files import plain, sha256_file
from qwen_vl_axera.language import text
from qwen_vl_axera.language.chat import LanguageModel, Token
from qwen_vl_axera.oracle.record import read_capture, read_oracle
from tests.conftest import run_main
from tests.talking import capture_and_export, make_talking, names

SIZE = (140, 252)
STEPS = 3  # of the six frames
FIGURES = {"max_abs", "mean_abs", "cosine", "min_token_cosine"}  # documented; others may follow
HOSTILE = 'it\'s a "clip" $(x) 视频'


@pytest.fixture(scope="module")
def talking(tmp_path_factory):
    return make_talking(tmp_path_factory.mktemp("talking") / "tiny")


@pytest.fixture(scope="module")
def exported(talking, frames_dir, tmp_path_factory):
    """After steps 1 and 2."""
    workdir = tmp_path_factory.mktemp("exported") / HOSTILE
    capture_and_export(talking, workdir, frames_dir, SIZE)
    return workdir


@pytest.fixture
def workdir(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "work")


run = partial(run_main, test_onnx_video_by_sec.main)


def read_report(path):
    def no_constants(name):
        raise ValueError(f"{name} is no JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=no_constants)


def rewrite_weight(workdir, name, change):
    """Changes one weight in the data file through a function of its values."""
    model = onnx.load(workdir / "tiny_vision.onnx", load_external_data=False)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    place = {entry.key: entry.value for entry in tensor.external_data}
    data = np.memmap(workdir / place["location"], np.uint8, "r+")
    start, length = int(place["offset"]), int(place["length"])
    values = data[start : start + length].view("<f4").reshape(tensor.dims)
    values[...] = change(values.copy())
    data.flush()


def test_report_and_text(run_script, talking, exported, tmp_path):
    """The whole command in a hostile path: numbers of both graphs, then two answers, all equal."""
    workdir = shutil.copytree(exported, tmp_path / HOSTILE)
    flags = ("--generate", "--dtype", "float32", "--max-new-tokens", "10")
    done = run_script("test_onnx_video_by_sec.py", talking, *flags, cwd=workdir)
    assert (done.returncode, done.stderr) == (0, "")
    report = read_report(workdir / "fidelity.json")
    assert set(report) == {"passed", "thresholds", "graphs", "text", "made_from"}
    assert set(report["made_from"]) == {
        *("pixels.npy", "vit_out.npy", "vit_exact.npy", "fidelity_tokens.npz"),
        *("tiny_vision.onnx", "tiny_vision_uint8.onnx", "tiny_vision.onnx.data"),
    }
    assert report["passed"] is True
    assert report["thresholds"] == plain(THRESHOLDS)
    assert [graph["file"] for graph in report["graphs"]] == ["tiny_vision.onnx", "tiny_vision_uint8.onnx"]
    for graph in report["graphs"]:
        assert graph["passed"] is True
        assert len(graph["steps"]) == STEPS
        for figures in graph["steps"]:
            assert set(figures) >= FIGURES
            assert all(isinstance(figures[name], float) for name in FIGURES)
            assert figures["min_token_cosine"] >= 0.99999
            assert 0 < figures["mean_abs"] <= figures["max_abs"] < 1e-3
            assert ("exact" in figures) != ("bound" in figures)
        assert sum("exact" in figures for figures in graph["steps"]) == 2
        for exact in (graph["exact"], *(figures["exact"] for figures in graph["steps"] if "exact" in figures)):
            assert exact["ratio"] == pytest.approx(exact["graph_error"] / exact["reference_error"])
            assert 0.2 < exact["ratio"] < THRESHOLDS.ratio
    assert [entry["prompt"] for entry in report["text"]] == [DESCRIBE, LOCATE]
    for entry in report["text"]:
        assert set(entry) == {"prompt", "reference", "onnx", "tokens", "equal", "reference_ids", "onnx_ids", "complete"}
        assert entry["reference_ids"] == entry["onnx_ids"] and len(entry["onnx_ids"]) == 10
        assert entry["complete"] is False  # ten tokens were asked for
        assert entry["equal"] is True
        assert entry["reference"] == entry["onnx"] != ""
        assert entry["tokens"] == 10
        assert entry["reference"] in done.stdout
    assert report["text"][0]["reference"] != report["text"][1]["reference"]
    assert done.stdout.endswith("passed\n")
    assert done.stdout.count("equal, 10 tokens") == 2
    assert names(workdir) == names(exported) | {"fidelity.json", "fidelity_tokens.npz"}


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_text_is_the_language_models(capsys, talking, workdir, dtype):
    """The report's texts are those that the saved features give, whichever dtype the language model has."""
    flags = ("--generate", "--dtype", dtype, "--max-new-tokens", 6, "--prompt", "Describe this video.")
    code, _, _ = run(capsys, talking, "--workdir", workdir, *flags)
    (entry,) = read_report(workdir / "fidelity.json")["text"]
    capture = read_capture(workdir)
    features = np.array(read_oracle(workdir, capture)).reshape(-1, 48)
    model = LanguageModel(talking, dtype)
    questions = text.read_questions(Checkpoint(talking), capture, ["Describe this video."])
    (expected,) = text.check_text(model, questions.prompts, features, features, 6)
    assert entry["reference"] == expected.reference
    assert (code, entry["equal"]) in ((0, True), (1, False))
    if dtype == "float32":  # bf16 may round the last digit of two features differently
        assert code == 0


def test_without_generate_there_is_no_text(capsys, talking, workdir):
    code, _, err = run(capsys, talking, "--workdir", workdir)
    assert (code, err) == (0, "")
    assert read_report(workdir / "fidelity.json")["text"] == []


def negated_largest(values):
    flat = values.reshape(-1)
    worst = np.abs(flat).argmax()
    flat[worst] = -flat[worst]
    return values


def two_rows_swapped(values):
    values[[3, 8]] = values[[8, 3]]
    return values


DAMAGES = {
    "one weight of a block": ("blocks.1.mlp.down_proj.weight", negated_largest),
    "one weight of the patch embedding": ("patch_embed.proj.weight", negated_largest),
    "two rows of the merger": ("merger.mlp.2.weight", two_rows_swapped),
    "two biases": ("blocks.3.attn.qkv.q.bias", two_rows_swapped),
    "not a number": ("merger.mlp.2.bias", lambda values: values * np.nan),
    "another scale": ("merger.ln_q.weight", lambda values: values * np.float32(1.001)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_weight_fails_both_graphs(capsys, talking, workdir, damage):
    name, change = DAMAGES[damage]
    names_of_weights = {
        tensor.name for tensor in onnx.load(workdir / "tiny_vision.onnx", load_external_data=False).graph.initializer
    }
    assert name in names_of_weights, sorted(names_of_weights)
    rewrite_weight(workdir, name, change)
    code, out, err = run(capsys, talking, "--workdir", workdir)
    assert (code, err) == (1, "")
    assert "FAILED: the graph is not transformers' tower" in out
    report = read_report(workdir / "fidelity.json")
    assert report["passed"] is False
    assert [graph["passed"] for graph in report["graphs"]] == [False, False]


def test_where_the_error_starts_is_said_and_what_differs_is_named(capsys, talking, workdir):
    rewrite_weight(workdir, "blocks.1.mlp.down_proj.weight", negated_largest)
    _, out, _ = run(capsys, talking, "--workdir", workdir)
    first, named = read_report(workdir / "fidelity.json")["graphs"][0]["problems"]
    assert re.fullmatch(r"the error is \S+ times transformers' own \(at most 3\), first seen in block 1", first)
    assert named.startswith("weight blocks.1.mlp.down_proj.weight: 1 of 6144 values differ, by up to ")
    assert f"tiny_vision.onnx: {first}\n" in out
    assert f"tiny_vision.onnx: {named}\n" in out


def test_a_small_mistake_is_named_though_the_numbers_pass(capsys, talking, workdir):
    def a_little(values):
        return values + np.float32(1e-8)

    rewrite_weight(workdir, "blocks.3.mlp.down_proj.bias", a_little)
    code, _, _ = run(capsys, talking, "--workdir", workdir)
    for graph in read_report(workdir / "fidelity.json")["graphs"]:
        (problem,) = graph["problems"]
        assert problem.startswith("weight blocks.3.mlp.down_proj.bias: ")
        assert all(figures["passed"] for figures in graph["steps"])
    assert code == 1


def rewrite(workdir, **arrays):
    """Other arrays in the capture, and their hashes in capture.json: only what they hold can tell."""
    raw = json.loads((workdir / "capture.json").read_text())
    for name, values in arrays.items():
        np.save(workdir / f"{name}.npy", values)
        raw["made_from"][f"{name}.npy"] = sha256_file(workdir / f"{name}.npy")
    (workdir / "capture.json").write_text(json.dumps(raw))


def reversed_tokens(oracle, steps):
    oracle[steps] = oracle[steps, ::-1]


def zeros(oracle, steps):
    oracle[steps] = 0


def noise(oracle, steps):
    oracle[steps] = np.random.default_rng(0).normal(0, oracle.std(), oracle[steps].shape)


def another_step(oracle, steps):
    oracle[steps] = oracle[[(step + 1) % STEPS for step in steps]]


def one_token(oracle, steps):
    oracle[steps[0], 7] = oracle[steps[0], 8]


def a_little(oracle, steps):
    oracle[steps] *= np.float32(1 + 1e-4)


@pytest.mark.parametrize("wrong", [reversed_tokens, zeros, noise, another_step, one_token, a_little])
@pytest.mark.parametrize("which", ["exact", "others"])
def test_an_oracle_that_is_not_transformers_is_refused(capsys, talking, workdir, wrong, which):
    """In every step: in those with an exact answer, and in those that have none until they look wrong."""
    exact = read_capture(workdir).exact_steps
    oracle = np.load(workdir / "vit_out.npy").reshape(STEPS, -1, 48)
    wrong(oracle, exact if which == "exact" else sorted(set(range(STEPS)) - set(exact)))
    rewrite(workdir, vit_out=oracle.reshape(-1, 48))
    refused(run(capsys, talking, "--workdir", workdir), "differ by")
    assert "fidelity.json" not in names(workdir)


def test_files_of_another_capture_are_refused(capsys, talking, workdir):
    for name in ("pixels.npy", "vit_out.npy", "vit_exact.npy"):
        whole = (workdir / name).read_bytes()
        np.save(workdir / name, np.load(workdir / name)[::-1])
        refused(run(capsys, talking, "--workdir", workdir), f"about other files ({name} has changed)")
        (workdir / name).write_bytes(whole)


def test_an_exact_answer_is_computed_where_the_bound_is_exceeded(capsys, talking, workdir, monkeypatch):
    monkeypatch.setattr(truth, "LOOSEST", 1e-9)
    assert run(capsys, talking, "--workdir", workdir)[0] == 0
    graph = read_report(workdir / "fidelity.json")["graphs"][0]
    assert all("exact" in step for step in graph["steps"]) and sum("bound" in step for step in graph["steps"]) == 1


def test_a_graph_of_other_nodes_is_not_run(capsys, talking, workdir, monkeypatch):
    """It might never end, or take all memory: its structure is enough."""
    path = workdir / "tiny_vision.onnx"
    model = onnx.load(path, load_external_data=False)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.full(4, 1 << 40), "huge"))
    model.graph.node.append(onnx.helper.make_node("ConstantOfShape", ["huge"], ["all"], name="all"))
    path.write_bytes(model.SerializeToString())
    monkeypatch.setattr(Run, "run", lambda *_: pytest.fail("it was run"))
    code, out, _ = run(capsys, talking, "--workdir", workdir, "--onnx", path, "--generate")
    assert code == 1 and "not run: it is built otherwise than export.py builds it" in out
    (graph,) = read_report(workdir / "fidelity.json")["graphs"]
    assert (graph["passed"], graph["steps"], graph["exact"]) == (False, [], None)
    assert "nodes, expected" in graph["problems"][0]


def test_a_graph_that_says_it_is_for_pictures(capsys, talking, workdir):
    path = workdir / "tiny_vision.onnx"
    model = onnx.load(path, load_external_data=False)
    next(entry for entry in model.metadata_props if entry.key == "qwen_vl_axera.mode").value = '"image"'
    path.write_bytes(model.SerializeToString())
    assert run(capsys, talking, "--workdir", workdir, "--onnx", path)[0] == 1
    assert read_report(workdir / "fidelity.json")["graphs"][0]["problems"] == ["mode is image, expected video"]


def test_graphs_of_the_same_nodes_and_weights_run_over_every_step_once(capsys, talking, workdir, monkeypatch):
    ran = []
    original = Run.run
    monkeypatch.setattr(Run, "run", lambda self, *given: ran.append(len(given[2])) or original(self, *given))
    assert run(capsys, talking, "--workdir", workdir)[0] == 0
    assert ran == [STEPS, 1]
    first, second = read_report(workdir / "fidelity.json")["graphs"]
    assert second["same_as"] == first["file"] and "same_as" not in first
    assert (second["steps"], second["exact"]) == (first["steps"], first["exact"])

    def other(self, *given):  # another answer in the step that is compared
        return original(self, *given) * np.float32(1 + 1e-6 * (len(given[2]) == 1))

    monkeypatch.setattr(Run, "run", other)
    run(capsys, talking, "--workdir", workdir)
    assert "same_as" not in read_report(workdir / "fidelity.json")["graphs"][1]


def test_errors_of_each_token(capsys, talking, workdir):
    code, _, _ = run(capsys, talking, "--workdir", workdir)
    first = (workdir / "fidelity_tokens.npz").read_bytes()
    report, capture = read_report(workdir / "fidelity.json"), read_capture(workdir)
    with np.load(workdir / "fidelity_tokens.npz", allow_pickle=False) as maps:
        assert set(maps) == {
            f"{name}/{kind}"
            for name in ("tiny_vision.onnx", "tiny_vision_uint8.onnx")
            for kind in ("cosine_distance", "error_ratio")
        }
        for graph in report["graphs"]:
            distance, ratios = (maps[f"{graph['file']}/{kind}"] for kind in ("cosine_distance", "error_ratio"))
            assert distance.shape == ratios.shape == (STEPS, SIZE[0] // 28, SIZE[1] // 28)
            assert distance.dtype == ratios.dtype == np.float64
            assert (distance >= 0).all()
            for step, figures in enumerate(graph["steps"]):
                assert 1 - distance[step].max() == pytest.approx(figures["min_token_cosine"], abs=1e-12)
            known = [step for step in range(STEPS) if not np.isnan(ratios[step]).any()]
            assert known == capture.exact_steps
            assert ratios[known].max() == pytest.approx(graph["exact"]["token_ratio"])
    assert run(capsys, talking, "--workdir", workdir)[0] == code == 0
    assert (workdir / "fidelity_tokens.npz").read_bytes() == first


def test_a_run_that_ends_badly_leaves_no_verdict(capsys, talking, workdir):
    assert run(capsys, talking, "--workdir", workdir)[0] == 0
    (workdir / "vit_exact.npy").unlink()
    refused(run(capsys, talking, "--workdir", workdir), "vit_exact.npy is missing: run run_video_by_sec.py first")
    assert not names(workdir) & {"fidelity.json", "fidelity_tokens.npz"}


@pytest.mark.parametrize("name", ["vit_out.npy", "vit_exact.npy"])
def test_an_oracle_that_is_not_finite_is_no_oracle(capsys, talking, workdir, name):
    np.save(workdir / name, np.load(workdir / name) * np.nan)
    refused(run(capsys, talking, "--workdir", workdir), f"{name} holds NaN or infinite values")


def test_an_exact_answer_of_another_clip(capsys, talking, workdir):
    rewrite(workdir, vit_exact=np.load(workdir / "vit_exact.npy")[::-1])
    refused(run(capsys, talking, "--workdir", workdir), "one of them is of another clip or other weights")


def test_a_graph_of_an_older_export_is_named(capsys, talking, workdir):
    """Only a name differs, the numbers are the same."""
    path = workdir / "tiny_vision.onnx"
    model = onnx.load(path, load_external_data=False)
    model.graph.node[3].name = "another"
    onnx.save(model, path)
    assert run(capsys, talking, "--workdir", workdir, "--onnx", path)[0] == 1
    ((problem,),) = (graph["problems"] for graph in read_report(workdir / "fidelity.json")["graphs"])
    assert "name another, expected name " in problem


def test_damage_in_one_graph_file_only(capsys, talking, workdir):
    """Only the uint8 graph gives two tokens in each other's place: the other passes, the run does not."""
    path = workdir / "tiny_vision_uint8.onnx"
    model = onnx.load(path, load_external_data=False)
    order = next(tensor for tensor in model.graph.initializer if tensor.name == "reading_order")
    values = onnx.numpy_helper.to_array(order).copy()
    order.CopyFrom(onnx.numpy_helper.from_array(two_rows_swapped(values), order.name))
    onnx.save(model, path)
    assert run(capsys, talking, "--workdir", workdir)[0] == 1
    report = read_report(workdir / "fidelity.json")
    assert [graph["passed"] for graph in report["graphs"]] == [True, False]
    assert report["passed"] is False


def test_one_graph_and_another_report(capsys, talking, workdir, tmp_path):
    other = tmp_path / "报告 1.json"
    graph = workdir / "tiny_vision_uint8.onnx"
    assert run(capsys, talking, "--workdir", workdir, "--onnx", graph, "--report", other)[0] == 0
    assert [entry["file"] for entry in read_report(other)["graphs"]] == [graph.name]
    assert not names(workdir) & {"fidelity.json", "fidelity_tokens.npz"}
    assert (tmp_path / "报告 1_tokens.npz").is_file()


def test_a_mistyped_report_costs_no_other_file(capsys, talking, workdir):
    before = {path: path.read_bytes() for path in workdir.iterdir()}
    for name, words in (
        (workdir / "capture.json", "is not what was made here"),
        (workdir / "pixels.npy", "expected a name that ends in .json"),
        (talking / "config.json", "this is within the checkpoint"),
    ):
        refused(run(capsys, talking, "--workdir", workdir, "--report", name), words)
    assert {path: path.read_bytes() for path in workdir.iterdir()} == before


def test_another_clip(capsys, talking, workdir, exported, tmp_path):
    frames = tmp_path / "frames"
    frames.mkdir()
    random = np.random.default_rng(1)
    for number in range(4):
        Image.fromarray(random.integers(0, 256, (100, 90, 3), dtype=np.uint8)).save(frames / f"{number}.png")
    assert run(capsys, talking, "--workdir", workdir, "--video", frames)[0] == 0
    report = read_report(workdir / "fidelity.json")
    assert [len(graph["steps"]) for graph in report["graphs"]] == [2, 2]
    other = read_capture(workdir / "check")
    assert (other.size, other.source) == (SIZE, [str(frames)])
    for name in names(exported):  # the first clip's files stay
        assert (workdir / name).read_bytes() == (exported / name).read_bytes(), name


def test_a_text_that_differs_fails_though_the_numbers_pass(capsys, talking, workdir, monkeypatch):
    original = Run.judge

    def perturbed(run, judge):
        original(run, judge)
        run.tokens = run.tokens[:, ::-1].copy()

    monkeypatch.setattr(Run, "judge", perturbed)
    flags = ("--generate", "--dtype", "float32", "--max-new-tokens", 10)
    code, out, _ = run(capsys, talking, "--workdir", workdir, *flags)
    report = read_report(workdir / "fidelity.json")
    assert (code, report["passed"]) == (1, False)
    assert all(graph["passed"] for graph in report["graphs"])
    for entry in report["text"]:
        assert entry["equal"] is False
        difference = entry["first_difference"]
        sides = [difference["reference"], difference["onnx"]]
        assert all(0 < side["probability"] <= 1 for side in sides)
        for side in sides:
            assert f"(p {side['probability']:.3f})" in out
        assert f"first difference at token {difference['token']}" in out


def test_the_first_difference_is_the_first(talking):
    model = LanguageModel(talking, "float32")
    red, blue, end = (model.tokenizer(text)["input_ids"][0] for text in ("red", "blue", "<|im_end|>"))
    reference = [Token(red, 0.9), Token(red, 0.8), Token(end, 0.7)]
    entry = text.compare_answers(model, "q", reference, [Token(red, 0.9), Token(blue, 0.6), Token(end, 0.7)])
    assert entry.first_difference.token == 1
    assert entry.first_difference.reference.probability == 0.8
    assert entry.first_difference.onnx.probability == 0.6
    shorter = text.compare_answers(model, "q", reference, reference[:2])
    assert not shorter.equal
    assert shorter.first_difference.onnx is None and shorter.first_difference.reference.probability == 0.7
    assert "p 0.700" in text_table([shorter])


def refused(result, words):
    code, out, err = result
    assert code == 2, result
    assert out == ""
    assert len(err.splitlines()) == 1, err
    assert words in err


def test_without_the_steps_before(run_script, capsys, talking, exported, tmp_path):
    """Each message names the command that makes what is missing."""
    done = run_script("test_onnx_video_by_sec.py", talking, "--workdir", tmp_path / "new")
    refused((done.returncode, done.stdout, done.stderr), "expected the one that export.py wrote to")
    assert not (tmp_path / "new").exists()
    workdir = shutil.copytree(exported, tmp_path / "work")
    for name, words in (
        ("tiny_vision_uint8.onnx", "run export.py CKPT video first"),
        ("vit_out.npy", "run run_video_by_sec.py first"),
        ("pixels.npy", "run run_video_by_sec.py first"),
        ("capture.json", "run run_video_by_sec.py CKPT --video PATH first"),
        ("tiny_vision.onnx.data", "tiny_vision.onnx.data"),
    ):
        (workdir / name).rename(tmp_path / "away")
        refused(run(capsys, talking, "--workdir", workdir), words)
        (tmp_path / "away").rename(workdir / name)
    assert "fidelity.json" not in names(workdir)
    assert run(capsys, talking, "--workdir", workdir)[0] == 0


@pytest.mark.parametrize("name", ["tiny_vision.onnx", "tiny_vision.onnx.data", "vit_out.npy", "pixels.npy"])
def test_truncated_files(capsys, talking, workdir, name):
    data = (workdir / name).read_bytes()
    (workdir / name).write_bytes(data[: len(data) * 9 // 10])
    refused(run(capsys, talking, "--workdir", workdir), name.removesuffix(".data"))


def test_graphs_that_do_not_fit(capsys, talking, workdir, frames_dir, tmp_path):
    other = tmp_path / "other"
    capture_and_export(talking, other, frames_dir, (56, 56))
    refused(
        run(capsys, talking, "--workdir", workdir, "--onnx", other / "tiny_vision.onnx"),
        "made for 16 patches a step (56x56), got 180",
    )
    foreign = onnx.helper.make_model(
        onnx.helper.make_graph(
            [onnx.helper.make_node("Sqrt", ["x"], ["y"])],
            "g",
            [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])],
            [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])],
        )
    )
    onnx.save(foreign, tmp_path / "foreign.onnx")
    refused(
        run(capsys, talking, "--workdir", workdir, "--onnx", tmp_path / "foreign.onnx"), "no vision graph of export.py"
    )
    refused(run(capsys, talking, "--workdir", workdir, "--onnx", tmp_path / "none.onnx"), "none.onnx is missing")
    refused(run(capsys, talking, "--workdir", workdir, "--onnx", workdir / "pixels.npy"), "not an ONNX model")
    assert "fidelity.json" not in names(workdir)


def test_a_capture_of_another_checkpoint(capsys, talking, workdir, tmp_path):
    shutil.copytree(talking, tmp_path / "another")
    for name in ("tiny_vision.onnx", "tiny_vision_uint8.onnx"):
        shutil.copy(workdir / name, workdir / name.replace("tiny", "another"))
    refused(run(capsys, tmp_path / "another", "--workdir", workdir), "made from tiny, not from another")


def test_features_of_another_width(capsys, talking, workdir):
    features, exact = np.load(workdir / "vit_out.npy"), np.load(workdir / "vit_exact.npy")
    rewrite(workdir, vit_out=np.tile(features, (1, 2)), vit_exact=np.tile(exact, (1, 1, 2)))
    refused(run(capsys, talking, "--workdir", workdir), "different checkpoints")
