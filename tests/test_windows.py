"""Windows over an image: where they stand, what they see, how their maps are put together."""

import copy

import pytest
import torch
import torch.nn.functional as F

from mmdiffrep.diffusion.noise import image_key, seeded_noise
from mmdiffrep.models.backbones import DiffusionBackbone
from mmdiffrep.models.backbones.windows import Windows
from mmdiffrep.registry import MODELS

TAPS = ['mid_block', 'up_blocks.0', 'up_blocks.1']
PYRAMID = dict(type='mmdiffrep.StridePyramid', out_channels=8, width=8, groups=2, strides=(2, 4))
PLAIN = dict(image_mean=[127.5] * 3, image_std=[127.5] * 3)


def picture(*shape, seed=0):
    """8-bit images in [-1, 1]."""
    image = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed)).float()
    return image / 127.5 - 1


@pytest.fixture(scope='module', autouse=True)
def quick(traces_once):
    yield


@pytest.fixture
def build(tiny_config):
    def make(taps=TAPS, adapter=PYRAMID, **options):
        torch.manual_seed(0)
        return MODELS.build(
            dict(
                type='mmdiffrep.DiffusionBackbone', denoiser=dict(type='mmdiffrep.PixelUNet', config=tiny_config), taps=taps,
                adapter=adapter, **PLAIN, **options,
            )
        )  # fmt: skip

    return make


def places(length, side):
    """Where windows begin: by walking, and a step back at the border."""
    found, at = [], 0
    while at + side < length:
        found.append(at)
        at += side
    return [*found, length - side]


# ---- where they stand -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'image, side, tops, lefts',
    [
        ((512, 512), 512, [0], [0]), ((512, 1024), 512, [0], [0, 512]), ((1024, 700), 512, [0, 512], [0, 188]),
        ((513, 512), 512, [0, 1], [0]), ((300, 512), 300, [0], [0, 212]), ((5, 12), 5, [0], [0, 5, 7]),
        ((1200, 100), 100, [*range(0, 1200, 100)], [0]),
    ],
)  # fmt: skip
def test_layout(image, side, tops, lefts):
    assert Windows(512).layout(image) == (side, tops, lefts)


@pytest.mark.parametrize('size', [(7, 30), (33, 16), (50, 41)])
def test_every_pixel_is_in_a_window_and_windows_are_in_the_image(size):
    side, tops, lefts = Windows(16).layout(size)
    seen = torch.zeros(size)
    for y in tops:
        for x in lefts:
            part = seen[y : y + side, x : x + side]
            assert y >= 0 and x >= 0 and part.shape == (side, side)
            part += 1
    assert side == min(16, *size) and seen.min() == 1
    assert tops == places(size[0], side) and lefts == places(size[1], side)


def test_crops_go_image_by_image_and_batches_are_limited():
    image = picture(2, 3, 20, 37)
    windows = Windows(16, batch=4)
    batches = list(windows.batches(image))
    assert [len(crops) for crops, _ in batches] == [4, 4, 4]
    assert [i for _, images in batches for i in images] == [0] * 6 + [1] * 6
    expected = [image[b, :, y : y + 16, x : x + 16] for b in range(2) for y in (0, 4) for x in (0, 16, 21)]
    assert torch.equal(torch.cat([crops for crops, _ in batches]), torch.stack(expected))


# ---- one window -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'size, kind, adapter', [(16, 'shared', PYRAMID), (18, 'per_image', None), (18, 'shared', PYRAMID), (16, 'none', None)]
)
def test_one_window_is_none(build, size, kind, adapter):
    image = picture(2, 3, size, size)
    options = dict(adapter=adapter, noise=dict(kind=kind), timesteps=[50, 100])
    plain, windowed = build(**options)(image), build(**options, windows=dict(size=size))(image)
    assert len(plain) == len(windowed) and all(torch.equal(a, b) for a, b in zip(plain, windowed))


def test_a_small_image_is_enlarged(build):
    """To the size of the window, bicubically, without overshooting; its map at stride 4 has a quarter of the image's side."""
    image = picture(1, 3, 16, 16)
    backbone = build(windows=dict(size=32), noise=dict(kind='none'))
    large = F.interpolate(image, (32, 32), mode='bicubic')
    assert large.max() > 1 and large.min() < -1
    expected = build(noise=dict(kind='none'))(large.clamp(-1, 1))
    for got, want in zip(backbone(image), expected):
        torch.testing.assert_close(got, F.interpolate(want, scale_factor=0.5, mode='bilinear'))
    assert [m.shape[-1] for m in backbone(image)] == [8, 4]


# ---- stitching ------------------------------------------------------------------------------------------------


def slow(parts, stride, size, side, tops, lefts):
    """Cell by cell: the mean over the windows with its centre of the box around it; parts (N, C, m, m) of one image."""
    m = parts.shape[-1]
    height, width = (max(1, -(-n // stride)) for n in size)
    out = torch.zeros(parts.shape[1], height, width, dtype=parts.dtype)
    pixel = side / m
    for i in range(height):
        for j in range(width):
            cy, cx = (i + 0.5) * size[0] / height, (j + 0.5) * size[1] / width
            found = []
            for a, top in enumerate(tops):
                for b, left in enumerate(lefts):
                    if not (top <= cy < top + side and left <= cx < left + side):
                        continue
                    share_y = overlaps((cy - top) / pixel, size[0] / height / pixel, m)
                    share_x = overlaps((cx - left) / pixel, size[1] / width / pixel, m)
                    found.append(torch.einsum('chw,h,w->c', parts[a * len(lefts) + b], share_y, share_x))
            out[:, i, j] = sum(found) / len(found)
    return out


def overlaps(middle, step, cells):
    """How much of a box of max(step, 1) cells is in each cell; of what is in none, nothing."""
    low, high = middle - max(step, 1) / 2, middle + max(step, 1) / 2
    share = torch.tensor([max(0.0, min(high, k + 1) - max(low, k)) for k in range(cells)], dtype=torch.float64)
    return share / share.sum()


@pytest.mark.parametrize(
    'size, strides', [((16, 39), (4, 8)), ((37, 50), (4, 8)), ((23, 16), (1, 2, 16)), ((9, 30), (2, 4)), ((61, 20), (4,))]
)
def test_stitching_against_a_slow_version(size, strides):
    windows = Windows(16)
    side, tops, lefts = windows.layout(size)
    generator = torch.Generator().manual_seed(1)
    for stride in strides:
        m = 16 // stride
        maps = torch.randn(2 * len(tops) * len(lefts), 3, m, m, generator=generator, dtype=torch.float64)
        got = windows.stitch(maps, stride, size)
        for image, parts in zip(got, maps.chunk(2)):
            torch.testing.assert_close(image, slow(parts, stride, size, side, tops, lefts), rtol=1e-6, atol=1e-6)


def test_windows_side_by_side_are_put_side_by_side():
    a, b, c, d = maps = torch.randn(4, 2, 4, 4)
    got = Windows(16).stitch(maps, 4, (32, 32))
    assert torch.equal(got[0], torch.cat([torch.cat([a, b], -1), torch.cat([c, d], -1)], -2))


def test_overlaps_are_averaged():
    """16 × 24 at stride 4: the second window is 8 pixels in, two cells overlap."""
    a, b = maps = torch.randn(2, 1, 4, 4)
    got = Windows(16).stitch(maps, 4, (16, 24))[0, 0]
    assert torch.equal(got[:, :2], a[0, :, :2]) and torch.equal(got[:, 4:], b[0, :, 2:])
    assert torch.equal(got[:, 2:4], (a[0, :, 2:] + b[0, :, :2]) / 2)


def test_a_slope_over_the_image_stays_one():
    """Windows that see a slope in pixels give it back, wherever they stand: nothing is shifted."""
    size, stride = (40, 27), 2
    windows = Windows(16)
    ramp = (torch.arange(40.0) + 0.5)[:, None] * 3 + (torch.arange(27.0) + 0.5)
    maps = F.avg_pool2d(windows.crops(ramp[None, None]), stride)
    got = windows.stitch(maps, stride, size)[0, 0]
    assert got.shape == (20, 14)
    y = (torch.arange(20) + 0.5) * 2
    x = (torch.arange(14) + 0.5) * 27 / 14
    inner = slice(1, -1)  # at a window's border the slope beyond is not known
    error = (got - (y[:, None] * 3 + x))[inner, inner].abs()
    assert error.max() <= 2.0 and error.median() < 0.02


@pytest.mark.parametrize('size', [(16, 40), (37, 23), (9, 30)])
@pytest.mark.parametrize('adapter', [PYRAMID, None])
def test_backbone_against_windows_one_by_one(build, size, adapter):
    image = picture(2, 3, *size)
    backbone = build(adapter=adapter, windows=dict(size=16, batch=3))
    whole = build(adapter=adapter)
    whole.load_state_dict(backbone.state_dict())
    side, tops, lefts = Windows(16).layout(size)
    maps = backbone(image)
    assert [m.shape[1] for m in maps] == backbone.out_channels == whole.out_channels
    for b in range(2):
        parts = []
        for y in tops:
            for x in lefts:
                crop = image[b : b + 1, :, y : y + side, x : x + side]
                if side < 16:
                    crop = F.interpolate(crop, (16, 16), mode='bicubic').clamp(-1, 1)
                parts.append(whole(crop))
        for got, stride, *found in zip(maps, backbone.out_strides, *parts):
            want = slow(torch.cat(found).double(), stride, size, side, tops, lefts)
            torch.testing.assert_close(got[b].double(), want, rtol=1e-3, atol=1e-4)


def test_projection_is_per_window(build):
    """GroupNorm sees one window: what another window holds changes nothing."""
    backbone = build(windows=dict(size=16))
    image = picture(1, 3, 16, 32)
    other = image.clone()
    other[..., 16:] = picture(1, 3, 16, 16, seed=5)
    for a, b in zip(backbone(image), backbone(other)):
        half = a.shape[-1] // 2
        torch.testing.assert_close(a[..., :half], b[..., :half])
        assert not torch.allclose(a[..., half:], b[..., half:])


# ---- noise, batches, prompts ----------------------------------------------------------------------------------


@pytest.mark.parametrize('kind', ['shared', 'per_image', 'none'])
def test_the_batch_limit_changes_nothing(build, kind):
    image = picture(2, 3, 24, 40)
    few, many = (build(windows=dict(size=16, batch=batch), noise=dict(kind=kind))(image) for batch in (1, 100))
    for a, b in zip(few, many):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def spied(backbone, image):
    """x_t of every window, in the order in which they are looked at."""
    seen, original = [], backbone.denoiser.features
    backbone.denoiser.features = lambda x_t, *args, **more: seen.append(x_t) or original(x_t, *args, **more)
    backbone(image)
    return torch.cat(seen)


def test_all_windows_share_the_noise_of_their_shape(build):
    image = torch.zeros(2, 3, 20, 32)
    image[..., 0, 0] = 1  # not one colour, which tells a check nothing
    image[..., 0, 1] = -1
    backbone = build(windows=dict(size=16, batch=3), noise=dict(kind='shared', seed=42))
    sigma = (1 - backbone.denoiser.schedule.alphas_cumprod[50]).sqrt()
    x_t = spied(backbone, image)
    assert x_t.shape == (8, 3, 16, 16)
    torch.testing.assert_close(x_t[1] / sigma, seeded_noise(42, 0, 0, (3, 16, 16)), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(x_t[1], x_t[3])  # second column, both rows


@pytest.mark.parametrize('side', [16, 12])
def test_per_image_noise_is_seeded_by_the_windows_own_pixels(build, side):
    image = picture(1, 3, side, 40)
    backbone = build(windows=dict(size=16), noise=dict(kind='per_image', seed=3))
    product = backbone.denoiser.schedule.alphas_cumprod[50]
    crops = Windows(16).crops(image)
    for crop, x_t in zip(crops, spied(backbone, image)):
        x0 = Windows(16).resize(crop[None])[0]
        noise = seeded_noise(3, 0, image_key(crop), (3, 16, 16))
        torch.testing.assert_close(x_t, product.sqrt() * x0 + (1 - product).sqrt() * noise, rtol=1e-4, atol=1e-4)


def test_a_window_is_told_its_images_prompt(small_sd, monkeypatch):
    network = small_sd()
    table = {'a': 1.0, 'b': -2.0}
    monkeypatch.setattr(
        type(network), 'encode_text', lambda self, prompts: torch.stack([self.tokens[0] + table[p] for p in prompts])
    )
    taps = ['up_blocks.1.attentions.0']

    def maps(prompts, image, **options):
        backbone = DiffusionBackbone(copy.deepcopy(network), taps, timesteps=1, **PLAIN, **options)
        backbone.set_prompts(prompts)
        return backbone(image)[0]

    image = picture(2, 3, 16, 32)
    both = maps(['a', 'b'], image, windows=dict(size=16, batch=3))
    for k, prompt in enumerate('ab'):
        alone = [maps([prompt], image[k : k + 1, :, :, x : x + 16]) for x in (0, 16)]
        torch.testing.assert_close(both[k], torch.cat(alone, -1)[0], rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match='1 prompts were given for 2 images'):
        maps(['a'], image, windows=dict(size=16))


# ---- training and mistakes ------------------------------------------------------------------------------------


def test_gradient_flows_to_the_adapter(build):
    grads = []
    for batch in (2, 100):
        backbone = build(windows=dict(size=16, batch=batch)).train()
        maps = backbone(picture(1, 3, 24, 32))
        sum(m.square().sum() for m in maps).backward()
        grads.append([p.grad for p in backbone.parameters()])
        assert all(p.grad is None for p in backbone.denoiser.parameters())
    assert all(g.abs().sum() > 0 for g in grads[0])
    for a, b in zip(*grads):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def test_gradient_flows_to_the_image(build):
    image = picture(1, 3, 12, 30).requires_grad_(True)
    sum(m.square().sum() for m in build(windows=dict(size=16), grad_through=True)(image)).backward()
    assert (image.grad.abs().sum(1) > 0).float().mean() > 0.9


def test_wrong_windows(build):
    for windows, message in [
        (dict(size=0), 'windows: size=0; allowed: a whole number of at least 1'),
        (dict(size=(512, 512)), r'windows: size=\(512, 512\)'),
        (dict(batch=2.5), 'windows: batch=2.5'),
        (dict(stride=3), r"windows=\{'stride': 3\} does not fit.*dict\(size=512, batch=8\)"),
        (512, r'windows=512 does not fit'),
    ]:
        with pytest.raises(ValueError, match=message):
            build(windows=windows)
