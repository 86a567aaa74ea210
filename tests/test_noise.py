"""Noise policies: what noise depends on, and that it is standard normal."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmdiffrep.diffusion.noise import NoisePolicy, image_key, seeded_noise


def test_noise_is_a_function_of_place():
    large = seeded_noise(3, 0, 0, (4, 67, 53))
    for shape in [(1, 1, 1), (2, 7, 53), (4, 67, 1), (3, 33, 31), (4, 66, 52)]:
        c, h, w = shape
        assert torch.equal(seeded_noise(3, 0, 0, shape), large[:c, :h, :w])
    for other in [(4, 0, 0), (3, 1, 0), (3, 0, 1)]:
        assert not torch.equal(seeded_noise(*other, (4, 67, 53)), large)
    assert large.dtype == torch.float32


def test_noise_is_the_same_everywhere():
    """Values at a few places, computed with Python's whole numbers from the published algorithms."""
    import hashlib

    mask = 2**64 - 1

    def mix(z):
        z = (z + 0x9E3779B97F4A7C15) & mask
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return z ^ (z >> 31)

    assert mix(0) == 0xE220A8397B1DCDAF  # SplitMix64's first number from state 0
    digest = hashlib.blake2b(b'5/2/9', digest_size=16).digest()
    key_a, key_b = (int.from_bytes(digest[i : i + 8], 'little') for i in (0, 8))
    noise = seeded_noise(5, 2, 9, (3, 20, 30))
    for c, y, x in [(0, 0, 0), (1, 0, 7), (2, 19, 29), (0, 11, 3)]:
        bits = mix(mix(((c << 40 | y << 20 | x) + key_a) & mask) ^ key_b)
        u1, u2 = ((bits >> 32) + 0.5) / 2**32, (bits & 0xFFFFFFFF) / 2**32
        expected = math.sqrt(-2 * math.log(u1)) * math.cos(2 * math.pi * u2)
        assert noise[c, y, x].item() == pytest.approx(expected, abs=1e-6)


def test_noise_is_standard_normal_and_white():
    noise = seeded_noise(0, 0, 0, (4, 256, 256)).double().numpy()
    values = np.sort(noise.ravel())
    n = values.size
    assert abs(values.mean()) < 5 / math.sqrt(n)
    assert abs(values.var() - 1) < 5 * math.sqrt(2 / n)
    assert abs((values**3).mean()) < 5 * math.sqrt(15 / n)
    assert abs((values**4).mean() - 3) < 5 * math.sqrt(96 / n)
    cdf = torch.special.ndtr(torch.from_numpy(values)).numpy()
    distance = np.abs(cdf - (np.arange(n) + 0.5) / n).max()
    assert distance < 1.95 / math.sqrt(n)  # Kolmogorov–Smirnov, p > 0.001
    for shift in [(0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 1, 1), (0, 0, 2), (0, 64, 0)]:
        other = np.roll(noise, shift, (0, 1, 2))
        assert abs((noise * other).mean()) < 5 / math.sqrt(n), shift
    # neither in magnitude: a poor hash shows there first
    square = noise**2 - 1
    for axis in (0, 1, 2):
        assert abs((square * np.roll(square, 1, axis)).mean()) < 5 * 2 / math.sqrt(n)
    for seed, draw, key in [(1, 0, 0), (0, 1, 0), (0, 0, 1)]:
        assert abs((noise * seeded_noise(seed, draw, key, (4, 256, 256)).numpy()).mean()) < 5 / math.sqrt(n)
    assert np.abs(values).max() < 7


def test_shared_noise_is_one_image_for_all():
    policy = NoisePolicy(seed=2)
    three = policy.draw((3, 3, 8, 8))
    assert three.shape == (3, 3, 8, 8) and torch.equal(three[0], three[2])
    assert torch.equal(policy.draw((1, 3, 8, 8))[0], three[1])
    assert torch.equal(policy.draw((1, 3, 16, 12))[0, :, :8, :8], three[0])
    assert not torch.equal(policy.draw((1, 3, 8, 8), 1)[0], three[0])
    assert policy.deterministic and not NoisePolicy('fresh').deterministic


def test_fresh_noise_is_new_and_follows_the_seed():
    policy = NoisePolicy('fresh')
    torch.manual_seed(0)
    a, b = policy.draw((2, 3, 4, 4)), policy.draw((2, 3, 4, 4))
    assert not torch.equal(a, b) and not torch.equal(a[0], a[1])
    torch.manual_seed(0)
    assert torch.equal(policy.draw((2, 3, 4, 4)), a)


def test_no_noise():
    assert NoisePolicy('none').draw((1, 3, 4, 4)) is None


def test_per_image_noise_depends_on_the_image():
    policy = NoisePolicy('per_image')
    noise = policy.draw((3, 3, 8, 8), 0, [11, 12, 11])
    assert torch.equal(noise[0], noise[2]) and not torch.equal(noise[0], noise[1])
    assert torch.equal(policy.draw((1, 3, 8, 8), 0, [12])[0], noise[1])
    for keys in (None, [1]):
        with pytest.raises(ValueError, match='one key an image: 2 images'):
            policy.draw((2, 3, 8, 8), 0, keys)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10**6), size=st.tuples(st.integers(1, 6), st.integers(1, 6)), colours=st.integers(2, 3),
    pad=st.tuples(st.integers(0, 5), st.integers(0, 5)), value=st.integers(0, 2),
)  # fmt: skip
def test_image_key_does_not_see_constant_padding(seed, size, colours, pad, value):
    """Images of few colours, whose own borders are often of one colour, and of the padding's."""
    levels = np.random.default_rng(seed).integers(0, colours, (1, *size)).repeat(3, 0) * 100
    image = torch.from_numpy(levels / 127.5 - 1).float()
    padded = torch.nn.functional.pad(image, (0, pad[1], 0, pad[0]), value=value * 100 / 127.5 - 1)
    assert image_key(image) == image_key(padded)


def test_image_key_tells_images_apart_and_forgives_rounding():
    g = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, 9, 7), generator=g).float()
    mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    normalised = (image - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)
    back = (normalised * std.view(-1, 1, 1) + mean.view(-1, 1, 1)) / 127.5 - 1
    assert image_key(back) == image_key(image / 127.5 - 1)
    changed = image.clone()
    changed[1, 3, 3] = (changed[1, 3, 3] + 1) % 256
    assert image_key(changed / 127.5 - 1) != image_key(image / 127.5 - 1)
    assert image_key(image.transpose(1, 2) / 127.5 - 1) != image_key(image / 127.5 - 1)


def test_wrong_policies():
    with pytest.raises(ValueError, match="'shred' is unknown; allowed: .*'shared'"):
        NoisePolicy('shred')
    for draws in (0, 1.5, '2'):
        with pytest.raises(ValueError, match='whole number of at least 1'):
            NoisePolicy(draws=draws)
    with pytest.raises(ValueError, match="'none' gives the same features in every draw"):
        NoisePolicy('none', draws=2)
