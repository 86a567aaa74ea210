"""Single files in CompVis' layout, against the diffusers folder with the same weights."""

import socket
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmdiffrep.diffusion.extraction import FeatureExtractor
from mmdiffrep.diffusion.model_files import find_model, named_config
from mmdiffrep.diffusion.stable_diffusion import StableDiffusion
from mmdiffrep.diffusion.weights import WeightFile

pytestmark = [
    pytest.mark.usefixtures('traces_once'),
    pytest.mark.filterwarnings('ignore::FutureWarning'),
]
UNET, VAE = 'model.diffusion_model.', 'first_stage_model.'
TAPS = [
    'vae.encoder.mid_block.attentions.0', 'down_blocks.1.attentions.0.transformer_blocks.0.attn2:probs', 'mid_block',
    'up_blocks.2', 'vae.decoder.up_blocks.1',
]  # fmt: skip
# no '!': as SD 2's padding it is a token of its own in diffusers' tokenizer, wherever it stands; in open_clip's, which SD 2 was
# trained with, it is a word's end
PROMPTS = ['a photo of a horse', '', 'two dogs, "quoted"?']


# ---- the inverse of diffusers' name mapping -------------------------------------------------------------------


def renamed(name, pairs):
    for new, old in pairs.items():
        name = name.replace(new, old)
    return name


def ldm_unet_name(name, layers):
    """diffusers' name in a U-Net -> CompVis', counting blocks as its code does."""
    kind, _, rest = name.partition('.')
    fixed = {
        'time_embedding': 'time_embed',
        'conv_in': 'input_blocks.0.0',
        'conv_norm_out': 'out.0',
        'conv_out': 'out.2',
    }
    if kind in fixed:
        return f'{fixed[kind]}.' + renamed(rest, {'linear_1': '0', 'linear_2': '2'})
    resnet = {
        'norm1': 'in_layers.0', 'conv1': 'in_layers.2', 'norm2': 'out_layers.0', 'conv2': 'out_layers.3',
        'time_emb_proj': 'emb_layers.1', 'conv_shortcut': 'skip_connection',
    }  # fmt: skip
    if kind == 'mid_block':
        part, k, rest = rest.split('.', 2)
        place = f'middle_block.{2 * int(k) if part == "resnets" else 1}'
        return f'{place}.{renamed(rest, resnet) if part == "resnets" else rest}'
    i, part, j, rest = rest.split('.', 3)
    number = int(i) * (layers + 1) + int(j)
    if kind == 'down_blocks':
        if part == 'downsamplers':
            return f'input_blocks.{(int(i) + 1) * (layers + 1)}.0.op.{rest.removeprefix("conv.")}'
        place = f'input_blocks.{number + 1}'
    else:
        if part == 'upsamplers':  # behind the attention, where there is one
            return f'output_blocks.{int(i) * (layers + 1) + layers}.{1 if i == "0" else 2}.{rest}'
        place = f'output_blocks.{number}'
    return f'{place}.0.{renamed(rest, resnet)}' if part == 'resnets' else f'{place}.1.{rest}'


def ldm_vae_name(name, levels):
    side, _, rest = name.partition('.')
    if not rest or side in ('quant_conv', 'post_quant_conv'):
        return name
    parts = rest.split('.')
    if parts[0] in ('down_blocks', 'up_blocks'):
        i = int(parts[1]) if parts[0] == 'down_blocks' else levels - 1 - int(parts[1])
        direction = parts[0].removesuffix('_blocks')
        if parts[2] == 'resnets':
            rest = f'{direction}.{i}.block.' + '.'.join(parts[3:])
        else:
            rest = f'{direction}.{i}.{direction}sample.' + '.'.join(parts[4:])
    elif parts[0] == 'mid_block' and parts[1] == 'resnets':
        rest = f'mid.block_{int(parts[2]) + 1}.' + '.'.join(parts[3:])
    elif parts[0] == 'mid_block':
        names = {
            'group_norm': 'norm',
            'to_q': 'q',
            'to_k': 'k',
            'to_v': 'v',
            'to_out.0': 'proj_out',
        }
        rest = 'mid.attn_1.' + renamed('.'.join(parts[3:]), names)
    return f'{side}.' + renamed(
        rest, {'conv_norm_out': 'norm_out', 'conv_shortcut': 'nin_shortcut'}
    )


def open_clip_state(state, layers):
    """A CLIP text model under open_clip's names; the last block, which SD 2 does not use, is one more."""
    out = {
        'token_embedding.weight': state['embeddings.token_embedding.weight'],
        'positional_embedding': state['embeddings.position_embedding.weight'],
        'ln_final.weight': state['final_layer_norm.weight'], 'ln_final.bias': state['final_layer_norm.bias'],
        'text_projection': torch.eye(12), 'logit_scale': torch.tensor(4.6),
    }  # fmt: skip
    names = {
        'self_attn.out_proj': 'attn.out_proj', 'layer_norm1': 'ln_1', 'layer_norm2': 'ln_2', 'mlp.fc1': 'mlp.c_fc',
        'mlp.fc2': 'mlp.c_proj',
    }  # fmt: skip
    for i in range(layers):
        old, new = f'encoder.layers.{i}.', f'transformer.resblocks.{i}.'
        for kind in ('weight', 'bias'):
            out[f'{new}attn.in_proj_{kind}'] = torch.cat(
                [state[f'{old}self_attn.{x}_proj.{kind}'] for x in 'qkv']
            )
            out |= {f'{new}{b}.{kind}': state[f'{old}{a}.{kind}'] for a, b in names.items()}
    unused = {
        k.replace('resblocks.0', f'resblocks.{layers}'): v + 1
        for k, v in out.items()
        if 'resblocks.0' in k
    }
    return {f'cond_stage_model.model.{k}': v for k, v in (out | unused).items()}


def compvis(folder, kind):
    """The single file's state dict of a pipeline's folder, with what else such files hold."""
    unet = load_file(folder / 'unet' / 'diffusion_pytorch_model.safetensors')
    vae = load_file(folder / 'vae' / 'diffusion_pytorch_model.safetensors')
    text = load_file(folder / 'text_encoder' / 'model.safetensors')
    text = {name.removeprefix('text_model.'): value for name, value in text.items()}
    state = {UNET + ldm_unet_name(name, 1): value for name, value in unet.items()}
    for name, value in vae.items():
        conv = '.attentions.' in name and value.dim() == 2
        state[VAE + ldm_vae_name(name, 2)] = value[:, :, None, None].clone() if conv else value
    if kind == 'sd1':
        state |= {
            f'cond_stage_model.transformer.text_model.{name}': value for name, value in text.items()
        }
        state['cond_stage_model.transformer.text_model.embeddings.position_ids'] = torch.arange(77)[
            None
        ]
    else:
        state |= open_clip_state(text, 2)
    extra = {
        'betas': torch.zeros(1000),
        'model_ema.decay': torch.tensor(0.9),
        VAE + 'loss.logvar': torch.zeros(1),
    }
    return {name: value.clone() for name, value in (state | extra).items()}


@pytest.mark.parametrize('kind', ['sd1', 'sd2'])
def test_the_mapping_of_this_file_is_the_inverse_of_diffusers(sd_folder, kind):
    """Names in, names out: each value is a tag that only its own place gives back."""
    from diffusers.loaders import single_file_utils as convert

    folder = sd_folder(kind)
    state = compvis(folder, kind)
    config = configs(folder)
    for part, prefix, converter in (
        ('unet', UNET, convert.convert_ldm_unet_checkpoint), ('vae', VAE, convert.convert_ldm_vae_checkpoint),
    ):  # fmt: skip
        stored = load_file(folder / part / 'diffusion_pytorch_model.safetensors')
        own = {k: v for k, v in state.items() if k.startswith(prefix) and 'loss' not in k}
        tagged = {k: torch.full_like(v, number) for number, (k, v) in enumerate(own.items())}
        tags = {k: float(v.flatten()[0]) for k, v in tagged.items()}
        found = converter(tagged, config[part])
        assert set(found) == set(stored) and len(set(tags.values())) == len(stored)
        inverse = ldm_unet_name if part == 'unet' else ldm_vae_name
        for name, value in found.items():
            assert (
                float(value.flatten()[0])
                == tags[prefix + inverse(name, 1 if part == 'unet' else 2)]
            ), name
            assert value.shape == stored[name].shape


def configs(folder):
    return named_config(str(folder))


@pytest.fixture(scope='module')
def files(sd_folder, tmp_path_factory):
    """(kind, suffix) -> a single file with the weights of a folder."""
    made, place = {}, tmp_path_factory.mktemp('files')

    def file(kind, suffix='safetensors'):
        path = place / f'{kind}.{suffix}'
        if path not in made:
            state = compvis(sd_folder(kind), kind)
            if suffix == 'ckpt':
                torch.save({'state_dict': state, 'global_step': 7, 'epoch': 1}, path)
            else:
                save_file(state, path)
            made[path] = path
        return str(path)

    return file


# ---- the same weights in three ways ---------------------------------------------------------------------------


@pytest.mark.parametrize('kind, offline', [('sd1', True), ('sd2', False)])
def test_all_ways_give_the_same_features(sd_folder, files, kind, offline, monkeypatch):
    import huggingface_hub

    asked = []

    def nothing(*args):
        asked.append(args)
        raise OSError('there is no network')

    monkeypatch.setattr(socket.socket, 'connect', nothing)
    monkeypatch.setattr(socket, 'getaddrinfo', nothing)
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', offline)
    folder = sd_folder(kind)
    image = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    results = []
    for path in (str(folder), files(kind), files(kind, 'ckpt')):
        config = None if path == str(folder) else configs(folder)
        denoiser = StableDiffusion(
            path, config, prompt='a photo of a horse', keep_text_encoder=True, keep_taps=TAPS
        )
        assert denoiser.schedule.prediction == ('epsilon' if kind == 'sd1' else 'v_prediction')
        assert not any(p.is_meta for p in denoiser.parameters())
        results.append(
            (
                FeatureExtractor(denoiser, TAPS, 100)(image),
                denoiser.encode_text(PROMPTS),
                denoiser.fingerprint,
            )
        )
    for maps, tokens, fingerprint in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(maps, results[0][0]))
        assert torch.equal(tokens, results[0][1])
        assert fingerprint.startswith('sha256:')
    assert len({fingerprint.rpartition('text:')[2] for *_, fingerprint in results}) == 1
    assert not asked


def test_names_of_merged_models(sd_folder, files, tmp_path):
    """Some tools store SD 1's text encoder without 'text_model.', and fp16 throughout."""
    state = load_file(files('sd1'))
    short = {k.replace('transformer.text_model.', 'transformer.'): v for k, v in state.items()}
    assert set(short) != set(state)
    halves = {k: v.half() if v.is_floating_point() else v for k, v in short.items()}
    save_file(halves, tmp_path / 'merged.safetensors')
    config = configs(sd_folder('sd1'))
    a = StableDiffusion(files('sd1'), config, prompt='a cat')
    b = StableDiffusion(str(tmp_path / 'merged.safetensors'), config, prompt='a cat')
    torch.testing.assert_close(a.tokens, b.tokens, rtol=1e-2, atol=1e-2)
    assert all(p.dtype == torch.float32 for p in b.parameters())


@pytest.mark.parametrize('suffix', ['safetensors', 'ckpt'])
def test_only_kept_weights_are_read(sd_folder, files, monkeypatch, suffix):
    read, original = [], WeightFile.read
    monkeypatch.setattr(
        WeightFile, 'read', lambda self, key: read.append(key) or original(self, key)
    )
    config = configs(sd_folder('sd1'))
    tokens = dict(config=config, keep_taps=['down_blocks.1.resnets.0'])
    denoiser = StableDiffusion(files('sd1', suffix), **tokens, prompt='a')
    text = [key for key in read if key.startswith('cond_stage_model.')]
    rest = [key for key in read if key not in text]
    assert (
        len(rest) == len(set(rest)) == len(denoiser.unet.state_dict())
    )  # the autoencoder's names are among them
    assert len(text) == len(set(text)) > 20
    behind = (
        UNET + 'middle_block',
        UNET + 'output_blocks',
        UNET + 'out.',
        VAE + 'decoder',
        VAE + 'post_quant',
        'model_ema',
    )
    assert not any(key.startswith(behind) or 'loss' in key for key in read)
    assert (
        UNET + 'input_blocks.3.0.in_layers.2.weight' in read
        and UNET + 'input_blocks.3.1.norm.weight' not in read
    )
    read.clear()
    StableDiffusion(files('sd1', suffix), config, keep_taps=['vae.encoder.conv_in'])
    assert sorted(read) == [VAE + 'encoder.conv_in.bias', VAE + 'encoder.conv_in.weight']


def test_folder_reads_only_kept_weights(sd_folder, monkeypatch):
    read, original = [], WeightFile.read
    monkeypatch.setattr(
        WeightFile, 'read', lambda self, key: read.append(key) or original(self, key)
    )
    denoiser = StableDiffusion(
        str(sd_folder('few words')), keep_taps=['mid_block', 'vae.encoder.conv_in']
    )
    assert len(read) == len(denoiser.unet.state_dict())
    assert not any(
        key.startswith(('up_blocks', 'conv_out', 'decoder', 'post_quant')) for key in read
    )


# ---- which model it is ----------------------------------------------------------------------------------------


def save(path, **shapes):
    """A file with a few tensors, which take no space."""
    names = dict(
        first=UNET + 'input_blocks.0.0.weight',
        context=UNET + 'input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight',
    )
    save_file({names.get(k, k): torch.zeros(v, dtype=torch.uint8) for k, v in shapes.items()}, path)
    return str(path)


CLASSIC = {VAE + 'quant_conv.weight': (1,)}


def test_architectures_are_recognised_by_their_shapes(tmp_path):
    one = save(tmp_path / 'one.safetensors', first=(320, 4, 3, 3), context=(320, 768), **CLASSIC)
    two = save(tmp_path / 'two.safetensors', first=(320, 4, 3, 3), context=(320, 1024), **CLASSIC)
    for path, prediction, name in (
        (one, None, 'sd15'),
        (two, 'v_prediction', 'sd21'),
        (two, 'epsilon', 'sd21-base'),
    ):
        files = find_model(path, None, 'unet', None, prediction)
        assert files.network.config == named_config(name)['unet']
        assert files.schedule == named_config(name)['scheduler']
    with pytest.raises(ValueError, match=r"two.safetensors is a Stable Diffusion 2.x file, which does not say what its network "
                                         r"predicts: give prediction_type='v_prediction' \(the 768 models\)"):  # fmt: skip
        StableDiffusion(two)


def save_tokens_of(width, folder):
    save_file({'tokens': torch.zeros(3, width)}, folder / 'tokens.safetensors')
    return str(folder / 'tokens.safetensors')


@pytest.mark.parametrize(
    'shapes, message',
    [
        ({'conditioner.embedders.0.x': (1,), 'first': (320, 4, 3, 3)}, 'is an SDXL file; StableDiffusion takes SD 1.x and 2.x'),
        (dict(first=(320, 9, 3, 3), context=(320, 768)), 'its network takes 9 channels; inpainting, .* not supported'),
        (dict(first=(192, 4, 3, 3), context=(192, 768)), r'not recognised .*\(192, 4, 3, 3\), text width 768; .*give config=dict'),
        (dict(first=(320, 4, 3, 3), context=(320, 640)), 'not recognised .* text width 640'),
        ({'down_blocks.0.weight': (1,)}, r"holds no U-Net under .*first names are \['down_blocks.0.weight'\].*give the folder"),
        ({'first': (320, 4, 3, 3), 'context': (320, 768)}, 'holds no autoencoder under the names of a Stable Diffusion file'),
    ],
)  # fmt: skip
def test_files_that_are_something_else(tmp_path, shapes, message):
    with pytest.raises(ValueError, match=message):
        StableDiffusion(save(tmp_path / 'x.safetensors', **shapes))


def test_weights_of_another_shape(sd_folder, files, tmp_path):
    tokens = save_tokens_of(12, tmp_path)
    config = configs(sd_folder('sd1'))
    config['unet'] = dict(config['unet'], block_out_channels=(8, 16, 24))
    with pytest.raises(
        ValueError,
        match=r'lacks 2 of \d+ weights of the network, for example .*down_blocks.2.*conv_shortcut',
    ):
        StableDiffusion(files('sd1'), config, tokens=tokens, keep_taps=['mid_block'])
    config['unet'] = dict(config['unet'], block_out_channels=(8, 24, 24))
    with pytest.raises(
        ValueError, match=r'has shape \(.*the network described by its config needs'
    ):
        StableDiffusion(files('sd1'), config, tokens=tokens, keep_taps=['down_blocks.1'])
    with pytest.raises(ValueError, match=r"config lacks 'scheduler'; it has \['unet', 'vae'\]"):
        StableDiffusion(files('sd1'), {k: config[k] for k in ('unet', 'vae')})


class Bomb:
    def __reduce__(self):
        return (exec, ("raise SystemExit('the file was executed')",))


def test_a_checkpoint_that_holds_more_than_weights_is_refused(files, tmp_path):
    state = torch.load(files('sd1', 'ckpt'), weights_only=True)
    torch.save({**state, 'callbacks': {'ModelCheckpoint': Bomb()}}, tmp_path / 'lightning.ckpt')
    with pytest.raises(
        ValueError,
        match=r'lightning.ckpt holds more than weights: .*refused .*safetensors.torch.save_file',
    ):
        StableDiffusion(str(tmp_path / 'lightning.ckpt'))


@pytest.mark.parametrize('suffix', ['safetensors', 'ckpt'])
def test_truncated_files(files, tmp_path, suffix):
    from pathlib import Path

    data = Path(files('sd1', suffix)).read_bytes()
    for name, part in (('half', data[: len(data) // 2]), ('start', data[:100]), ('empty', b'')):
        (tmp_path / f'{name}.{suffix}').write_bytes(part)
        with pytest.raises(ValueError, match=rf'{name}.{suffix}.*Is the download complete\?'):
            StableDiffusion(str(tmp_path / f'{name}.{suffix}'))


# ---- what is missing ------------------------------------------------------------------------------------------


def test_folders_that_are_something_else(sd_folder, tmp_path):
    import shutil

    folder = sd_folder('sd1')
    with pytest.raises(
        FileNotFoundError,
        match=r"lacks \['unet/config.json', 'vae/config.json'.*it holds \[.*as diffusers",
    ):
        StableDiffusion(str(folder / 'unet'))
    shutil.copytree(folder, tmp_path / 'sd', ignore=shutil.ignore_patterns('*.safetensors'))
    with pytest.raises(
        FileNotFoundError, match='unet has no weights: expected diffusion_pytorch_model.safetensors'
    ):
        StableDiffusion(str(tmp_path / 'sd'))
    with pytest.raises(FileNotFoundError, match=r'no such file or folder .*or one of'):
        StableDiffusion(str(tmp_path / 'nothing'))
    with pytest.raises(
        ValueError, match="is a folder, which says its own architecture: leave config='sd15' out"
    ):
        StableDiffusion(str(folder), config='sd15')


def test_single_files_without_a_text_encoder(sd_folder, files, tmp_path):
    config = configs(sd_folder('sd1'))
    state = {
        k: v for k, v in load_file(files('sd1')).items() if not k.startswith('cond_stage_model')
    }
    save_file(state, tmp_path / 'bare.safetensors')
    with pytest.raises(
        FileNotFoundError, match='bare.safetensors has no text encoder .* give tokens=FILE'
    ):
        StableDiffusion(str(tmp_path / 'bare.safetensors'), config)
    with pytest.raises(
        FileNotFoundError, match=r'has no text encoder \(or its config has no text_encoder\)'
    ):
        StableDiffusion(files('sd1'), {k: v for k, v in config.items() if k != 'text_encoder'})
    given = StableDiffusion(
        str(tmp_path / 'bare.safetensors'), config, tokens=save_tokens_of(12, tmp_path)
    )
    assert given.tokens.shape == (1, 3, 12)
    del state[UNET + 'out.2.weight']
    name = 'cond_stage_model.transformer.text_model.final_layer_norm.weight'
    save_file(
        {k: v for k, v in load_file(files('sd1')).items() if k != name},
        tmp_path / 'part.safetensors',
    )
    with pytest.raises(
        ValueError,
        match=r"part.safetensors lacks 1 weights of its text encoder, for example \['.*final_layer",
    ):
        StableDiffusion(str(tmp_path / 'part.safetensors'), config)


def test_without_open_clip_a_single_file_says_what_to_install(sd_folder, files, monkeypatch):
    monkeypatch.setitem(sys.modules, 'open_clip.tokenizer', None)
    with pytest.raises(ImportError, match="open_clip's is used: pip install 'mmdiffrep"):
        StableDiffusion(files('sd1'), configs(sd_folder('sd1')), keep_taps=['conv_in'])
