"""How far quantised features are from float ones: per token, because a token is what the language model reads."""

from collections.abc import Sequence

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
