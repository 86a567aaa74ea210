"""FeedbackBackbone against hooks of one's own, finite differences, and the plain pass."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mmdiffrep  # noqa: F401
from mmdiffrep.diffusion import model_files
from mmdiffrep.diffusion.aliases import list_aliases
from mmdiffrep.diffusion.model_files import named_config
from mmdiffrep.models.backbones.feedback_backbone import GDC
from mmdiffrep.registry import MODELS

TAPS = ['up_blocks.1.attentions.1', 'up_blocks.2.resnets.1']
# from coarse to fine, from one size to the same, and twice into one place
FEEDBACK = {
    'up_blocks.0.resnets.1': 'down_blocks.1.attentions.0',
    'up_blocks.1.attentions.0': 'down_blocks.2.resnets.0',
    'up_blocks.2.resnets.0': 'down_blocks.1.attentions.0',
}


def backbone(tiny, kind='FeedbackBackbone', **kwargs):
    settings = dict(taps=TAPS, timesteps=[10, 200], image_mean=[0] * 3, image_std=[1] * 3)
    if kind == 'FeedbackBackbone':
        settings['feedback'] = FEEDBACK
    denoiser = dict(type='mmdiffrep.PixelUNet', config=tiny, random_seed=0)
    torch.manual_seed(0)
    return MODELS.build(dict(type=f'mmdiffrep.{kind}', denoiser=denoiser, **{**settings, **kwargs}))


@pytest.fixture
def images():
    return torch.randint(0, 256, (3, 3, 16, 24), generator=torch.Generator().manual_seed(0)).float()


def test_zero_nets_give_the_plain_pass(tiny_config, images):
    plain = backbone(tiny_config, 'DiffusionBackbone')(images)
    model = backbone(tiny_config)
    for net in model.nets:
        nn.init.zeros_(net[0].weight)
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(plain, model(images)))
    assert model.out_channels == [16, 8] * 2 and model.out_strides == [2, 1] * 2
    changed = backbone(tiny_config)(images)
    assert not any(torch.allclose(a, b, atol=1e-3) for a, b in zip(plain, changed))


def test_two_looks_by_hand(tiny_config, images):
    """Plain hooks on diffusers' modules: what is added at a block's output goes on, and into the skip connection."""
    from diffusers import UNet2DModel

    model = backbone(tiny_config, timesteps=200).eval()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = UNet2DModel(**tiny_config).eval()
    network.load_state_dict(
        {k: v for k, v in backbone(tiny_config, 'DiffusionBackbone', taps=['conv_out']).denoiser.network.state_dict().items()}
    )
    rgb = images / 127.5 - 1
    t = torch.full((3,), 200)
    noise = model.noise.draw(tuple(rgb.shape), 0, None)
    x_t = model.denoiser.schedule.add_noise(rgb, noise, t)

    def look(add):
        read, handles = {}, []
        for name in {*TAPS, *FEEDBACK, *FEEDBACK.values()}:
            def hook(_module, _args, out, name=name):
                read[name] = out + add.get(name, 0)
                return read[name]

            handles.append(network.get_submodule(name).register_forward_hook(hook))
        network(x_t, t)
        for handle in handles:
            handle.remove()
        return read

    with torch.no_grad():
        first = look({})
        add = {}
        for (source, target), net in zip(FEEDBACK.items(), model.nets):
            x = F.conv2d(first[source], net[0].weight)
            x = (x / (1 + 1e-5) ** 0.5).relu()  # BatchNorm in eval mode before any training
            x = F.interpolate(x, first[target].shape[-2:], mode='bilinear', align_corners=False)
            add[target] = add.get(target, 0) + x
        second = look(add)
        got = model(images)
    for tap, m in zip(TAPS, got):
        assert torch.allclose(m, second[tap], atol=1e-5)
        assert not torch.allclose(m, first[tap], atol=1e-2)


def test_gradients_against_finite_differences(tiny_config):
    model = backbone(tiny_config, timesteps=[200]).double().eval()
    model.denoiser.network.double()
    images = torch.rand(2, 3, 8, 8, dtype=torch.float64) * 255
    model._range_checked = True
    x = model.to_rgb(images).double()
    condition = model.denoiser.default_condition(2)
    t = torch.full((2,), 200)

    def loss():
        found = model.extractor.look(x, t, condition)
        return sum((m * torch.linspace(-1, 1, m.numel(), dtype=m.dtype).view_as(m)).sum() for m in found.values())

    loss().backward()
    g = torch.Generator().manual_seed(0)
    for net in model.nets:
        for parameter in (net[0].weight, net[1].weight, net[1].bias):
            direction = torch.randn(parameter.shape, generator=g, dtype=torch.float64)
            ends = []
            for step in (1e-6, -1e-6):
                with torch.no_grad():
                    parameter += step * direction
                    ends.append(loss().item())
                    parameter -= step * direction
            slope = (ends[0] - ends[1]) / 2e-6
            assert slope == pytest.approx((parameter.grad * direction).sum().item(), rel=1e-4, abs=1e-6)
    assert not any(p.requires_grad or p.grad is not None for p in model.denoiser.network.parameters())


def test_checkpointing_changes_no_gradient(tiny_config, images):
    grads = []
    for with_cp in (False, True):
        model = backbone(tiny_config, with_cp=with_cp).train()
        assert not model.denoiser.network.training
        sum(m.square().mean() for m in model(images)).backward()
        grads.append([p.grad for p in model.parameters()])
    assert len(grads[0]) == 9 and all(g.abs().max() > 0 for g in grads[0])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*grads))


def test_odd_sizes_draws_and_what_is_saved(tiny_config, images):
    model = backbone(tiny_config, noise=dict(kind='per_image', seed=1, draws=2))
    maps = model.eval()(images[:, :, :13, :17])
    assert [tuple(m.shape[-2:]) for m in maps] == [(7, 9), (13, 17)] * 2
    assert torch.allclose(maps[0][1:], model(images[1:, :, :13, :17])[0], atol=1e-5)
    assert {name.split('.')[0] for name in model.state_dict()} == {'nets', 'holder'}
    assert {name.split('.')[0] for name, _ in model.named_parameters()} == {'nets'}
    half = backbone(tiny_config, dtype='bf16').eval()(images)
    assert all(m.isfinite().all() for m in half)


def test_an_adapter_learns_too(tiny_config, images):
    model = backbone(tiny_config, adapter=dict(type='mmdiffrep.StridePyramid', out_channels=8))
    maps = model(images)
    assert [m.shape[1] for m in maps] == [8] * 4
    sum(m.square().mean() for m in maps).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_the_papers_pairs(monkeypatch):
    """Blocks 21 … 36 of ADM-256 are fed into 17 … 2; sizes of input and output agree, widths are as in the paper."""
    aliases = list_aliases(named_config('adm-256')['unet'])
    assert GDC == {f'gdc:b{b}': f'gdc:b{38 - b}' for b in (21, 24, 27, 30, 33, 36)}
    for source, target in GDC.items():
        assert aliases[source].startswith('up_blocks') and aliases[target].startswith('down_blocks')
        assert int(aliases[source][10]) + int(aliases[target][12]) == 5  # the same level
    build = model_files.Part.build
    monkeypatch.setattr(model_files.Part, 'build', lambda self, kind, seed: build(self, kind, None))  # on the meta device
    model = MODELS.build(
        dict(type='mmdiffrep.FeedbackBackbone', denoiser=dict(type='mmdiffrep.PixelUNet', config='adm-256'), taps=['gdc:b24'])
    )
    assert [tuple(net[0].weight.shape[:2]) for net in model.nets] == [
        (1024, 1024), (1024, 1024), (512, 512), (512, 512), (256, 256), (256, 256)
    ]  # fmt: skip


@pytest.mark.parametrize(
    'changes, message',
    [
        (dict(feedback={}), 'feedback is empty'),
        (dict(feedback='difffeed'), "feedback='difffeed' is unknown; allowed: 'gdc'"),
        (dict(feedback='gdc'), 'no such block'),
        (dict(feedback={'up_blocks.0': 'up_blocks.2.resnets.1'}), 'would change none of the maps'),
        (dict(feedback={'up_blocks.0': 'down_blocks.7'}), 'no such module'),
        (dict(grad_through=False), 'grad_through=False'),
        (dict(timesteps=1000), '1000'),
    ],
)
def test_what_does_not_fit_is_refused(changes, message, tiny_config):
    with pytest.raises(ValueError, match=message):
        backbone(tiny_config, **changes)


def test_a_budget_puts_no_draws_together_while_batches_are_counted(tiny_config, images):
    model = backbone(tiny_config, memory=1, noise=dict(kind='shared', draws=3))
    rows, look = [], model.extractor.look
    model.extractor.look = lambda x_t, *more: rows.append(len(x_t)) or look(x_t, *more)
    with torch.no_grad():
        model.train()(images)
        assert set(rows) == {len(images)}
        rows.clear()
        model.eval()(images)
        assert max(rows) > len(images)
