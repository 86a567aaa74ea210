"""DiT: images that are no squares, classes, positions, folders."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file

from mmdiffrep.diffusion.condition import Condition
from mmdiffrep.diffusion.dit import DiT
from mmdiffrep.diffusion.weights import WeightFile

pytestmark = pytest.mark.usefixtures('traces_once')


@pytest.fixture(scope='module')
def dit(small_dit_config):
    return DiT(config=small_dit_config)


@pytest.fixture(scope='module')
def folder(small_dit_config, tmp_path_factory):
    """A DiT pipeline's folder, without its pipeline."""
    import diffusers

    path = tmp_path_factory.mktemp('dit')
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        network = diffusers.DiTTransformer2DModel.from_config(small_dit_config['transformer'])
        vae = diffusers.AutoencoderKL.from_config(small_dit_config['vae'])
    network.save_pretrained(path / 'transformer')
    vae.save_pretrained(path / 'vae')
    diffusers.DDIMScheduler(beta_schedule='linear').save_pretrained(path / 'scheduler')
    return path


def batch(n=2, size=(8, 12), seed=1):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 4, *size, generator=g), torch.randint(1000, (n,), generator=g)


def positions(h, w, channels, base):
    """Sine-cosine positions (h, w, D) by hand: half of the channels tell x, half tell y, in units of the training size."""
    table = torch.zeros(h, w, channels, dtype=torch.float64)
    quarter = channels // 4
    for y in range(h):
        for x in range(w):
            for half, place in enumerate((x * base / w, y * base / h)):
                for k in range(quarter):
                    angle = place / 10000 ** (k / quarter)
                    table[y, x, half * 2 * quarter + k] = math.sin(angle)
                    table[y, x, half * 2 * quarter + quarter + k] = math.cos(angle)
    return table.float()


def slow(network, x, t, ids):
    """Block by block over tokens laid out by hand -> the maps behind each block, and behind the last layer."""
    n, _, height, width = x.shape
    h, w = height // 2, width // 2
    weight, bias = network.pos_embed.proj.weight, network.pos_embed.proj.bias
    tokens = torch.stack([
        torch.stack([
            (x[:, None, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2] * weight).sum((2, 3, 4)) + bias for j in range(w)
        ], 1)
        for i in range(h)
    ], 1)  # fmt: skip
    hidden = (tokens + positions(h, w, tokens.shape[-1], 4)).flatten(1, 2)
    maps = []
    for block in network.transformer_blocks:
        hidden = block(hidden, timestep=t, class_labels=ids)
        maps.append(hidden)
    condition = network.transformer_blocks[0].norm1.emb(t, ids, hidden_dtype=hidden.dtype)
    shift, scale = network.proj_out_1(torch.nn.functional.silu(condition)).chunk(2, 1)
    maps.append(
        network.proj_out_2(network.norm_out(hidden) * (1 + scale[:, None]) + shift[:, None])
    )
    return [m.reshape(n, h, w, -1).permute(0, 3, 1, 2) for m in maps]


TAPS = [f'transformer_blocks.{k}' for k in range(3)] + ['proj_out_2']


# 16 tokens; 4 × 16, which diffusers un-patchifies as 8 × 8; 4 × 6 and 5 × 1, of which it makes other images or none
@pytest.mark.parametrize('size', [(8, 8), (8, 32), (8, 12), (10, 2)])
def test_any_shape_is_laid_out_as_it_is(dit, size):
    x, t = batch(size=size)
    ids = torch.tensor([3, 10])
    found = dit.features(x, t, Condition(class_ids=ids), TAPS)
    infos = dit.tap_info((2 * size[0], 2 * size[1]))  # a whole pass, which no tap ends
    assert [(infos[tap].channels, infos[tap].stride) for tap in TAPS] == [(12, 4)] * 3 + [(32, 4)]
    for tap, expected in zip(TAPS, slow(dit.transformer, x, t, ids)):
        assert found[tap].shape[-2:] == (size[0] // 2, size[1] // 2)
        torch.testing.assert_close(found[tap], expected, rtol=1e-4, atol=1e-5)


def test_diffusers_own_forward_does_not_do_it(dit):
    """If this fails, diffusers keeps the shape itself, and the stop in front of its un-patchify can go."""
    x, t = batch(size=(8, 32))
    ids = torch.tensor([3, 10])
    assert dit.transformer(x, timestep=t, class_labels=ids).sample.shape[-2:] == (16, 16)
    with pytest.raises(RuntimeError, match='invalid for input of size'):
        dit.transformer(x[:1, :, :, :12], timestep=t[:1], class_labels=ids[:1])
    # two images of 24 tokens become three of 16
    assert len(dit.transformer(x[..., :12], timestep=t, class_labels=ids).sample) == 3


def test_where_things_are_follows_the_image(dit):
    """A change in one patch of the input appears at its own place."""
    x, t = batch(1, (8, 32))
    other = x.clone()
    other[..., 2:4, 20:22] += 1  # token (1, 10)
    a, b = (dit.features(v, t, taps=['pos_embed'])['pos_embed'] for v in (x, other))
    changed = (a != b).any(1)[0].nonzero().tolist()
    assert changed == [[1, 10]]


# ---- classes --------------------------------------------------------------------------------------------------


def test_the_null_class_is_the_default(dit):
    x, t = batch()
    silent = dit.features(x, t, taps=TAPS)
    for condition in (Condition(), Condition(class_ids=torch.tensor([10, 10]))):
        told = dit.features(x, t, condition, TAPS)
        assert all(torch.equal(silent[tap], told[tap]) for tap in TAPS)
    other = dit.features(x, t, Condition(class_ids=torch.tensor([10, 4])), TAPS)
    assert torch.equal(other['proj_out_2'][0], silent['proj_out_2'][0])
    assert not torch.equal(other['proj_out_2'][1], silent['proj_out_2'][1])


@pytest.mark.parametrize('ids', [[11, 0], [-1, 0]])
def test_unknown_classes_are_refused(dit, ids):
    x, t = batch()
    with pytest.raises(
        ValueError, match=r'class ids \[.*\] are unknown; allowed: 0 to 10 \(the null class\)'
    ):
        dit.features(x, t, Condition(class_ids=torch.tensor(ids)), TAPS)


def test_what_a_dit_cannot_be_told(dit):
    x, t = batch()
    for name, value in dict(tokens=torch.zeros(1, 4, 12), time_bias=torch.zeros(1, 12)).items():
        with pytest.raises(
            ValueError,
            match=rf"DiT cannot be told \['{name}'\]: of a condition it takes \['class_ids'\]",
        ):
            dit.features(x, t, Condition(**{name: value}), TAPS)
    with pytest.raises(ValueError, match='DiT takes no text'):
        dit.encode_text(['a photo'])
    assert dit.condition_channels() == {}


def test_no_label_is_dropped_in_training(small_dit):
    denoiser = small_dit()
    x, t = batch(64, (4, 4))
    ids = torch.arange(64) % 10
    expected = denoiser.features(x, t, Condition(class_ids=ids), TAPS)
    denoiser.transformer.train()
    for _ in range(3):
        found = denoiser.features(x, t, Condition(class_ids=ids), TAPS)
        assert all(torch.equal(found[tap], expected[tap]) for tap in TAPS)


# ---- files ----------------------------------------------------------------------------------------------------


def test_folder(folder, small_dit_config):
    from diffusers import AutoencoderKL, DiTTransformer2DModel

    denoiser = DiT(str(folder))
    assert denoiser.fingerprint.startswith('sha256:') and not any(
        p.is_meta for p in denoiser.parameters()
    )
    assert not any(b.is_meta for b in denoiser.buffers())  # the positions are in no file
    network = DiTTransformer2DModel.from_pretrained(folder / 'transformer')
    assert torch.equal(denoiser.transformer.pos_embed.pos_embed, network.pos_embed.pos_embed)
    wide, t = batch(size=(8, 32))
    ids = torch.tensor([3, 10])
    for x in (wide, wide[..., :8]):  # the table itself is used where it is square
        for tap, expected in zip(TAPS, slow(network, x, t, ids)):
            found = denoiser.features(x, t, Condition(class_ids=ids), [tap])[tap]
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    image = torch.rand(1, 3, 16, 16)
    vae = AutoencoderKL.from_pretrained(folder / 'vae')
    assert torch.equal(denoiser.encode(image), vae.encode(image).latent_dist.mean * 0.18215)
    random = DiT(str(folder), random_seed=5)
    assert (
        random.fingerprint.startswith('random:5:')
        and random.transformer.config == denoiser.transformer.config
    )
    assert not torch.equal(
        random.transformer.proj_out_1.weight, denoiser.transformer.proj_out_1.weight
    )


def test_folder_of_early_diffusers(folder, tmp_path):
    """facebook/DiT-XL-2-256 names the class that DiT had before it had its own."""
    import shutil

    shutil.copytree(folder, tmp_path / 'early')
    file = tmp_path / 'early' / 'transformer' / 'config.json'
    config = json.loads(file.read_text())
    config.update(
        _class_name='Transformer2DModel',
        cross_attention_dim=None,
        num_vector_embeds=None,
        double_self_attention=False,
    )
    file.write_text(json.dumps(config))
    early, denoiser = DiT(str(tmp_path / 'early')), DiT(str(folder))
    assert early.fingerprint == denoiser.fingerprint
    x, t = batch()
    found = early.features(x, t, taps=TAPS)
    assert all(torch.equal(v, found[k]) for k, v in denoiser.features(x, t, taps=TAPS).items())


def test_only_kept_weights_are_read(folder, monkeypatch):
    read, original = [], WeightFile.read
    monkeypatch.setattr(
        WeightFile, 'read', lambda self, key: read.append(key) or original(self, key)
    )
    denoiser = DiT(str(folder), keep_taps=['transformer_blocks.1'])
    assert len(denoiser.transformer.transformer_blocks) == 2
    stored = load_file(folder / 'transformer' / 'diffusion_pytorch_model.safetensors')
    assert any('transformer_blocks.2' in key for key in stored)
    assert not any(
        key.startswith(('transformer_blocks.2', 'proj_out', 'decoder', 'post_quant'))
        for key in read
    )
    assert len(read) == len(set(read)) == len(denoiser.transformer.state_dict())
    read.clear()
    DiT(str(folder), keep_taps=['vae.encoder.down_blocks.0'])
    assert read and all(
        key.startswith(('encoder.conv_in', 'encoder.down_blocks.0')) for key in read
    )


def test_what_is_no_dit(folder, tmp_path, small_sd_config):
    with pytest.raises(
        ValueError, match='holds a UNet2DConditionModel; DiT takes a DiTTransformer2DModel'
    ):
        DiT(config=dict(small_sd_config, transformer=small_sd_config['unet']))
    with pytest.raises(
        ValueError, match=r"config lacks \['transformer'\]; it has \['scheduler', 'unet', 'vae'\]"
    ):
        DiT(config=small_sd_config)
    with pytest.raises(ValueError, match=r"give pretrained=.* or config=.*'dit-xl-2-256'"):
        DiT()
    (tmp_path / 'DiT-XL-2-256x256.pt').write_bytes(b'')
    with pytest.raises(
        ValueError,
        match='is a single file; single files are read of Stable Diffusion only. Give a folder',
    ):
        DiT(str(tmp_path / 'DiT-XL-2-256x256.pt'))
    with pytest.raises(
        FileNotFoundError, match=r"lacks \['transformer/config.json', 'vae/config.json'"
    ):
        DiT(str(tmp_path))
    with pytest.raises(
        ValueError, match='is a folder, which says its own architecture: leave config='
    ):
        DiT(str(folder), config='dit-xl-2-256')


def test_the_shipped_architectures_are_the_published_ones():
    """Depth, width and number of weights of DiT-XL/2 (Peebles and Xie, table 1: 675M)."""
    from diffusers import DiTTransformer2DModel

    from mmdiffrep.diffusion.model_files import checked_config, named_config

    for name, side in (('dit-xl-2-256', 32), ('dit-xl-2-512', 64)):
        config = checked_config(DiTTransformer2DModel, named_config(name)['transformer'])
        assert config['sample_size'] == side and config['num_layers'] == 28
        with torch.device('meta'):
            block = DiTTransformer2DModel.from_config(
                dict(config, num_layers=1)
            ).transformer_blocks[0]
        # diffusers repeats the time and class embedding in every block; only one of them is DiT's
        own = sum(p.numel() for n, p in block.named_parameters() if not n.startswith('norm1.emb'))
        assert abs(28 * own - 669e6) < 1e6
