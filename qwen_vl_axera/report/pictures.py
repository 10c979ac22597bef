"""The report's pictures: what the graph sees, turned back into frames, and where it errs. Pillow only."""

import base64
import io
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageOps, features

THUMBNAIL = 336  # pixels, longest side of a frame
CONTACT = 160  # pixels, longest side of a calibration sample
QUALITY = 86  # of lossy pictures
PATCH_ROWS = 800  # of a patch image, the most that is shown
FLOOR = 1e-16  # double precision: a cosine distance below it cannot be told from none

# Pale where there is next to no error, so that the frame stays visible; ever darker blue towards the threshold;
# orange to dark red beyond it. The jump in lightness at the threshold also shows in black and white.
BELOW = np.array([(240, 244, 243), (176, 214, 220), (96, 170, 190), (44, 116, 156), (34, 62, 116)], np.float64)
ABOVE = np.array([(252, 180, 70), (222, 62, 40), (116, 8, 50)], np.float64)


@dataclass(frozen=True)
class Scale:
    """A logarithmic colour scale of errors, in whole decades.

    Attributes:
        low: exponent of ten at its beginning.
        high: exponent of ten at its end.
        threshold: the error from which on the colours warn; None: they do not.
    """

    low: int
    high: int
    threshold: float | None

    @classmethod
    def of(cls, errors: np.ndarray, threshold: float | None = None) -> "Scale":
        """The scale that holds all errors, and the threshold with a decade beyond it."""
        held = np.maximum([errors.min(), errors.max(), *([threshold, 10 * threshold] if threshold else [])], FLOOR)
        low = math.floor(math.log10(held.min()))
        return cls(low, max(math.ceil(math.log10(held.max())), low + 1), threshold)

    def position(self, error: float) -> float:
        """Where an error lies: 0 at the scale's beginning, 1 at its end."""
        exponent = math.log10(max(error, FLOOR))
        return min(max((exponent - self.low) / (self.high - self.low), 0.0), 1.0)

    def colours(self, errors: np.ndarray) -> np.ndarray:
        """float errors of any shape -> uint8 colours of shape (..., 3)."""
        exponents = np.log10(np.maximum(errors, FLOOR))
        limit = self.high if self.threshold is None else math.log10(self.threshold)
        below = _ramp(BELOW, (exponents - self.low) / (limit - self.low))
        if self.threshold is None:
            return below.round().astype(np.uint8)
        above = _ramp(ABOVE, (exponents - limit) / (self.high - limit))
        return np.where(self.warns(errors)[..., None], above, below).round().astype(np.uint8)

    def warns(self, errors: np.ndarray) -> np.ndarray:
        """Which errors are above the threshold."""
        return np.zeros(errors.shape, bool) if self.threshold is None else errors > self.threshold

    def bar(self, width: int = 512) -> Image.Image:
        """The scale itself, one pixel high."""
        exponents = self.low + (np.arange(width) + 0.5) / width * (self.high - self.low)
        return Image.fromarray(self.colours(10**exponents)[None])

    def ticks(self, most: int = 6) -> list[tuple[float, int]]:
        """Decades to label: their positions and exponents of ten."""
        stride = max(1, math.ceil((self.high - self.low) / most))
        return [((n - self.low) / (self.high - self.low), n) for n in range(self.high, self.low - 1, -stride)][::-1]


def _ramp(points: np.ndarray, position: np.ndarray) -> np.ndarray:
    at = np.linspace(0, 1, len(points))
    return np.stack([np.interp(position, at, points[:, channel]) for channel in range(3)], -1)


def error_map(frame: np.ndarray, errors: np.ndarray, scale: Scale) -> Image.Image:
    """A frame in grey, coloured token by token; the worst token is framed, those above the threshold crossed.

    Args:
        frame: uint8 (H, W, 3).
        errors: float (H/28, W/28), one for each token.
        scale: the colours.
    """
    grey = np.asarray(ImageOps.autocontrast(Image.fromarray(frame).convert("L"), cutoff=1), np.float64) / 255
    side = len(frame) // len(errors)  # of a token, in pixels
    colours = scale.colours(errors).repeat(side, 0).repeat(side, 1)
    picture = Image.fromarray((colours * (0.6 + 0.4 * grey[..., None])).round().astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for row, column in np.argwhere(scale.warns(errors)):
        left, top = int(column) * side, int(row) * side
        draw.line((left + 9, top + 9, left + 18, top + 18), "white", 2)
        draw.line((left + 9, top + 18, left + 18, top + 9), "white", 2)
    row, column = (int(n) for n in np.unravel_index(np.argmax(errors), errors.shape))
    left, top = column * side, row * side
    draw.rectangle((left, top, left + side - 1, top + side - 1), outline="black", width=3)
    draw.rectangle((left + 1, top + 1, left + side - 2, top + side - 2), outline="white", width=1)
    return picture


def shrink(picture: Image.Image, longest: int) -> Image.Image:
    """The picture, at most `longest` pixels on its longest side."""
    if max(picture.size) <= longest:
        return picture
    picture = picture.copy()
    picture.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    return picture


def data_uri(picture: Image.Image, lossless: bool = False) -> str:
    """A picture inside the page: PNG when every pixel matters, otherwise WebP (JPEG where Pillow lacks it)."""
    kind = "PNG" if lossless else "WEBP" if features.check("webp") else "JPEG"
    buffer = io.BytesIO()
    picture.save(buffer, kind, **({"optimize": True} if lossless else {"quality": QUALITY}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
