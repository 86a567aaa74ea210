"""Adapters and map geometry, against slow oracles."""

import pytest
import torch
import torch.nn.functional as F

from mmdiffrep.diffusion.extraction import pad_to_multiple
from mmdiffrep.models.adapters import ConcatUpsample, StrideConcat, StridePyramid
from mmdiffrep.models.adapters.base import map_size, routes
from mmdiffrep.models.backbones.geometry import cover

SIZES = [(64, 64), (40, 72), (72, 40), (33, 47), (31, 8), (5, 3)]


def features(size, channels, strides, batch=2):
    g = torch.Generator().manual_seed(0)
    return [torch.randn(batch, c, *map_size(size, s), generator=g) for c, s in zip(channels, strides)]


def bilinear(x, size):
    """Half-pixel bilinear resizing, place by place."""
    out = x.new_empty(*x.shape[:2], *size)
    h, w = x.shape[-2:]
    for i in range(size[0]):
        for j in range(size[1]):
            y = min(max((i + 0.5) * h / size[0] - 0.5, 0), h - 1)
            z = min(max((j + 0.5) * w / size[1] - 0.5, 0), w - 1)
            a, b = int(y), int(z)
            c, d = min(a + 1, h - 1), min(b + 1, w - 1)
            top = x[..., a, b] * (1 - (z - b)) + x[..., a, d] * (z - b)
            low = x[..., c, b] * (1 - (z - b)) + x[..., c, d] * (z - b)
            out[..., i, j] = top * (1 - (y - a)) + low * (y - a)
    return out


def test_map_size_rounds_up():
    assert map_size((64, 33), 16) == (4, 3) and map_size((3, 3), 32) == (1, 1)
    assert map_size((10, 11), 0.5) == (20, 22)


@pytest.mark.parametrize('size', SIZES)
def test_concat_against_place_by_place(size):
    channels, strides = [3, 5], [4, 2]
    maps = features(size, channels, strides)
    (got,) = ConcatUpsample(channels, strides)(maps, size)
    expected = torch.cat([bilinear(maps[0], map_size(size, 2)), maps[1]], 1)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_concat_normalises_each_place_of_each_tap():
    maps = features((8, 8), [4, 9], [2, 2])
    (got,) = ConcatUpsample([4, 9], [2, 2], normalize='unit')([maps[0] * 100, maps[1]], (8, 8))
    for part, x in zip(got.split([4, 9], 1), maps):
        torch.testing.assert_close(part, x / x.norm(dim=1, keepdim=True) * x.shape[1] ** 0.5)


def test_concat_normalises_by_batch_statistics():
    maps = features((8, 8), [4, 9], [2, 2])
    adapter = ConcatUpsample([4, 9], [2, 2], normalize='batch').train()
    (got,) = adapter([maps[0] * 100 + 7, maps[1]], (8, 8))
    x = torch.cat([maps[0] * 100 + 7, maps[1]], 1)
    mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True)
    torch.testing.assert_close(got, (x - mean) / (var + 1e-5).sqrt(), rtol=1e-4, atol=1e-4)
    assert not list(adapter.parameters())


def test_concat_says_what_it_gives():
    plain = ConcatUpsample([3, 5], [4, 2])
    assert plain.out_channels == [8] and plain.out_strides == [2] and not list(plain.parameters())
    projected = ConcatUpsample([3, 5], [4, 2], stride=8, out_channels=12)
    (y,) = projected(features((33, 47), [3, 5], [4, 2]), (33, 47))
    assert y.shape == (2, 12, 5, 6) and projected.out_channels == [12] and projected.out_strides == [8]
    assert (y >= 0).all()


def slow_routes(in_strides, out_strides):
    """The rule in words: clamp, nearest in octaves; an unfed level takes the nearest tap, the coarser of two."""
    import math

    routes = []
    for tap, s in enumerate(in_strides):
        s = min(max(s, out_strides[0]), out_strides[-1])
        distances = [abs(math.log2(s / o)) for o in out_strides]
        routes.append((tap, distances.index(min(distances))))
    for level, o in enumerate(out_strides):
        if level not in [r[1] for r in routes[: len(in_strides)]]:
            least = min(abs(math.log2(s / o)) for s in in_strides)
            near = [k for k, s in enumerate(in_strides) if abs(math.log2(s / o)) == least]
            coarsest = max(in_strides[k] for k in near)
            routes.append(([k for k in near if in_strides[k] == coarsest][-1], level))
    return sorted(routes, key=lambda r: (r[1], r[0]))


@pytest.mark.parametrize(
    'strides', [[8, 4, 2, 1], [32, 16, 8, 4], [16], [1], [64, 4], [8, 8, 8], [2, 32], [6, 12], [16, 16, 4]]
)
def test_every_tap_feeds_one_level_and_every_level_is_fed(strides):
    for levels in ([4, 8, 16, 32], [8], [2, 64]):
        found = routes(strides, levels)
        assert found == slow_routes(strides, levels)
        assert {tap for tap, _ in found} == set(range(len(strides)))
        assert {level for _, level in found} == set(range(len(levels)))


@pytest.mark.parametrize('resize', ['nearest', 'bilinear'])
@pytest.mark.parametrize('size', SIZES)
def test_pyramid_sums_bottlenecks_of_resized_taps(size, resize):
    channels, strides = [6, 4, 3], [8, 4, 2]
    torch.manual_seed(0)
    pyramid = StridePyramid(channels, strides, out_channels=8, width=8, groups=2, resize=resize)
    maps = features(size, channels, strides)
    outs = pyramid(maps, size)
    assert [y.shape for y in outs] == [(2, 8, *map_size(size, s)) for s in (4, 8, 16, 32)]
    expected = [torch.zeros_like(y) for y in outs]
    for (tap, level), projection in zip(pyramid.routes, pyramid.projections):
        target, x = outs[level].shape[-2:], maps[tap]
        if resize == 'nearest':
            rows = ((torch.arange(target[0]) + 0.5) * x.shape[-2] / target[0]).long()
            columns = ((torch.arange(target[1]) + 0.5) * x.shape[-1] / target[1]).long()
            x = x[..., rows, :][..., columns]
        elif x.shape[-2] > target[0] and x.shape[-1] > target[1]:
            x = F.adaptive_avg_pool2d(x, target)
        else:
            x = bilinear(x, target)
        expected[level] = expected[level] + projection(x)
    for got, want in zip(outs, expected):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_pyramid_trains_all_of_its_parameters():
    pyramid = StridePyramid([6, 4], [8, 2], out_channels=8, width=8, groups=2)
    sum(y.square().sum() for y in pyramid(features((64, 64), [6, 4], [8, 2]), (64, 64))).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in pyramid.parameters())


def test_stride_concat_by_hand():
    """Two maps at stride 2, three at stride 4 of which two are averaged."""
    x = [
        torch.full((1, 1, 2, 2), 1.0), torch.tensor([[[[2.0]], [[4.0]]]]), torch.full((1, 2, 2, 2), 5.0),
        torch.full((1, 1, 1, 1), 7.0), torch.tensor([[[[6.0]], [[8.0]]]]),
    ]  # fmt: skip
    adapter = StrideConcat([1, 2, 2, 1, 2], [2, 4, 2, 4, 4], average=[[4, 1]])
    fine, coarse = adapter(x, (4, 4))
    assert fine[0, :, 0, 0].tolist() == [1, 5, 5] and fine.shape == (1, 3, 2, 2)
    assert coarse[0, :, 0, 0].tolist() == [4, 6, 7] and coarse.shape == (1, 3, 1, 1)
    assert adapter.out_channels == [3, 3] and adapter.out_strides == [2, 4] and not list(adapter.parameters())


@pytest.mark.parametrize('size', SIZES)
def test_stride_concat_resizes_to_the_strides_it_is_given(size):
    channels, strides = [3, 2, 2, 4], [16, 8, 8, 2]
    maps = features(size, channels, strides)
    adapter = StrideConcat(channels, strides, average=[[1, 2]], strides=[4, 8])
    assert adapter.out_channels == [4, 5] and adapter.out_strides == [4, 8]
    fine, coarse = adapter(maps, size)
    target = map_size(size, 4)
    smaller = maps[3].shape[-2] > target[0] and maps[3].shape[-1] > target[1]
    want = F.adaptive_avg_pool2d(maps[3], target) if smaller else bilinear(maps[3], target)
    torch.testing.assert_close(fine, want, rtol=1e-4, atol=1e-5)
    wide = bilinear(maps[0], map_size(size, 8))
    want = torch.cat([wide, (maps[1] + maps[2]) / 2], 1)
    torch.testing.assert_close(coarse, want, rtol=1e-4, atol=1e-5)


def test_stride_concat_feeds_every_stride_and_projects():
    """VPD's strides 8 … 64 for a head that wants 4 … 32."""
    channels, strides = [6, 5, 4, 3], [64, 32, 16, 8]
    torch.manual_seed(0)
    adapter = StrideConcat(channels, strides, strides=(4, 8, 16, 32), out_channels=12)
    maps = features((128, 64), channels, strides)
    outs = adapter(maps, (128, 64))
    assert [tuple(y.shape) for y in outs] == [(2, 12, 128 // s, 64 // s) for s in (4, 8, 16, 32)]
    assert [p[0].in_channels for p in adapter.projections] == [3, 3, 4, 11]
    assert adapter.out_channels == [12] * 4 and all((y >= 0).all() for y in outs)
    sum(y.square().sum() for y in outs).backward()
    assert all(p.grad.abs().sum() > 0 for p in adapter.parameters())


def test_stride_concat_refuses_what_cannot_be_averaged():
    def build(average):
        return StrideConcat([3, 3, 3, 4], [8, 8, 4, 8], average=average)

    for average, message in [
        ([[0, 4]], r'average=\[\[0, 4\]\] names taps \[4\] of 4; allowed: 0 to 3'),
        ([[0, -1]], r'names taps \[-1\] of 4'),
        ([[0, 1], [1]], r'names taps \[1\] twice; give each once'),
        ([[0], []], 'holds an empty list; name at least one tap'),
        ([[0, 2]], r'taps \[0, 2\] have \(channels, stride\) \[\(3, 4\), \(3, 8\)\]; only taps of the same'),
        ([[0, 3]], r'taps \[0, 3\] have \(channels, stride\) \[\(3, 8\), \(4, 8\)\]'),
    ]:
        with pytest.raises(ValueError, match=message):
            build(average)
    with pytest.raises(ValueError, match=r'strides must rise and be positive, got \[8, 4\]'):
        StrideConcat([3], [4], strides=[8, 4])


def test_adapters_that_do_not_fit():
    for kind in (StridePyramid, ConcatUpsample, StrideConcat):
        with pytest.raises(ValueError, match=r'needs channels and strides of the same taps, got in_channels=\[3\]'):
            kind([3], [4, 8])
        with pytest.raises(ValueError, match=r'built for taps of \[3, 5\] channels and got maps of \[5, 3\].*list_taps'):
            kind([3, 5], [4, 2])(features((8, 8), [5, 3], [2, 4]))
    with pytest.raises(ValueError, match=r'strides must rise and be positive, got \[8, 4\]'):
        StridePyramid([3], [4], strides=[8, 4])
    with pytest.raises(ValueError, match="resize='cubic' is unknown; allowed: 'nearest', 'bilinear'"):
        StridePyramid([3], [4], resize='cubic')
    with pytest.raises(ValueError, match="normalize='l2' is unknown; allowed: None, 'unit', 'batch'"):
        ConcatUpsample([3], [4], normalize='l2')
    with pytest.raises(ValueError, match='stride must be positive'):
        ConcatUpsample([3], [4], stride=0)


# ---- geometry -------------------------------------------------------------------------------------------------


def test_padding_repeats_the_border():
    x = torch.arange(2 * 3 * 5 * 7.0).view(2, 3, 5, 7)
    y = pad_to_multiple(x, 4)
    assert y.shape == (2, 3, 8, 8) and torch.equal(y[..., :5, :7], x)
    assert torch.equal(y[..., 7, :7], x[..., 4, :]) and torch.equal(y[..., :5, 7], x[..., 6])
    assert pad_to_multiple(y, 4) is y


@pytest.mark.parametrize('stride', [1, 2, 4, 8])
@pytest.mark.parametrize('size', [(64, 64), (33, 47), (17, 64), (63, 9)])
def test_a_ramp_stays_the_ramp_over_the_image(size, stride):
    """A feature that says where it is must say so still, when a head stretches it over the image."""
    padded = tuple(-(-side // 8) * 8 for side in size)
    centres = [(torch.arange(side // stride) + 0.5) * stride for side in padded]
    ramp = torch.stack(torch.meshgrid(*centres, indexing='ij'))[None]
    got = cover(ramp, stride, size)
    assert got.shape[-2:] == map_size(size, stride)
    for axis, side in enumerate(size):
        n = got.shape[2 + axis]
        expected = (torch.arange(n) + 0.5) * side / n
        line = got[0, axis].select(1 - axis, 0)
        inner = (expected >= stride / 2) & (expected <= padded[axis] - stride / 2)  # beyond, a border is repeated
        torch.testing.assert_close(line[inner], expected[inner], rtol=1e-5, atol=1e-3)
        assert ((line - expected).abs() <= stride / 2).all()


def test_where_strides_divide_nothing_is_resampled():
    x = torch.randn(1, 2, 4, 4)
    assert torch.equal(cover(x, 8, (32, 24)), x[..., :3])
    assert cover(x.half(), 8, (31, 24)).dtype == torch.float16
