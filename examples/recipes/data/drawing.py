"""What draws augmented images: torchvision, which is always there, or OpenCV, with which the published code trained.

Images are uint8 [H, W, C], colours in the order blue, green, red. Beside OpenCV 5.0 torchvision's resized pixels are
within one level, its warped ones within one, recoloured ones within two, those of whole training items within 16.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch.nn import functional as F
from torchvision.transforms import v2

__all__ = ["BORDER", "DRAWINGS", "Drawing", "OpenCV", "Torchvision"]

BORDER = 114
"""The grey of what no image covers."""


class Drawing(Protocol):
    """How pixels are computed."""

    def resize(self, image: np.ndarray, height: int, width: int) -> np.ndarray:
        """Bilinear, without a filter."""

    def warp(self, image: np.ndarray, matrix: np.ndarray, height: int, width: int) -> np.ndarray:
        """Pixel (x, y) of ``image`` goes to ``matrix`` [2, 3] times (x, y, 1); :data:`BORDER` elsewhere."""

    def recolour(self, image: np.ndarray, shift: np.ndarray) -> np.ndarray:
        """Add ``shift`` [3] to hue (0..179, which wraps), saturation and value (0..255, cut) of a BGR image."""


class Torchvision:
    """Draws with torch and torchvision; any number of channels."""

    def resize(self, image, height, width):
        x = torch.from_numpy(np.ascontiguousarray(image)).movedim(2, 0)
        return v2.functional.resize(x, [height, width], antialias=False).movedim(0, 2).numpy()

    def warp(self, image, matrix, height, width):
        back = np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))[:2]
        x, y = np.meshgrid(np.arange(width), np.arange(height))
        places = np.stack([x, y, np.ones_like(x)], -1) @ back.T  # [H, W, 2], in pixels of the image
        grid = (2 * places + 1) / (image.shape[1], image.shape[0]) - 1
        pixels = torch.from_numpy(image.astype(np.float32) - BORDER).movedim(
            2, 0
        )  # so that zeros are the border
        out = F.grid_sample(
            pixels[None], torch.from_numpy(grid.astype(np.float32))[None], align_corners=False
        )
        return (out[0] + BORDER).round().clamp(0, 255).byte().movedim(0, 2).numpy()

    def recolour(self, image, shift):
        hue, saturation, value = to_hsv(image)
        return from_hsv(
            (hue + shift[0]) % 180,
            np.clip(saturation + shift[1], 0, 255),
            np.clip(value + shift[2], 0, 255),
        )


class OpenCV:
    """Draws with OpenCV, as the published code does, and faster.

    Raises:
        ImportError: it is not installed.
    """

    def __init__(self):
        try:
            import cv2
        except ImportError as error:
            raise ImportError(
                "data.drawing opencv needs OpenCV: pip install opencv-python-headless, or give data.drawing torchvision"
            ) from error
        self.cv2 = cv2

    def resize(self, image, height, width):
        out = self.cv2.resize(image, (width, height), interpolation=self.cv2.INTER_LINEAR)
        return out.reshape(height, width, -1)  # it drops a single channel

    def warp(self, image, matrix, height, width):
        border = (BORDER,) * 4
        return self.cv2.warpAffine(image, matrix, (width, height), borderValue=border).reshape(
            height, width, -1
        )

    def recolour(self, image, shift):
        hsv = self.cv2.cvtColor(image, self.cv2.COLOR_BGR2HSV).astype(np.int16) + shift
        hsv[..., 0] %= 180
        hsv[..., 1:] = hsv[..., 1:].clip(0, 255)
        return self.cv2.cvtColor(hsv.astype(np.uint8), self.cv2.COLOR_HSV2BGR)

    def __reduce__(self):
        return OpenCV, ()  # modules do not travel to workers


DRAWINGS: dict[str, type[Torchvision | OpenCV]] = {"torchvision": Torchvision, "opencv": OpenCV}


def to_hsv(image: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hue in 0..179, saturation and value in 0..255, integers [H, W] each."""
    blue, green, red = np.moveaxis(image.astype(np.float32), 2, 0)
    value = image.max(2).astype(np.float32)
    spread = value - image.min(2)
    safe = np.where(spread > 0, spread, 1)
    # sixths of the circle, from red over green to blue
    sixth = np.where(
        value == red,
        (green - blue) / safe,
        np.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    hue = np.round(np.where(spread > 0, 30 * sixth, 0)).astype(int) % 180
    saturation = np.round(255 * spread / np.where(value > 0, value, 1)).astype(int)
    return hue, saturation, value.astype(int)


def from_hsv(hue: np.ndarray, saturation: np.ndarray, value: np.ndarray) -> np.ndarray:
    """The BGR image of what :func:`to_hsv` gives."""

    def channel(offset: int) -> np.ndarray:
        k = (offset + hue / 30) % 6
        return value * (1 - saturation / 255 * np.clip(np.minimum(k, 4 - k), 0, 1))

    return np.round(np.stack([channel(1), channel(3), channel(5)], 2)).astype(np.uint8)
