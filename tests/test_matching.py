"""Points, flow, homographies and labels over frames against slow versions that resize everything."""

import math

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

import mmdiffrep  # noqa: F401
from mmdiffrep.matching import (
    Propagation,
    UpsampledMap,
    match_points,
    mutual_nearest,
    nearest,
    soft_argmax,
)
from mmdiffrep.matching.homography import corner_error, find_homography
from mmdiffrep.matching.points import dense_flow, flip_adaptive


def maps(seed, channels=5, ties=False):
    """Two maps and the sizes of their images, all odd."""
    g = torch.Generator().manual_seed(seed)
    h, w, h2, w2 = (int(v) for v in torch.randint(1, 7, (4,), generator=g))
    sizes = [tuple(int(v) for v in torch.randint(5, 40, (2,), generator=g)) for _ in range(2)]
    made = [torch.randn(channels, *s, generator=g) for s in ((h, w), (h2, w2))]
    if ties:  # few different features, so that many places are alike
        made = [m.sign() for m in made]
    points = torch.rand(7, 2, generator=g) * torch.tensor([sizes[0][1] - 1.0, sizes[0][0] - 1.0])
    return made[0], made[1], points.round(), sizes[0], sizes[1]


def slow_scores(source, target, points, source_size, target_size, metric):
    """The published way: both maps resized to their images, in double precision: (n, H, W)."""
    a = F.interpolate(source[None].double(), source_size, mode='bilinear', align_corners=False)[0]
    b = F.interpolate(target[None].double(), target_size, mode='bilinear', align_corners=False)[0]
    vectors = torch.stack([a[:, int(y), int(x)] for x, y in points])
    if metric == 'cosine':
        return torch.einsum('nc,chw->nhw', F.normalize(vectors, dim=1), F.normalize(b, dim=0))
    return -(vectors[:, :, None, None] - b[None]).norm(dim=1)


@pytest.mark.parametrize('metric', ['cosine', 'l2'])
@pytest.mark.parametrize('ties', [False, True])
def test_the_answer_of_resizing_everything(metric, ties):
    compared = alike = 0
    for seed in range(400):
        case = maps(seed, ties=ties)
        slow = slow_scores(*case, metric)
        found = match_points(*case, metric=metric)
        x, y = found.points.long().T
        # a feature of no length has no direction
        kept = UpsampledMap(case[0], case[3]).at(case[2]).norm(dim=1) > 1e-6
        slow, x, y, found.scores = slow[kept], x[kept], y[kept], found.scores[kept]
        if not len(slow):
            continue
        rows = torch.arange(len(slow))
        best = slow.flatten(1).max(1)
        # what was found is as good as the best, and is it, where that is one place
        tolerance = 1e-5
        assert torch.allclose(slow[rows, y, x], best.values, atol=tolerance), seed
        assert torch.allclose(found.scores.double(), best.values, atol=tolerance), seed
        second = slow.flatten(1).clone()
        second[rows, best.indices] = -math.inf
        alone = best.values - second.max(1).values > 2 * tolerance
        place = y * slow.shape[2] + x
        compared, alike = compared + int(alone.sum()), alike + int((place[alone] == best.indices[alone]).sum())
    assert compared == alike and compared > 700


def test_features_between_pixels_and_memory():
    case = maps(3)
    resized = F.interpolate(case[0][None], case[3], mode='bilinear', align_corners=False)[0]
    upsampled = UpsampledMap(case[0], case[3])
    points = torch.tensor([[0.0, 0.0], [case[3][1] - 1.0, case[3][0] - 1.0], [2.0, 3.0]])
    want = torch.stack([resized[:, int(y), int(x)] for x, y in points])
    assert torch.allclose(upsampled.at(points).float(), want, atol=1e-5)
    assert torch.allclose(upsampled.squares.float(), resized.square().sum(0), atol=1e-4)
    with pytest.raises(ValueError, match="metric='dot'"):
        upsampled.scores(want, 'dot')
    with pytest.raises(ValueError, match='do not fit'):
        UpsampledMap(case[0][0], case[3])


def test_the_soft_place_by_hand():
    scores = torch.zeros(1, 5, 7)
    scores[0, 2, 3], scores[0, 2, 4] = 1.0, 0.5
    found = soft_argmax(scores, torch.tensor([[3.0, 2.0]]), 1, 0.5)
    weights = {(x, y): math.exp(scores[0, y, x].item() / 0.5) for y in (1, 2, 3) for x in (2, 3, 4)}
    total = sum(weights.values())
    assert found[0].tolist() == pytest.approx([sum(w * p[k] for p, w in weights.items()) / total for k in (0, 1)], abs=1e-5)
    # at a corner only what lies inside counts
    corner = soft_argmax(torch.zeros(1, 5, 7), torch.tensor([[0.0, 0.0]]), 1, 1.0)
    assert corner[0].tolist() == pytest.approx([0.5, 0.5])
    with pytest.raises(ValueError, match='temperature=0'):
        soft_argmax(scores, torch.zeros(1, 2), 1, 0)


def test_neighbours_against_a_loop(monkeypatch):
    monkeypatch.setattr('mmdiffrep.matching.vectors.CHUNK', 40)
    g = torch.Generator().manual_seed(0)
    a, b = torch.randint(-2, 3, (30, 3), generator=g).float(), torch.randint(-2, 3, (25, 3), generator=g).float()
    for metric in ('cosine', 'l2'):
        numbers, scores = nearest(a, b, metric)
        pairs = []
        for i, x in enumerate(a):
            if metric == 'cosine':
                own = [float(x @ y) / max(float(x.norm() * y.norm()), 1e-12) for y in b]
            else:
                own = [-float((x - y).norm()) for y in b]
            assert own[numbers[i]] == pytest.approx(max(own), abs=1e-5) and scores[i] == pytest.approx(max(own), abs=1e-3)
        found, _ = mutual_nearest(a, b, metric)
        back, _ = nearest(b, a, metric)
        pairs = [[i, int(numbers[i])] for i in range(30) if int(back[numbers[i]]) == i]
        assert found.tolist() == pairs and pairs
    with pytest.raises(ValueError, match='0 keys'):
        nearest(a, b[:0])


def test_an_image_in_itself_mirrored_and_shifted():
    g = torch.Generator().manual_seed(0)
    m = torch.randn(16, 8, 10, generator=g)
    size = (32, 40)
    points = torch.tensor([[6.0, 9.0], [30.0, 20.0], [13.0, 26.0]])
    assert (match_points(m, m, points, size, size).points - points).abs().max() <= 2  # half a cell
    mirrored = m.flip(2)
    there = torch.tensor([39.0, 0.0]) + points * torch.tensor([-1.0, 1.0])
    assert (match_points(m, mirrored, points, size, size).points - there).abs().max() <= 2
    found = flip_adaptive(torch.randn(16, 8, 10, generator=g), mirrored, mirrored, points, size, size)
    assert found.flipped and (found.points - there).abs().max() <= 2
    assert not flip_adaptive(m, torch.randn(16, 8, 10, generator=g), m, points, size, size).flipped
    flow, scores = dense_flow(m, m.roll(2, dims=2))
    assert torch.allclose(flow[0][:, :8], torch.full((8, 8), 0.2), atol=1e-6) and flow[1].abs().max() == 0
    assert torch.allclose(scores, torch.ones(8, 10), atol=1e-5)


@pytest.mark.parametrize(
    'points, message',
    [
        ([[40.0, 3.0]], r'x, y = \[40.0, 3.0\] lies outside the image of 40×32'),
        ([[3.0, -1.0]], 'allowed: x 0 … 39, y 0 … 31'),
        ([[float('nan'), 1.0]], 'lies outside'),
        (torch.zeros(0, 2), 'one point or more'),
        ([1.0, 2.0], r'points of shape \(2,\)'),
    ],
)
def test_wrong_points_are_refused(points, message):
    m = torch.randn(4, 8, 10)
    with pytest.raises(ValueError, match=message):
        match_points(m, m, points, (32, 40), (32, 40))


def test_maps_of_other_channels_are_refused():
    with pytest.raises(ValueError, match='has 4 channels, the target.s 5'):
        match_points(torch.randn(4, 2, 2), torch.randn(5, 2, 2), torch.zeros(1, 2), (8, 8), (8, 8))


@pytest.mark.parametrize('method', ['lmeds', 'ransac', 'usac'])
def test_a_homography_among_wrong_pairs(method):
    draws = np.random.default_rng(0)
    true = np.array([[1.1, 0.05, -8], [-0.03, 0.95, 5], [2e-4, -1e-4, 1]])
    points = draws.uniform(0, 100, (60, 2))
    there = cv2.perspectiveTransform(points[None], true)[0] + draws.normal(0, 0.1, (60, 2))
    there[:15] = draws.uniform(0, 100, (15, 2))
    found, inliers = find_homography(torch.from_numpy(points), torch.from_numpy(there), method)
    assert corner_error(found, true, (100, 100)) < 0.6
    assert inliers[15:].mean() > 0.9 and inliers[:15].mean() < 0.3
    assert corner_error(true, true, (50, 70)) == 0
    shift = np.array([[1, 0, 3], [0, 1, 4], [0, 0, 1.0]])
    assert corner_error(shift, np.eye(3), (50, 70)) == pytest.approx(5)
    with pytest.raises(ValueError, match='four pairs or more'):
        find_homography(points[:3], there[:3], method)
    with pytest.raises(ValueError, match='allowed'):
        find_homography(points, there, 'best')


def by_hand(features, labels, frames, radius, topk, temperature):
    """All frames, one cell at a time."""
    _, h, w = features[0].shape
    normed = [F.normalize(f, dim=0) for f in features]
    soft = [labels]
    for t in range(1, len(features)):
        context = [0, *range(max(1, t - frames), t)]
        result = torch.zeros_like(labels)
        for y in range(h):
            for x in range(w):
                seen = []
                for k in context:
                    for v in range(max(0, y - radius), min(h, y + radius + 1)):
                        for u in range(max(0, x - radius), min(w, x + radius + 1)):
                            seen.append((float(normed[t][:, y, x] @ normed[k][:, v, u]), soft[k][:, v, u]))
                seen.sort(key=lambda pair: -pair[0])
                seen = seen[:topk]
                weights = torch.tensor([s / temperature for s, _ in seen]).softmax(0)
                result[:, y, x] = sum(weight * label for weight, (_, label) in zip(weights, seen))
        soft.append(result)
    return soft


@pytest.mark.parametrize('frames, radius, topk', [(2, 1, 3), (28, 9, 4), (1, 2, 50)])
def test_labels_over_frames_against_a_loop(frames, radius, topk):
    g = torch.Generator().manual_seed(0)
    features = [torch.randn(6, 4, 5, generator=g) for _ in range(5)]
    labels = F.one_hot(torch.randint(3, (4, 5), generator=g), 3).permute(2, 0, 1).float()
    propagation = Propagation(frames, radius, topk, 0.2)
    with pytest.raises(ValueError, match='no first frame'):
        propagation.step(features[0])
    propagation.start(features[0], labels)
    want = by_hand(features, labels, frames, radius, topk, 0.2)
    for frame, expected in zip(features[1:], want[1:]):
        assert torch.allclose(propagation.step(frame), expected, atol=1e-4)
    with pytest.raises(ValueError, match='radius=-1'):
        Propagation(radius=-1)
    with pytest.raises(ValueError, match='do not fit'):
        propagation.start(features[0], labels[:, :2])
