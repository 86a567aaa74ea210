"""Where weights come from, and what is said when they do not come."""

import hashlib
import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmdiffrep.diffusion import hashes, weights
from mmdiffrep.diffusion.pixel_unet import PixelUNet


def state_of(folder):
    return load_file(folder / 'unet' / 'diffusion_pytorch_model.safetensors')


def same(denoiser, state, tolerance=0):
    own = denoiser.unet.state_dict()
    assert set(own) <= set(state)
    for name, value in own.items():
        assert value.dtype == torch.float32 and value.device.type == 'cpu'
        torch.testing.assert_close(value, state[name].float(), rtol=tolerance, atol=tolerance)


def test_pipeline_folder_and_network_folder(tiny_folder):
    from diffusers import DDPMScheduler

    state = state_of(tiny_folder)
    prints = set()
    for path in (tiny_folder, tiny_folder / 'unet'):
        denoiser = PixelUNet(str(path))
        same(denoiser, state)
        assert denoiser.schedule.prediction == 'v_prediction'  # the pipeline's own schedule, both times
        expected = DDPMScheduler(beta_schedule='squaredcos_cap_v2').alphas_cumprod
        assert torch.equal(denoiser.schedule.alphas_cumprod, expected)
        assert len(denoiser.unet.state_dict()) == len(state)
        prints.add(denoiser.fingerprint)
    assert len(prints) == 1 and prints.pop().startswith('sha256:')


def test_network_folder_without_schedule(tiny_folder, tmp_path):
    shutil.copytree(tiny_folder / 'unet', tmp_path / 'net')
    denoiser = PixelUNet(str(tmp_path / 'net'))
    assert denoiser.schedule.prediction == 'epsilon' and len(denoiser.schedule) == 1000
    given = PixelUNet(str(tmp_path / 'net'), schedule=dict(_class_name='DDIMScheduler', prediction_type='sample'))
    assert given.schedule.prediction == 'sample'
    assert denoiser.fingerprint == PixelUNet(str(tiny_folder)).fingerprint  # content, not name


def store(folder, kind, state):
    name = 'diffusion_pytorch_model'
    if kind == 'fp16':
        save_file({k: v.half() for k, v in state.items()}, folder / f'{name}.fp16.safetensors')
    elif kind == 'bin':
        torch.save(state, folder / f'{name}.bin')
    else:
        keys = sorted(state)
        for i, part in enumerate((keys[::2], keys[1::2]), 1):
            save_file({k: state[k] for k in part}, folder / f'{name}-0000{i}-of-00002.safetensors')


@pytest.mark.parametrize('kind', ['fp16', 'bin', 'sharded'])
def test_other_ways_to_store(tiny_folder, tmp_path, kind):
    state = state_of(tiny_folder)
    shutil.copy(tiny_folder / 'unet' / 'config.json', tmp_path)
    store(tmp_path, kind, state)
    same(PixelUNet(str(tmp_path)), state, 1e-3 if kind == 'fp16' else 0)


def test_single_files(tiny_folder, tmp_path, tiny_config):
    state = state_of(tiny_folder)
    beside = tiny_folder / 'unet' / 'diffusion_pytorch_model.safetensors'
    denoiser = PixelUNet(str(beside))
    same(denoiser, state)
    assert denoiser.schedule.prediction == 'v_prediction'
    alone = tmp_path / 'alone.safetensors'
    save_file(state, alone)
    with pytest.raises(ValueError, match='single file without its architecture: put its config.json beside'):
        PixelUNet(str(alone))
    same(PixelUNet(str(alone), config=tiny_config), state)
    for wrapper in ('state_dict', 'ema', None):
        torch.save({wrapper: state, 'step': 3} if wrapper else state, tmp_path / 'w.pt')
        same(PixelUNet(str(tmp_path / 'w.pt'), config=tiny_config), state)


def test_attention_names_of_early_diffusers(tiny_folder, tmp_path):
    """Google's DDPM weights on the hub are in them; diffusers renames them when it loads."""
    from diffusers import UNet2DModel

    state = state_of(tiny_folder)
    old = {}
    for name, value in state.items():
        if '.attentions.' in name:
            for new, was in (('to_q', 'query'), ('to_k', 'key'), ('to_v', 'value'), ('to_out.0', 'proj_attn')):
                name = name.replace(f'.{new}.', f'.{was}.')
        old[name] = value
    assert set(old) != set(state)
    shutil.copy(tiny_folder / 'unet' / 'config.json', tmp_path)
    save_file(old, tmp_path / 'diffusion_pytorch_model.safetensors', metadata={'format': 'pt'})
    same(PixelUNet(str(tmp_path)), state)
    reference = UNet2DModel.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(reference[name], value) for name, value in state.items())


def test_only_kept_weights_are_read(tiny_folder, monkeypatch):
    read = []
    original = weights.WeightFile.read
    monkeypatch.setattr(weights.WeightFile, 'read', lambda self, key: read.append(key) or original(self, key))
    denoiser = PixelUNet(str(tiny_folder), keep_taps=['down_blocks.1'])
    assert set(read) == set(denoiser.unet.state_dict()) and not any('up_blocks' in key for key in read)
    assert not any(p.is_meta for p in denoiser.parameters())


@pytest.mark.skipif(not Path('/proc/self/maps').exists(), reason='reads which files are mapped from Linux')
def test_no_file_stays_mapped_in_memory(tmp_path):
    """Pages of a mapped file count as the process's memory: loading would seem to take the whole file."""
    file = tmp_path / 'model.safetensors'
    save_file({'a': torch.ones(1000, 1000), 'b': torch.zeros(10)}, str(file))
    reader = weights.WeightFile([file])
    assert reader.read('a').sum() == 1e6 and set(reader.keys()) == {'a', 'b'}
    assert str(file) not in Path('/proc/self/maps').read_text()


def test_architecture_of_weights_with_random_ones(tiny_folder):
    a, b = PixelUNet(str(tiny_folder), random_seed=0), PixelUNet(str(tiny_folder))
    assert a.unet.state_dict().keys() == b.unet.state_dict().keys()
    assert not torch.equal(a.unet.conv_in.weight, b.unet.conv_in.weight)
    assert a.schedule.prediction == b.schedule.prediction and a.fingerprint.startswith('random:0:')


class Bomb:
    def __reduce__(self):
        return (exec, ("raise SystemExit('the file was executed')",))


@pytest.mark.parametrize('suffix', ['pt', 'bin'])
def test_a_pickle_with_code_is_refused(tmp_path, tiny_config, suffix):
    file = tmp_path / f'evil.{suffix}'
    torch.save({'conv_in.weight': torch.zeros(1), 'x': Bomb()}, file)
    with pytest.raises(ValueError, match='evil.* holds more than weights: loading it could run code.*safetensors'):
        PixelUNet(str(file), config=tiny_config)
    file.write_bytes(pickle.dumps({'x': Bomb()}))  # not even torch's container
    with pytest.raises(ValueError, match='could run code|cannot be read'):
        PixelUNet(str(file), config=tiny_config)


def test_broken_files(tmp_path, tiny_folder, tiny_config):
    for name, data in (('a.safetensors', b'\x10\0\0\0\0\0\0\0nonsense'), ('a.pt', b''), ('b.pt', b'PK\3\4 cut off')):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=f'{name}.*(Is the download complete|could run code)'):
            PixelUNet(str(tmp_path / name), config=tiny_config)
    torch.save([torch.zeros(1)], tmp_path / 'list.pt')
    with pytest.raises(ValueError, match='holds a list; a dictionary of tensors is expected'):
        PixelUNet(str(tmp_path / 'list.pt'), config=tiny_config)
    shutil.copytree(tiny_folder / 'unet', tmp_path / 'net')
    (tmp_path / 'net' / 'config.json').write_text('{')
    with pytest.raises(ValueError, match='config.json is not valid JSON'):
        PixelUNet(str(tmp_path / 'net'))


def test_missing_things(tmp_path, tiny_folder):
    (tmp_path / 'other.pt').write_bytes(b'')
    with pytest.raises(FileNotFoundError, match=r"no such file or folder \(looked in .*other.pt.*Give a path, a hub id"):
        PixelUNet(str(tmp_path / 'weights.pt'))
    with pytest.raises(FileNotFoundError, match='no such model ships with this package. Shipped:'):
        PixelUNet('mmdiffrep/no-such-model')
    with pytest.raises(FileNotFoundError, match='no unet/config.json and no config.json'):
        PixelUNet(str(tmp_path))
    shutil.copy(tiny_folder / 'unet' / 'config.json', tmp_path)
    with pytest.raises(FileNotFoundError, match='has no weights: expected diffusion_pytorch_model.safetensors'):
        PixelUNet(str(tmp_path))
    config = json.loads((tmp_path / 'config.json').read_text())
    (tmp_path / 'config.json').write_text(json.dumps(dict(config, _class_name='UNet2DConditionModel')))
    with pytest.raises(ValueError, match='holds a UNet2DConditionModel; PixelUNet takes a UNet2DModel'):
        PixelUNet(str(tmp_path))


def test_unreachable_hub(monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
    with pytest.raises(FileNotFoundError, match=r"'nobody/no-such-net' is neither a file .*hub failed.*--local-dir"):
        PixelUNet('nobody/no-such-net')

    def silent(*_args, **_kwargs):
        raise ConnectionError()  # without a text

    monkeypatch.setattr(huggingface_hub, 'snapshot_download', silent)
    with pytest.raises(FileNotFoundError, match='hub failed .ConnectionError'):
        PixelUNet('nobody/no-such-net')


def test_hub_snapshot(monkeypatch, tiny_folder):
    """A stand-in for the hub: the snapshot's folder is what it gives."""
    import huggingface_hub

    asked = []
    monkeypatch.setattr(
        huggingface_hub, 'snapshot_download', lambda repo, **kw: asked.append((repo, kw)) or str(tiny_folder)
    )
    denoiser = PixelUNet('google/tiny@v2')
    assert asked[0][0] == 'google/tiny' and asked[0][1]['revision'] == 'v2'
    assert denoiser.fingerprint == PixelUNet(str(tiny_folder)).fingerprint


def test_weights_that_do_not_fit(tiny_folder, tmp_path, tiny_config):
    file = str(tiny_folder / 'unet' / 'diffusion_pytorch_model.safetensors')
    with pytest.raises(ValueError, match=r'conv_in.weight has shape \(8, 3, 3, 3\), the network .* needs \(16, 3, 3, 3\)'):
        PixelUNet(file, config=dict(tiny_config, block_out_channels=(16, 16, 16)))
    with pytest.raises(ValueError, match=r'lacks \d+ of \d+ weights of the network, for example \['):
        PixelUNet(file, config=dict(tiny_config, layers_per_block=2))


def test_loaded_weights_are_a_copy(tiny_folder, tmp_path, tiny_config):
    torch.save(state_of(tiny_folder), tmp_path / 'w.pt')
    before = hashes.file_sha256(tmp_path / 'w.pt')
    denoiser = PixelUNet(str(tmp_path / 'w.pt'), config=tiny_config)
    with torch.no_grad():
        for p in denoiser.parameters():
            p.zero_()
    assert hashes.file_sha256(tmp_path / 'w.pt') == before


# ---- hashes of large files ------------------------------------------------------------------------------------


@pytest.fixture
def read(monkeypatch, tmp_path):
    """Files that were read to be hashed; every file is a large one."""
    seen, plain = [], hashes.file_sha256
    monkeypatch.setattr(hashes, 'file_sha256', lambda path: seen.append(Path(path).name) or plain(path))
    monkeypatch.setattr(hashes, 'LARGE', 0)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    return seen


def test_a_large_file_is_hashed_once(read, tmp_path, monkeypatch):
    file = tmp_path / 'w.bin'
    file.write_bytes(b'one')
    want = hashlib.sha256(b'one').hexdigest()
    # it may still be written to
    assert hashes.known_sha256(file) == want == hashes.known_sha256(file) and len(read) == 2
    monkeypatch.setattr(hashes, 'SETTLED', -1)
    assert [hashes.known_sha256(file) for _ in range(3)] == [want] * 3 and len(read) == 3
    link = tmp_path / 'link.bin'
    link.symlink_to(file)
    assert hashes.known_sha256(link) == want and len(read) == 3
    # other content of the same size with the old time of change
    before = file.stat()
    file.write_bytes(b'two')
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert hashes.known_sha256(file) == hashlib.sha256(b'two').hexdigest() and len(read) == 4
    (note,) = (tmp_path / 'cache/mmdiffrep/hashes').iterdir()
    for broken in ('{', '[]', json.dumps(dict(json.loads(note.read_text()), sha256='0')), json.dumps(dict(json.loads(note.read_text()), path='/other'))):
        note.write_text(broken)
        assert hashes.known_sha256(file) == hashlib.sha256(b'two').hexdigest()
    assert len(read) == 8
    assert hashes.known_hashes([file, link, file]) == [hashlib.sha256(b'two').hexdigest()] * 3
    assert hashes.known_hashes([]) == []


def test_hashes_without_a_home_and_from_the_hubs_cache(read, tmp_path, monkeypatch):
    monkeypatch.setattr(hashes, 'SETTLED', -1)
    file = tmp_path / 'w.bin'
    file.write_bytes(b'one')
    (tmp_path / 'cache').write_text('a file in the way')
    assert hashes.known_sha256(file) == hashlib.sha256(b'one').hexdigest() == hashes.known_sha256(file) and len(read) == 2
    blob = tmp_path / 'models--org--name' / 'blobs' / ('ab' * 32)
    blob.parent.mkdir(parents=True)
    blob.write_bytes(b'weights')
    (tmp_path / 'snapshot.safetensors').symlink_to(blob)
    assert hashes.known_sha256(tmp_path / 'snapshot.safetensors') == 'ab' * 32 and len(read) == 2
    small = blob.with_name('cd' * 20)  # a small file's name is no SHA-256
    small.write_bytes(b'{}')
    assert hashes.known_sha256(small) == hashlib.sha256(b'{}').hexdigest()


def test_weights_are_copied_once_and_are_no_part_of_the_file(tmp_path):
    net = torch.nn.Linear(3, 2, device='meta')
    for dtype in (torch.float16, torch.float32):
        stored = dict(weight=torch.ones(2, 3, dtype=dtype), bias=torch.zeros(2, dtype=dtype))
        weights.fill(net, stored.__getitem__, set(stored), 'here')
        with torch.no_grad():
            net.weight.add_(1)
        assert net.weight.dtype == torch.float32 and bool((stored['weight'] == 1).all()) and bool((net.weight == 2).all())
