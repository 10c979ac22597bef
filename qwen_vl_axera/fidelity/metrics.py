"""How far one set of tokens is from another."""

import numpy as np

WORST = float(np.finfo(np.float64).max)  # of errors: JSON has no infinity
# How near two float32 runs of a tower are whose weights are well-conditioned; the gate itself asks `truth.Judge`.
THRESHOLDS = {"min_token_cosine": 0.99999, "max_abs_relative": 2e-5}
# The Pulsar2 manual calls a final cosine above 0.98 normal for a quantised model.
AXMODEL_THRESHOLDS = {"cosine": 0.98, "min_token_cosine": 0.98}


def compare(reference: np.ndarray, actual: np.ndarray) -> dict[str, float]:
    """The distance between two sets of tokens.

    Args:
        reference: float (N, C), the oracle's tokens.
        actual: float (N, C).

    Returns:
        `max_abs` and `mean_abs` error, `max_abs_relative` (to the largest reference value), `cosine` over
        all values and `min_token_cosine`, the lowest of any token. NaN or infinities on either side give the
        largest errors that JSON can hold and cosines of -1.

    Raises:
        ValueError: the shapes differ.
    """
    if reference.shape != actual.shape:
        raise ValueError(f"expected tokens of shape {reference.shape}, got {actual.shape}")
    if not (np.isfinite(actual).all() and np.isfinite(reference).all()):
        return {
            "max_abs": WORST,
            "mean_abs": WORST,
            "max_abs_relative": WORST,
            "cosine": -1.0,
            "min_token_cosine": -1.0,
        }
    reference, actual = reference.astype(np.float64), actual.astype(np.float64)
    error = np.abs(actual - reference)
    return {
        "max_abs": float(error.max()),
        "mean_abs": float(error.mean()),
        "max_abs_relative": float(error.max() / max(np.abs(reference).max(), np.finfo(np.float32).tiny)),
        "cosine": float(token_cosines(reference.reshape(1, -1), actual.reshape(1, -1))[0]),
        "min_token_cosine": float(token_cosines(reference, actual).min()),
    }


def token_cosines(reference: np.ndarray, actual: np.ndarray) -> np.ndarray:
    """The cosine of each token, float64 (N,). Two zero vectors agree; one zero vector does not."""
    dot = (reference * actual).sum(-1)
    norms = np.linalg.norm(reference, axis=-1), np.linalg.norm(actual, axis=-1)
    both_zero = (norms[0] == 0) & (norms[1] == 0)
    product = norms[0] * norms[1]
    return np.where(both_zero, 1.0, dot / np.where(product == 0, 1.0, product))


def token_rms(errors: np.ndarray) -> np.ndarray:
    """Root mean square of each token: (..., C) -> float64 (...)."""
    return np.sqrt(np.square(errors.astype(np.float64)).mean(-1))


def rms(errors: np.ndarray) -> float:
    """Root mean square of all values."""
    return float(np.sqrt(np.square(errors.astype(np.float64)).mean()))


def token_cosine_distances(reference: np.ndarray, actual: np.ndarray) -> np.ndarray:
    """1 - cosine of each token, exact also where it is nearly 0: (..., C) -> float64 (...).

    NaN becomes 2; two zero vectors agree, one has no cosine and is at a distance of 1.
    """
    one, other = (unit(np.asarray(tokens, np.float64)) for tokens in (reference, actual))
    distance = np.nan_to_num(np.square(one - other).sum(-1) / 2, nan=2.0)
    return np.where(one.any(-1) == other.any(-1), distance, np.where(distance == 2, 2.0, 1.0))


def unit(tokens: np.ndarray) -> np.ndarray:
    """Tokens of length 1; a zero vector stays one."""
    length = np.linalg.norm(tokens, axis=-1, keepdims=True)
    return tokens / np.where(length == 0, 1.0, length)


def within(figures: dict[str, float], thresholds: dict[str, float]) -> bool:
    """Whether every figure keeps its threshold: cosines from below, errors from above."""
    return all(
        figures[name] >= limit if name.endswith("cosine") else figures[name] <= limit
        for name, limit in thresholds.items()
    )
