"""Two views of the same things with matching keypoints, for correspondence."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from .scene import Scene, generate_scene, light, scene_rng


@dataclass
class View:
    image: np.ndarray  # (H, W, 3) uint8
    masks: list[np.ndarray]  # (H, W) bool, one a thing of the scene
    points: list[np.ndarray]  # (K, 2) x, y, one array a thing
    visible: list[np.ndarray]  # (K,) bool


@dataclass
class ViewPair:
    scene: Scene
    views: tuple[View, View]
    homographies: tuple[np.ndarray, np.ndarray]  # canvas -> view, 3 × 3


def generate_pair(
    seed: int, index: int = 0, size: tuple[int, int] = (128, 128), split: str = 'val'
) -> ViewPair:
    """A larger scene seen twice: from the middle, and under a random homography and another light."""
    height, width = size
    canvas = (int(height * 1.6), int(width * 1.6))
    scene = generate_scene(seed, index, canvas, split)
    rng = scene_rng(seed + 7919, index, split)
    views, transforms = [], []
    for number in range(2):
        transform = _homography(rng, canvas, size, strength=0.25 + 0.75 * number)
        views.append(_see(rng, scene, transform, size, relight=number == 1))
        transforms.append(transform)
    return ViewPair(scene, (views[0], views[1]), (transforms[0], transforms[1]))


def _homography(
    rng: np.random.Generator, canvas: tuple[int, int], size: tuple[int, int], strength: float
) -> np.ndarray:
    """A view of the canvas' middle: turned, scaled, shifted and tilted by up to ``strength``."""
    (big_h, big_w), (h, w) = canvas, size
    angle = rng.uniform(-0.5, 0.5) * strength
    scale = np.exp(rng.uniform(-0.2, 0.2) * strength)
    shift = rng.uniform(-0.1, 0.1, 2) * strength * np.array([w, h])
    c, s = np.cos(angle) * scale, np.sin(angle) * scale
    centre_in, centre_out = np.array([big_w - 1, big_h - 1]) / 2, np.array([w - 1, h - 1]) / 2
    linear = np.array([[c, -s], [s, c]])
    matrix = np.eye(3)
    matrix[:2, :2] = linear
    matrix[:2, 2] = centre_out + shift - linear @ centre_in
    tilt = np.eye(3)
    tilt[2, :2] = rng.uniform(-0.15, 0.15, 2) * strength / np.array([w, h])
    to_centre, back = np.eye(3), np.eye(3)
    to_centre[:2, 2], back[:2, 2] = -centre_out, centre_out
    return back @ tilt @ to_centre @ matrix


def _see(
    rng: np.random.Generator, scene: Scene, transform: np.ndarray, size: tuple[int, int], relight: bool
) -> View:
    height, width = size
    image = cv2.warpPerspective(
        scene.image, transform, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT
    )
    if relight:
        image = light(rng, image.astype(np.float32) / 255)
    masks, points, visible = [], [], []
    for thing in scene.things:
        mask = (
            cv2.warpPerspective(
                thing.mask.astype(np.uint8), transform, (width, height), flags=cv2.INTER_NEAREST
            )
            > 0
        )
        where = cv2.perspectiveTransform(thing.keypoints[None].astype(np.float64), transform)[0]
        column, row = np.round(where[:, 0]).astype(int), np.round(where[:, 1]).astype(int)
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        seen = np.zeros(len(where), bool)
        seen[inside] = mask[row[inside], column[inside]]
        masks.append(mask)
        points.append(where.astype(np.float32))
        visible.append(seen)
    return View(image, masks, points, visible)
