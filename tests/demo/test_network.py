"""The network that is trained, against transformers' model."""

import numpy as np
import pytest

from demo.clips import (
    PROMPTS,
    SIZE,
    render,
)
from tests.demo.assets import ASSETS, CLIPS


def test_patches_lie_as_transformers_lays_them():
    pytest.importorskip("torchvision")
    import torch
    from transformers import Qwen2VLImageProcessor

    from demo.network import patches

    frames = render(CLIPS[0])
    processor = Qwen2VLImageProcessor(min_pixels=28 * 28, max_pixels=SIZE * SIZE)
    ours = patches(torch.from_numpy(frames[None]))[0].numpy().reshape(4, 144, 3, 2, 196)
    for slot, frame in [(slot, frames[slot]) for slot in (0, 1, 7)]:
        # A picture fills both slots of its step with itself.
        theirs = processor(images=[frame], return_tensors="np")["pixel_values"].reshape(144, 3, 2, 196)
        np.testing.assert_allclose(ours[slot // 2, :, :, slot % 2], theirs[:, :, 0], atol=2e-6)


def test_network_computes_what_transformers_computes():
    """Trained weights, float32: features and logits of our training network against the reference."""
    import torch
    from transformers import Qwen2_5_VLForConditionalGeneration

    from demo.evaluation import Examiner, load_network
    from demo.network import patches

    directory = ASSETS / "demo_model"
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(directory, torch_dtype=torch.float32).eval()
    network = load_network(directory)
    examiner = Examiner(directory)
    ids, positions, _ = examiner.prompt(PROMPTS["caption", "en"][0])
    row, position_ids = torch.tensor([ids]), torch.from_numpy(positions)
    values = patches(torch.from_numpy(render(CLIPS[1])[None]))
    with torch.no_grad():
        theirs = model(
            input_ids=row,
            position_ids=position_ids,
            pixel_values_videos=values[0],
            video_grid_thw=torch.tensor([[4, 12, 12]]),
        ).logits[0]
        features, _ = network.visual(values)
        x = network.model.embed_tokens(row)
        x[row == examiner.ids["video_token_id"]] = features[0]
        mask = torch.full((len(ids), len(ids)), -1e4).triu(1)
        ours = network.logits(network.model(x, position_ids, mask))[0]
    # float32 sums in another order; the logits span about ±20.
    torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=0)
