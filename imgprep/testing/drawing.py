"""Pictures of plain shapes, varied enough that a network has to learn the shape.

A shape is a list of closed outlines in the square from -1 to 1 (y points down), filled by the even-odd rule: a hole is
an outline too. :func:`draw` places it once or twice on a textured background and says where.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Callable

Outline: TypeAlias = NDArray[np.float64]
Pixels: TypeAlias = NDArray[np.uint8]
Box: TypeAlias = tuple[int, int, int, int]
_Floats: TypeAlias = NDArray[np.float32]

_OVERSAMPLING: Final = 4
_FRACTION_BITS: Final = 4
_MARGIN: Final = 3.0
_PAIR_SHARE: Final = 0.12
_FAVOURITE_SHARE: Final = 0.6


def _ring_of(count: int, radius: float = 1.0, start: float = -np.pi / 2) -> Outline:
    angle = start + np.arange(count) * (2 * np.pi / count)
    return radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _box(x0: float, y0: float, x1: float, y1: float) -> Outline:
    return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], dtype=np.float64)


def _disc() -> list[Outline]:
    return [_ring_of(72)]


def _ring() -> list[Outline]:
    return [_ring_of(72), _ring_of(72, 0.58)]


def _square() -> list[Outline]:
    return [_box(-0.88, -0.88, 0.88, 0.88)]


def _triangle() -> list[Outline]:
    return [_ring_of(3)]


def _cross() -> list[Outline]:
    arm = 0.31
    quarter = np.array([[arm, -1.0], [arm, -arm], [1.0, -arm]])
    turn = np.array([[0.0, 1.0], [-1.0, 0.0]])
    corners = [quarter]
    for _ in range(3):
        corners.append(corners[-1] @ turn)
    return [np.concatenate(corners)]


def _star() -> list[Outline]:
    return [_ring_of(10) * np.where(np.arange(10) % 2, 0.42, 1.0)[:, None]]


def _stripes() -> list[Outline]:
    return [_box(-1.0, y, 1.0, y + 0.3) for y in (-1.0, -0.4333, 0.1333, 0.7)]


def _checkerboard() -> list[Outline]:
    cells = [(c, r) for r in range(4) for c in range(4) if (c + r) % 2]
    return [_box(c / 2 - 1, r / 2 - 1, c / 2 - 0.5, r / 2 - 0.5) for c, r in cells]


def _crescent() -> list[Outline]:
    # A second circle, of radius 0.8 about (0.45, 0), bites into the first; they cross at x = 0.625.
    outer = np.linspace(np.arccos(0.625), 2 * np.pi - np.arccos(0.625), 48)
    bite = np.linspace(2 * np.pi - np.arccos(0.175 / 0.8), np.arccos(0.175 / 0.8), 48)
    x = np.concatenate([np.cos(outer), 0.45 + 0.8 * np.cos(bite)])
    y = np.concatenate([np.sin(outer), 0.8 * np.sin(bite)])
    return [np.stack([x + 0.15, y], axis=1)]


def _arrow() -> list[Outline]:
    half = [[-1.0, -0.24], [0.12, -0.24], [0.12, -0.72], [1.0, 0.0]]
    return [np.array([*half, *([x, -y] for x, y in half[2::-1])], dtype=np.float64)]


def _ellipse() -> list[Outline]:
    return [_ring_of(72) * np.array([1.0, 0.45])]


def _hexagon() -> list[Outline]:
    return [_ring_of(6)]


def _zigzag() -> list[Outline]:
    x = np.linspace(-1.0, 1.0, 6)
    y = np.where(np.arange(6) % 2, -0.38, 0.38)
    upper, lower = np.stack([x, y - 0.26], axis=1), np.stack([x, y + 0.26], axis=1)
    return [np.concatenate([upper, lower[::-1]])]


def _grid() -> list[Outline]:
    bar, pitch = 0.16, (2 - 0.16) / 3
    starts = [-1 + bar + pitch * i for i in range(3)]
    holes = [_box(x, y, x + pitch - bar, y + pitch - bar) for x in starts for y in starts]
    return [_box(-1.0, -1.0, 1.0, 1.0), *holes]


def _spiral() -> list[Outline]:
    angle = np.linspace(0, 2.4 * 2 * np.pi, 120)
    radius = np.linspace(0.12, 0.9, 120)
    way = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return [np.concatenate([way * (radius + 0.09)[:, None], (way * (radius - 0.09)[:, None])[::-1]])]


def _heart() -> list[Outline]:
    t = np.linspace(0, 2 * np.pi, 90, endpoint=False)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return [np.stack([16 * np.sin(t) ** 3, -y - 2.5], axis=1) / 16]


SHAPES: Final[dict[str, Callable[[], list[Outline]]]] = {
    "disc": _disc,
    "ring": _ring,
    "square": _square,
    "triangle": _triangle,
    "cross": _cross,
    "star": _star,
    "stripes": _stripes,
    "checkerboard": _checkerboard,
    "crescent": _crescent,
    "arrow": _arrow,
    "ellipse": _ellipse,
    "hexagon": _hexagon,
    "zigzag": _zigzag,
    "grid": _grid,
    "spiral": _spiral,
    "heart": _heart,
}
"""Every shape that can be drawn, by name."""

_FAVOURITE_HUES: Final = {name: 360 * (5 * i % len(SHAPES)) / len(SHAPES) for i, name in enumerate(SHAPES)}


def draw(shape: str, rng: np.random.Generator, *, min_side: int, max_side: int) -> tuple[Pixels, list[Box]]:
    """Draw one picture of a shape.

    Size, aspect, background, colours, position, scale, tilt, mirroring, shadow and noise all come from ``rng``. A shape
    has a favourite hue that most of its pictures wear: colour helps, as with real classes, and does not suffice.

    Args:
        shape: A key of :data:`SHAPES`.
        rng: Where every draw comes from; the same state gives the same picture.
        min_side: Smallest width and height, in pixels.
        max_side: Largest width and height, in pixels.

    Returns:
        The picture, uint8 RGB of shape (height, width, 3), and a box (xmin, ymin, xmax, ymax) in pixels, within the
        picture, for each time the shape was drawn: once or twice.

    Raises:
        KeyError: There is no such shape.
    """
    outlines = SHAPES[shape]()
    width, height = (int(side) for side in rng.integers(min_side, max_side + 1, size=2))
    dark_ground = bool(rng.random() < 0.5)
    ground_value = rng.uniform(0.18, 0.42) if dark_ground else rng.uniform(0.72, 0.97)
    picture = _background(width, height, float(ground_value), rng)

    boxes: list[Box] = []
    mask = np.zeros((height * _OVERSAMPLING, width * _OVERSAMPLING), dtype=np.uint8)
    for cell in _cells(width, height, rng):
        placed = _place(outlines, cell, rng)
        scaled = [np.rint((o * _OVERSAMPLING - 0.5) * (1 << _FRACTION_BITS)).astype(np.int32) for o in placed]
        cv2.fillPoly(mask, scaled, [255], shift=_FRACTION_BITS)
        points = np.concatenate(placed)
        (x0, y0), (x1, y1) = np.floor(points.min(axis=0)), np.ceil(points.max(axis=0))
        boxes.append((int(x0), int(y0), min(int(x1), width - 1), min(int(y1), height - 1)))
    alpha = cv2.resize(mask, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32) / np.float32(255)

    hue = _FAVOURITE_HUES[shape] + rng.normal(0, 14) if rng.random() < _FAVOURITE_SHARE else rng.uniform(0, 360)
    value = rng.uniform(0.8, 1.0) if dark_ground else rng.uniform(0.3, 0.6)
    ink = _rgb(float(hue), float(rng.uniform(0.5, 0.9)), float(value))
    offset = rng.uniform(-0.035, 0.035, size=2) * min(width, height)
    shadow = _shadow(alpha, float(offset[0]), float(offset[1]))
    picture *= 1 - float(rng.uniform(0.25, 0.5)) * shadow[..., None]
    shading = _ramp(width, height, float(rng.uniform(0, 2 * np.pi))) * float(rng.uniform(0.1, 0.3)) + 1
    surface = ink * shading[..., None]
    picture += alpha[..., None] * (surface - picture)

    noise = rng.standard_normal((height, width, 1), dtype=np.float32) * np.float32(rng.uniform(0.006, 0.035))
    return np.rint(np.clip(picture + noise, 0, 1) * 255).astype(np.uint8), boxes


def _cells(width: int, height: int, rng: np.random.Generator) -> list[tuple[float, float, float, float]]:
    """The parts of the picture that get a shape each: all of it, or two halves of a picture that is long enough."""
    if rng.random() >= _PAIR_SHARE or max(width, height) < 1.2 * min(width, height):
        return [(0, 0, width, height)]
    if width > height:
        return [(0, 0, width / 2, height), (width / 2, 0, width, height)]
    return [(0, 0, width, height / 2), (0, height / 2, width, height)]


def _place(
    outlines: list[Outline], cell: tuple[float, float, float, float], rng: np.random.Generator
) -> list[NDArray[np.float64]]:
    x0, y0, x1, y1 = cell
    tilt = rng.uniform(-np.pi / 7, np.pi / 7)
    stretch = rng.uniform(0.9, 1.1)
    mirror = -1.0 if rng.random() < 0.5 else 1.0
    cos, sin = np.cos(tilt), np.sin(tilt)
    matrix = np.array([[mirror * stretch, 0], [0, 1 / stretch]]) @ np.array([[cos, sin], [-sin, cos]])
    turned = [outline @ matrix for outline in outlines]
    points = np.concatenate(turned)
    low, extent = points.min(axis=0), np.ptp(points, axis=0)
    room = np.array([x1 - x0, y1 - y0]) - 2 * _MARGIN
    scale = rng.uniform(0.55, 0.95) * float((room / extent).min())
    corner = np.array([x0, y0]) + _MARGIN + rng.random(2) * (room - scale * extent)
    return [(outline - low) * scale + corner for outline in turned]


def _background(width: int, height: int, value: float, rng: np.random.Generator) -> _Floats:
    hue, saturation = float(rng.uniform(0, 360)), float(rng.uniform(0.08, 0.5))
    ground = np.broadcast_to(_rgb(hue, saturation, value), (height, width, 3)).copy()
    ground *= 1 + 0.15 * _ramp(width, height, float(rng.uniform(0, 2 * np.pi)))[..., None]
    kind = int(rng.integers(4))
    if kind == 1:
        ground += _cloud(width, height, (5, 5, 3), rng) * 0.09
    elif kind == 2:
        cells = (3, 24, 1) if rng.random() < 0.5 else (24, 3, 1)
        ground *= 1 + _cloud(width, height, cells, rng).reshape(height, width, 1) * 0.12
    elif kind == 3:
        other = _rgb(hue + float(rng.uniform(-60, 60)), saturation, value)
        layer = np.zeros((height, width), dtype=np.float32)
        for _ in range(int(rng.integers(4, 9))):
            centre = (int(rng.integers(width)), int(rng.integers(height)))
            cv2.circle(layer, centre, int(min(width, height) * rng.uniform(0.05, 0.16)), [1.0], -1)
        soft = cv2.GaussianBlur(layer, (0, 0), 2.5)[..., None] * 0.6
        ground += soft * (other * (1.25 if value < 0.5 else 0.9) - ground)
    return ground


def _cloud(width: int, height: int, cells: tuple[int, int, int], rng: np.random.Generator) -> _Floats:
    coarse = rng.standard_normal(cells, dtype=np.float32)
    return np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), dtype=np.float32)


def _ramp(width: int, height: int, angle: float) -> _Floats:
    """A plane that runs from about -1 to 1 across the picture in the direction of the angle."""
    x = np.linspace(-np.cos(angle), np.cos(angle), width, dtype=np.float32)
    y = np.linspace(-np.sin(angle), np.sin(angle), height, dtype=np.float32)
    return x[None, :] + y[:, None]


def _shadow(alpha: _Floats, right: float, down: float) -> _Floats:
    soft = cv2.GaussianBlur(alpha, (0, 0), 2.2)
    move = np.array([[1, 0, right], [0, 1, down]], dtype=np.float32)
    return np.asarray(cv2.warpAffine(soft, move, (alpha.shape[1], alpha.shape[0])), dtype=np.float32)


def _rgb(hue: float, saturation: float, value: float) -> _Floats:
    """Hue in degrees, the others from 0 to 1, to RGB from 0 to 1."""
    k = (np.array([5.0, 3.0, 1.0]) + hue / 60) % 6
    weight = np.clip(np.minimum(k, 4 - k), 0, 1)
    return (value * (1 - saturation * weight)).astype(np.float32)
