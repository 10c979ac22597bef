"""quantization_study.py and witnesses.py: one pass tells what greedy decoding tells, and remedies are exact."""

import numpy as np
import pytest
import torch

from bench import quantization_study as study
from bench.render import rewrite_section
from bench.witnesses import make_witness, pca_rotation, random_rotation
from demo import evaluation
from demo import network as demo_network
from demo.clips import PROMPTS, answer
from qwen_vl_axera.errors import InputError
from qwen_vl_axera.quantization.execution import Execution, batches
from qwen_vl_axera.quantization.losses import figures

CLIPS = 3


def test_one_pass_tells_what_greedy_decoding_tells():
    examiner = evaluation.Examiner(study.DEMO_MODEL)
    network = evaluation.load_network(study.DEMO_MODEL)
    ((made, frames),) = evaluation.clip_batches(CLIPS)
    with torch.no_grad():
        features, _ = network.visual(demo_network.patches(frames))
    noise = torch.randn(features.shape, generator=torch.Generator().manual_seed(0))
    features = features + 2.5 * features.std() * noise  # some answers go wrong
    right = []
    for kind in ("start", "box"):
        prompt, truth = PROMPTS[kind, "en"][0], [answer(clip, kind, "en") for clip in made]
        said = evaluation.greedy(network, examiner, features, prompt)
        expected = [text == true for text, true in zip(said, truth, strict=True)]
        assert study.answered(network, examiner, features, prompt, truth) == expected
        right += expected
    assert 0 < sum(right) < len(right)


def test_rotations_are_orthogonal():
    for rotation in (random_rotation(32, 1), pca_rotation(np.random.default_rng(1).normal(size=(99, 32)))):
        assert np.allclose(rotation @ rotation.T, np.eye(32), atol=1e-12)


def output(network, steps) -> torch.Tensor:
    (batch,) = batches(steps, len(steps))
    return torch.cat(Execution(network).run(batch)[network.output])


def test_remedies_compute_the_same(tmp_path):
    steps = study.clip_steps(study.SEARCH_CLIP, 1)
    plain = study.Subject(study.DEMO_MODEL, tmp_path / "plain-work")
    expected = output(plain.network, steps)
    for kind in ("rotated", "smoothed"):
        make_witness(study.DEMO_MODEL, tmp_path / kind, kind, study.DEMO_VIDEO, study.SIZE)
        changed = study.Subject(tmp_path / kind, tmp_path / f"{kind}-work").network
        if kind == "smoothed":  # by powers of two
            assert torch.equal(output(changed, steps), expected)
        else:  # weights are rounded to bf16 once more
            assert figures(expected, output(changed, steps))["min_token_cosine"] > 0.9999
        name = "blocks.1.mlp.down_proj.weight"
        assert not np.allclose(plain.network.constant(name), changed.constant(name))
    carved = study.carved(plain, steps).network  # sums in another order
    assert torch.allclose(output(carved, steps), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    widths = [carved.shapes[f"blocks.1.mlp.mul_1{end}"][1] for end in (".carved", ".rest")]
    assert widths == [study.CARVED_UNITS, 256 - study.CARVED_UNITS]


def test_a_document_keeps_what_is_around_its_tables(tmp_path):
    document = tmp_path / "x.md"
    document.write_text(f"before\n{study.BEGIN}\nold\n{study.END}\nafter\n")
    rewrite_section(document, "new", study.BEGIN, study.END)
    assert document.read_text() == f"before\n{study.BEGIN}\nnew\n{study.END}\nafter\n"
    document.write_text("nothing")
    with pytest.raises(InputError, match="expected one"):
        rewrite_section(document, "new", study.BEGIN, study.END)
