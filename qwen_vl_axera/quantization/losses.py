"""How far quantised features are from float ones: per token, because a token is what the language model reads."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


def token_cosines(reference: Tensor, actual: Tensor) -> Tensor:
    """The cosine of each row, float64 (N,)."""
    return torch.cosine_similarity(reference.double(), actual.double(), dim=1, eps=1e-30)


def figures(reference: Tensor, actual: Tensor) -> dict[str, float]:
    """The distance between two sets of tokens.

    Args:
        reference: float32 (N, C), of the float network.
        actual: float32 (N, C).

    Returns:
        `mean_token_cosine` and `min_token_cosine`; `centred_cosine`, their mean after the reference's mean token is
        taken from both, since much of a token is common to all of them and flatters; `relative_error`, the length
        of all differences to that of the reference.
    """
    reference, actual = reference.double(), actual.double()
    cosines = token_cosines(reference, actual)
    common = reference.mean(0, keepdim=True)
    difference = torch.linalg.vector_norm(actual - reference) / torch.linalg.vector_norm(reference)
    return {
        "mean_token_cosine": float(cosines.mean()),
        "min_token_cosine": float(cosines.min()),
        "centred_cosine": float(token_cosines(reference - common, actual - common).mean()),
        "relative_error": float(difference),
    }


def damage(reference: Sequence[Tensor], actual: Sequence[Tensor]) -> float:
    """What one token loses on average, 0 to 2: the worse of plain and centred, by which layers are ranked."""
    found = figures(torch.cat(list(reference)), torch.cat(list(actual)))
    return 1 - min(found["mean_token_cosine"], found["centred_cosine"])


def loss(reference: Sequence[Tensor], floor: Sequence[Tensor], actual: Sequence[Tensor]) -> float:
    """How far tokens lie below others, the floor: the larger difference of mean cosines, plain and centred."""
    best, found = (figures(torch.cat(list(reference)), torch.cat(list(tokens))) for tokens in (floor, actual))
    return max(best[name] - found[name] for name in ("mean_token_cosine", "centred_cosine"))


DRAWS = 2000  # of the bootstrap
INTERVAL = 5, 95  # percentiles between which a loss is said to lie


@dataclass(frozen=True)
class ClipLoss:
    """A loss over clips that had no part in a choice, and the interval in which other draws of clips have it."""

    value: float
    low: float
    high: float


def loss_over_clips(
    reference: Sequence[Tensor], floor: Sequence[Tensor], actual: Sequence[Tensor], clips: Sequence[Sequence[int]]
) -> ClipLoss:
    """`loss` over some clips, with a bootstrap over them: a clip is drawn whole, since its steps are alike.

    Args:
        reference, floor, actual: tokens of each step.
        clips: the numbers of each clip's steps.
    """
    common = torch.cat([reference[step] for clip in clips for step in clip]).double().mean(0, keepdim=True)

    def lost(step: int) -> list[float]:
        """Sums over a step's tokens, plain and centred."""
        pairs = [[tensor[step].double() - shift for tensor in (reference, floor, actual)] for shift in (0, common)]
        return [float((token_cosines(one, best) - token_cosines(one, made)).sum()) for one, best, made in pairs]

    sums = np.array([np.sum([lost(step) for step in clip], axis=0) for clip in clips])
    counts = np.array([sum(len(reference[step]) for step in clip) for clip in clips])
    drawn = np.random.default_rng(0).integers(0, len(clips), (DRAWS, len(clips)))
    losses = (sums[drawn].sum(1) / counts[drawn].sum(1)[:, None]).max(1)
    low, high = np.percentile(losses, INTERVAL)
    return ClipLoss(float((sums.sum(0) / counts.sum()).max()), float(low), float(high))
