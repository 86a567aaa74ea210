"""Images with a class: folders, zip files, CIFAR's binary files, splits, subsets, what is refused."""

import pickle
import zipfile

import cv2
import numpy as np
import pytest
import torch

import mmdiffrep  # noqa: F401
from mmdiffrep.datasets import ImageClassification

CLASSES = ['bird', 'cat', 'dog']


def picture(number, side=8):
    return np.random.default_rng(number).integers(256, size=(side, side + 2, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path):
    """Five images a class; the first channel values tell them apart."""
    for k, name in enumerate(CLASSES):
        (tmp_path / 'data' / name).mkdir(parents=True)
        for i in range(5):
            cv2.imwrite(str(tmp_path / 'data' / name / f'{i}.png'), picture(10 * k + i))
    return tmp_path / 'data'


def zipped(folder, prefix=''):
    path = folder.parent / f'data{len(prefix)}.zip'
    with zipfile.ZipFile(path, 'w') as archive:
        for file in sorted(folder.rglob('*.png')):
            archive.write(file, prefix + file.relative_to(folder).as_posix())
    return path


def test_folder_and_zip_give_the_same(folder):
    a, b = ImageClassification(folder), ImageClassification(zipped(folder))
    inner = ImageClassification(zipped(folder, 'set/train/'), part='set/train')
    assert len(a) == len(b) == len(inner) == 15
    assert a.metainfo['classes'] == tuple(CLASSES)
    b = pickle.loads(pickle.dumps(b))  # as for a worker process
    for i in range(15):
        for data in (a, b, inner):
            item = data[i]
            assert item['data_samples'].gt_label == i // 5 == data.labels[i]
            assert torch.equal(item['inputs'], torch.from_numpy(picture(10 * (i // 5) + i % 5)).permute(2, 0, 1))
    assert a[7]['data_samples'].img_path.endswith('cat/2.png')


@pytest.mark.parametrize('kind', ['cifar-10', 'cifar-100'])
def test_cifars_binary_files(tmp_path, kind):
    draws = np.random.default_rng(0)
    count, before = (10, 1) if kind == 'cifar-10' else (100, 2)
    pixels = draws.integers(256, size=(2 * count, 3, 32, 32), dtype=np.uint8)
    labels = np.arange(2 * count) % count
    extra = np.full((2 * count, before - 1), 7)
    records = np.concatenate([extra, labels[:, None], pixels.reshape(2 * count, -1)], 1).astype(np.uint8)
    if kind == 'cifar-10':
        for i in range(5):
            records[4 * i : 4 * i + 4].tofile(tmp_path / f'data_batch_{i + 1}.bin')
        names = tmp_path / 'batches.meta.txt'
    else:
        records.tofile(tmp_path / 'train.bin')
        names = tmp_path / 'fine_label_names.txt'
    names.write_text('\n'.join(f'name{i}' for i in range(count)) + '\n\n')
    data = ImageClassification(tmp_path, part='train')
    assert data.metainfo['classes'][3] == 'name3' and len(data) == 2 * count
    for i in (0, 5, 2 * count - 1):  # the file has red, green, blue; items are BGR
        assert torch.equal(data[i]['inputs'], torch.from_numpy(pixels[i][::-1].copy()))
        assert data[i]['data_samples'].gt_label == i % count
    with pytest.raises(FileNotFoundError, match='test.*missing'):
        ImageClassification(tmp_path, part='test')
    with pytest.raises(ValueError, match="allowed: 'train', 'test'"):
        ImageClassification(tmp_path)
    first = tmp_path / ('data_batch_1.bin' if kind == 'cifar-10' else 'train.bin')
    first.write_bytes(first.read_bytes()[:-5])
    with pytest.raises(ValueError, match='no whole number of images.*cut short'):
        ImageClassification(tmp_path, part='train')


def test_pickled_cifar_is_not_opened(tmp_path):
    (tmp_path / 'data_batch_1').write_bytes(b'')
    with pytest.raises(ValueError, match='pickles.*binary version'):
        ImageClassification(tmp_path, part='train')


def test_splits_and_subsets(folder):
    train, val = ImageClassification(folder, last=3), ImageClassification(folder, first=3)
    assert train.numbers == [0, 1, 2, 5, 6, 7, 10, 11, 12] and val.numbers == [3, 4, 8, 9, 13, 14]
    for seed in range(5):
        sets = [set(ImageClassification(folder, num_labels=n, subset_seed=seed).numbers) for n in range(3, 16)]
        assert all(a < b for a, b in zip(sets, sets[1:]))
        for n, chosen in zip(range(3, 16), sets):
            counts = np.bincount([i // 5 for i in chosen], minlength=3)
            assert len(chosen) == n and counts.max() - counts.min() <= 1
    drawn = {tuple(ImageClassification(folder, num_labels=6, subset_seed=s).numbers) for s in range(8)}
    assert len(drawn) > 4


def test_transforms_are_torchvisions(folder):
    data = ImageClassification(
        folder, size=(8, 12), transforms=[dict(type='RandomHorizontalFlip', p=1.0), dict(type='Pad', padding=1)]
    )
    image = torch.from_numpy(picture(0)).permute(2, 0, 1)
    resized = torch.nn.functional.interpolate(image[None].float(), (8, 12), mode='bilinear', antialias=True)[0].round().byte()
    got = data[0]['inputs']
    assert got.shape == (3, 10, 14) and data[0]['data_samples'].img_shape == (10, 14)
    assert (got[:, 1:-1, 1:-1].int() - resized.flip(-1).int()).abs().max() <= 1
    crop = ImageClassification(folder, transforms=[dict(type='RandomCrop', size=4)])
    torch.manual_seed(0)
    a = crop[0]['inputs']
    torch.manual_seed(0)
    assert torch.equal(a, crop[0]['inputs'])
    assert ImageClassification(folder, short_side=16)[0]['inputs'].shape == (3, 16, 20)


def test_wrong_data_are_refused_by_name(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match='no such folder or zip file'):
        ImageClassification(tmp_path / 'nowhere')
    for kwargs, message in (
        (dict(part='val'), "holds no images below 'val/'"),
        (dict(first=5), "class 'bird' of .* has 5 images, none of them from number 5"),
        (dict(num_labels=2), 'num_labels=2 was asked of 15 images of 3 classes; allowed: 3 to 15'),
        (dict(num_labels=16), 'allowed: 3 to 15'),
        (dict(transforms=[dict(type='Flip')]), 'torchvision.transforms.v2'),
        (dict(classes=['a']), 'classes names 1, and .* has 3'),
    ):
        with pytest.raises(ValueError, match=message):
            ImageClassification(folder, **kwargs)
    (folder / 'cow').mkdir()
    with pytest.raises(ValueError, match=r"the class folder\(s\) \['cow'\] hold no image"):
        ImageClassification(folder)
    path = zipped(folder)
    with zipfile.ZipFile(path, 'a') as archive:
        archive.writestr('cow/', '')
    with pytest.raises(ValueError, match='cow'):
        ImageClassification(path)
    (folder / 'cow').rmdir()
    (folder / 'stray.png').write_bytes((folder / 'cat' / '0.png').read_bytes())
    with pytest.raises(ValueError, match='lie in no class folder, for example stray.png'):
        ImageClassification(folder)
    (folder / 'stray.png').unlink()
    (folder / 'cat' / '2.png').write_bytes(b'\x89PNG nothing')
    data = ImageClassification(folder)
    with pytest.raises(ValueError, match=r'cat/2.png is not a readable image'):
        data[7]
