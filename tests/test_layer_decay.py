"""Layer-wise rates against lists made by hand; fine-tuning changes what is trained and nothing else."""

import pytest
import torch
from mmengine.optim import build_optim_wrapper

import mmdiffrep  # noqa: F401
from mmdiffrep.registry import MODELS
from mmdiffrep.structures import ClassSample

# the tiny U-Net up to the second of its up blocks, first to last
LAYERS = [
    'input', 'down_blocks.0.0', 'down_blocks.0.downsamplers', 'down_blocks.1.0', 'down_blocks.1.downsamplers', 'down_blocks.2.0',
    'mid_block', 'up_blocks.0.0', 'up_blocks.0.1', 'up_blocks.0.upsamplers', 'up_blocks.1.0', 'up_blocks.1.1',
]  # fmt: skip


def classifier(tiny, trainable, **kwargs):
    denoiser = dict(type='mmdiffrep.PixelUNet', config=tiny, random_seed=0)
    backbone = dict(
        type='mmdiffrep.DiffusionBackbone', denoiser=denoiser, taps=['up_blocks.1.attentions.1'], timesteps=10, trainable=trainable,
        image_mean=[0] * 3, image_std=[1] * 3,
    )  # fmt: skip
    head = dict(type='mmdiffrep.PooledHead', num_classes=3)
    return MODELS.build({**dict(type='mmdiffrep.DiffusionClassifier', backbone=backbone, head=head), **kwargs})


def wrapper(model, lr=1.0, **paramwise):
    return build_optim_wrapper(
        model,
        dict(
            constructor='mmdiffrep.LayerDecayConstructor', paramwise_cfg=paramwise,
            optimizer=dict(type='AdamW', lr=lr, weight_decay=0.1),
        ),
    )  # fmt: skip


def settings(model, optim):
    """name -> (rate, weight decay)"""
    names = {id(p): n for n, p in model.named_parameters()}
    found = [(names[id(p)], (g['lr'], g['weight_decay'])) for g in optim.optimizer.param_groups for p in g['params']]
    assert len(found) == len(dict(found))
    return dict(found)


def by_hand(name):
    """The layer of a U-Net's parameter, by its beginning."""
    for layer in reversed(LAYERS[1:]):
        block, number = layer.rsplit('.', 1) if '.' in layer else (layer, '')
        starts = [layer] if not number.isdigit() else [f'{block}.resnets.{number}', f'{block}.attentions.{number}']
        if any(name.startswith(f'{start}.') for start in starts):
            return LAYERS.index(layer)
    assert name.startswith(('conv_in', 'time_embedding')), name
    return 0


def test_a_unet_trained_whole(tiny_config):
    model = classifier(tiny_config, True)
    found = settings(model, wrapper(model, decay_rate=0.5))
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert found.keys() == trained and len(trained) > 60
    prefix = 'backbone.holder.network.'
    for name, (rate, decay) in found.items():
        if name.startswith('head.'):
            assert rate == 1
        else:
            assert name.startswith(prefix)
            assert rate == pytest.approx(0.5 ** (12 - by_hand(name.removeprefix(prefix)))), name
        assert decay == (0.1 if model.get_parameter(name).ndim > 1 else 0.0)
    assert found[f'{prefix}conv_in.weight'][0] == 0.5**12 and found[f'{prefix}up_blocks.1.attentions.1.to_q.weight'][0] == 0.5
    assert set(dict(settings(model, wrapper(model, decay_rate=1, norm_decay=True))).values()) == {(1.0, 0.1)}


def test_the_last_stages_of_a_unet(tiny_config):
    model = classifier(tiny_config, ['mid_block', 'up_blocks.1'])
    found = settings(model, wrapper(model, decay_rate=0.5))
    inside = {n.removeprefix('backbone.holder.'): rate for n, (rate, _) in found.items() if n.startswith('backbone')}
    assert {n.split('.')[0] for n in inside} == {'mid_block', 'up_blocks'}
    assert all(rate == pytest.approx(0.5 ** (12 - by_hand(n))) for n, rate in inside.items())


def test_a_network_that_is_registered_whole(tiny_config):
    """Weights that cannot be found again are all in the module tree, under another name; rates are the same."""
    denoiser = MODELS.build(dict(type='mmdiffrep.PixelUNet', config=tiny_config, random_seed=0))
    denoiser.fingerprint = None
    model = classifier(tiny_config, ['mid_block', 'up_blocks.1'])
    whole = MODELS.build(
        dict(
            type='mmdiffrep.DiffusionBackbone', denoiser=denoiser, taps=['up_blocks.1.attentions.1'], timesteps=10,
            trainable=['mid_block', 'up_blocks.1'], image_mean=[0] * 3, image_std=[1] * 3,
        )
    )  # fmt: skip
    found = {n.removeprefix('holder.network.'): v for n, v in settings(whole, wrapper(whole, decay_rate=0.5)).items()}
    wanted = settings(model, wrapper(model, decay_rate=0.5))
    assert found == {n.removeprefix('backbone.holder.'): v for n, v in wanted.items() if n.startswith('backbone')}


def test_a_transformer(tiny_dit_config):
    backbone = dict(
        type='mmdiffrep.DiffusionBackbone', denoiser=dict(type='mmdiffrep.DiT', config=tiny_dit_config, random_seed=0),
        taps=['transformer_blocks.2'], timesteps=10, trainable=True,
    )  # fmt: skip
    model = classifier(None, None, backbone=backbone)
    found = settings(model, wrapper(model, decay_rate=0.5))
    blocks = {}
    for name, (rate, _) in found.items():
        if '.transformer_blocks.' in name:
            blocks.setdefault(int(name.split('.transformer_blocks.')[1].split('.')[0]), set()).add(rate)
    assert blocks == {0: {0.125}, 1: {0.25}, 2: {0.5}}
    assert {rate for name, (rate, _) in found.items() if '.pos_embed.' in name} == {0.0625}


def test_a_step_changes_what_is_trained_and_nothing_else(tiny_config):
    model = classifier(tiny_config, ['up_blocks.1']).train()
    optim = wrapper(model, lr=1e-2, decay_rate=0.8)
    network = model.backbone.denoiser.network
    assert network.up_blocks[1].training and not network.down_blocks[0].training
    before = {k: v.clone() for k, v in {**network.state_dict(), **{f'head.{k}': v for k, v in model.head.state_dict().items()}}.items()}
    samples = [ClassSample() for _ in range(4)]
    for i, sample in enumerate(samples):
        sample.gt_label = i % 3
    model.train_step(dict(inputs=[torch.randint(0, 256, (3, 16, 16)).byte() for _ in samples], data_samples=samples), optim)
    after = {**network.state_dict(), **{f'head.{k}': v for k, v in model.head.state_dict().items()}}
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    inside = {k for k in changed if not k.startswith('head.')}
    wanted = {n.removeprefix('backbone.holder.') for n, p in model.named_parameters() if p.requires_grad and n.startswith('backbone')}
    assert inside == wanted and all(k.startswith('up_blocks.1.') for k in inside)
    assert changed - inside == {'head.fc.weight', 'head.fc.bias'}


@pytest.mark.parametrize('paramwise', [{}, dict(decay_rate=0), dict(decay_rate=1.5), dict(decay_rate='a'), dict(decay_rate=0.5, custom_keys={})])
def test_wrong_settings_are_refused(paramwise, tiny_config):
    model = classifier(tiny_config, True)
    with pytest.raises(ValueError, match='decay_rate=above 0'):
        wrapper(model, **paramwise) if paramwise else wrapper(model, norm_decay=True)


def test_a_frozen_denoiser_is_refused(tiny_config):
    with pytest.raises(ValueError, match='no denoiser that is trained'):
        wrapper(classifier(tiny_config, False), decay_rate=0.5)
