"""Noise schedules against diffusers' formulas, the papers' in float64, and hand-made values."""

import json
import math

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    TCDScheduler,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from mmdiffrep.diffusion.schedules import (
    PREDICTIONS,
    DiscreteSchedule,
    EDMSchedule,
    NoiseSchedule,
    build_schedule,
)

DISCRETE = {
    'linear': dict(beta_schedule='linear'),
    'scaled_linear': dict(beta_schedule='scaled_linear', beta_start=0.00085, beta_end=0.012),
    'cosine': dict(beta_schedule='squaredcos_cap_v2'),
    'sigmoid': dict(beta_schedule='sigmoid'),
    'trained': dict(trained_betas=[0.1, 0.2, 0.3, 0.4], num_train_timesteps=4),
    'zero_snr': dict(beta_schedule='scaled_linear', rescale_betas_zero_snr=True),
    'short': dict(beta_schedule='linear', num_train_timesteps=50),
}


def quiet(config: dict) -> dict:
    """The config with diffusers' clipping of x0 off: its step then shows the bare formula."""
    return config | dict(clip_sample=False, thresholding=False)


def images(batch: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, 4, 5, generator=generator).to(dtype)


def spread(schedule: DiscreteSchedule, last: int | None = None) -> torch.Tensor:
    """First, last and some timesteps between."""
    last = len(schedule) - 1 if last is None else last
    return torch.tensor([0, 1, last // 2, last])


# ---- discrete schedules against diffusers --------------------------------------------------------


@pytest.mark.parametrize('name', DISCRETE)
def test_add_noise_is_that_of_ddpm_scheduler(name):
    ours = DiscreteSchedule.from_diffusers(DISCRETE[name])
    theirs = DDPMScheduler(**DISCRETE[name])
    t = spread(ours)
    x0, noise = images(4, 0), images(4, 1)
    torch.testing.assert_close(
        ours.add_noise(x0, noise, t), theirs.add_noise(x0, noise, t), rtol=0, atol=1e-6
    )
    assert torch.equal(ours.alphas_cumprod, theirs.alphas_cumprod)


@pytest.mark.parametrize('name', DISCRETE)
def test_v_target_is_get_velocity(name):
    ours = DiscreteSchedule.from_diffusers(DISCRETE[name] | dict(prediction_type='v_prediction'))
    theirs = DDPMScheduler(**DISCRETE[name])
    t = spread(ours)
    x0, noise = images(4, 0), images(4, 1)
    torch.testing.assert_close(
        ours.target(x0, noise, t), theirs.get_velocity(x0, noise, t), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize('prediction', PREDICTIONS)
@pytest.mark.parametrize('name', ['linear', 'scaled_linear', 'cosine', 'trained'])
def test_to_x0_is_the_pred_original_sample_of_ddpm_step(name, prediction):
    config = quiet(DISCRETE[name]) | dict(prediction_type=prediction)
    ours, theirs = DiscreteSchedule.from_diffusers(config), DDPMScheduler(**config)
    x_t, output = images(4, 2), images(4, 3)
    t = spread(ours)
    x0 = ours.to_x0(output, x_t, t)
    for i, step in enumerate(t.tolist()):
        expected = theirs.step(output[i], step, x_t[i], generator=torch.manual_seed(0))
        torch.testing.assert_close(
            x0[i], expected.pred_original_sample, rtol=1e-5, atol=1e-5 * float(x0[i].abs().max())
        )


@pytest.mark.parametrize('scheduler', [DDIMScheduler, PNDMScheduler, EulerDiscreteScheduler])
@pytest.mark.parametrize('name', ['linear', 'scaled_linear', 'cosine'])
def test_every_vp_sampler_config_gives_its_own_alphas(scheduler, name):
    theirs = scheduler(**DISCRETE[name], prediction_type='v_prediction')
    stored = json.loads(theirs.to_json_string())
    for ours in (build_schedule(stored), DiscreteSchedule.from_diffusers(theirs)):
        assert torch.equal(ours.alphas_cumprod, theirs.alphas_cumprod)
        assert ours.prediction == 'v_prediction'


@pytest.mark.parametrize('scheduler', [LCMScheduler, TCDScheduler, HeunDiscreteScheduler])
def test_a_scheduler_keeps_default_betas_that_are_not_those_of_ddpm(scheduler):
    theirs = scheduler()
    ours = DiscreteSchedule.from_diffusers(theirs)
    assert torch.equal(ours.alphas_cumprod, theirs.alphas_cumprod)


# ---- discrete schedules against formulas and hand-made values ------------------------------------


def test_linear_betas_are_those_of_ho_et_al():
    betas = np.linspace(1e-4, 0.02, 1000)  # DDPM, section 4
    expected = np.cumprod(1 - betas)
    ours = DiscreteSchedule.from_diffusers(dict(beta_schedule='linear'))
    np.testing.assert_allclose(ours.alphas_cumprod.numpy(), expected, rtol=2e-4)


def test_scaled_linear_betas_are_those_of_latent_diffusion():
    betas = np.linspace(math.sqrt(0.00085), math.sqrt(0.012), 1000) ** 2
    ours = DiscreteSchedule.from_diffusers(DISCRETE['scaled_linear'])
    np.testing.assert_allclose(ours.alphas_cumprod.numpy(), np.cumprod(1 - betas), rtol=2e-4)


def test_cosine_alphas_are_those_of_nichol_and_dhariwal():
    def level(u: float) -> float:
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2  # Improved DDPM, eq. 17

    ours = DiscreteSchedule.from_diffusers(dict(beta_schedule='squaredcos_cap_v2'))
    for t in (0, 10, 500, 900):  # the betas are capped at 0.999 only at the very end
        assert ours.alphas_cumprod[t].item() == pytest.approx(
            level((t + 1) / 1000) / level(0), rel=1e-3
        )


def test_trained_betas_by_hand():
    ours = DiscreteSchedule.from_diffusers(DISCRETE['trained'])
    alpha, sigma = ours.alpha_sigma(torch.arange(4))
    product = torch.tensor([0.9, 0.9 * 0.8, 0.9 * 0.8 * 0.7, 0.9 * 0.8 * 0.7 * 0.6])
    torch.testing.assert_close(alpha**2, product)
    torch.testing.assert_close(sigma**2, 1 - product)
    assert alpha.dtype == sigma.dtype == torch.float32


def test_add_noise_and_targets_by_hand():
    config = dict(trained_betas=[0.36], num_train_timesteps=1)  # alpha 0.8, sigma 0.6
    x0, noise, t = torch.full((1, 1, 1, 1), 2.0), torch.full((1, 1, 1, 1), -1.0), torch.tensor([0])
    expected = {'epsilon': -1.0, 'sample': 2.0, 'v_prediction': 0.8 * -1.0 - 0.6 * 2.0}
    for prediction, value in expected.items():
        schedule = DiscreteSchedule.from_diffusers(config | dict(prediction_type=prediction))
        assert schedule.add_noise(x0, noise, t).item() == pytest.approx(0.8 * 2 - 0.6)
        assert schedule.target(x0, noise, t).item() == pytest.approx(value)


def test_zero_snr_ends_in_pure_noise_and_v_still_gives_x0():
    config = DISCRETE['zero_snr'] | dict(prediction_type='v_prediction')
    schedule = DiscreteSchedule.from_diffusers(config)
    t = torch.tensor([len(schedule) - 1])
    alpha, sigma = schedule.alpha_sigma(t)
    assert (alpha.item(), sigma.item()) == (0.0, 1.0)
    x0, noise = images(1, 0), images(1, 1)
    assert torch.equal(schedule.add_noise(x0, noise, t), noise)
    torch.testing.assert_close(schedule.to_x0(schedule.target(x0, noise, t), noise, t), x0)


@pytest.mark.parametrize('name', DISCRETE)
def test_signal_falls_and_variance_is_preserved(name):
    schedule = DiscreteSchedule.from_diffusers(DISCRETE[name])
    alpha, sigma = schedule.alpha_sigma(torch.arange(len(schedule)))
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(len(schedule)))
    assert (alpha.diff() < 0).all() and (sigma.diff() >= 0).all()


@pytest.mark.parametrize('name', DISCRETE)
def test_discrete_config_round_trip(name):
    schedule = build_schedule(DISCRETE[name] | dict(prediction_type='sample'))
    config = json.loads(json.dumps(schedule.to_config()))
    again = build_schedule(config)
    assert torch.equal(again.alphas_cumprod, schedule.alphas_cumprod)
    assert again.prediction == 'sample'
    assert again.to_config() == schedule.to_config()
    assert config['_class_name'] == 'DDPMScheduler'
    assert torch.equal(DDPMScheduler.from_config(config).alphas_cumprod, schedule.alphas_cumprod)


def test_discrete_network_sees_x_t_and_the_timesteps_as_they_are():
    schedule = DiscreteSchedule.from_diffusers({})
    x_t = images(2)
    assert schedule.network_input(x_t, torch.tensor([3, 4])) is x_t
    time = schedule.network_time(torch.tensor([3, 4], dtype=torch.int32))
    assert time.dtype == torch.long and time.tolist() == [3, 4]
    assert schedule.network_time(torch.tensor([3.25, 4.0])).tolist() == [3.25, 4.0]


# ---- EDM -----------------------------------------------------------------------------------------


def test_edm_preconditioning_by_hand():
    # sigma² + sigma_data² = 0.64 + 0.36 = 1, so every root is a whole one
    skip, out, scale, time = EDMSchedule(sigma_data=0.6).preconditioning(torch.tensor([0.8]))
    assert skip.item() == pytest.approx(0.36)
    assert out.item() == pytest.approx(0.48)
    assert scale.item() == pytest.approx(1.0)
    assert time.item() == pytest.approx(-0.0557859, abs=1e-6)  # ln(0.8) / 4


def test_edm_interface_by_hand():
    schedule = EDMSchedule()  # sigma_data 0.5
    sigma = torch.tensor([0.5])  # c_skip 1/2, c_out sqrt(2)/4, c_in sqrt(2)
    x0, noise = torch.full((1, 1, 1, 1), 1.0), torch.full((1, 1, 1, 1), -2.0)
    x_t = schedule.add_noise(x0, noise, sigma)
    assert x_t.item() == 0.0  # 1 + 0.5 * -2
    assert schedule.network_input(torch.ones(1, 1, 1, 1), sigma).item() == pytest.approx(2**0.5)
    assert schedule.network_time(sigma).item() == pytest.approx(-0.1732868, abs=1e-6)
    assert schedule.target(x0, noise, sigma).item() == pytest.approx(4 / 2**0.5)
    output, x_t = torch.full((1, 1, 1, 1), 2**0.5), torch.full((1, 1, 1, 1), 3.0)
    assert schedule.to_x0(output, x_t, sigma).item() == pytest.approx(1.5 + 0.5)
    alpha, level = schedule.alpha_sigma(sigma)
    assert (alpha.item(), level.item()) == (1.0, 0.5)


def test_edm_extremes():
    schedule = EDMSchedule()
    skip, out, _, _ = schedule.preconditioning(torch.tensor([0.002, 80.0]))
    assert skip[0].item() == pytest.approx(1, abs=2e-5) and out[0].item() == pytest.approx(
        0.002, rel=1e-4
    )
    assert skip[1].item() == pytest.approx(0, abs=5e-5) and out[1].item() == pytest.approx(
        0.5, rel=1e-4
    )


@pytest.mark.parametrize('sigma', [0.01, 0.5, 1.0, 20.0])
def test_edm_network_input_and_target_have_unit_variance(sigma):
    # what the preconditioning is for (Karras et al., appendix B.6); x0's deviation is sigma_data
    schedule = EDMSchedule()
    generator = torch.Generator().manual_seed(0)
    x0 = 0.5 * torch.randn(1, 1, 300, 300, generator=generator)
    noise = torch.randn(1, 1, 300, 300, generator=generator)
    t = torch.tensor([sigma])
    x_t = schedule.add_noise(x0, noise, t)
    assert schedule.network_input(x_t, t).var().item() == pytest.approx(1, abs=0.02)
    assert schedule.target(x0, noise, t).var().item() == pytest.approx(1, abs=0.02)


def test_edm_sampled_sigmas_are_lognormal_and_in_range():
    schedule = EDMSchedule()
    sigma = schedule.sample_timesteps(20000, torch.Generator().manual_seed(0))
    schedule.check_timesteps(sigma)
    assert sigma.log().mean().item() == pytest.approx(-1.2, abs=0.03)
    assert sigma.log().std().item() == pytest.approx(1.2, abs=0.03)


def test_edm_config_round_trip():
    given = {'sigma_min': 0.01, 'sigma_max': 50, 'sigma_data': 0.3, 'p_mean': -0.4, 'p_std': 1.0}
    config = json.loads(json.dumps(EDMSchedule(**given).to_config()))
    assert config == {'_class_name': 'EDMSchedule', **given}
    again = build_schedule(config)
    assert isinstance(again, EDMSchedule) and again.to_config() == config


# ---- both ----------------------------------------------------------------------------------------

BOTH = {f'vp-{p}': DiscreteSchedule.from_diffusers(dict(prediction_type=p)) for p in PREDICTIONS}
BOTH['edm'] = EDMSchedule()


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(BOTH)),
    seed=st.integers(0, 2**31),
    fraction=st.floats(0, 1, width=32),
)
def test_the_perfect_output_gives_x0_back(name, seed, fraction):
    schedule = BOTH[name]
    if isinstance(schedule, EDMSchedule):
        t = torch.tensor([0.002 * (80 / 0.002) ** fraction]).clamp(0.002, 80)
    else:
        t = torch.tensor([round(fraction * 999)])
    schedule.check_timesteps(t)
    x0, noise = images(1, seed).double(), images(1, seed + 1).double()
    x_t = schedule.add_noise(x0, noise, t)
    restored = schedule.to_x0(schedule.target(x0, noise, t), x_t, t)
    # in float64 only v loses anything: float32's alpha² + sigma² is 1 to about 1e-7
    torch.testing.assert_close(restored, x0, rtol=0, atol=2e-6)


def everything(
    schedule: NoiseSchedule, x0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor
) -> list[torch.Tensor]:
    """What each function of the interface gives, each (B, ...)."""
    return [
        schedule.add_noise(x0, noise, t),
        schedule.network_input(x0, t),
        schedule.network_time(t),
        schedule.target(x0, noise, t),
        schedule.to_x0(noise, x0, t),
    ]


@pytest.mark.parametrize('name', BOTH)
def test_every_image_has_its_own_timestep(name):
    schedule = BOTH[name]
    t = schedule.sample_timesteps(5, torch.Generator().manual_seed(1))
    assert len(t.unique()) > 1
    x0, noise = images(5, 0), images(5, 1)
    together = everything(schedule, x0, noise, t)
    for i in range(5):
        alone = everything(schedule, x0[i : i + 1], noise[i : i + 1], t[i : i + 1])
        for whole, single in zip(together, alone):
            torch.testing.assert_close(whole[i : i + 1], single, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('name', BOTH)
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_network_gets_the_dtype_of_the_image(name, dtype):
    schedule = BOTH[name]
    t = schedule.sample_timesteps(2, torch.Generator().manual_seed(0))
    x0, noise = images(2, 0, dtype), images(2, 1, dtype)
    x_t = schedule.add_noise(x0, noise, t)
    assert x_t.dtype == schedule.network_input(x_t, t).dtype == dtype
    exact = schedule.add_noise(x0.double(), noise.double(), t)
    half_step = torch.finfo(dtype).eps / 2  # rounded once, at the end
    torch.testing.assert_close(x_t.double(), exact, rtol=1.01 * half_step, atol=1e-6)


@pytest.mark.parametrize('name', BOTH)
def test_sampled_and_example_timesteps_are_valid_and_seeded(name):
    schedule = BOTH[name]
    schedule.check_timesteps(schedule.example_timesteps(3))
    first, second = (
        schedule.sample_timesteps(64, torch.Generator().manual_seed(seed)) for seed in (7, 7)
    )
    schedule.check_timesteps(first)
    assert first.shape == (64,) and torch.equal(first, second)
    assert not torch.equal(first, schedule.sample_timesteps(64, torch.Generator().manual_seed(8)))


def test_discrete_timesteps_are_drawn_evenly_to_both_ends():
    schedule = DiscreteSchedule.from_diffusers(dict(num_train_timesteps=10))
    counts = schedule.sample_timesteps(10000, torch.Generator().manual_seed(0)).bincount(
        minlength=10
    )
    assert len(counts) == 10 and counts.min() > 850 and counts.max() < 1150


# ---- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    't, given',
    [([0.5], '0.5'), ([-1], '-1'), ([1000], '1000'), ([3, 2000], '2000'), ([float('nan')], 'nan')],
)
def test_discrete_timesteps_outside(t, given):
    schedule = DiscreteSchedule.from_diffusers({})
    with pytest.raises(ValueError, match='allowed: whole numbers from 0 to 999') as error:
        schedule.check_timesteps(torch.tensor(t))
    assert given in str(error.value)


def test_timesteps_inside_pass():
    DiscreteSchedule.from_diffusers({}).check_timesteps(torch.tensor([0, 999]))
    DiscreteSchedule.from_diffusers({}).check_timesteps(torch.tensor([3.0]))  # whole, though float
    EDMSchedule().check_timesteps(torch.tensor([0.002, 80.0]))


@pytest.mark.parametrize('sigma', [0.0, -1.0, 0.001, 81.0, 250.0, float('inf'), float('nan')])
def test_edm_sigma_outside(sigma):
    with pytest.raises(ValueError, match=r'allowed: 0\.002 to 80.*noise level sigma'):
        EDMSchedule().check_timesteps(torch.tensor([sigma]))


@pytest.mark.parametrize('low, high', [(0.0, 80.0), (-1.0, 80.0), (2.0, 1.0), (1.0, 1.0)])
def test_edm_range_must_be_positive_and_ordered(low, high):
    with pytest.raises(ValueError, match='0 < sigma_min < sigma_max'):
        EDMSchedule(sigma_min=low, sigma_max=high)


def test_unknown_prediction_names_the_allowed():
    with pytest.raises(ValueError, match="'flow_prediction' is unknown; allowed: .*'v_prediction'"):
        build_schedule(dict(prediction_type='flow_prediction'))


def test_unknown_beta_schedule_names_the_allowed():
    with pytest.raises(ValueError, match="beta_schedule='cubic' is unknown; allowed: .*squaredcos"):
        build_schedule(dict(beta_schedule='cubic'))


@pytest.mark.parametrize(
    'kind',
    [
        'FlowMatchEulerDiscreteScheduler',
        'FlowMatchHeunDiscreteScheduler',
        'EDMEulerScheduler',
        'ScoreSdeVeScheduler',
        'CMStochasticIterativeScheduler',
        'CogVideoXDDIMScheduler',
    ],
)
def test_schedulers_that_are_not_vp_are_refused(kind):
    with pytest.raises(ValueError, match=f'{kind} is not known to be variance-preserving; supported'):
        build_schedule(dict(_class_name=kind))


def test_an_incomplete_schedule_says_what_it_lacks():
    with pytest.raises(TypeError, match='NoiseSchedule must define alpha_sigma'):
        NoiseSchedule().add_noise(images(1), images(1), torch.tensor([0]))
