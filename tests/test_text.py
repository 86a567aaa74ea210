"""Prompts, class names and saved embeddings as tokens, against diffusers' own pipeline."""

import copy
import gc
import json
import shutil
import weakref

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mmdiffrep.diffusion import text
from mmdiffrep.diffusion.stable_diffusion import StableDiffusion
from mmdiffrep.diffusion.text import class_tokens, load_tokens, save_tokens

pytestmark = [
    pytest.mark.usefixtures('traces_once'),
    pytest.mark.filterwarnings('ignore::FutureWarning'),
]
PROMPTS = [
    'a photo of a Cat!',
    '',
    'two  dogs,\n naïve 3/4 — "quoted"',
    'word ' * 100,
    'A PHOTO of a horse 🐎',
]


BOTH = pytest.mark.parametrize('kind', ['sd1', 'sd2'])


@pytest.fixture(scope='module')
def folder(sd_folder):
    return sd_folder('few words')


def pipeline(folder):
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)


def theirs(pipeline, prompts):
    return pipeline.encode_prompt(prompts, 'cpu', 1, False)[0]


# ---- prompts --------------------------------------------------------------------------------------------------


@BOTH
def test_tokens_are_the_pipelines_own(sd_folder, kind):
    folder = sd_folder(kind)
    own = pipeline(folder)
    denoiser = StableDiffusion(str(folder), prompt='a photo of a horse', keep_text_encoder=True)
    assert torch.equal(denoiser.tokens, theirs(own, ['a photo of a horse']))
    assert denoiser.tokens.shape == (1, 77, 12)
    torch.testing.assert_close(denoiser.encode_text(PROMPTS), theirs(own, PROMPTS))
    assert len({tuple(value.flatten().tolist()) for value in denoiser.encode_text(PROMPTS)}) == len(PROMPTS)


def test_a_fixed_prompt_is_encoded_once_and_the_text_encoder_released(folder, monkeypatch):
    made, runs = [], []
    init, run = text.TextEncoder.__init__, text.TextEncoder._run
    monkeypatch.setattr(
        text.TextEncoder,
        '__init__',
        lambda self, *args: made.append(weakref.ref(self)) or init(self, *args),
    )
    monkeypatch.setattr(
        text.TextEncoder,
        '_run',
        lambda self, prompts: runs.append(list(prompts)) or run(self, prompts),
    )
    denoiser = StableDiffusion(str(folder), prompt='a photo')
    x, t = torch.randn(1, 4, 8, 8), torch.tensor([5])
    for _ in range(3):
        denoiser.features(x, t, taps=['mid_block'])
    gc.collect()
    assert runs == [['a photo']] and len(made) == 1 and made[0]() is None
    with pytest.raises(
        ValueError, match='was released after the fixed prompt: set keep_text_encoder=True'
    ):
        denoiser.encode_text(['another'])


def test_prompts_are_encoded_once_each(folder, monkeypatch):
    denoiser = StableDiffusion(str(folder), keep_text_encoder=True)
    runs, run = [], text.TextEncoder._run
    monkeypatch.setattr(
        text.TextEncoder,
        '_run',
        lambda self, prompts: runs.append(list(prompts)) or run(self, prompts),
    )
    one = denoiser.encode_text(['cat', 'dog', 'cat'])
    assert (
        runs == [['cat', 'dog']] and torch.equal(one[0], one[2]) and not torch.equal(one[0], one[1])
    )
    two = denoiser.encode_text(['bird', 'dog'])
    assert runs[1:] == [['bird']] and torch.equal(two[1], one[1])


def test_the_fingerprint_tells_prompts_apart(folder):
    a, b, silent = (
        StableDiffusion(str(folder), **options)
        for options in (dict(prompt=''), dict(prompt='b'), dict())
    )
    assert a.fingerprint == silent.fingerprint != b.fingerprint and a.fingerprint.startswith(
        'sha256:'
    )
    assert torch.equal(a.tokens, silent.tokens)


def test_the_text_encoder_is_no_part_of_the_network_and_not_copied(folder):
    denoiser = StableDiffusion(str(folder), keep_text_encoder=True)
    assert not any(
        'text' in name or 'token_embedding' in name for name, _ in denoiser.named_parameters()
    )
    assert not denoiser.state_dict().keys() & {'tokens'}
    clone = copy.deepcopy(denoiser.to(torch.bfloat16))
    assert clone._text[0] is denoiser._text[0]
    assert next(clone._text[0].model.parameters()).dtype == torch.float32
    assert (
        not any(p.requires_grad for p in clone._text[0].model.parameters())
        and not clone._text[0].model.training
    )


def test_a_tokenizer_as_the_hub_has_it(folder, tmp_path):
    """Published folders have vocab.json and merges.txt."""
    copied = tmp_path / 'sd'
    shutil.copytree(folder, copied)
    file = copied / 'tokenizer' / 'tokenizer.json'
    model = json.loads(file.read_text())['model']
    file.unlink()
    (copied / 'tokenizer' / 'vocab.json').write_text(json.dumps(model['vocab']))
    merges = ['#version: 0.2', *(' '.join(pair) for pair in model['merges'])]
    (copied / 'tokenizer' / 'merges.txt').write_text('\n'.join(merges) + '\n')
    a, b = (StableDiffusion(str(path), keep_text_encoder=True) for path in (folder, copied))
    assert (
        torch.equal(a.encode_text(PROMPTS), b.encode_text(PROMPTS))
        and a.fingerprint == b.fingerprint
    )


# ---- class names ----------------------------------------------------------------------------------------------


def test_class_names_are_pooled_and_averaged_over_templates(folder):
    own = pipeline(folder)
    templates = ['a photo of a {}.', 'a painting of the {}']
    denoiser = StableDiffusion(
        str(folder), class_names=['cat', 'traffic light'], templates=templates
    )
    assert denoiser.tokens.shape == (1, 2, 12) and denoiser._text == []
    for k, name in enumerate(['cat', 'traffic light']):
        rows = []
        for template in templates:
            ids = own.tokenizer(template.format(name), return_tensors='pt').input_ids  # not padded
            rows.append(own.text_encoder(ids).last_hidden_state[0, -1])  # at the end of the text
        torch.testing.assert_close(denoiser.tokens[0, k], sum(rows) / 2)
    found = denoiser.tap_info((16, 16))
    assert found['down_blocks.1.attentions.0.transformer_blocks.0.attn2:probs'].channels == 2


def test_class_names_that_cannot_be_used():
    for names, templates in (([], ['a {}']), (['cat'], []), (['cat'], ['a {}', 'b'])):
        with pytest.raises(
            ValueError, match="give at least one of each, and '{}' in every template"
        ):
            class_tokens(None, names, templates)
    with pytest.raises(ValueError, match=r"class_names='cat' is one string; give a list"):
        class_tokens(None, 'cat')


# ---- saved embeddings -----------------------------------------------------------------------------------------


def test_saved_embeddings(folder, tmp_path):
    tokens = StableDiffusion(str(folder), prompt='a photo').tokens
    save_tokens(tokens, tmp_path / 'new' / 'a.safetensors')
    np.save(tmp_path / 'b.npy', tokens[0].numpy())
    torch.save(tokens, tmp_path / 'c.pt')
    torch.save({'tokens': tokens[0], 'prompt': 'a photo'}, tmp_path / 'd.pt')
    save_file({'x': tokens.half()}, tmp_path / 'e.safetensors')
    for name in ('new/a.safetensors', 'b.npy', 'c.pt', 'd.pt', 'e.safetensors'):
        found = load_tokens(tmp_path / name, 12)
        assert found.dtype == torch.float32 and found.shape == (1, 77, 12)
        torch.testing.assert_close(found, tokens, rtol=1e-3, atol=1e-2 if name[0] == 'e' else 0)
    bare = tmp_path / 'bare'  # needs no text encoder
    shutil.copytree(folder, bare, ignore=shutil.ignore_patterns('text_encoder', 'tokenizer'))
    denoiser = StableDiffusion(str(bare), tokens=str(tmp_path / 'b.npy'))
    assert torch.equal(denoiser.tokens, tokens)
    assert denoiser.fingerprint == StableDiffusion(str(folder), prompt='a photo').fingerprint


def test_embeddings_that_do_not_fit(small_sd, tmp_path):
    def save(name, **arrays):
        save_file(arrays, tmp_path / name)
        return str(tmp_path / name)

    for path, message in [
        (
            save('a.safetensors', x=torch.zeros(77, 13)),
            r'has shape \(1, 77, 13\); the network takes \(L, 12\) or \(1, L, 12\)',
        ),
        (
            save('b.safetensors', x=torch.zeros(2, 77, 12)),
            r'has shape \(2, 77, 12\); the network takes',
        ),
        (save('c.safetensors', x=torch.zeros(0, 12)), r'has shape \(1, 0, 12\); the network takes'),
        (
            save('d.safetensors', x=torch.zeros(5, 12), y=torch.zeros(5, 12)),
            r"holds 2 arrays \['x', 'y'\]; one is expected",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            small_sd(tokens=path)
    with pytest.raises(
        FileNotFoundError, match="tokens='no.npy': no such file .*npy, .safetensors or .pt"
    ):
        small_sd(tokens='no.npy')
    (tmp_path / 'broken.npy').write_bytes(b'\x93NUMPY')
    (tmp_path / 'broken.pt').write_bytes(b'PK\3\4')
    np.save(tmp_path / 'objects.npy', np.array([{}], dtype=object), allow_pickle=True)
    for name in ('broken.npy', 'broken.pt', 'objects.npy'):
        with pytest.raises(ValueError, match=f'{name}.* cannot be read'):
            small_sd(tokens=str(tmp_path / name))
    torch.save([torch.zeros(5, 12)], tmp_path / 'list.pt')
    with pytest.raises(
        ValueError, match='list.pt holds a list; a dictionary of tensors is expected'
    ):
        small_sd(tokens=str(tmp_path / 'list.pt'))


# ---- no text encoder ------------------------------------------------------------------------------------------


@pytest.mark.parametrize('missing, message', [
    (('text_encoder', 'tokenizer'), 'has no text encoder .* give tokens=FILE'),
    (('tokenizer',), r'has no tokenizer/, which encodes prompts: fetch it too, or give tokens=FILE'),
])  # fmt: skip
def test_folders_without_text(sd_folder, tmp_path, missing, message):
    bare = tmp_path / 'bare'
    shutil.copytree(sd_folder('few words'), bare, ignore=shutil.ignore_patterns(*missing))
    with pytest.raises(FileNotFoundError, match=message):
        StableDiffusion(str(bare))
    # the autoencoder's taps and random weights need none
    assert StableDiffusion(str(bare), keep_taps=['vae.encoder.conv_in'])
    assert missing[1:] or StableDiffusion(str(bare), random_seed=1).tokens.shape == (1, 77, 12)
