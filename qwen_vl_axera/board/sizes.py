"""Sizes that the board's runtime misreads. The rule stands in preprocess.py, whose automatic sizes avoid them."""

from preprocess import FACTOR, nearest_readable, square_of_same_area


def misreading(size: tuple[int, int], factor: int = FACTOR) -> str | None:
    """What is wrong with a size on the board, naming the nearest that are right; None when nothing is."""
    side = square_of_same_area(*size)
    if side is None:
        return None
    height, width = size
    smaller, larger = (f"{rows} {columns}" for rows, columns in nearest_readable(*size, factor))
    return (
        f"size {height} {width}: the board's runtime knows its area alone and takes it for {side} {side}, other "
        f"pictures than these; it reads {smaller} and {larger} rightly"
    )
