"""On an accelerator, or on a pretended one: nothing is left in main memory, and the answers are the CPU's.

The trainings of other files that ask for ``on_accelerator`` run there, too.
"""

import copy

import numpy as np
import pytest
import torch

import mmdiffrep  # noqa: F401
from mmdiffrep.apis import Matcher, OpenVocabInferencer
from mmdiffrep.apis.matcher import CONFIG
from mmdiffrep.datasets.toyscenes import write_toyscenes
from mmdiffrep.diffusion.generative import GenerativeModel
from mmdiffrep.diffusion.sampling import sample
from mmdiffrep.registry import MODELS

pytestmark = pytest.mark.usefixtures('on_accelerator')
PLAIN = dict(image_mean=[0] * 3, image_std=[1] * 3)


def picture(*shape, seed=0):
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed)).float()


def close(there, here):
    """``there`` came out of the accelerator."""
    assert there.device.type == 'cuda' and here.device.type == 'cpu'
    assert torch.allclose(there.cpu(), here, atol=1e-3)


# ---- what it refuses, if it is pretended: as a real one does ------------------------------------------------------


@pytest.mark.parametrize('mixed', [
    lambda x: x + torch.zeros(4, 4),
    lambda x: x @ torch.zeros(4, 2),
    lambda x: torch.cat([x, torch.zeros(4, 4)]),
    lambda x: torch.stack([x.sum(), torch.tensor(1.0)]),
    lambda x: torch.where(x > 0, x, torch.zeros(4, 4)),
    lambda x: torch.zeros(4)[torch.tensor([1], device='cuda')],
    lambda x: x.index_select(0, torch.tensor([1])),
    lambda x: x.__setitem__(torch.tensor([True, False, True, False]), torch.zeros(2, 4)),
    lambda x: torch.nn.Linear(4, 2)(x),
    lambda x: torch.randn(2, device='cuda', generator=torch.Generator()),
    lambda x: x.normal_(generator=torch.Generator()),
])  # fmt: skip
def test_mixing_is_refused(mixed):
    with pytest.raises(RuntimeError, match='cuda|same device'):
        mixed(torch.rand(4, 4).to('cuda'))


def test_what_may_be_mixed():
    x = torch.rand(4, 4).to('cuda')
    assert (x * torch.tensor(2.0)).device.type == 'cuda'
    assert torch.equal(x[torch.tensor([1, 0])].cpu(), x.cpu()[torch.tensor([1, 0])])
    x[1:3] = torch.zeros(2, 4)
    assert not x[1:3].any() and x.cpu().numpy().sum() > 0
    with pytest.raises(TypeError, match='cuda:0'):
        x.numpy()
    module = torch.nn.Linear(4, 2).to('cuda')
    twin = copy.deepcopy(module)
    assert isinstance(twin.weight, torch.nn.Parameter) and twin.weight.requires_grad and twin.weight.is_cuda
    assert torch.zeros(3, device=x.device).is_cuda and torch.zeros_like(x).is_cuda and not torch.zeros(3).is_cuda
    loss = module(x).sum()
    loss.backward()
    assert module.weight.grad.is_cuda and module.cpu().weight.device.type == 'cpu'


# ---- backbones ---------------------------------------------------------------------------------------------------


@pytest.fixture
def denoisers(tiny_config, tiny_sd_config, tiny_dit_config):
    return dict(
        pixel=(dict(type='mmdiffrep.PixelUNet', config=tiny_config), ['mid_block', 'up_blocks.1.attentions.0']),
        sd=(dict(type='mmdiffrep.StableDiffusion', config=tiny_sd_config), ['vae.encoder.down_blocks.2.resnets.0:in', 'up_blocks.1']),
        dit=(dict(type='mmdiffrep.DiT', config=tiny_dit_config), ['transformer_blocks.1']),
    )


@pytest.mark.parametrize('kind, settings', [
    ('pixel', {}),
    ('pixel', dict(timesteps=[10, 300], noise=dict(kind='per_image', seed=1, draws=2), memory=1.0)),
    ('pixel', dict(noise=dict(kind='none'), adapter=dict(type='mmdiffrep.StridePyramid', out_channels=8))),
    ('pixel', dict(windows=dict(size=32), adapter=dict(type='mmdiffrep.ConcatUpsample', out_channels=8))),
    ('sd', dict(noise=dict(kind='shared', seed=1, draws=2))),
    ('sd', dict(windows=dict(size=64, batch=1))),
    ('dit', {}),
])  # fmt: skip
def test_a_backbone_answers_as_on_the_cpu(kind, settings, denoisers):
    denoiser, taps = denoisers[kind]
    settings = dict(timesteps=20, noise=dict(kind='shared', seed=1)) | settings
    torch.manual_seed(0)
    backbone = MODELS.build(dict(type='mmdiffrep.DiffusionBackbone', denoiser=dict(denoiser, random_seed=0), taps=taps, **settings, **PLAIN))
    images = picture(2, 3, 64, 72)
    here = backbone.eval()(images)
    for a, b in zip(backbone.to('cuda')(images.to('cuda')), here):
        close(a, b)
    assert all(p.is_cuda for p in backbone.denoiser.network.parameters())
    for a, b in zip(backbone.cpu()(images), here):
        assert torch.equal(a, b)


@pytest.mark.parametrize('precision', [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize('trained', [dict(trainable=True), dict(trainable=['up_blocks'], with_cp=True), dict(type='mmdiffrep.FeedbackBackbone')])
def test_a_classifier_learns(trained, precision, denoisers):
    denoiser, taps = denoisers['pixel']
    feedback = dict(feedback={'mid_block': 'down_blocks.2.resnets.0'}) if 'type' in trained else {}
    backbone = dict(type='mmdiffrep.DiffusionBackbone', denoiser=dict(denoiser, random_seed=0), taps=taps, timesteps=[10, 90], **PLAIN)
    model = MODELS.build(dict(
        type='mmdiffrep.DiffusionClassifier', backbone=backbone | trained | feedback, data_preprocessor=dict(type='mmengine.ImgDataPreprocessor'),
        head=dict(type='mmdiffrep.AttentionFusion', num_classes=3, image_size=32, dim=16, heads=2, pool=4),
    )).to('cuda').train()  # fmt: skip
    from mmdiffrep.structures import ClassSample

    samples = [ClassSample(gt_label=torch.tensor(i)) for i in (0, 2)]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    data = model.data_preprocessor(dict(inputs=list(picture(2, 3, 32, 32)), data_samples=samples), True)
    with torch.autocast('cpu', precision, enabled=precision is not None):
        loss = sum(value for name, value in model(**data, mode='loss').items() if 'loss' in name)
    loss.backward()
    assert loss.isfinite() and all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    optimizer.step()
    assert before and all(not torch.equal(p, before[name]) for name, p in model.named_parameters() if name in before)
    assert {name.split('.')[0] for name in before} == {'backbone', 'head'}


# ---- what answers about files ------------------------------------------------------------------------------------


def test_a_matcher():
    image = picture(40, 56, 3, seed=1).byte().numpy()
    image = np.kron(image[:5, :7], np.ones((8, 8, 1), np.uint8))
    moved = np.roll(image, 8, 1)
    here, there = (Matcher(CONFIG, device=device) for device in ('cpu', 'cuda'))
    assert next(there.model.backbone.denoiser.network.parameters()).is_cuda
    points = [[10.0, 12.0], [30.0, 20.0]]
    # answers can be put into arrays wherever they were computed
    for ask in (
        lambda m: m.match(image, moved, points).points,
        lambda m: m.match(image, moved, points).scores,
        lambda m: m.scores(image, moved, points[0]),
        lambda m: m.flow(image, moved)[0],
        lambda m: m.mutual(image, moved, detector='grid').target,
        lambda m: m.homography(image, moved, detector='grid')[0],
        lambda m: list(m.propagate([image, moved], np.eye(40, 56, dtype=np.uint8)))[1],
    ):
        assert np.allclose(np.asarray(ask(there)), np.asarray(ask(here)), atol=1e-3)


def test_open_vocabulary(tmp_path):
    pytest.importorskip('mmdet')
    image = next((write_toyscenes(tmp_path / 'scenes', dict(val=1), (64, 64)) / 'images/val').iterdir())
    answers = []
    for device in ('cpu', 'cuda'):
        ask = OpenVocabInferencer('odise_toy-unet_1200i_toyscenes-64x64', 'mmdiffrep/toy-odise', device=device)
        answers.append(ask(str(image), vocabulary='red star; green disc; sky (stuff)', progress=False))
    assert next(ask.model.panoptic_head.parameters()).is_cuda
    here, there = answers
    assert here.segments and np.array_equal(there.ids, here.ids)
    assert [s['name'] for s in there.segments] == [s['name'] for s in here.segments]


@pytest.mark.parametrize('name', ['mmdiffrep/toy-unet', 'mmdiffrep/toy-sd'])
def test_samples(name):
    drawn = []
    for device in ('cpu', 'cuda'):
        model = GenerativeModel.load(name).eval().to(device)
        prompts = model.condition(2, prompts=['a red star', 'sky']) if name.endswith('sd') else None
        drawn.append(sample(model, 2, 3, condition=prompts, generator=torch.Generator().manual_seed(0)))
    assert next(model.parameters()).is_cuda
    assert torch.allclose(drawn[1].cpu(), drawn[0], atol=1e-3)
