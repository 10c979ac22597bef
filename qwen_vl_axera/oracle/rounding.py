"""Are two answers of transformers, in float32 and in float64, answers to the same steps?"""

from collections.abc import Callable

import numpy as np

SMALL = 3e-6  # float32 and float64 differ by rounding alone, relative: nothing to look into
# Above it, the difference over that between two float32 runs with their pixels moved by rounding; measured over odd
# towers it is at most 4.8 for a step.
MOST = 10.0
RUNS = 4  # of transformers with moved pixels


def unexplained(answer: np.ndarray, exact: np.ndarray, moved: Callable[[], np.ndarray]) -> tuple[float, float] | None:
    """Whether float32 differs from float64 by more than rounding can explain, in any step.

    What rounding explains is measured by runs that neither of the two took part in: both may be wrong.

    Args:
        answer: float32 (E, N, C).
        exact: float64 (E, N, C).
        moved: gives RUNS more answers, (RUNS, E, N, C), with pixels moved by rounding; asked only when needed.

    Returns:
        None, or the difference and what rounding explains of it, relative, in the step where it is largest.
    """
    sizes = np.maximum(np.maximum(norm(exact), norm(answer)), np.finfo(np.float64).tiny)
    errors = norm(answer - exact)
    if (errors <= SMALL * sizes).all():
        return None
    runs = moved()
    rounding = (2 * np.square(norm(runs - runs.mean(0))).sum(0) / (len(runs) - 1)) ** 0.5
    if (errors <= np.maximum(SMALL * sizes, MOST * rounding)).all():
        return None
    step = int((errors / sizes).argmax())
    return float(errors[step] / sizes[step]), float(rounding[step] / sizes[step])


def norm(values: np.ndarray) -> np.ndarray:
    """The norm of each step: (..., N, C) -> float64 (...)."""
    return np.sqrt(np.square(values.astype(np.float64)).sum((-2, -1)))
