"""Drawing images from a diffusion model: diffusers' schedulers for discrete schedules, Karras' sampler for EDM."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from .condition import Condition
from .generative import GenerativeModel
from .schedules import DiscreteSchedule, EDMSchedule, NoiseSchedule

# sampler -> diffusers' scheduler
SAMPLERS = {
    'ddim': 'DDIMScheduler', 'ddpm': 'DDPMScheduler', 'dpm++': 'DPMSolverMultistepScheduler', 'euler': 'EulerDiscreteScheduler',
    'pndm': 'PNDMScheduler', 'unipc': 'UniPCMultistepScheduler',
}  # fmt: skip
HEUN = 'heun'  # EDM's


def samplers(schedule: NoiseSchedule) -> list[str]:
    """The names of the samplers that fit a schedule, the default first."""
    return [HEUN] if isinstance(schedule, EDMSchedule) else list(SAMPLERS)


@torch.no_grad()
def sample(
    model: GenerativeModel,
    count: int,
    steps: int = 50,
    sampler: str | None = None,
    condition: Condition | None = None,
    guidance_scale: float = 1.0,
    size: int | tuple[int, int] | None = None,
    generator: torch.Generator | None = None,
    progress: Callable[[Iterator[Any]], Iterator[Any]] = iter,
) -> Tensor:
    """Draw ``count`` images (B, 3, H, W), RGB in [-1, 1], on the CPU.

    Args:
        steps: how often noise is taken away.
        sampler: one of :func:`samplers`.
        condition: what the network is told; None: the null class or the empty text, if it is told anything.
        guidance_scale: classifier-free guidance (Ho and Salimans 2022): output = uncond + scale (cond - uncond). 1: none.
        size: (H, W) of the images; default: the network's own.
        generator: of the CPU; the same one gives the same images on any device, up to rounding.
        progress: wraps the loop over steps.

    Raises:
        ValueError: an unknown sampler, a size or number of steps that cannot be, or guidance of a network that is told nothing.
    """
    sampler = check_request(model, count, steps, sampler, guidance_scale, size)
    parameter = next(model.parameters())
    shape = (count, *model.sample_shape(size))
    if condition is None:
        condition = model.condition(count)
    guided = guidance_scale != 1
    unconditional = model.condition(count) if guided else None

    def output(x: Tensor, t: Tensor) -> Tensor:
        t = t.to(x.device).expand(len(x))
        if not guided:
            return model(x, t, condition)
        both = model(torch.cat([x, x]), torch.cat([t, t]), _both(unconditional, condition))
        without, with_it = both.chunk(2)
        return without + guidance_scale * (with_it - without)

    noise = torch.randn(shape, generator=generator, dtype=parameter.dtype).to(parameter.device)
    if isinstance(model.schedule, EDMSchedule):
        x0 = _heun(model.schedule, output, noise, steps, progress)
    else:
        x0 = _with_scheduler(model.schedule, SAMPLERS[sampler], output, noise, steps, generator, progress)
    return model.decode(x0).float().clamp(-1, 1).cpu()


def check_request(
    model: GenerativeModel, count: int, steps: int, sampler: str | None, guidance_scale: float, size: int | tuple[int, int] | None
) -> str:
    """The sampler's name, after checking what :func:`sample` is asked. Raises: ValueError."""
    allowed = samplers(model.schedule)
    sampler = sampler or allowed[0]
    if sampler not in allowed:
        raise ValueError(f'sampler={sampler!r} does not fit this schedule; allowed: {allowed}')
    if steps < 1 or count < 1:
        raise ValueError(f'steps={steps}, count={count} do not fit; allowed: at least 1')
    if isinstance(model.schedule, DiscreteSchedule) and steps > len(model.schedule):
        raise ValueError(f'steps={steps} does not fit; allowed: 1 to {len(model.schedule)}, the steps of its training')
    if sampler == 'pndm' and (steps < 4 or model.schedule.prediction == 'sample'):
        raise ValueError(
            f"sampler='pndm' with {steps} steps on a network that predicts {model.schedule.prediction!r} does not fit; allowed: at least 4 "
            "steps, 'epsilon' or 'v_prediction'. Take sampler='ddim'"
        )
    if guidance_scale != 1 and not (model.takes_text or model.takes_classes):
        raise ValueError(f'guidance_scale={guidance_scale}: the network is told nothing that could guide it. Leave it at 1')
    model.sample_shape(size)
    return sampler


def _both(first: Condition | None, second: Condition | None) -> Condition:
    assert first is not None and second is not None
    values = {}
    for name in ('class_ids', 'tokens'):
        a, b = getattr(first, name), getattr(second, name)
        if a is not None:
            values[name] = torch.cat([a, b])
    return Condition(**values)


def _with_scheduler(
    schedule: NoiseSchedule,
    name: str,
    output: Callable[[Tensor, Tensor], Tensor],
    noise: Tensor,
    steps: int,
    generator: torch.Generator | None,
    progress: Callable[[Iterator[Any]], Iterator[Any]],
) -> Tensor:
    """The loop that all of diffusers' pipelines have."""
    import inspect

    import diffusers

    config = {key: value for key, value in schedule.to_config().items() if not key.startswith('_')}
    if str(config.get('variance_type', '')).startswith('learned'):
        config['variance_type'] = 'fixed_small'  # the learned one is not used
    scheduler = getattr(diffusers, name).from_config(config)
    scheduler.set_timesteps(steps)
    extra = {'generator': generator} if 'generator' in inspect.signature(scheduler.step).parameters else {}
    x = noise * scheduler.init_noise_sigma
    for t in progress(scheduler.timesteps):
        out = output(scheduler.scale_model_input(x, t), t)
        x = scheduler.step(out, t, x, **extra).prev_sample
    return x


def edm_sigmas(schedule: EDMSchedule, steps: int, rho: float = 7.0) -> Tensor:
    """Noise levels (steps + 1,), float64, from sigma_max down to 0 (Karras et al. 2022, eq. 5)."""
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    low, high = schedule.sigma_min ** (1 / rho), schedule.sigma_max ** (1 / rho)
    return torch.cat([(high + ramp * (low - high)) ** rho, torch.zeros(1, dtype=torch.float64)])


def _heun(
    schedule: EDMSchedule,
    output: Callable[[Tensor, Tensor], Tensor],
    noise: Tensor,
    steps: int,
    progress: Callable[[Iterator[Any]], Iterator[Any]],
) -> Tensor:
    """Algorithm 1 of Karras et al. 2022: Heun's method on dx/dsigma = (x - D(x; sigma)) / sigma, without churn."""

    def slope(x: Tensor, sigma: Tensor) -> Tensor:
        t = sigma.float().view(1).to(x.device)
        given = x.to(noise.dtype)
        denoised = schedule.to_x0(output(given, t), given, t.expand(len(x)))
        return (x - denoised.double()) / sigma

    sigmas = edm_sigmas(schedule, steps)
    x = noise.double() * sigmas[0]
    for now, then in progress(list(zip(sigmas[:-1], sigmas[1:]))):  # type: ignore[arg-type]
        first = slope(x, now)
        ahead = x + (then - now) * first
        if then > 0:
            ahead = x + (then - now) * (first + slope(ahead, then)) / 2
        x = ahead
    return x.to(noise.dtype)
