"""CachedBackbone: the backbone's maps, each image's computed once; TimmBackbone: stock networks."""

import copy
import warnings

import pytest
import timm
import torch
from safetensors.torch import save_file

import mmdiffrep  # noqa: F401
from mmdiffrep.registry import MODELS


def cached(tiny_config, inner=None, **kwargs):
    backbone = dict(
        type='mmdiffrep.DiffusionBackbone', denoiser=dict(type='mmdiffrep.PixelUNet', config=tiny_config, random_seed=0),
        taps=['mid_block', 'up_blocks.1'], timesteps=[10, 100], image_mean=[0] * 3, image_std=[1] * 3,
    ) | (inner or {})  # fmt: skip
    return MODELS.build(dict(type='mmdiffrep.CachedBackbone', backbone=backbone, **kwargs))


@pytest.fixture
def images():
    return torch.randint(0, 256, (5, 3, 16, 24), generator=torch.Generator().manual_seed(0)).float()


def close(first, second):
    """Up to half precision, of other batches."""
    return all(torch.allclose(a, b, atol=2e-3 * a.abs().max()) for a, b in zip(first, second))


def counted(model):
    """How many images the inner backbone has looked at."""
    seen, forward = [], model.backbone.forward
    model.backbone.forward = lambda x: (seen.append(len(x)), forward(x))[1]
    return seen


def test_the_same_maps_once_an_image(tiny_config, images):
    model = cached(tiny_config, dtype='fp32').train()
    seen = counted(model)
    plain = model.backbone.forward(images)
    seen.clear()
    order = torch.tensor([3, 0, 3, 4])
    got = model(images[order])
    assert sum(seen) == 3
    again = model(images)
    assert sum(seen) == 5 and not model.backbone.training
    assert sum(map(len, [model(images)])) == 4 and sum(seen) == 5
    for a, b, c in zip(got, again, plain):
        assert torch.equal(a, b[order]) and torch.allclose(b, c, atol=1e-5)
    assert model.out_channels == model.backbone.out_channels and len(model.timesteps) == 2
    half = cached(tiny_config)(images)
    for a, c in zip(half, plain):
        assert a.dtype == torch.float32 and torch.allclose(a, c, atol=2e-3 * c.abs().max())
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert all(torch.equal(a, b) for a, b in zip(half, cached(tiny_config)(images)))


def test_a_folder_serves_later_runs_of_the_same_backbone(tiny_config, images, tmp_path):
    first = cached(tiny_config, folder=tmp_path)
    maps = first(images)
    later = cached(tiny_config, folder=tmp_path)
    seen = counted(later)
    assert all(torch.equal(a, b) for a, b in zip(maps, later(images))) and not seen
    other = cached(tiny_config, dict(noise=dict(kind='shared', seed=1)), folder=tmp_path)
    seen = counted(other)
    other(images)
    assert sum(seen) == 5
    for file in tmp_path.glob('*.shard'):
        file.write_bytes(file.read_bytes()[:-77])
    damaged = cached(tiny_config, folder=tmp_path)
    seen = counted(damaged)
    with pytest.warns(UserWarning, match='cut short.*that is not used'):
        again = damaged(images)
    assert close(maps, again) and sum(seen) == 1


def test_what_another_process_evicts_is_looked_at_again(tiny_config, images, tmp_path):
    model = cached(tiny_config, folder=tmp_path)
    maps = model(images)
    model.store.close()
    for file in tmp_path.glob('*.shard'):
        file.unlink()
    seen = counted(model)
    assert close(maps, model(images)) and sum(seen) == 5
    assert close(maps, model(images)) and sum(seen) == 5


INGREDIENTS = {
    'taps': dict(taps=['mid_block', 'up_blocks.0']), 'their order': dict(taps=['up_blocks.1', 'mid_block']), 'timesteps': dict(timesteps=[10, 101]),
    'the seed of the noise': dict(noise=dict(seed=1)), 'its kind': dict(noise=dict(kind='per_image')), 'no noise': dict(noise=dict(kind='none')),
    'its draws': dict(noise=dict(draws=2)), 'mean': dict(image_mean=[1, 0, 0]), 'std': dict(image_std=[2, 1, 1]), 'order of channels': dict(bgr=True),
    'windows': dict(windows=dict(size=16)), 'precision of the network': dict(dtype='bf16'),
}  # fmt: skip


@pytest.mark.parametrize('name', [*INGREDIENTS, 'weights', 'a weight in memory', 'schedule', 'a version', 'precision kept', 'the image'])
def test_any_other_ingredient_is_another_entry(name, tiny_config, images, tmp_path, monkeypatch):
    cached(tiny_config, folder=tmp_path)(images[:2])
    again = cached(tiny_config, folder=tmp_path)
    seen = counted(again)
    again(images[:2])
    assert not seen
    denoiser = dict(type='mmdiffrep.PixelUNet', config=tiny_config, random_seed=0)
    inner, outer, asked = INGREDIENTS.get(name, {}), {}, images[:2]
    if name == 'weights':
        inner = dict(denoiser=dict(denoiser, random_seed=1))
    elif name == 'schedule':
        inner = dict(denoiser=dict(denoiser, schedule=dict(_class_name='DDPMScheduler', beta_end=0.03)))
    elif name == 'precision kept':
        outer = dict(dtype='fp32')
    elif name == 'a version':
        monkeypatch.setattr('mmdiffrep.models.kept_features.metadata.version', lambda name: '99')
    elif name == 'the image':
        asked = asked.clone()
        asked[:, 0, 0, 0] += 1
    other = cached(tiny_config, inner, folder=tmp_path, **outer)
    if name == 'a weight in memory':
        with torch.no_grad():
            next(other.backbone.denoiser.parameters()).view(-1)[0] += 1e-3
    seen = counted(other)
    other(asked)
    assert sum(seen) == 2


def test_a_text_is_an_ingredient(small_sd_config, images, tmp_path):
    def looked(class_names):
        denoiser = dict(type='mmdiffrep.StableDiffusion', config=small_sd_config, random_seed=0, class_names=class_names)
        backbone = dict(
            type='mmdiffrep.DiffusionBackbone', denoiser=denoiser, taps=['mid_block'], image_mean=[0] * 3, image_std=[1] * 3,
        )  # fmt: skip
        model = MODELS.build(dict(type='mmdiffrep.CachedBackbone', backbone=backbone, folder=str(tmp_path)))
        seen = counted(model)
        model(images[:1])
        return sum(seen)

    assert [looked(['a']), looked(['a']), looked(['a', 'b'])] == [1, 0, 1]


def test_memory_is_bounded(tiny_config, images):
    free = cached(tiny_config)
    free(images)
    model = cached(tiny_config, memory=2.5 * free.store.bytes / 5 / 2**30)
    seen = counted(model)
    with pytest.warns(UserWarning, match='keeps 2 images'):
        whole = model(images)
    with warnings.catch_warnings():
        warnings.simplefilter('error')  # said once
        again = model(images)
    assert len(model.store) == 2 and sum(seen) == 5 + 3
    assert close(whole, again)


def test_what_changes_is_not_kept(tiny_config, images):
    for inner, message in (
        (dict(noise=dict(kind='fresh')), "noise=dict.kind='fresh'.*a CachedBackbone's are computed once"),
        (dict(trainable=True), 'trained parameters'),
        (dict(adapter=dict(type='mmdiffrep.StridePyramid', out_channels=8)), 'trained parameters'),
    ):
        with pytest.raises(ValueError, match=message):
            cached(tiny_config, inner)(images)
    with pytest.raises(ValueError, match="dtype='int8'"):
        cached(tiny_config, dtype='int8')


def test_copies_do_not_carry_the_maps(tiny_config, images):
    model = cached(tiny_config)
    model(images)
    assert copy.deepcopy(model).store is None and len(model.store) == 5


def test_checkpoints_fit_with_and_without_a_cache(tiny_config, images):
    model = cached(tiny_config, adapter=dict(type='mmdiffrep.LayerMixing', out_channels=8, groups=2))
    plain = MODELS.build(
        dict(
            type='mmdiffrep.DiffusionBackbone', denoiser=dict(type='mmdiffrep.PixelUNet', config=tiny_config, random_seed=0),
            taps=['mid_block', 'up_blocks.1'], timesteps=[10, 100], adapter=dict(type='mmdiffrep.LayerMixing', out_channels=8, groups=2),
            image_mean=[0] * 3, image_std=[1] * 3,
        )
    )  # fmt: skip
    assert plain.load_state_dict(model.state_dict()) and model.load_state_dict(plain.state_dict())
    assert model.state_dict().keys() == plain.state_dict().keys() and 'holder.frozen_digest' in model.state_dict()
    with torch.no_grad():
        assert close(model(images), plain(images))
    other = cached(tiny_config, dict(denoiser=dict(type='mmdiffrep.PixelUNet', config=tiny_config, random_seed=1)))
    with pytest.raises(ValueError, match='other frozen diffusion weights'):
        model.load_state_dict(other.state_dict(), strict=False)
    stock = MODELS.build(dict(type='mmdiffrep.CachedBackbone', backbone=dict(type='mmdiffrep.TimmBackbone', model='resnet10t', frozen=True)))
    assert stock.load_state_dict(timm_backbone('resnet10t').state_dict())


def timm_backbone(model='resnet18', **kwargs):
    return MODELS.build(dict(type='mmdiffrep.TimmBackbone', model=model, **kwargs))


def test_stock_networks():
    small = timm_backbone(small_images=True, out_indices=[1, 4])
    maps = small(torch.randn(2, 3, 32, 32))
    assert [m.shape[1] for m in maps] == small.out_channels == [64, 512]
    assert [32 // m.shape[-1] for m in maps] == small.out_strides == [1, 8]
    laid = timm_backbone(small_images=True, out_indices=[1, 4], channels_last=True)
    laid.load_state_dict(small.state_dict())
    image = torch.randn(2, 3, 32, 32)
    for a, b in zip(small.eval()(image), laid.eval()(image)):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    assert laid(image)[0].is_contiguous(memory_format=torch.channels_last)
    plain = timm_backbone()
    assert plain(torch.randn(2, 3, 64, 64))[0].shape == (2, 512, 2, 2) and plain.out_strides == [32]
    vit = timm_backbone('vit_tiny_patch16_224', model_args=dict(img_size=64, patch_size=8))
    assert vit(torch.randn(2, 3, 64, 64))[0].shape == (2, 192, 8, 8)
    with pytest.raises(ValueError, match="'resnet1818' is no model of timm.*resnet"):
        timm_backbone('resnet1818')
    with pytest.raises(ValueError, match='small_images=True is for ResNets'):
        timm_backbone('vit_tiny_patch16_224', small_images=True)


def test_a_frozen_stock_network_stays_as_it_is():
    model = timm_backbone(frozen=True).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    out = model(torch.randn(2, 3, 32, 32))[0]
    assert not out.requires_grad and not any(p.requires_grad for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_weights_of_timms_from_a_file(tmp_path):
    torch.manual_seed(1)
    whole = timm.create_model('resnet18')
    save_file(whole.state_dict(), tmp_path / 'weights.safetensors')
    image = torch.randn(1, 3, 64, 64)
    want = whole.eval().forward_features(image)
    model = timm_backbone(checkpoint=str(tmp_path / 'weights.safetensors')).eval()
    assert torch.equal(model(image)[0], want) and not torch.equal(timm_backbone().eval()(image)[0], want)


def test_a_stock_network_whose_channels_lie_behind():
    """Swin's maps come as (B, h, w, C)."""
    model = timm_backbone('swin_tiny_patch4_window7_224', out_indices=(0, 3), model_args=dict(img_size=64))
    image = torch.randn(1, 3, 64, 64)
    maps = model.eval()(image)
    assert [tuple(m.shape) for m in maps] == [(1, 96, 16, 16), (1, 768, 2, 2)]
    assert [m.shape[1] for m in maps] == model.out_channels
    assert torch.equal(maps[1][0, :, 1, 0], model.net(image)[1][0, 1, 0])
