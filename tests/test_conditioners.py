"""What the network is told besides the image: TextAdapter, prompts for each image, PromptHook."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from mmengine.structures import BaseDataElement

from mmdiffrep.diffusion.denoiser import Condition, Denoiser
from mmdiffrep.diffusion.stable_diffusion import StableDiffusion
from mmdiffrep.engine.hooks import PromptHook
from mmdiffrep.models.backbones import DiffusionBackbone
from mmdiffrep.models.conditioners import TextAdapter
from mmdiffrep.registry import HOOKS, MODELS

TAPS = ['up_blocks.1.attentions.0', 'up_blocks.1.attentions.0.transformer_blocks.0.attn2:probs']
SMALL = dict(
    unet=dict(
        block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, cross_attention_dim=6, attention_head_dim=2,
        down_block_types=('CrossAttnDownBlock2D', 'DownBlock2D'), up_block_types=('UpBlock2D', 'CrossAttnUpBlock2D'),
    ),
    vae=dict(
        block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=4, latent_channels=4,
        down_block_types=('DownEncoderBlock2D',) * 2, up_block_types=('UpDecoderBlock2D',) * 2,
    ),
    scheduler=dict(_class_name='DDIMScheduler', beta_schedule='scaled_linear'),
)  # fmt: skip
ADAPTER = dict(type='mmdiffrep.TextAdapter')


def gelu(x):
    return x * (1 + math.erf(x / math.sqrt(2))) / 2


def picture():
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 3 - 1.5


@pytest.fixture(scope='module', autouse=True)
def traces_once():
    """Networks of one structure have one trace."""
    known, original = {}, Denoiser.trace

    def trace(self, size):
        key = (str(self.network), size)
        if key not in known:
            known[key] = original(self, size)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Denoiser, 'trace', trace)
        yield


@pytest.fixture(scope='module')
def network():
    return StableDiffusion(config=SMALL, class_names=['sky', 'road', 'tree'])


@pytest.fixture
def build(network):
    """Backbones on copies of one network, each cut anew."""

    def make(**options):
        return DiffusionBackbone(copy.deepcopy(network), TAPS, timesteps=1, noise=dict(kind='none'), **options)

    return make


# ---- TextAdapter ----------------------------------------------------------------------------------------------


def test_text_adapter_by_hand():
    adapter = TextAdapter(token_channels=2, gamma=0.5)
    first, _, second = adapter.mlp
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[1.0, 2.0], [0.0, -1.0]]))
        first.bias.copy_(torch.tensor([0.0, 1.0]))
        second.weight.copy_(torch.tensor([[3.0, 0.0], [1.0, 1.0]]))
        second.bias.copy_(torch.tensor([0.0, -1.0]))
        adapter.gamma[1] = 2.0
    bias = torch.ones(1, 3)
    given = Condition(tokens=torch.tensor([[[1.0, 0.5]]]), class_ids=torch.tensor([4]), time_bias=bias)
    got = adapter(torch.zeros(1, 3, 8, 8), given)
    hidden = [gelu(1 + 2 * 0.5), gelu(1 - 0.5)]
    expected = [1 + 0.5 * 3 * hidden[0], 0.5 + 2 * (hidden[0] + hidden[1] - 1)]
    torch.testing.assert_close(got.tokens, torch.tensor([[expected]]))
    assert got.class_ids.tolist() == [4] and got.time_bias is bias
    assert given.tokens.tolist() == [[[1.0, 0.5]]]  # what came stays as it was


def test_gamma_begins_small_and_is_a_vector():
    gamma = TextAdapter(token_channels=5).gamma
    assert gamma.shape == (5,) and gamma.requires_grad
    torch.testing.assert_close(gamma.detach(), torch.full((5,), 1e-4))


def test_gamma_zero_is_the_plain_network(build):
    plain, told = build()(picture()), build(conditioner=dict(ADAPTER, gamma=0))(picture())
    for a, b in zip(plain, told):  # a fixed text is projected as one row, an image's own as many
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    other = build(conditioner=dict(ADAPTER, gamma=1.0))(picture())
    assert not any(torch.allclose(a, b) for a, b in zip(plain, other))


@pytest.mark.parametrize('dtype', [None, 'bf16'])
def test_gradient_reaches_the_adapter_through_the_frozen_network(build, dtype):
    backbone = build(conditioner=dict(ADAPTER, gamma=0.1), dtype=dtype).train()
    assert backbone.grad_through
    sum(x.square().sum() for x in backbone(picture())).backward()
    for name, p in backbone.conditioner.named_parameters():
        assert p.dtype == torch.float32 and p.grad.abs().sum() > 0, name
    assert all(p.grad is None and not p.requires_grad for p in backbone.denoiser.parameters())
    assert {n.split('.')[0] for n, _ in backbone.named_parameters()} == {'conditioner'}
    assert any(key.startswith('conditioner.mlp') for key in backbone.state_dict())


def test_gradient_is_the_slope(build):
    """One entry of gamma, against a central difference."""
    torch.manual_seed(0)
    backbone = build(conditioner=dict(ADAPTER, gamma=0.1)).double()
    gamma = backbone.conditioner.gamma

    def loss():  # probabilities are in fp32, too coarse for a difference
        return backbone(picture().double())[0].square().mean()

    loss().backward()
    slopes = []
    with torch.no_grad():
        for step in (1e-3, -1e-3):
            gamma[3] += step
            slopes.append(loss())
            gamma[3] -= step
    slope = (slopes[0] - slopes[1]) / 2e-3
    torch.testing.assert_close(gamma.grad[3], slope, rtol=1e-3, atol=0)


def test_a_network_without_text_is_refused(tiny_config):
    with pytest.raises(ValueError, match="'mmdiffrep.TextAdapter' does not fit PixelUNet, which says nothing.*StableDiffusion"):
        MODELS.build(
            dict(
                type='mmdiffrep.DiffusionBackbone', taps=['mid_block'], conditioner=ADAPTER,
                denoiser=dict(type='mmdiffrep.PixelUNet', config=tiny_config),
            )
        )  # fmt: skip
    for condition in (None, Condition(class_ids=torch.zeros(1).long())):
        with pytest.raises(ValueError, match='TextAdapter got a condition without text tokens'):
            TextAdapter(token_channels=2)(torch.zeros(1, 3, 8, 8), condition)


# ---- prompts --------------------------------------------------------------------------------------------------


@pytest.fixture
def prompted(build, monkeypatch):
    """A backbone whose text encoder is a table."""
    table = {'': 0.0, 'a cat': 1.0, 'a dog': -2.0}
    monkeypatch.setattr(
        StableDiffusion, 'encode_text', lambda self, prompts: torch.stack([self.tokens[0] + table[p] for p in prompts])
    )
    return build()


def test_prompts_are_told_and_taken_away(prompted):
    fixed = prompted(picture())
    prompted.set_prompts(['a cat', 'a dog'])
    both = prompted(picture())
    with prompted.prompted(['', 'a dog']):
        inside = prompted(picture())
    again = prompted(picture())
    prompted.set_prompts(None)
    for k in range(len(TAPS)):
        assert not torch.allclose(both[k][0], fixed[k][0]) and not torch.allclose(both[k][1], fixed[k][1])
        torch.testing.assert_close(inside[k][0], fixed[k][0])
        torch.testing.assert_close(inside[k][1], both[k][1])
        assert torch.equal(again[k], both[k])
        assert torch.equal(prompted(picture())[k], fixed[k])
    with pytest.raises(ValueError, match="prompts='a cat' is one string; give a list with one prompt for each"):
        prompted.set_prompts('a cat')
    with prompted.prompted(['a cat']), pytest.raises(ValueError, match='1 prompts were given for 2 images'):
        prompted(picture())


def batch(*metainfos):
    return dict(inputs=[], data_samples=[BaseDataElement(metainfo=info) for info in metainfos])


@pytest.mark.parametrize('mode', ['train', 'val', 'test'])
def test_prompt_hook(prompted, mode):
    runner = SimpleNamespace(model=torch.nn.Sequential(prompted))
    fixed = prompted(picture())
    hook = HOOKS.build(dict(type='mmdiffrep.PromptHook', key='caption'))
    before, after = getattr(hook, f'before_{mode}_iter'), getattr(hook, f'after_{mode}_iter')
    before(runner, batch_idx=0, data_batch=batch(dict(caption='a cat'), dict(caption='a dog')))
    told = prompted(picture())
    with prompted.prompted(['a cat', 'a dog']):
        expected = prompted(picture())
    after(runner, batch_idx=0, data_batch=None, outputs=None)
    assert all(torch.equal(a, b) for a, b in zip(told, expected))
    assert all(torch.equal(a, b) for a, b in zip(prompted(picture()), fixed))


def test_prompt_hook_says_what_is_missing(prompted):
    runner = SimpleNamespace(model=prompted)
    with pytest.raises(ValueError, match=r"metainfo\['prompt'\] of a.png is None.*meta_keys of PackSegInputs"):
        PromptHook().before_val_iter(runner, 0, batch(dict(img_path='a.png')))
    with pytest.raises(ValueError, match='Linear has no mmdiffrep.DiffusionBackbone'):
        PromptHook().before_train_iter(SimpleNamespace(model=torch.nn.Linear(1, 1)), 0, batch(dict(prompt='a cat')))
