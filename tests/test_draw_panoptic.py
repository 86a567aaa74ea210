"""Drawn segments: colours, labels that stand where they may, a legend."""

import cv2
import numpy as np
import pytest

from mmdiffrep.datasets.toyscenes import generate_scene
from mmdiffrep.datasets.toyscenes.writer import panoptic
from mmdiffrep.visualization import panoptic as drawing
from mmdiffrep.visualization.panoptic import draw_panoptic, place_label, segment_colours

GREY = np.full((48, 64, 3), 120, np.uint8)
NO_WORDS = dict(labels=False, key=False)


def halves():
    ids = np.zeros((48, 64), np.int32)
    ids[:, :20], ids[:24, 20:] = 7, 3
    return ids, [dict(id=3, name='sky', score=0.5, seen=True), dict(id=7, name='cat', score=0.25)]


def test_colours_differ_and_neighbours_much():
    colours = segment_colours(500)
    assert len(np.unique(colours, axis=0)) == 500
    few = segment_colours(9).astype(int)
    distances = np.abs(few[:, None] - few[None]).sum(-1) + 999 * np.eye(9, dtype=int)
    assert distances.min() > 60
    assert segment_colours(0).shape == (0, 3)
    np.testing.assert_array_equal(segment_colours(5), segment_colours(9)[:5])


def test_each_segment_has_its_colour_and_the_rest_stays():
    ids, segments = halves()
    drawn = draw_panoptic(GREY, ids, segments, opacity=1, side=64, **NO_WORDS)
    first, second = segment_colours(2)
    assert (drawn[:23, 21:] == first).all() and (drawn[:, :20] == second).all()
    assert (drawn[25:, 21:] == 120).all()
    mixed = draw_panoptic(GREY, ids, segments, opacity=0.5, side=64, **NO_WORDS)
    np.testing.assert_allclose(mixed[5, 40], (first.astype(float) + 120) / 2, atol=0.5)


def test_colours_can_be_given():
    ids, segments = halves()
    given = [[1, 2, 3], [250, 9, 9]]
    drawn = draw_panoptic(GREY, ids, segments, opacity=1, side=64, colours=given, **NO_WORDS)
    assert (drawn[:23, 21:] == given[0]).all() and (drawn[:, :20] == given[1]).all()
    with pytest.raises(ValueError, match='1 colours were given for 2 segments'):
        draw_panoptic(GREY, ids, segments, colours=given[:1])


def test_small_pictures_are_enlarged_and_large_ones_shrunk():
    ids, segments = halves()
    assert draw_panoptic(GREY, ids, segments, **NO_WORDS).shape == (480, 640, 3)
    large = np.kron(ids, np.ones((40, 40), np.int32))
    assert draw_panoptic(
        np.zeros((*large.shape, 3), np.uint8), large, segments, **NO_WORDS
    ).shape == (1200, 1600, 3)


def test_an_overlay_changes_with_what_it_shows():
    ids, segments = halves()
    plain = draw_panoptic(GREY, ids, segments)
    moved = ids.copy()
    moved[30:40, 40:50] = 3
    assert (draw_panoptic(GREY, moved, segments)[300:400, 400:500] != plain[300:400, 400:500]).any(
        -1
    ).mean() > 0.9
    for change in (dict(name='cow'), dict(score=0.26)):
        other = draw_panoptic(GREY, ids, [segments[0], {**segments[1], **change}])
        differs = (other != plain).any(-1)
        assert differs[:480, :200].any() and differs[480:].any()  # its label and the legend
        assert not differs[:480, 200:].any()
    unseen = draw_panoptic(GREY, ids, [segments[0], {**segments[1], 'seen': False}])
    assert unseen.shape[0] > plain.shape[0] and (unseen[:480] == plain[:480]).all()


def boxes(monkeypatch, image, ids, segments):
    """Where labels were put: segment -> (mask at the drawn size, y, x, h, w), None where it has none."""
    found = []

    def spy(mask, size, taken):
        where = place_label(mask, size, taken)
        found.append((mask.copy(), where, size))
        return where

    monkeypatch.setattr(drawing, 'place_label', spy)
    draw_panoptic(image, ids, segments, key=False)
    return [(mask, *where, *size) if where else None for mask, where, size in found]


@pytest.mark.parametrize('number', range(4))
def test_labels_of_a_scene_stand_in_their_segments_and_apart(monkeypatch, number):
    scene = generate_scene(11, number, (128, 160))
    ids, segments = panoptic(scene)
    segments = [dict(s, name=f'thing {s["id"]}', score=0.5) for s in segments]
    placed = boxes(monkeypatch, scene.image, ids, segments)
    assert len(placed) == len(segments) and None not in placed
    taken = np.zeros(placed[0][0].shape, int)
    for mask, y, x, h, w in placed:
        height, width = mask.shape
        assert 0 <= y <= height - h and 0 <= x <= width - w
        taken[y : y + h, x : x + w] += 1
        hidden = mask[y : y + h, x : x + w].sum()
        assert hidden <= 0.5 * mask.sum()  # a segment stays visible
        if mask.sum() > 6 * h * w:
            assert mask[y + h // 2, x + w // 2]
    assert taken.max() == 1


def test_a_label_has_the_best_place_of_all():
    mask = np.zeros((40, 60), bool)
    mask[4:30, 10:50] = True
    mask[10:16, 20:30] = False
    taken = np.zeros((40, 60), np.uint8)
    taken[20:26, 15:40] = 1
    h, w = 5, 11
    depth = cv2.distanceTransform(np.pad(mask.astype(np.uint8), 1), cv2.DIST_L2, 3)[1:-1, 1:-1]
    merit = {}
    for y in range(40 - h + 1):
        for x in range(60 - w + 1):
            part = slice(y, y + h), slice(x, x + w)
            middle = depth[y + h // 2, x + w // 2]
            if middle > 0 and not taken[part].any():
                merit[y, x] = mask[part].mean() + 0.5 * middle / depth.max()
    got = place_label(mask, (h, w), taken)
    assert merit[got] == pytest.approx(
        max(merit.values()), abs=0.02
    )  # the deepest may lie where no label fits
    assert mask[got[0] : got[0] + h, got[1] : got[1] + w].all()


def test_a_label_larger_than_its_segment_stands_beside_it():
    mask = np.zeros((60, 80), bool)
    mask[0:6, 70:80] = True  # in a corner
    taken = np.zeros((60, 80), np.uint8)
    assert place_label(mask, (10, 30), taken) == (6, 50)
    taken[10:16] = 1
    assert place_label(mask, (10, 30), taken) == (0, 40)  # left of it
    taken[:] = 1
    assert place_label(mask, (10, 30), taken) is None
    assert place_label(mask, (10, 81), np.zeros_like(taken)) is None


def test_a_crowd_has_no_labels_over_each_other(monkeypatch):
    y, x = np.mgrid[:48, :64]
    ids = (1 + y // 6 + 8 * (x // 4)).astype(np.int32)  # 128 segments of 60×40 pixels when drawn
    names = [
        'cat',
        'a name that is far longer than anything in a picture has room for',
        'Straße $1$',
    ]
    segments = [dict(id=int(i), name=names[i % 3]) for i in np.unique(ids)]
    placed = [box for box in boxes(monkeypatch, GREY, ids, segments) if box]
    taken = np.zeros((480, 640), int)
    for _, top, left, h, w in placed:
        taken[top : top + h, left : left + w] += 1
    assert taken.max() == 1 and len(placed) > 30


def test_ink_and_paper_of_labels_contrast():
    for colour in segment_colours(300)[::12]:
        box = drawing._label('Mg 0.50', colour, 10)
        ink = box[0, 0]  # the border's
        light, dark = sorted([drawing.luminance(ink), drawing.luminance(colour)], reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5
        assert (box[1, 1] == colour).all()


def test_no_segment_is_a_picture_too():
    ids = np.zeros((48, 64), np.int32)
    drawn = draw_panoptic(GREY, ids, [])
    assert drawn.shape[0] > 480 and drawn.shape[1] == 640 and (drawn[:480] == 120).all()


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(image=GREY[..., 0]), r'needed: uint8 \(H, W, 3\)'),
        (dict(image=GREY / 255), 'image is float64'),
        (dict(ids=np.zeros((4, 4), np.int32)), r"whole numbers of the image's size, \(48, 64\)"),
        (dict(ids=np.full((48, 64), 0.5)), 'ids are float64'),
        (dict(ids=np.full((48, 64), 9)), r'ids \[9\] are in the picture'),
        (dict(segments=[dict(id=1, name='a'), dict(id=1, name='b')]), 'different ones, none 0'),
        (dict(segments=[dict(id=0, name='a')]), 'different ones, none 0'),
        (dict(opacity=2), 'opacity must be between 0 and 1'),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(change, message):
    ids, segments = halves()
    with pytest.raises(ValueError, match=message):
        draw_panoptic(**{**dict(image=GREY, ids=ids, segments=segments), **change})
