"""Training: goes on where it was stopped."""

import dataclasses

import pytest
import torch

from demo import batches as demo_batches
from demo import clips as demo_clips
from demo import training as demo_training
from demo.tokenizer import build_tokenizer
from qwen_vl_axera.errors import InputError


def test_training_resumes_to_the_same_weights(tmp_path):
    """Two steps, stopped and two more, give what four in one go give."""
    torch.set_num_threads(1)
    ids = build_tokenizer(tmp_path, demo_clips.all_texts(), 512)
    prompts = demo_batches.Prompts(tmp_path, ids)
    settings = demo_training.Settings(steps=4, batch=2)

    def run(name, **options):
        work = tmp_path / name
        work.mkdir(exist_ok=True)
        return demo_training.train(settings, prompts, ids["vocab_size"], work, **options)[0].state_dict()

    whole = run("whole", resume=False)
    half = run("parts", stop=2)
    assert not all(torch.equal(whole[name], half[name]) for name in whole)
    parts = run("parts", resume=True)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)

    with pytest.raises(InputError, match="--resume"):
        run("parts", resume=False)
    settings = dataclasses.replace(settings, batch=3)
    with pytest.raises(InputError, match="other settings"):
        run("parts", resume=True)
