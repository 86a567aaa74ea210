"""The autoencoder in front: its taps against plain hooks, the latent against diffusers' distribution, and what is cut."""

import copy

import pytest
import torch

from mmdiffrep.diffusion.condition import Latent
from mmdiffrep.diffusion.cutting import PassThrough
from mmdiffrep.diffusion.dit import DiT
from mmdiffrep.diffusion.extraction import FeatureExtractor
from mmdiffrep.diffusion.noise import LATENT_STREAM, NoisePolicy
from mmdiffrep.diffusion.stable_diffusion import StableDiffusion

pytestmark = pytest.mark.usefixtures('traces_once')
# tap -> image pixels per pixel of its map
ENCODER = {
    'vae.encoder:in': 1, 'vae.encoder.conv_in': 1, 'vae.encoder.down_blocks.0.resnets.0': 1, 'vae.encoder.down_blocks.0': 2,
    'vae.encoder.down_blocks.1.resnets.0:in': 2,
    'vae.encoder.mid_block.attentions.0.to_q': 2, 'vae.encoder.mid_block': 2,
    'vae.encoder.conv_out': 2, 'vae.encoder': 2, 'vae.quant_conv': 2,
}  # fmt: skip
DECODER = {
    'vae.post_quant_conv': 2, 'vae.decoder:in': 2, 'vae.decoder.conv_in': 2, 'vae.decoder.mid_block.attentions.0:in': 2,
    'vae.decoder.mid_block': 2, 'vae.decoder.up_blocks.0.resnets.1:in': 2, 'vae.decoder.up_blocks.0': 1,
    'vae.decoder.up_blocks.1.resnets.1': 1, 'vae.decoder.conv_out': 1, 'vae.decoder': 1,
}  # fmt: skip


@pytest.fixture(scope='module')
def sd(small_sd_config):
    return StableDiffusion(config=small_sd_config)


@pytest.fixture(scope='module')
def vae(small_sd_config):
    """diffusers' autoencoder with the same random weights, never touched."""
    from diffusers import AutoencoderKL

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoencoderKL.from_config(small_sd_config['vae']).eval().requires_grad_(False)


def picture(n=2, size=(16, 24), seed=0):
    return torch.rand(n, 3, *size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def plain(vae, image):
    """Ordinary hooks while diffusers encodes and decodes."""
    found, handles = {}, []
    for tap, stride in (ENCODER | DECODER).items():
        path, _, side = tap.removeprefix('vae.').partition(':')

        def keep(value, tap=tap, stride=stride):
            if value.dim() == 3:
                h, w = (n // stride for n in image.shape[-2:])
                value = torch.stack([value[:, y * w : y * w + w] for y in range(h)], 1).permute(
                    0, 3, 1, 2
                )
            found[tap] = value.clone()

        module = vae.get_submodule(path)
        handles.append(
            module.register_forward_pre_hook(lambda _m, args, keep=keep: keep(args[0]))
            if side == 'in'
            else module.register_forward_hook(lambda _m, _a, out, keep=keep: keep(out))
        )
    posterior = vae.encode(image).latent_dist
    vae.decode(posterior.mean)
    for handle in handles:
        handle.remove()
    return found, posterior


def hooks(root):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in root.modules())


# ---- taps -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('size', [(16, 40), (40, 8)])
def test_taps_are_what_plain_hooks_see(sd, vae, size):
    image = picture(size=size)
    expected, posterior = plain(vae, image)
    taps = list(ENCODER) + list(DECODER)
    for latent in (True, False):
        given, found = sd.encode_tapped(image, taps[::-1], latent)
        assert list(found) == taps  # in the order of execution
        for tap in taps:
            assert found[tap].shape[-2:] == tuple(n // (ENCODER | DECODER)[tap] for n in size), tap
            assert torch.equal(found[tap], expected[tap]), tap
        assert given is None if not latent else torch.equal(given.mean, posterior.mean * 0.18215)
    infos = sd.tap_info(size)
    assert {tap: infos[tap].stride for tap in taps} == ENCODER | DECODER
    assert {tap: infos[tap].channels for tap in taps} == {
        tap: expected[tap].shape[1] for tap in taps
    }
    assert hooks(sd) == 0


def test_each_tap_alone_stops_behind_itself(sd, vae):
    image = picture()
    expected, _ = plain(vae, image)
    for tap in ENCODER | DECODER:
        found = sd.encode_tapped(image, [tap], latent=False)[1]
        assert list(found) == [tap] and torch.equal(found[tap], expected[tap]), tap
    ran = []
    handle = sd.vae.encoder.mid_block.register_forward_hook(lambda *_: ran.append(1))
    sd.encode_tapped(image, ['vae.encoder.down_blocks.0'], latent=False)
    assert not ran
    sd.encode_tapped(image, ['vae.encoder.down_blocks.0'], latent=True)
    assert ran
    handle.remove()


def test_two_names_of_one_place_both_come(sd):
    found = sd.encode_tapped(picture(), ['vae.encoder.conv_in', 'vae.encoder.conv_in:out'])[1]
    assert set(found) == {'vae.encoder.conv_in', 'vae.encoder.conv_in:out'}


def test_padded_inputs_of_convolutions_cover_no_image(sd):
    """The encoder halves maps after padding one side by a pixel."""
    tap = 'vae.encoder.down_blocks.0.downsamplers.0.conv:in'
    assert sd.encode_tapped(picture(), [tap], latent=False)[1][tap].shape[-2:] == (17, 25)
    assert tap not in sd.tap_info((16, 24))
    with pytest.raises(
        ValueError, match=r'give no maps \(B, C, h, w\) that cover the image.*list_taps'
    ):
        FeatureExtractor(sd, [tap]).infos()


def test_no_hook_is_left_after_an_exception(sd):
    other = copy.deepcopy(sd)
    handle = other.vae.encoder.mid_block.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        other.encode_tapped(picture(), ['vae.encoder.conv_in', 'vae.encoder.conv_out'])
    assert hooks(other) == 1 and other._session is None
    handle.remove()
    other.vae.decoder.mid_block.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        other.encode_tapped(picture(), ['vae.decoder.up_blocks.0'])
    assert hooks(other) == 1 and other._session is None


def test_checkpointing_changes_no_gradient(sd):
    grads = []
    for checkpointing in (False, True):
        other = copy.deepcopy(sd)
        other.network.requires_grad_(True)
        other.set_checkpointing(checkpointing)
        image = picture().requires_grad_(True)
        taps = [
            'vae.encoder.down_blocks.0',
            'vae.encoder.mid_block.attentions.0:probs',
            'vae.decoder.up_blocks.0.resnets.0',
        ]
        latent, found = other.encode_tapped(image, taps)
        (latent.mean.square().sum() + sum(v.square().sum() for v in found.values())).backward()
        grads.append([image.grad, *(p.grad for p in other.vae.parameters() if p.grad is not None)])
    assert len(grads[0]) == len(grads[1]) > 60 and all(torch.equal(a, b) for a, b in zip(*grads))


# ---- the latent -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize('scaled', [True, False])
@pytest.mark.parametrize('kind', ['mean', 'mode', 'sample'])
def test_latents_are_diffusers_own(small_sd, vae, kind, scaled):
    denoiser = small_sd(latent=kind, scale_latent=scaled)
    image = picture()
    posterior = vae.encode(image).latent_dist
    factor = 0.18215 if scaled else 1.0
    latent, _ = denoiser.encode_tapped(image)
    assert torch.equal(denoiser.encode(image), posterior.mean * factor)
    if kind != 'sample':
        expected = posterior.mode() if kind == 'mode' else posterior.mean
        assert latent.std is None and torch.equal(latent.draw(), expected * factor)
        return
    expected = posterior.sample(torch.Generator().manual_seed(3)) * factor
    noise = torch.randn(latent.mean.shape, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(latent.draw(noise), expected)
    assert not torch.allclose(latent.draw(noise), latent.mean)


def test_features_of_a_sample_step_by_step(small_sd, vae):
    """x0 = scale · (mean + std · the policy's own draw); the noise on top is another draw."""
    denoiser = small_sd(latent='sample')
    image, policy = picture(), NoisePolicy('per_image', seed=3, draws=2)
    from mmdiffrep.diffusion.noise import image_key

    keys = [image_key(x) for x in image]
    posterior = vae.encode(image).latent_dist
    shape, t = tuple(posterior.mean.shape), torch.tensor([100, 100])
    total = 0
    for draw in range(2):
        own, noise = policy.draw(shape, draw + LATENT_STREAM, keys), policy.draw(shape, draw, keys)
        assert not torch.allclose(own, noise)
        x0 = 0.18215 * (posterior.mean + posterior.std * own)
        x_t = denoiser.schedule.add_noise(x0, noise, t)
        total = total + denoiser.features(x_t, t, taps=['mid_block'])['mid_block']
    got = FeatureExtractor(denoiser, ['mid_block'], 100, policy)(image)
    torch.testing.assert_close(got[0], total / 2, rtol=1e-4, atol=1e-5)


def test_what_is_wrong_about_latents(small_sd):
    with pytest.raises(
        ValueError, match=r"latent='median' is unknown; allowed: \('mean', 'mode', 'sample'\)"
    ):
        small_sd(latent='median')
    with pytest.raises(
        ValueError,
        match="latent='sample' needs noise .*take latent='mean', or a noise kind other than 'none'",
    ):
        FeatureExtractor(small_sd(latent='sample'), ['mid_block'], noise=NoisePolicy('none'))(
            picture()
        )
    with pytest.raises(
        ValueError,
        match='the autoencoder gives 3 channels, the network takes 4: they do not belong',
    ):
        small_sd(vae=dict(latent_channels=3))
    assert torch.equal(Latent(torch.ones(1)).draw(), torch.ones(1))


def test_an_image_is_encoded_once(small_sd, monkeypatch):
    denoiser = small_sd(latent='sample')
    calls = []
    for name in ('encode', 'decode'):
        original = getattr(denoiser.vae, name)
        monkeypatch.setattr(
            denoiser.vae,
            name,
            lambda x, name=name, f=original: calls.append((name, len(x))) or f(x),
        )
    extract = FeatureExtractor(
        denoiser,
        ['vae.encoder.conv_in', 'mid_block', 'vae.decoder.mid_block'],
        [10, 20, 30],
        NoisePolicy('shared', draws=4),
    )
    assert len(extract(picture())) == 5  # the autoencoder's once, mid_block three times
    assert calls == [('encode', 2), ('decode', 2)]
    calls.clear()
    FeatureExtractor(denoiser, ['mid_block'])(picture())
    assert calls == [('encode', 2)]


def test_maps_come_t_major_with_the_autoencoders_first(sd):
    taps = ['vae.encoder.conv_in', 'mid_block', 'up_blocks.1']
    extract = FeatureExtractor(sd, taps, [10, 500])
    assert extract.order == [
        (10, 'vae.encoder.conv_in'), (10, 'mid_block'), (10, 'up_blocks.1'), (500, 'mid_block'), (500, 'up_blocks.1'),
    ]  # fmt: skip
    apart = [FeatureExtractor(sd, taps, t)(picture()) for t in (10, 500)]
    for got, want in zip(extract(picture()), [*apart[0], *apart[1][1:]]):
        assert torch.allclose(got, want, rtol=1e-4, atol=1e-5)
    assert not torch.equal(apart[0][1], apart[1][1])
    only = FeatureExtractor(sd, ['vae.encoder.conv_in'], [10, 500])
    assert len(only(picture())) == 1 and [info.channels for info in only.infos()] == [8]


# ---- cutting --------------------------------------------------------------------------------------------------


def names(module):
    return {name.split('.')[0] for name, _ in module.named_parameters()}


CUTS = [
    (['vae.encoder.conv_in'], 'encoder.conv_in'),
    (['vae.encoder.down_blocks.0.resnets.0'], 'encoder.conv_in encoder.down_blocks'),
    (['vae.encoder.down_blocks.1.resnets.0:in'], 'encoder.conv_in encoder.down_blocks'),
    (['vae.encoder.mid_block'], 'encoder.conv_in encoder.down_blocks encoder.mid_block'),
    (['vae.encoder'], 'encoder'),
    (['vae.quant_conv', 'vae.encoder.conv_in'], 'encoder quant_conv'),
    (['vae.post_quant_conv'], 'encoder quant_conv post_quant_conv'),
    (['vae.decoder.conv_in'], 'encoder quant_conv post_quant_conv decoder.conv_in'),
    (['vae.decoder.mid_block'], 'encoder quant_conv post_quant_conv decoder.conv_in decoder.mid_block'),
    (['vae.encoder.conv_in', 'vae.decoder.up_blocks.0'],
     'encoder quant_conv post_quant_conv decoder.conv_in decoder.mid_block decoder.up_blocks'),
    (['vae.decoder'], 'encoder quant_conv post_quant_conv decoder'),
]  # fmt: skip


@pytest.mark.parametrize(
    'family, taps, kept',
    [(StableDiffusion, *cut) for cut in CUTS] + [(DiT, *CUTS[1]), (DiT, *CUTS[8])],
)
def test_cut_to_autoencoder_taps_holds_nothing_else(small_sd, small_dit, vae, family, taps, kept):
    denoiser = {StableDiffusion: small_sd, DiT: small_dit}[family](keep_taps=taps)
    assert names(denoiser.network) == {'vae'} and not denoiser.runs_network
    prefixes = tuple(kept.split())
    for name, _ in denoiser.vae.named_parameters():
        assert name.startswith(tuple(p + '.' for p in prefixes)), name
    assert all(
        any(name.startswith(p) for name, _ in denoiser.vae.named_parameters()) for p in prefixes
    )
    image = picture()
    expected, _ = plain(vae, image)
    for _ in range(2):  # cutting twice is cutting once
        extract = FeatureExtractor(denoiser, taps, [10, 20])
        for tap, value, info in zip(taps, extract(image), extract.infos()):
            assert torch.equal(value, expected[tap]), tap
            assert (info.channels, info.stride) == (value.shape[1], (ENCODER | DECODER)[tap])
        count = sum(p.numel() for p in denoiser.parameters())
        denoiser.cut(taps)
        assert count == sum(p.numel() for p in denoiser.parameters())
    denoiser.set_checkpointing(True)


def test_a_network_without_decoder_taps_has_no_decoder(small_sd, sd):
    taps = ['vae.encoder.down_blocks.0', 'up_blocks.0']
    denoiser = small_sd(keep_taps=taps)
    assert denoiser.vae.decoder is None and denoiser.vae.post_quant_conv is None
    assert names(denoiser.vae) == {'encoder', 'quant_conv'} and len(denoiser.unet.up_blocks) == 1
    for got, want in zip(
        FeatureExtractor(denoiser, taps)(picture()), FeatureExtractor(sd, taps)(picture())
    ):
        assert torch.equal(got, want)
    both = small_sd(keep_taps=[*taps, 'vae.decoder.mid_block'])
    assert len(both.vae.decoder.up_blocks) == 0 and isinstance(
        both.vae.decoder.conv_out, PassThrough
    )
    with pytest.raises(
        ValueError, match=r"tap 'vae.decoder.mid_block': the network has no such module"
    ):
        denoiser.tap('vae.decoder.mid_block')


def test_an_autoencoder_without_quantisation_convolutions(small_sd):
    options = dict(vae=dict(use_quant_conv=False, use_post_quant_conv=False))
    whole = small_sd(**options)
    for taps in (
        ['vae.encoder.down_blocks.0'],
        ['vae.decoder.mid_block'],
        ['vae.encoder.conv_in', 'mid_block'],
    ):
        cut = small_sd(keep_taps=taps, **options)
        extract = FeatureExtractor(cut, taps)
        assert len(extract.infos()) == len(taps)
        for got, want in zip(extract(picture()), FeatureExtractor(whole, taps)(picture())):
            assert torch.equal(got, want)


def test_the_autoencoder_as_such_is_no_tap(small_sd, sd):
    with pytest.raises(ValueError, match=r"taps \['vae'\] are not reached"):
        small_sd(keep_taps=['vae'])
    with pytest.raises(ValueError, match=r"taps \['vae'\] were not reached"):
        sd.encode_tapped(picture(), ['vae'])


def test_network_and_autoencoder_are_read_apart(sd):
    x, t = torch.zeros(1, 4, 8, 8), torch.tensor([5])
    with pytest.raises(
        ValueError,
        match=r"taps \['vae.encoder'\] are in the autoencoder, .* encode_tapped\(\), or all with",
    ):
        sd.features(x, t, taps=['mid_block', 'vae.encoder'])
    with pytest.raises(ValueError, match=r"taps \['mid_block'\] were not reached"):
        sd.encode_tapped(picture(), ['vae.encoder', 'mid_block'])


def test_a_random_network_is_named_by_its_seed_and_all_of_its_architecture():
    from mmdiffrep.diffusion.model_files import ModelFiles, Part

    def name(network=1, vae=1, seed=0):
        return ModelFiles('', Part(dict(a=network)), Part(dict(a=vae)), {}).fingerprint(seed)

    assert name() == name()
    assert len({name(), name(network=2), name(vae=2), name(seed=1)}) == 4
