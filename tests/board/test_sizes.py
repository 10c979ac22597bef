"""Sizes that the runtime misreads: the rule against the runtime's arithmetic, and what each script does with one."""

import shutil

import pytest
from PIL import Image

import export
import package_model
import preflight
import run_video_by_sec
from preprocess import FACTOR, automatic_size, nearest_readable, smart_resize, square_of_same_area
from qwen_vl_axera.board.sizes import misreading
from tests.board import runtime
from tests.conftest import run_main
from tests.talking import capture_and_export

LARGEST = 1288
SIDES = range(FACTOR, LARGEST + 1, FACTOR)


def read_by_runtime(height: int, width: int) -> tuple[int, int]:
    settings = {"vision_temporal_patch_size": 2, "vision_patch_size": 14, "vision_height": height}
    return runtime.infer_size(height * width * 2 * 3, settings)


def test_the_rule_is_the_runtimes():
    """All 2,116 sizes up to 1288: 62 are misread."""
    misread = 0
    for height in SIDES:
        for width in SIDES:
            side = square_of_same_area(height, width)
            assert read_by_runtime(height, width) == ((side, side) if side else (height, width))
            misread += side is not None
    assert misread == 62


def test_the_neighbours_are_read_rightly():
    for height in SIDES:
        for width in SIDES:
            if square_of_same_area(height, width):
                assert all(read_by_runtime(*size) == size for size in nearest_readable(height, width))


def test_the_known_sizes():
    assert (square_of_same_area(252, 448), square_of_same_area(504, 896)) == (336, 672)
    assert misreading((308, 308)) is None and misreading((252, 336)) is None
    for words in ("252 448", "336 336", "252 420", "252 476"):
        assert words in misreading((252, 448))
    assert "420 252" in misreading((448, 252))


@pytest.mark.parametrize(
    "shape", [(720, 1280), (1080, 1920), (1280, 720), (2160, 3840), (480, 640), (100, 400), (56, 224)]
)
@pytest.mark.parametrize("max_pixels", [308**2, 336**2, 448**2, 672**2, 1288**2, 28 * 28 * 4])
def test_automatic_sizes_are_qwens_or_beside_them(shape, max_pixels):
    qwens = smart_resize(*shape, min_pixels=28 * 28, max_pixels=max_pixels)
    size = automatic_size(*shape, min_pixels=28 * 28, max_pixels=max_pixels)
    assert square_of_same_area(*size) is None and size[0] * size[1] <= max_pixels
    assert size == qwens if square_of_same_area(*qwens) is None else size in nearest_readable(*qwens)


def test_bounds_without_another_size():
    assert automatic_size(28, 112, min_pixels=56 * 56, max_pixels=56 * 56) == (28, 112)


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """Two frames of 16:9."""
    directory = tmp_path_factory.mktemp("film")
    for number in range(2):
        Image.effect_noise((448, 252), 60).convert("RGB").save(directory / f"{number}.png")
    return directory


@pytest.fixture(scope="module")
def misread_graph(tiny_dir, film, tmp_path_factory):
    """A capture and an export of 28x112, which the runtime takes for 56x56."""
    workdir = tmp_path_factory.mktemp("misread")
    capture_and_export(tiny_dir, workdir, film, size=(28, 112))
    return workdir


def test_a_film_converts_to_a_size_that_the_board_reads(tiny_dir, film, tmp_path, capsys):
    """448x252 is 9 by 16 blocks, exactly 336·336 pixels."""
    code, out, err = run_main(
        run_video_by_sec.main, capsys, tiny_dir, "--video", film, "--max-pixels", 336**2, "--workdir", tmp_path
    )
    assert (code, err) == (0, "") and "of 252x420" in out


def test_scripts_warn(tiny_dir, film, misread_graph, tmp_path, capsys):
    shutil.copytree(misread_graph, tmp_path, dirs_exist_ok=True)
    argv = (tiny_dir, "--video", film, "--size", "28", "112", "--workdir", tmp_path)
    code, _, err = run_main(run_video_by_sec.main, capsys, *argv)
    assert code == 0 and err.startswith("warning: size 28 112") and "28 84 and 28 140" in err
    code, _, err = run_main(export.main, capsys, tiny_dir, "video", "--workdir", tmp_path)
    assert code == 0 and err.count("warning: size 28 112") == 1
    _, out, _ = run_main(preflight.main, capsys, tiny_dir, "--workdir", tmp_path)
    assert "WARNING graph size" in out and "28 84" in out


def test_such_a_model_is_not_packaged(tiny_dir, misread_graph, tmp_path, capsys):
    out = tmp_path / "out"
    code, _, err = run_main(package_model.main, capsys, tiny_dir, out, "--workdir", misread_graph)
    assert code == 2 and len(err.splitlines()) == 1 and "28 84 and 28 140" in err
    assert not out.exists()
