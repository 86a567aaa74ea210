import multiprocessing
import pickle
import re
import zipfile

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from mmdiffrep.datasets.images import ImageFolder, list_images


def picture(height, width, seed):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / 'pictures'
    (folder / 'b').mkdir(parents=True)
    cv2.imwrite(str(folder / 'b' / '1.png'), picture(16, 16, 1))
    cv2.imwrite(str(folder / 'a.PNG'), picture(24, 40, 2))
    cv2.imwrite(str(folder / 'c.bmp'), picture(50, 20, 3))
    (folder / 'notes.txt').write_text('no image')
    (folder / '._a.png').write_bytes(b'what macOS leaves')
    return folder


def zipped(folder, path):
    with zipfile.ZipFile(path, 'w') as archive:
        for file in sorted(folder.rglob('*')):
            if file.is_file():
                archive.write(file, file.relative_to(folder).as_posix())
    return path


def test_list_is_sorted_and_relative(folder, tmp_path):
    assert list_images(folder) == ['a.PNG', 'b/1.png', 'c.bmp']
    assert list_images(zipped(folder, tmp_path / 'p.ZIP')) == ['a.PNG', 'b/1.png', 'c.bmp']


@pytest.mark.parametrize('cache', [True, False])
def test_folder_and_zip_give_the_images(folder, tmp_path, cache):
    options = dict(size=16, random=False, cache=cache)
    plain = ImageFolder(folder, **options)
    packed = ImageFolder([str(zipped(folder, tmp_path / 'p.zip'))], **options)
    assert len(plain) == len(packed) == 3
    for a, b in zip((plain[i]['inputs'] for i in range(3)), (packed[i]['inputs'] for i in range(3))):
        assert a.dtype == torch.uint8 and a.shape == (3, 16, 16)
        assert torch.equal(a, b)
    assert torch.equal(plain[1]['inputs'], torch.from_numpy(picture(16, 16, 1)).permute(2, 0, 1))


def test_cached_or_not_is_the_same(folder):
    options = dict(size=12, short_side=(12, 18))
    cached, read = ImageFolder(folder, **options), ImageFolder(folder, cache=False, **options)
    for i in range(3):
        torch.manual_seed(i)
        a = cached[i]['inputs']
        torch.manual_seed(i)
        assert torch.equal(a, read[i]['inputs'])


def test_crops_follow_the_torch_seed(folder):
    dataset = ImageFolder(folder, size=8, short_side=(8, 16))
    torch.manual_seed(3)
    first = [dataset[i % 3]['inputs'] for i in range(12)]
    after = torch.rand(1)
    torch.manual_seed(3)
    again = [dataset[i % 3]['inputs'] for i in range(12)]
    assert all(torch.equal(a, b) for a, b in zip(first, again))
    assert torch.equal(after, torch.rand(1))
    torch.manual_seed(4)
    assert not all(torch.equal(a, dataset[i % 3]['inputs']) for i, a in enumerate(first))


def test_every_crop_and_mirror_image_occurs_and_nothing_else(tmp_path):
    (tmp_path / 'p').mkdir()
    image = picture(3, 5, 0)
    cv2.imwrite(str(tmp_path / 'p' / '0.png'), image)
    dataset = ImageFolder(tmp_path / 'p', size=2, short_side=(3, 3))
    crops = [image[y : y + 2, x : x + 2] for y in range(2) for x in range(4)]
    wanted = {np.ascontiguousarray(crop[:, ::s]).tobytes() for crop in crops for s in (1, -1)}
    torch.manual_seed(0)
    seen = [dataset[0]['inputs'].permute(1, 2, 0).contiguous().numpy().tobytes() for _ in range(400)]
    assert set(seen) == wanted and len(wanted) == 16
    # each of 16 is expected 25 times
    assert min(seen.count(crop) for crop in wanted) > 8


def test_short_side_reaches_both_ends(tmp_path):
    (tmp_path / 'p').mkdir()
    ramp = np.repeat(np.arange(0, 240, dtype=np.uint8)[None, :, None], 120, 0).repeat(3, 2)
    cv2.imwrite(str(tmp_path / 'p' / '0.png'), ramp)
    dataset = ImageFolder(tmp_path / 'p', size=30, short_side=(30, 60), flip=False)
    torch.manual_seed(0)
    steps = set()
    for _ in range(200):
        row = dataset[0]['inputs'][0, 0].float()
        steps.add(round(120 * 29 / (row[-1] - row[0]).item()))  # the side it was resized to
    assert min(steps) <= 31 and max(steps) >= 58 and len(steps) > 20


def test_sources_with_settings_of_their_own(folder, tmp_path):
    packed = zipped(folder, tmp_path / 'p.zip')
    dataset = ImageFolder(
        [dict(path=folder, repeat=3), dict(path=packed, short_side=(10, 12))], size=8, max_images=2
    )
    assert len(dataset) == 2 * 3 + 2
    assert [dataset.items[i][2] for i in dataset.index] == [(8, 8)] * 6 + [(10, 12)] * 2
    assert all(dataset[i]['inputs'].shape == (3, 8, 8) for i in range(8))


@pytest.mark.parametrize('packed', [False, True])
@pytest.mark.parametrize('cache', [False, True])
def test_corrupt_image_is_named(folder, tmp_path, packed, cache):
    whole = (folder / 'a.PNG').read_bytes()
    (folder / 'bad.png').write_bytes(whole[: len(whole) // 2])
    (folder / 'empty.jpg').write_bytes(b'')
    half = cv2.imencode('.jpg', np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))[1].tobytes()
    (folder / 'half.jpg').write_bytes(half[: len(half) // 2])
    source = zipped(folder, tmp_path / 'p.zip') if packed else folder
    with pytest.raises(ValueError, match=r'/bad.png is not a readable image. Remove it, or set on_error'):
        dataset = ImageFolder(source, size=8, cache=cache)
        [dataset[i] for i in range(len(dataset))]
    with pytest.warns(UserWarning, match='bad.png is not a readable image; it is left out') as caught:
        dataset = ImageFolder(source, size=8, cache=cache, on_error='skip')
        assert len(dataset) == (3 if cache else 6)
        images = [dataset[i]['inputs'] for i in range(len(dataset))]
    assert all(image.shape == (3, 8, 8) for image in images)
    for name in ('empty.jpg', 'half.jpg'):
        assert any(name in str(w.message) for w in caught)


def test_damaged_member_of_a_zip_is_named(folder, tmp_path):
    packed = zipped(folder, tmp_path / 'p.zip')
    data = bytearray(packed.read_bytes())
    with zipfile.ZipFile(packed) as archive:
        start = archive.getinfo('b/1.png').header_offset
    data[start + 200 : start + 240] = bytes(40)  # its checksum fails
    packed.write_bytes(data)
    with pytest.raises(ValueError, match=r'p.zip/b/1.png is not a readable image'):
        ImageFolder(packed, size=8)
    with pytest.warns(UserWarning, match=r'p.zip/b/1.png'):
        assert len(ImageFolder(packed, size=8, on_error='skip')) == 2


def test_corrupt_zip_is_named(tmp_path):
    for name in ('half.zip', 'images.tar'):
        (tmp_path / name).write_bytes(b'PK\x03\x04 but not the rest')
        with pytest.raises(ValueError, match=rf'{name} is not a readable zip file .*folder or a zip file'):
            ImageFolder(tmp_path / name, size=8)


def test_nothing_left_is_an_error(folder, tmp_path):
    for file in folder.rglob('*.*'):
        file.write_bytes(b'broken')
    with pytest.warns(UserWarning), pytest.raises(ValueError, match='no image is left .* 3 found'):
        ImageFolder(folder, size=8, on_error='skip')
    with pytest.raises(ValueError, match='no image is left of sources'):
        ImageFolder([], size=8)
    dataset = ImageFolder(folder, size=8, on_error='skip', cache=False)
    with pytest.warns(UserWarning), pytest.raises(ValueError, match='none of the images can be read'):
        dataset[0]


def test_errors_by_message(folder, tmp_path):
    (tmp_path / 'none').mkdir()
    for options, error, message in [
        (dict(sources='nowhere', size=8), FileNotFoundError, 'nowhere: no such folder or zip file'),
        (dict(sources=tmp_path / 'none', size=8), ValueError, "holds no images; recognised endings: ['.bmp'"),
        (dict(sources=folder, size=8, on_error='ignore'), ValueError, "'ignore' is unknown; allowed: 'raise', 'skip'"),
        (dict(sources=folder, size=0), ValueError, 'size=0 does not fit'),
        (dict(sources=folder, size=8, short_side=(4, 8)), ValueError, 'short_side=(4, 8) does not fit'),
        (dict(sources=folder, size=8, short_side=(9, 8)), ValueError, 'size=8 <= low <= high'),
        (dict(sources=[dict(path=folder, sides=(8, 9))], size=8), ValueError, 'allowed is dict(path=…'),
        (dict(sources=[dict(repeat=2)], size=8), ValueError, 'allowed is dict(path=…'),
        (dict(sources=[dict(path=folder, repeat=0)], size=8), ValueError, 'at least 1'),
    ]:  # fmt: skip
        with pytest.raises(error, match=re.escape(message)):
            ImageFolder(**options)


def test_workers_read_a_zip_that_is_already_open(folder, tmp_path):
    for i in range(40):
        cv2.imwrite(str(folder / f'{i:02d}.png'), picture(40, 40, i))
    dataset = ImageFolder(zipped(folder, tmp_path / 'p.zip'), size=16, cache=False, random=False)
    alone = [dataset[i]['inputs'] for i in range(len(dataset))]
    assert len(pickle.loads(pickle.dumps(dataset))) == 43
    context = multiprocessing.get_context('fork')
    loader = DataLoader(dataset, batch_size=1, num_workers=2, multiprocessing_context=context)
    for a, b in zip(alone, loader, strict=True):
        assert torch.equal(a, b['inputs'][0])
