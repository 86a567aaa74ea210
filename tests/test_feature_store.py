"""FeatureStore: what is read is what was computed, or it is computed anew."""

import itertools
import multiprocessing
import os
import random
import re
import signal
import time
import warnings

import pytest
import torch
import torch.nn.functional as F

from mmdiffrep.diffusion.feature_store import FeatureStore, content_key
from mmdiffrep.diffusion.shards import MAGIC, STEP

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
        assert [p.suffix for p in folder.iterdir()] == ['.shard']


def test_maps_of_another_network_precision_or_image_are_others(tmp_path):
    fill(FeatureStore('net', tmp_path))
    for other in (FeatureStore('other net', tmp_path), FeatureStore('net', tmp_path, 'fp32')):
        assert fill(other).computed == 2
    store = FeatureStore('net', tmp_path)
    store.add('image 7', SIZE, lambda: maps(7))
    assert store.computed == 1


def test_what_is_damaged_is_computed_anew_and_the_rest_is_used(tmp_path):
    store = fill(FeatureStore('net', tmp_path), 3)
    wanted = store.sample(*asked())
    [path] = tmp_path.iterdir()
    whole = path.read_bytes()
    begins = [m.start() for m in re.finditer(MAGIC, whole)]
    assert len(begins) == 3 and not any(begin % STEP for begin in begins)
    cases = dict(
        content=(begins[1] - 200, 'SHA-256', 1), header=(begins[1] + 30, 'damaged', 1), json=(begins[1] + 92, 'damaged', 1), magic=(begins[0], 'damaged', 1),
        length=(begins[1] + 16, 'damaged', 1), crc=(begins[2] + 9, 'cut short', 1),
    )  # fmt: skip
    for case, (place, said, lost) in cases.items():
        content = bytearray(whole)
        content[place] ^= 4
        path.write_bytes(content)
        with pytest.warns(UserWarning, match=said):
            again = fill(FeatureStore('net', tmp_path), 3)
        assert again.computed == lost and torch.equal(again.sample(*asked()), wanted), case
        again.close()
        with warnings.catch_warnings():  # what was computed anew is found, beside the damaged file
            warnings.simplefilter('ignore')
            assert fill(FeatureStore('net', tmp_path), 3).computed == 0
        for other in set(tmp_path.iterdir()) - {path}:
            other.unlink()


def test_a_file_cut_anywhere_gives_what_is_whole(tmp_path):
    fill(FeatureStore('net', tmp_path), 3)
    [path] = tmp_path.iterdir()
    whole = path.read_bytes()
    ends = [*[m.start() for m in re.finditer(MAGIC, whole)][1:], len(whole)]
    for length in (0, 3, 88, 200, *(end - 1 for end in ends), *ends):
        path.write_bytes(whole[:length])
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            store = FeatureStore('net', tmp_path)
        # an entry's last bytes may be padding
        assert 0 <= len(store.shards.records) - sum(end <= length for end in ends) <= 1
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            fill(store, 3)
        check(store, 3)
        for other in set(tmp_path.iterdir()) - {path}:
            other.unlink()


def check(store, count):
    """Every image's maps are its own."""
    for i in range(count):
        for kept, m in zip(store.images[i].maps, maps(i), strict=True):
            assert torch.equal(kept, m[0].permute(1, 2, 0).half())


def test_every_flipped_byte_is_seen(tmp_path):
    fill(FeatureStore('net', tmp_path), 1)
    [path] = tmp_path.iterdir()
    whole = path.read_bytes()
    for place in itertools.chain(range(0, len(whole), 37), range(100)):
        content = bytearray(whole)
        content[place] ^= 1 << place % 8
        path.write_bytes(content)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            again = FeatureStore('net', tmp_path)
            number = again.find('image 0', SIZE)
        if number is not None:  # the padding decides nothing
            assert whole[place] == 0, place
            check(again, 1)


def test_an_entry_of_another_backbone_is_not_used(tmp_path):
    fill(FeatureStore('other net', tmp_path / 'other'))
    [foreign] = (tmp_path / 'other').iterdir()
    store = FeatureStore('net', tmp_path / 'maps')
    fill(store)
    [own] = (tmp_path / 'maps').iterdir()
    foreign.rename(own)
    with pytest.warns(UserWarning, match='of another backbone; that is not used'):
        again = fill(FeatureStore('net', tmp_path / 'maps'))
    assert again.computed == 2


def test_another_size_of_the_same_content_is_another_image(tmp_path):
    store = fill(FeatureStore('net', tmp_path), 1)
    assert store.find('image 0', (13, 9)) is None and store.find('image 0', SIZE) == 1


def write_on(folder, first, ready):
    store = FeatureStore('net', folder)
    store.shards.shard_bytes = 20000
    ready.set()
    for i in itertools.count(first):
        store.add(f'image {i % 40}', SIZE, lambda i=i: maps(i % 40))
        if i % 7 == 0:
            store = FeatureStore('net', folder)


def test_killed_fifty_times_while_writing_nothing_wrong_is_read(tmp_path):
    processes = multiprocessing.get_context('fork')
    draws = random.Random(0)
    complete = 0
    for number in range(50):
        ready = processes.Event()
        writers = [processes.Process(target=write_on, args=(tmp_path, draws.randrange(40), ready)) for _ in range(1 + number % 2)]
        for writer in writers:
            writer.start()
        assert ready.wait(20)
        time.sleep(draws.random() * 0.03)
        for writer in writers:
            os.kill(writer.pid, signal.SIGKILL)
            writer.join()
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            store = FeatureStore('net', tmp_path)
            found = 0
            for i in range(40):
                if (place := store.find(f'image {i}', SIZE)) is not None:
                    found += 1
                    for kept, m in zip(store.images[place].maps, maps(i), strict=True):
                        assert torch.equal(kept, m[0].permute(1, 2, 0).half())
        assert found >= complete  # nothing is lost
        complete = found
        if found == 40:
            complete = 0
            for path in tmp_path.iterdir():
                path.unlink()


def fill_and_tell(folder, order, answers):
    store = FeatureStore('net', folder)
    for i in order:
        store.add(f'image {i}', SIZE, lambda i=i: (time.sleep(0.002), maps(i))[1])
    answers.put((store.computed, [[m.numpy().copy() for m in store.images[order.index(i)].maps] for i in range(30)]))


def test_two_processes_filling_at_once_agree_and_share_the_work(tmp_path):
    processes = multiprocessing.get_context('fork')
    answers = processes.SimpleQueue()
    orders = [list(range(30)), list(range(29, -1, -1))]
    writers = [processes.Process(target=fill_and_tell, args=(tmp_path, order, answers)) for order in orders]
    for writer in writers:
        writer.start()
    told = [answers.get() for _ in writers]
    for writer in writers:
        writer.join()
    assert all((a == b).all() for x, y in zip(told[0][1], told[1][1]) for a, b in zip(x, y))
    assert 30 <= told[0][0] + told[1][0] < 50  # each would compute 30 alone
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        later = fill(FeatureStore('net', tmp_path), 30)
    check(later, 30)
    assert later.computed == 0


def test_files_end_and_new_ones_begin(tmp_path):
    store = FeatureStore('net', tmp_path)
    store.shards.shard_bytes = 2000
    fill(store, 6)
    assert len(list(tmp_path.iterdir())) == 3
    check(store, 6)
    assert fill(FeatureStore('net', tmp_path), 6).computed == 0


def test_what_was_used_least_recently_makes_room(tmp_path):
    for k, mark in enumerate(('old', 'older', 'new')):
        store = fill(FeatureStore(mark, tmp_path), 4)
        store.close()
        [path] = {s.path for s in store.shards._shards.values()}
        os.utime(path, times=((1000, 500, 2000)[k],) * 2)
    size = path.stat().st_size
    names = {p.name for p in tmp_path.iterdir()}
    limit = 3.6 * size / 2**30
    store = fill(FeatureStore('now', tmp_path, limit=limit), 4)  # the fourth of four files: one must go, and that is 'older'
    gone = names - {p.name for p in tmp_path.iterdir()}
    assert len(gone) == 1 and sum(p.stat().st_size for p in tmp_path.iterdir()) <= limit * 2**30
    for mark, computed in (('old', 0), ('new', 0), ('now', 0), ('older', 4)):
        assert fill(FeatureStore(mark, tmp_path), 4).computed == computed
    # what is in use is never evicted: the rest stays in memory
    with pytest.warns(UserWarning, match='has reached its limit of .* GiB with what is in use'):
        store = fill(FeatureStore('large', tmp_path, limit=1.5 * size / 2**30), 9)
    check(store, 9)
    assert sum(p.stat().st_size for p in tmp_path.iterdir()) <= 1.5 * size
    with pytest.raises(ValueError, match='limit=0'):
        FeatureStore('net', tmp_path, limit=0)


def test_a_failure_leaves_no_entry(tmp_path):
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


def test_a_full_disk_loses_the_entry_and_no_other(tmp_path, monkeypatch):
    store = fill(FeatureStore('net', tmp_path), 1)

    class Full:
        def __init__(self, file):
            self.file = file

        def write(self, part):
            self.file.write(bytes(part)[: len(part) // 2])
            raise OSError(28, 'No space left on device')

        def __getattr__(self, name):
            return getattr(self.file, name)

    store.shards._writer.file = Full(store.shards._writer.file)
    with pytest.raises(OSError, match='No space left'):
        store.add('image 1', SIZE, lambda: maps(1))
    fill_later = store.add('image 1', SIZE, lambda: maps(1))
    assert fill_later == 1
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        again = fill(FeatureStore('net', tmp_path), 2)
    assert again.computed == 0
    check(again, 2)


def test_an_image_is_named_by_its_content():
    image = torch.rand(3, 4, 6)
    assert content_key(image) == content_key(image.clone()) != content_key(image.flip(0))
    assert content_key(image) != content_key(image.view(3, 6, 4))
