"""FeatureStore: what is read is what was computed, or it is computed anew."""

import itertools
import warnings

import pytest
import torch
import torch.nn.functional as F

from mmdiffrep.diffusion.feature_store import FeatureStore, content_key

SIZE = (9, 13)


def maps(seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(1, c, h, w, generator=g) for c, h, w in [(3, 5, 7), (2, 9, 13)]]


def fill(store, count=2):
    for i in range(count):
        store.add(f'image {i}', SIZE, lambda i=i: maps(i))
    return store


def asked():
    g = torch.Generator().manual_seed(5)
    return [torch.randint(n, (40,), generator=g) for n in (2, *SIZE)]


def expected(image, y, x, dtype):
    """Upsample everything first."""
    big = []
    for seed in range(2):
        rounded = [m.to(dtype).float() for m in maps(seed)]
        big.append(
            torch.cat(
                [F.interpolate(m, SIZE, mode='bilinear', align_corners=False)[0] for m in rounded]
            )
        )
    return torch.stack(big)[image, :, y, x]


@pytest.mark.parametrize('dtype', ['fp16', 'fp32'])
@pytest.mark.parametrize('kept', ['memory', 'disk', 'little memory'])
def test_samples_are_those_of_upsampled_maps(dtype, kept, tmp_path):
    folder = None if kept == 'memory' else tmp_path / 'deep' / 'folder'
    store = fill(
        FeatureStore('net', folder, dtype, resident=0 if kept == 'little memory' else 2**30)
    )
    wanted = expected(*asked(), dict(fp16=torch.float16, fp32=torch.float32)[dtype])
    for _ in range(2):
        torch.testing.assert_close(store.sample(*asked()), wanted, rtol=1e-5, atol=1e-5)
    assert store.bytes == 2 * (3 * 35 + 2 * 117) * (2 if dtype == 'fp16' else 4) and len(store) == 2
    if folder is not None:
        again = fill(FeatureStore('net', folder, dtype))
        assert again.computed == 0 and store.computed == 2
        assert torch.equal(again.sample(*asked()), store.sample(*asked()))
        assert [p.suffix for p in folder.iterdir()] == ['.maps', '.maps']


def test_maps_of_another_network_precision_or_image_are_others(tmp_path):
    fill(FeatureStore('net', tmp_path))
    for other in (FeatureStore('other net', tmp_path), FeatureStore('net', tmp_path, 'fp32')):
        assert fill(other).computed == 2
    store = FeatureStore('net', tmp_path)
    store.add('image 7', SIZE, lambda: maps(7))
    assert store.computed == 1


def damaged(path, how, tmp_path):
    content = bytearray(path.read_bytes())
    if how == 'cut short':
        content = content[:-10]
    elif how == 'cut in the header':
        content = content[:40]
    elif how == 'empty':
        content = b''
    elif how == 'a flipped bit':
        content[-5] ^= 4
    elif how == 'a flipped bit in the header':
        content[content.index(b'"size": [9') + 9] ^= 1
    elif how == 'another backbone':
        other = FeatureStore('other net', tmp_path / 'other')
        other.add('image 0', SIZE, lambda: maps(3))
        content = other.path('image 0').read_bytes()
    elif how == 'another image':
        other = FeatureStore('net', tmp_path / 'other')
        other.add('image 1', SIZE, lambda: maps(3))
        content = other.path('image 1').read_bytes()
    path.write_bytes(content)


@pytest.mark.parametrize('how, said', [
    ('cut short', 'cut short'), ('cut in the header', 'header|cut short'), ('empty', 'cut short'), ('a flipped bit', 'SHA-256'),
    ('a flipped bit in the header', 'SHA-256|image is|header'), ('another backbone', 'another backbone'), ('another image', 'another image'),
])  # fmt: skip
def test_what_is_damaged_or_of_another_is_computed_anew(how, said, tmp_path):
    folder = tmp_path / 'maps'
    store = fill(FeatureStore('net', folder))
    path, wanted = store.path('image 0'), store.sample(*asked())
    whole = path.read_bytes()
    damaged(path, how, tmp_path)
    with pytest.warns(UserWarning, match=said):
        again = fill(FeatureStore('net', folder))
    assert again.computed == 1 and torch.equal(again.sample(*asked()), wanted)
    assert path.read_bytes() == whole
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert fill(FeatureStore('net', folder)).computed == 0


def test_every_flipped_byte_is_seen(tmp_path):
    store = FeatureStore('net', tmp_path)
    store.add('image 0', SIZE, lambda: maps(0))
    path = store.path('image 0')
    whole = path.read_bytes()
    for place in itertools.chain(range(0, len(whole), 37), [20, 23]):
        content = bytearray(whole)
        content[place] ^= 1 << place % 8
        path.write_bytes(content)
        again = FeatureStore('net', tmp_path)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            again.add('image 0', SIZE, lambda: maps(0))
        if again.computed == 0:  # the padding behind the header decides nothing
            assert content[place] ^ 1 << place % 8 == ord(' '), place


def test_a_failure_leaves_no_file(tmp_path):
    store = FeatureStore('net', tmp_path)
    with pytest.raises(ValueError, match='fp32'):
        store.add('a', SIZE, lambda: [torch.full((1, 2, 3, 3), 7e4)])
    with pytest.raises(ValueError, match='nan'):
        store.add('a', SIZE, lambda: [torch.full((1, 2, 3, 3), float('nan'))])
    assert not list(tmp_path.iterdir()) and len(store) == 0
    with pytest.raises(ValueError, match='fp8'):
        FeatureStore('net', dtype='fp8')
    with pytest.raises(ValueError, match='at least one'):
        store.sample(*[torch.zeros(0).long()] * 3)


def test_an_image_is_named_by_its_content():
    image = torch.rand(3, 4, 6)
    assert content_key(image) == content_key(image.clone()) != content_key(image.flip(0))
    assert content_key(image) != content_key(image.view(3, 6, 4))
