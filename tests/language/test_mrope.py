"""M-RoPE positions against transformers where it keeps the released models' rule, and against known values."""

import inspect

import numpy as np
import pytest

from qwen_vl_axera.errors import InputError
from qwen_vl_axera.language.mrope import mrope_position_ids

IMAGE, VIDEO, START, END = 5, 6, 7, 8
RULE = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": START,
    "spatial_merge_size": 2,
    "tokens_per_second": 2,
}


def prompt(*media: tuple[int, tuple[int, int, int]], before: int = 3, after: int = 4) -> list[int]:
    """Text, then each medium between its marks with a word behind it, then text."""
    ids = [0] * before
    for token, (steps, height, width) in media:
        ids += [START, *[token] * (steps * height * width // 4), END, 1]
    return ids + [2] * after


@pytest.fixture(scope="module")
def get_rope_index():
    """transformers' own function of the installed version, on a model without weights."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    text = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": 16,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
    }
    vision = {"depth": 1, "hidden_size": 32, "num_heads": 2, "out_hidden_size": 32, "tokens_per_second": 2}
    ids = {"image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": START}
    config = transformers.Qwen2_5_VLConfig(**text, **ids, vision_end_token_id=END, vision_config=vision)
    with torch.device("meta"):
        model = transformers.Qwen2_5_VLForConditionalGeneration(config)
    # On the model in 4.49, on the part below the output layer later.
    function = model.get_rope_index if hasattr(model, "get_rope_index") else model.model.get_rope_index
    new = "mm_token_type_ids" in inspect.signature(function).parameters

    def call(input_ids, images=None, videos=None, seconds=None):
        row = torch.tensor([input_ids])
        arguments = {
            "image_grid_thw": None if images is None else torch.tensor(images),
            "video_grid_thw": None if videos is None else torch.tensor(videos),
            "second_per_grid_ts": None if seconds is None else torch.tensor(seconds),
        }
        if new:
            arguments["mm_token_type_ids"] = (row == IMAGE).int() + 2 * (row == VIDEO).int()
        positions, delta = function(row, **arguments)
        return positions.numpy(), int(delta) + len(input_ids)

    call.keeps_time = not new
    # 4.57 cuts the seconds of a step to an integer first: half a second counts as none.
    halves, _ = call([START, VIDEO, VIDEO], videos=[(2, 2, 2)], seconds=[0.5])
    call.keeps_fractions = halves[0, 0].tolist() == [0, 1, 2]
    return call


@pytest.mark.parametrize("grids", [[(1, 8, 6)], [(1, 4, 4), (1, 2, 10)], [(1, 22, 22)]], ids=["one", "two", "square"])
def test_pictures_as_transformers_places_them(get_rope_index, grids):
    ids = prompt(*((IMAGE, grid) for grid in grids))
    expected, next_expected = get_rope_index(ids, images=grids)
    positions, following = mrope_position_ids(ids, image_grid_thw=grids, **RULE)
    assert positions.dtype == np.int64
    np.testing.assert_array_equal(positions, expected)
    assert following == next_expected


def test_text_alone_counts_up():
    positions, following = mrope_position_ids([[1, 2, 3, 4]], **RULE)
    np.testing.assert_array_equal(positions, np.tile(np.arange(4), (3, 1, 1)))
    assert following == 4


def test_a_clip_of_one_step_as_transformers_places_it(get_rope_index):
    ids = prompt((VIDEO, (1, 4, 6)))
    expected, next_expected = get_rope_index(ids, videos=[(1, 4, 6)], seconds=[2.0])
    positions, following = mrope_position_ids(ids, video_grid_thw=[(1, 4, 6)], second_per_grid_ts=[2.0], **RULE)
    np.testing.assert_array_equal(positions, expected)
    assert following == next_expected


@pytest.mark.parametrize("second", [1.0, 2.0, 3.0, 0.5, 1 / 3, 0.7, 2 / 0.9])
def test_clips_as_the_released_rule_places_them(get_rope_index, second):
    """4.49 computes the rule, 4.57 for whole seconds only; 5 differs for a clip that lasts."""
    if not get_rope_index.keeps_time:
        pytest.skip("this version of transformers has left the released models' rule for clips")
    if second % 1 and not get_rope_index.keeps_fractions:
        pytest.skip("this version of transformers cuts the seconds of a step to an integer")
    ids = prompt((VIDEO, (6, 4, 6)), (IMAGE, (1, 6, 4)), (VIDEO, (3, 8, 4)))
    videos, seconds = [(6, 4, 6), (3, 8, 4)], [second, 1.0]
    expected, next_expected = get_rope_index(ids, images=[(1, 6, 4)], videos=videos, seconds=seconds)
    positions, following = mrope_position_ids(
        ids, image_grid_thw=[(1, 6, 4)], video_grid_thw=videos, second_per_grid_ts=seconds, **RULE
    )
    np.testing.assert_array_equal(positions, expected)
    assert following == next_expected


@pytest.mark.parametrize(
    ("second", "times"),
    [(0.5, [0, 1, 2, 3, 4, 5]), (0.7, [0, 1, 2, 4, 5, 7]), (1 / 3, [0, 0, 1, 2, 2, 3]), (2, [0, 4, 8, 12, 16, 20])],
)
def test_time_is_cut_to_an_integer_last(second, times):
    positions, _ = mrope_position_ids(
        [START, *[VIDEO] * 6], video_grid_thw=[(6, 2, 2)], second_per_grid_ts=[second], **RULE
    )
    assert (positions[0, 0, 1:] - 1).tolist() == times


def test_text_behind_a_clip_starts_past_its_last_moment(get_rope_index):
    """308×308, 4 steps of 2 s: time runs 0, 4, 8, 12, past the grid's 11; the text starts at 13."""
    ids = [START, *[VIDEO] * (4 * 11 * 11), END]
    grid = [(4, 22, 22)]
    positions, following = mrope_position_ids(ids, video_grid_thw=grid, second_per_grid_ts=[2.0], **RULE)
    assert sorted(set(positions[0, 0, 1:-1].tolist())) == [1, 5, 9, 13]
    assert positions[1:, 0, 1:-1].max(1).tolist() == [11, 11]
    assert positions[:, 0, -1].tolist() == [14, 14, 14]  # 1 for the start mark, then 13
    assert following == 15
    # transformers 5 counts the grid's 11 alone; up to 4.57 it agrees with us.
    theirs, _ = get_rope_index(ids, videos=grid, seconds=[2.0])
    assert theirs[:, 0, -1].tolist() == ([14] * 3 if get_rope_index.keeps_time else [12] * 3)


def test_the_demo_clip_by_hand():
    """Two steps of half a second on a 2×3 grid behind one word and the start mark."""
    ids = [0, START, *[VIDEO] * 12, END]
    positions, following = mrope_position_ids(ids, video_grid_thw=[(2, 4, 6)], second_per_grid_ts=[0.5], **RULE)
    assert positions[0, 0].tolist() == [0, 1, *[2] * 6, *[3] * 6, 5]
    assert positions[1, 0].tolist() == [0, 1, 2, 2, 2, 3, 3, 3, 2, 2, 2, 3, 3, 3, 5]
    assert positions[2, 0].tolist() == [0, 1, 2, 3, 4, 2, 3, 4, 2, 3, 4, 2, 3, 4, 5]
    assert following == 6


@pytest.mark.parametrize(
    ("ids", "arguments", "message"),
    [
        (prompt((VIDEO, (1, 4, 4))), {}, "no grid was given"),
        (prompt((VIDEO, (1, 4, 4))), {"video_grid_thw": [(1, 4, 6)]}, "needs 6 pads, the prompt has 4"),
        (prompt((VIDEO, (1, 4, 6))), {"video_grid_thw": [(1, 4, 4)]}, "neither follows a vision start"),
        (prompt((VIDEO, (1, 4, 4))), {"image_grid_thw": [(1, 4, 4)]}, "no grid was given"),
        ([1, 2], {"image_grid_thw": [(1, 4, 4)]}, "have no pads"),
        ([1, IMAGE], {"image_grid_thw": [(1, 2, 2)]}, "neither follows a vision start"),
        (prompt((VIDEO, (1, 4, 4))), {"video_grid_thw": [(1, 4, 3)]}, "multiples of 2"),
        (prompt((VIDEO, (1, 4, 4))), {"video_grid_thw": [1, 4, 4]}, "rows of three"),
        (prompt((VIDEO, (1, 4, 4))), {"video_grid_thw": [(0, 4, 4)]}, "positive"),
        (
            prompt((VIDEO, (1, 4, 4))),
            {"video_grid_thw": [(1, 4, 4)], "second_per_grid_ts": [1.0, 1.0]},
            "one per clip",
        ),
        ([[1, 2], [3, 4]], {}, "one prompt"),
        ([], {}, "one prompt"),
    ],
)
def test_what_does_not_fit_is_refused(ids, arguments, message):
    with pytest.raises(InputError, match=message):
        mrope_position_ids(ids, **arguments, **RULE)
