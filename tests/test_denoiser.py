"""Cutting, stopping, tap info and unused parameters of the first denoiser."""

import copy

import pytest
import torch

from mmdiffrep.diffusion.cutting import PassThrough
from mmdiffrep.diffusion.denoiser import Condition
from mmdiffrep.diffusion.pixel_unet import PixelUNet

TAPS = [
    'conv_in', 'down_blocks.0:in', 'down_blocks.0.resnets.0', 'down_blocks.0',
    'down_blocks.1.resnets.0',
    'down_blocks.1.attentions.0', 'down_blocks.1.downsamplers.0', 'down_blocks.2',
    'mid_block:in', 'mid_block.resnets.0', 'mid_block.attentions.0',
    'mid_block', 'up_blocks.0.resnets.0:in', 'up_blocks.0',
    'up_blocks.1:in', 'up_blocks.1.resnets.0', 'up_blocks.1.attentions.0:in', 'up_blocks.1.attentions.0',
    'up_blocks.1.resnets.1.conv_shortcut', 'up_blocks.1.attentions.1', 'up_blocks.1.upsamplers.0:in',
    'up_blocks.1.upsamplers.0', 'up_blocks.1', 'up_blocks.2.resnets.1', 'up_blocks.2', 'conv_out:in', 'conv_out',
]  # fmt: skip


def batch(n=2, size=(16, 24), seed=1):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, *size, generator=g), torch.randint(1000, (n,), generator=g)


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_cutting_changes_no_activation_and_drops_what_is_behind(tiny_denoiser):
    x, t = batch()
    whole = tiny_denoiser()
    expected = whole.features(x, t, taps=TAPS)
    sizes = {}
    for tap in TAPS:
        cut = tiny_denoiser(keep_taps=[tap])
        assert torch.equal(cut.features(x, t, taps=[tap])[tap], expected[tap]), tap
        sizes[tap] = count(cut)
    for earlier, later in [
        ('conv_in', 'down_blocks.0.resnets.0'), ('down_blocks.0.resnets.0', 'down_blocks.0'),
        ('down_blocks.1.resnets.0', 'down_blocks.1.attentions.0'),
        ('down_blocks.1.attentions.0', 'down_blocks.1.downsamplers.0'), ('down_blocks.2', 'mid_block.resnets.0'),
        ('mid_block.resnets.0', 'mid_block.attentions.0'), ('mid_block.attentions.0', 'mid_block'),
        ('mid_block', 'up_blocks.0'), ('up_blocks.0', 'up_blocks.1.resnets.0'),
        ('up_blocks.1.resnets.0', 'up_blocks.1.attentions.0'), ('up_blocks.1.attentions.1', 'up_blocks.1'),
        ('up_blocks.1', 'up_blocks.2'),
    ]:  # fmt: skip
        assert sizes[earlier] < sizes[later], (earlier, later)
    assert sizes['up_blocks.2'] < count(whole) == sizes['conv_out']
    assert sizes['up_blocks.1:in'] == sizes['up_blocks.0']
    assert sizes['mid_block:in'] == sizes['down_blocks.2']


def test_cutting_keeps_the_weights_in_front(tiny_denoiser):
    whole = tiny_denoiser()
    cut = tiny_denoiser(keep_taps=['mid_block', 'conv_in'])
    assert len(cut.unet.up_blocks) == 0 and isinstance(cut.unet.conv_out, PassThrough)
    kept = dict(cut.unet.named_parameters())
    for name, p in whole.unet.named_parameters():
        inside = not name.startswith(('up_blocks', 'conv_norm_out', 'conv_out'))
        assert (name in kept) == inside, name
        assert not inside or torch.equal(kept[name], p)
    cut.cut(['mid_block', 'conv_in'])  # twice is once
    assert list(dict(cut.unet.named_parameters())) == list(kept)


def test_cutting_longer_blocks(tiny_denoiser):
    x, t = batch()
    taps = ['down_blocks.1.resnets.0', 'down_blocks.1.attentions.1:in', 'up_blocks.1.resnets.1', 'up_blocks.1.attentions.0']
    expected = tiny_denoiser(layers_per_block=2).features(x, t, taps=taps)
    for tap in taps:
        cut = tiny_denoiser(layers_per_block=2, keep_taps=[tap])
        assert torch.equal(cut.features(x, t, taps=[tap])[tap], expected[tap]), tap


def test_a_cut_network_has_not_what_is_behind(tiny_denoiser):
    x, t = batch()
    with pytest.raises(ValueError, match='no such module'):
        tiny_denoiser(keep_taps=['mid_block']).features(x, t, taps=['up_blocks.1'])


def test_features_refuse_what_gives_no_map(tiny_denoiser):
    x, t = batch()
    denoiser = tiny_denoiser()
    with pytest.raises(ValueError, match=r"do not give maps .*list_taps"):
        denoiser.features(x, t, taps=['time_embedding'])
    with pytest.raises(ValueError, match=r"'down_blocks'.*were not reached"):
        denoiser.features(x, t, taps=['down_blocks'])
    with pytest.raises(ValueError, match='at least one tap'):
        denoiser.features(x, t, taps=[])
    with pytest.raises(ValueError, match='timesteps .* outside the schedule; allowed'):
        denoiser.features(x, t + 1000, taps=['conv_in'])
    with pytest.raises(ValueError, match='not reached'):
        tiny_denoiser(keep_taps=['down_blocks'])


@pytest.mark.parametrize('size', [(16, 16), (16, 40), (36, 8), (20, 28)])
def test_tap_info_is_what_comes(tiny_denoiser, size):
    denoiser = tiny_denoiser()
    infos = denoiser.tap_info(size)
    x, t = batch(1, size)
    found = denoiser.features(x, t, taps=list(infos))
    assert list(found) == list(infos)  # also the order of execution
    for name, info in infos.items():
        assert found[name].shape[1] == info.channels, name
        assert tuple(n * info.stride for n in found[name].shape[-2:]) == size, name
    assert [i.order for i in infos.values()] == sorted(i.order for i in infos.values())
    assert isinstance(infos['mid_block'].stride, int) and infos['mid_block'].stride == 4


def test_tap_info_costs_no_arithmetic_and_leaves_nothing(tiny_denoiser):
    denoiser = tiny_denoiser()
    state = copy.deepcopy(denoiser.state_dict())
    denoiser.tap_info((4096, 4096))  # attention over a million tokens would not fit
    assert all(torch.equal(v, state[k]) for k, v in denoiser.state_dict().items())
    assert all(p.grad is None for p in denoiser.parameters())
    with pytest.raises(ValueError, match=r'\(18, 16\) does not fit.*multiples of 4.*\(20, 16\)'):
        denoiser.tap_info((18, 16))


def test_batch_of_one_and_three_agree(tiny_denoiser):
    denoiser = tiny_denoiser()
    x, t = batch(3)
    together = denoiser.features(x, t, taps=['mid_block', 'up_blocks.1'])
    for i in range(3):
        alone = denoiser.features(x[i : i + 1], t[i : i + 1], taps=['mid_block', 'up_blocks.1'])
        for name in alone:
            torch.testing.assert_close(alone[name][0], together[name][i], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('checkpointing', [False, True])
@pytest.mark.parametrize(
    'taps',
    [
        ['conv_in'],  # the time embedding runs before it, unused
        ['down_blocks.0'], ['down_blocks.1.resnets.0.conv1'], ['down_blocks.1.attentions.0'],
        ['mid_block.attentions.0'], ['up_blocks.1.resnets.1.conv_shortcut'],  # conv2 runs before it, unused
        ['up_blocks.0:in', 'conv_in'], ['up_blocks.1.resnets.1:in'], ['up_blocks.2'], ['conv_out'],
    ],
)  # fmt: skip
def test_unused_parameters_are_those_without_gradient(tiny_denoiser, taps, checkpointing):
    denoiser = tiny_denoiser(keep_taps=taps)
    denoiser.set_checkpointing(checkpointing)
    denoiser.unet.conv_in.requires_grad_(True)
    unused = set(denoiser.unused_parameters(taps))
    assert {n.partition('.')[0] for n, p in denoiser.unet.named_parameters() if p.requires_grad} == {'conv_in'}
    denoiser.unet.requires_grad_(True)
    x, t = batch()
    sum(v.square().sum() for v in denoiser.features(x, t, taps=taps).values()).backward()
    for name, p in denoiser.unet.named_parameters():
        assert (p.grad is None) == (name in unused), name


def test_class_conditional_networks_need_a_class(tiny_denoiser):
    denoiser = tiny_denoiser(num_class_embeds=5)
    x, t = batch()
    assert denoiser.tap_info((16, 16)) and 'class_embedding.weight' not in denoiser.unused_parameters(['mid_block'])
    with pytest.raises(ValueError, match='class-conditional .*give class ids'):
        denoiser.features(x, t, taps=['mid_block'])
    for ids in ([1, 5], [-1, 1]):
        with pytest.raises(ValueError, match=r'class ids \[.*\] are unknown; allowed: 0 to 4'):
            denoiser.features(x, t, Condition(torch.tensor(ids)), ['mid_block'])
    one = denoiser.features(x, t, Condition(torch.tensor([1, 1])), ['mid_block'])['mid_block']
    other = denoiser.features(x, t, Condition(torch.tensor([1, 3])), ['mid_block'])['mid_block']
    assert torch.equal(one[0], other[0]) and not torch.equal(one[1], other[1])


def test_random_weights_are_named_by_their_seed(tiny_denoiser, tiny_config):
    a, b, c = tiny_denoiser(), tiny_denoiser(random_seed=0), tiny_denoiser(random_seed=1)
    assert a.fingerprint == b.fingerprint != c.fingerprint
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))
    assert not torch.equal(a.unet.conv_in.weight, c.unet.conv_in.weight)
    state = torch.random.get_rng_state()
    tiny_denoiser(random_seed=5)
    assert torch.equal(state, torch.random.get_rng_state())  # nothing else is disturbed
    assert tiny_denoiser(layers_per_block=2).fingerprint != a.fingerprint
    assert not a.unet.training and not any(p.requires_grad for p in a.parameters())


def test_edm_networks_get_scaled_input_and_log_sigma(tiny_denoiser):
    denoiser = tiny_denoiser(schedule=dict(_class_name='EDMSchedule'), time_embedding_type='positional')
    x, _ = batch()
    sigma = torch.tensor([0.1, 5.0])
    seen = []
    handle = denoiser.unet.register_forward_pre_hook(lambda _m, args: seen.append(args))
    denoiser.features(x, sigma, taps=['conv_in'])
    handle.remove()
    scaled, time = seen[0]
    torch.testing.assert_close(scaled, x / (sigma**2 + 0.25).sqrt().view(-1, 1, 1, 1))
    torch.testing.assert_close(time, sigma.log() / 4)


def test_config_is_checked(tiny_config):
    with pytest.raises(ValueError, match='pretrained=.* or config='):
        PixelUNet()
    with pytest.raises(ValueError, match=r"UNet2DModel does not know: \['chanels'\]; allowed"):
        PixelUNet(config=dict(tiny_config, chanels=3))
