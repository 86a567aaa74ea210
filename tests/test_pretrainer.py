import copy
import itertools
import json

import cv2
import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from mmengine.config import Config
from mmengine.hooks import EMAHook, Hook
from mmengine.runner import Runner
from safetensors.torch import load_file

from mmdiffrep.diffusion.objectives import convert_prediction
from mmdiffrep.diffusion.pixel_unet import PixelUNet
from mmdiffrep.diffusion.schedules import PREDICTIONS, build_schedule
from mmdiffrep.engine.hooks import SaveDiffusersHook
from mmdiffrep.models.pretrainers.denoising_pretrainer import DenoisingPretrainer

pytestmark = pytest.mark.usefixtures('all_on_accelerator')
TINY = dict(
    sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
    down_block_types=('DownBlock2D', 'AttnDownBlock2D'), up_block_types=('AttnUpBlock2D', 'UpBlock2D'),
    attention_head_dim=8,
)  # fmt: skip
PAIRS = list(itertools.product(PREDICTIONS, (None, *PREDICTIONS)))


def pretrainer(prediction='epsilon', loss_on=None, **schedule):
    return DenoisingPretrainer(
        network=TINY, schedule=dict(prediction_type=prediction, **schedule), loss_on=loss_on
    )


def columns(schedule, t):
    """alpha and sigma (B, 1, 1, 1) of diffusers' own scheduler, float64."""
    product = DDPMScheduler.from_config(schedule.to_config()).alphas_cumprod.double()[t]
    return product.sqrt().view(-1, 1, 1, 1), (1 - product).sqrt().view(-1, 1, 1, 1)


# --- the loss ----------------------------------------------------------------------------------


@pytest.mark.parametrize('prediction, loss_on', PAIRS)
def test_perfect_network_has_no_loss(prediction, loss_on, monkeypatch):
    model = pretrainer(prediction, loss_on, beta_schedule='scaled_linear')
    x0 = torch.rand(6, 3, 8, 8) * 2 - 1
    torch.manual_seed(0)
    t = torch.randint(1000, (6,))
    noise = torch.randn_like(x0)

    def network(x_t, given, _condition):
        assert torch.equal(t, given)
        alpha, sigma = columns(model.model.schedule, t)
        torch.testing.assert_close(x_t.double(), alpha * x0 + sigma * noise, rtol=0, atol=1e-5)
        right = dict(epsilon=noise, sample=x0, v_prediction=alpha * noise - sigma * x0)
        return right[prediction].float()

    monkeypatch.setattr(model, '_network', network)
    torch.manual_seed(0)
    assert model(x0, mode='loss')['loss'] < 1e-6


@pytest.mark.parametrize('prediction, loss_on', PAIRS)
def test_zero_network_has_the_loss_of_theory(prediction, loss_on):
    """An error e in the network's own space is a known multiple of e in every other."""
    model = pretrainer(prediction, loss_on)
    generator = torch.Generator().manual_seed(1)
    x0 = torch.rand(8, 3, 8, 8, generator=generator) * 2 - 1
    noise = torch.randn(x0.shape, generator=generator)
    t = torch.tensor([0, 1, 10, 100, 300, 500, 800, 999])
    x_t = model.model.schedule.add_noise(x0, noise, t)
    got = model.objective.losses(torch.zeros_like(x0), x0, noise, x_t, t)
    alpha, sigma = columns(model.model.schedule, t)
    error = dict(epsilon=noise, sample=x0, v_prediction=alpha * noise - sigma * x0)[prediction]
    factor = {
        'epsilon': dict(epsilon=1, sample=sigma / alpha, v_prediction=1 / alpha),
        'sample': dict(epsilon=alpha / sigma, sample=1, v_prediction=1 / sigma),
        'v_prediction': dict(epsilon=alpha, sample=sigma, v_prediction=1),
    }[prediction][loss_on or prediction]
    wanted = ((error * factor) ** 2).flatten(1).mean(1)
    # at t = 0, sigma is 0.01: float32 has lost some digits of it
    torch.testing.assert_close(got.double(), wanted.double(), rtol=2e-3, atol=0)


def test_expected_loss_of_a_zero_network_is_one():
    model = pretrainer()
    torch.nn.init.zeros_(model.model.network.conv_out.weight)
    torch.nn.init.zeros_(model.model.network.conv_out.bias)
    torch.manual_seed(0)
    loss = model(torch.zeros(256, 3, 8, 8), mode='loss')['loss']
    assert loss.item() == pytest.approx(1, abs=0.03)  # 49152 squared normals: standard error 0.0064


@pytest.mark.parametrize('prediction', PREDICTIONS)
def test_conversion_against_diffusers(prediction):
    config = dict(prediction_type=prediction, beta_schedule='squaredcos_cap_v2', clip_sample=False)
    schedule, theirs = build_schedule(config), DDPMScheduler(**config)
    generator = torch.Generator().manual_seed(2)
    x_t, output = torch.randn(2, 3, 4, 4, 4, generator=generator).unbind()
    t = torch.tensor([5, 300, 900])
    x0 = convert_prediction(schedule, output, x_t, t, 'sample')
    for i in range(3):
        wanted = theirs.step(output[i], t[i], x_t[i]).pred_original_sample
        torch.testing.assert_close(x0[i], wanted, rtol=1e-4, atol=1e-4)
    noise = convert_prediction(schedule, output, x_t, t, 'epsilon')
    torch.testing.assert_close(theirs.add_noise(x0, noise, t), x_t, rtol=1e-4, atol=1e-4)
    v = convert_prediction(schedule, output, x_t, t, 'v_prediction')
    wanted = theirs.get_velocity(x0, noise, t)
    torch.testing.assert_close(v, wanted, rtol=1e-4, atol=1e-4 * wanted.abs().max().item())
    own = convert_prediction(schedule, output, x_t, t, prediction)
    torch.testing.assert_close(own, output, rtol=1e-3, atol=1e-3)


def test_validation_is_the_same_each_time_and_draws_nothing():
    model = pretrainer().eval()
    data = dict(inputs=torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8))
    state = torch.get_rng_state()
    first, again = model.val_step(data), model.val_step(data)
    assert torch.equal(state, torch.get_rng_state())
    assert len(first) == 5 and all(0 <= x['t'] < 1000 for x in first)
    assert [x['loss'].item() for x in first] == [x['loss'].item() for x in again]


def test_images_reach_the_network_as_rgb_between_minus_1_and_1(monkeypatch):
    model = pretrainer()
    image = torch.tensor([0, 255, 51], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 8, 8)
    seen = []
    monkeypatch.setattr(model, 'forward', lambda inputs, **_: seen.append(inputs) or [])
    model.val_step(dict(inputs=image))
    assert torch.allclose(seen[0][0, :, 0, 0], torch.tensor([-0.6, 1, -1]))


def test_errors_by_message():
    with pytest.raises(ValueError, match="loss_on='noise' is unknown; allowed: .'epsilon'"):
        pretrainer(loss_on='noise')
    with pytest.raises(ValueError, match='3 channels in and 6 out: a learned variance is not trained. Set out_channels=3'):
        DenoisingPretrainer(network=dict(TINY, out_channels=6))
    with pytest.raises(ValueError, match="dtype='fp8' is unknown; allowed: 'fp32', 'fp16'"):
        SaveDiffusersHook(dtype='fp8')


# --- a training --------------------------------------------------------------------------------


class Recorder(Hook):
    """The weights before training and after each step."""

    priority = 'VERY_LOW'

    def __init__(self):
        self.weights = []

    def before_train(self, runner):
        self.after_train_iter(runner)

    def after_train_iter(self, runner, *_, **__):
        state = runner.model.model.network.state_dict()
        self.weights.append({name: value.clone() for name, value in state.items()})


def make_runner(folder, work_dir, dtype='fp32', ema=True, **model):
    hooks = [dict(type='mmdiffrep.SaveDiffusersHook', interval=3, dtype=dtype, description='Noise.')]
    if ema:
        hooks.append(dict(type='EMAHook', ema_type='MomentumAnnealingEMA', momentum=0.3, gamma=2))
    cfg = Config(
        dict(
            model=dict(type='mmdiffrep.DenoisingPretrainer', network=TINY, **model),
            train_dataloader=dict(
                batch_size=2,
                num_workers=0,
                sampler=dict(type='InfiniteSampler', shuffle=True),
                collate_fn=dict(type='default_collate'),
                dataset=dict(type='mmdiffrep.ImageFolder', sources=str(folder), size=8),
            ),
            optim_wrapper=dict(optimizer=dict(type='AdamW', lr=1e-2)),
            train_cfg=dict(by_epoch=False, max_iters=5),
            default_hooks=dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=100)),
            custom_hooks=hooks,
            default_scope='mmengine',
            log_level='ERROR',
            randomness=dict(seed=0),
            work_dir=str(work_dir),
            experiment_name=f'test-{work_dir.name}-{dtype}-{ema}',
        )
    )
    return Runner.from_cfg(cfg)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('pictures')
    rng = np.random.default_rng(0)
    for i in range(6):
        cv2.imwrite(str(folder / f'{i}.png'), rng.integers(0, 256, (10, 12, 3), dtype=np.uint8))
    return folder


@pytest.fixture(scope='module')
def trained(folder, tmp_path_factory):
    work_dir = tmp_path_factory.mktemp('trained')
    runner = make_runner(folder, work_dir, schedule=dict(beta_schedule='scaled_linear'))
    recorder = Recorder()
    runner.register_hook(recorder)
    runner.train()
    return runner, recorder.weights, work_dir / 'diffusers'


def ema_unet(runner):
    return next(h for h in runner.hooks if isinstance(h, EMAHook)).ema_model.module.model.network


def test_average_is_the_one_of_theory(trained):
    runner, weights, _ = trained
    assert len(weights) == 6
    average = {name: value.double() for name, value in weights[1].items()}  # the first is copied
    for step, current in enumerate(weights[2:], 1):
        momentum = max(0.3, 2 / (2 + step))
        average = {n: (1 - momentum) * a + momentum * current[n] for n, a in average.items()}
    got = ema_unet(runner).state_dict()
    for name, value in average.items():
        torch.testing.assert_close(got[name].double(), value, rtol=1e-5, atol=1e-6)
        assert not torch.equal(weights[0][name], weights[-1][name]), f'{name} was not trained'


def test_folder_holds_the_average_and_loads_everywhere(trained):
    runner, _, folder = trained
    ema = ema_unet(runner).cpu().eval()
    stored = load_file(folder / 'unet' / 'diffusion_pytorch_model.safetensors')
    assert stored.keys() == ema.state_dict().keys()
    assert all(torch.equal(stored[name], value) for name, value in ema.state_dict().items())
    pipeline = DDPMPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.scheduler.config.beta_schedule == 'scaled_linear'
    ours = DDPMPipeline(copy.deepcopy(ema), DDPMScheduler(beta_schedule='scaled_linear'))
    ours.set_progress_bar_config(disable=True)
    pictures = [
        p(generator=torch.Generator().manual_seed(0), num_inference_steps=3, output_type='np').images
        for p in (pipeline, ours)
    ]
    assert pictures[0].shape == (1, 8, 8, 3)
    # weights mapped from a file lie elsewhere in memory, so that sums may round differently
    np.testing.assert_allclose(*pictures, rtol=0, atol=2e-6)
    denoiser = PixelUNet(pretrained=str(folder))
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([3, 700])
    with torch.no_grad():
        torch.testing.assert_close(denoiser.run(x, t, None), ema(x, t).sample, rtol=1e-5, atol=1e-6)
    assert torch.equal(denoiser.schedule.alphas_cumprod, pipeline.scheduler.alphas_cumprod)


def test_card(trained):
    card = (trained[2] / 'README.md').read_text()
    parameters = sum(p.numel() for p in trained[0].model.model.network.parameters()) / 1e6
    for line in (
        'Noise.', f'UNet2DModel, {parameters:.2f}M parameters, in pixels, told nothing', 'weights: fp32 (EMA)', 'steps: 5, 10 images in batches of 2',
        'seed: 0', 'training loss, mean of the last 100 steps: ', 'device: ',
    ):  # fmt: skip
        assert line in card


def test_half_precision_without_average(folder, tmp_path):
    runner = make_runner(folder, tmp_path, 'fp16', ema=False, schedule=dict(prediction_type='v_prediction'))
    runner.train()
    saved = tmp_path / 'diffusers'
    assert 'weights: fp16\n' in (saved / 'README.md').read_text()
    stored = load_file(saved / 'unet' / 'diffusion_pytorch_model.safetensors')
    trained = {name: value.cpu() for name, value in runner.model.model.network.state_dict().items()}
    assert all(torch.equal(stored[name], value.half()) for name, value in trained.items())
    assert {p.dtype for p in runner.model.parameters()} == {torch.float32}
    denoiser = PixelUNet(pretrained=str(saved))
    assert denoiser.schedule.prediction == 'v_prediction'
    rounded = UNet2DModel.from_config(runner.model.model.network.config).eval()
    rounded.load_state_dict({name: value.half().float() for name, value in trained.items()})
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([3, 700])
    with torch.no_grad():
        torch.testing.assert_close(
            denoiser.run(x, t, None).float(), rounded(x, t).sample, rtol=2e-2, atol=2e-2
        )
    # training goes on from it in full precision
    again = DenoisingPretrainer(network=dict(pretrained=str(saved)))
    assert again.model.schedule.prediction == 'v_prediction'
    assert {p.dtype for p in again.model.network.parameters()} == {torch.float32}
    assert all(p.requires_grad for p in again.model.network.parameters())


def test_saving_changes_nothing_and_a_failure_leaves_the_old_folder(trained, monkeypatch):
    runner, weights, folder = trained
    hook = SaveDiffusersHook()
    state = torch.get_rng_state()
    hook.save(runner, 7)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(v, weights[-1][k]) for k, v in runner.model.model.network.state_dict().items())
    before = {p: p.read_bytes() for p in folder.rglob('*') if p.is_file()}
    assert b'steps: 7' in before[folder / 'README.md']
    assert not list(folder.parent.glob('.*'))

    def fail(self, target, **_):
        target.mkdir(parents=True)
        (target / 'model_index.json').write_text('half of')
        raise OSError('disk full')

    with monkeypatch.context() as patch:
        patch.setattr(UNet2DModel, 'save_pretrained', fail)
        with pytest.raises(OSError, match='disk full'):
            hook.save(runner, 8)
    assert {p: p.read_bytes() for p in folder.rglob('*') if p.is_file()} == before
    hook.save(runner, 9)  # what the failure left is no obstacle
    assert 'steps: 9' in (folder / 'README.md').read_text()
    assert json.loads((folder / 'model_index.json').read_text())['_class_name'] == 'DDPMPipeline'
    assert not list(folder.parent.glob('.*'))
