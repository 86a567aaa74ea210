"""CLIP: vocabulary, text tower, files, loading. Training is in test_clip_pretrainer.py."""

import gzip
import json
import re
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

open_clip = pytest.importorskip('open_clip')
from transformers import CLIPTextModel, CLIPTokenizer  # noqa: E402

from mmdiffrep.datasets.toyscenes import generate_scene  # noqa: E402
from mmdiffrep.diffusion.stable_diffusion import StableDiffusion  # noqa: E402
from mmdiffrep.openvocab import (  # noqa: E402
    build_clip,
    build_tokenizer,
    clip_text_model,
    cut_merges,
    load_clip,
    save_clip,
    save_text_encoder,
)

ROOT = Path(__file__).parents[1]
CAPTIONS = [generate_scene(0, i, (16, 16)).caption() for i in range(30)]
ODD = [
    'An  ORANGE Star, and a\ttab', '', '   ', 'unknown elephantine words', 'don\'t "quote" 12.5% (really)!!! a_b-c/d',
    'Ünïcode déjà — naïve', '日本語 😀', 'red ' * 100, 'x' * 300, '\u00a0nbsp', 'e\u0301 combining', 'İstanbul',
]  # fmt: skip
CONFIG = dict(
    embed_dim=6,
    vision_cfg=dict(image_size=16, patch_size=8, width=16, layers=1, head_width=8),
    text_cfg=dict(context_length=12, width=16, layers=2, heads=2, mlp_ratio=2.0),
)


@pytest.fixture(scope='module')
def tokenizer():
    return build_tokenizer(CAPTIONS, 12)


def config(size, **text):
    return dict(
        CONFIG,
        text_cfg=dict(CONFIG['text_cfg'], vocab_size=size, pool_type='eos', eos_id=size - 1) | text,
    )


def clip(size=600, seed=0, **text):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_clip(config(size, **text)).eval()
        for (
            p
        ) in model.parameters():  # biases and norms begin as 0 and 1, which would hide a mistake
            p.data += 0.1 * torch.randn_like(p)
    return model


@pytest.fixture(scope='module')
def folder(tmp_path_factory, tokenizer):
    """A saved CLIP of random weights, and the model."""
    folder = tmp_path_factory.mktemp('clips') / 'tiny'
    size = len(tokenizer.tokenizer)
    model = clip(size)
    save_clip(
        model,
        config(size),
        tokenizer,
        folder,
        'tiny-test-clip',
        torch.float16,
        dict(resize_mode='squash', mean=[0.5] * 3),
    )
    return folder, model


# ---- the vocabulary -------------------------------------------------------------------------------------------


def test_words_of_the_texts_are_split_as_by_the_whole_vocabulary(tokenizer):
    whole = open_clip.tokenizer.SimpleTokenizer(context_length=80)
    ours = build_tokenizer(CAPTIONS, 80)
    names = {number: entry for entry, number in ours.tokenizer.get_vocab().items()}
    for caption, ids in zip(CAPTIONS, ours(CAPTIONS).tolist()):
        wanted = [whole.decoder[i] for i in whole.encode(caption)]
        got = [names[i] for i in ids]
        end = got.index('<|endoftext|>')
        assert got[0] == '<|startoftext|>' and got[1:end] == wanted
        assert set(got[end:]) == {'<|endoftext|>'}
    assert len(names) < 700 and sorted(names) == list(range(len(names)))


def test_the_whole_vocabulary_has_clips_own_ids():
    ours, theirs = build_tokenizer(None, 20), open_clip.tokenizer.SimpleTokenizer(context_length=20)
    for text in [*CAPTIONS[:5], *ODD]:
        a, b = ours([text])[0], theirs([text])[0]
        end = int(b.argmax())
        assert torch.equal(a[: end + 1], b[: end + 1]), text
        assert set(a[end:].tolist()) == {49407}


def test_merges_by_hand():
    """'red' is r e d</w>: CLIP merges re, then red</w>."""
    merges = cut_merges(['red'])
    assert [''.join(m) for m in merges][-1] == 'red</w>' and 1 <= len(merges) <= 2
    assert cut_merges(['red', 'Red  RED']) == merges
    assert cut_merges(['é']) and not cut_merges([''])


def test_open_clip_and_transformers_give_the_same_ids(folder, tmp_path):
    """As trained, as open_clip loads it, as Stable Diffusion's pipelines load it, and from vocab.json with merges.txt alone."""
    path, _ = folder
    trained = build_tokenizer(CAPTIONS, 12)
    loaded = open_clip.get_tokenizer(f'local-dir:{path}')
    ours = CLIPTokenizer.from_pretrained(path, local_files_only=True)
    for text in [*CAPTIONS, *ODD]:
        a, b = trained([text]), loaded([text])
        c = ours(
            [text], padding='max_length', truncation=True, max_length=12, return_tensors='pt'
        ).input_ids
        assert a.shape == (1, 12) and torch.equal(a, b) and torch.equal(a, c), text
        assert a[0, 0] == ours.bos_token_id and (a[0] == ours.eos_token_id).any()
    # an independent reading of the older files: open_clip's own tokenizer of merges
    vocabulary = json.loads((path / 'vocab.json').read_text())
    lines = [
        line
        for line in (path / 'merges.txt').read_text().split('\n')
        if line and not line.startswith('#')
    ]
    with gzip.open(tmp_path / 'merges.gz', 'wt') as file:
        file.write('\n'.join(['header', *lines]))
    simple = open_clip.tokenizer.SimpleTokenizer(str(tmp_path / 'merges.gz'), context_length=12)
    assert vocabulary == ours.get_vocab() and simple.vocab_size == len(vocabulary)
    for text in [*CAPTIONS, *ODD]:
        a, b = trained([text])[0], simple([text])[0]
        end = int(b.argmax())
        assert torch.equal(a[: end + 1], b[: end + 1]), text


def test_vocabulary_errors():
    with pytest.raises(ValueError, match="texts='red disc': give a list of texts"):
        build_tokenizer('red disc')
    with pytest.raises(ValueError, match='context_length=2 does not fit; allowed: at least 3'):
        build_tokenizer(['a'], 2)


# ---- the text tower -------------------------------------------------------------------------------------------


def hidden_states(model, ids):
    """open_clip's states after its final norm, seen from outside."""
    seen = []
    hook = model.ln_final.register_forward_hook(lambda module, args, output: seen.append(output))
    with torch.no_grad():
        features = model.encode_text(ids)
    hook.remove()
    return seen[0], features


@pytest.mark.parametrize('quick_gelu', [False, True])
@pytest.mark.parametrize('pool', ['eos', 'argmax'])
def test_text_model_equals_open_clip(tokenizer, quick_gelu, pool, tmp_path):
    size = len(tokenizer.tokenizer)
    cfg = dict(config(size, pool_type=pool), quick_gelu=quick_gelu)
    torch.manual_seed(3)
    model = build_clip(cfg).eval()
    for p in model.parameters():
        p.data += 0.2 * torch.randn_like(p)
    ids = tokenizer([*CAPTIONS[:6], *ODD])
    states, features = hidden_states(model, ids)
    rng = torch.get_rng_state()
    converted = clip_text_model(model)
    assert torch.equal(rng, torch.get_rng_state())
    converted.save_pretrained(tmp_path)
    for text_model in (converted, CLIPTextModel.from_pretrained(tmp_path, local_files_only=True)):
        with torch.no_grad():
            found = text_model(ids)
        torch.testing.assert_close(found.last_hidden_state, states, rtol=0, atol=1e-5)
        torch.testing.assert_close(
            found.pooler_output @ model.text_projection, features, rtol=0, atol=1e-5
        )
    assert found.last_hidden_state.std() > 0.1
    assert text_model.config.hidden_act == ('quick_gelu' if quick_gelu else 'gelu')
    # causal: what comes later changes nothing
    other = ids.clone()
    other[:, 6:] = 5
    with torch.no_grad():
        torch.testing.assert_close(
            converted(other).last_hidden_state[:, :6], states[:, :6], rtol=0, atol=1e-5
        )


def test_custom_text_clip_converts_too(tokenizer):
    size = len(tokenizer.tokenizer)
    torch.manual_seed(4)
    model = open_clip.CustomTextCLIP(**config(size)).eval()
    ids = tokenizer(CAPTIONS[:3])
    with torch.no_grad():
        wanted, found = model.encode_text(ids), clip_text_model(model)(ids).pooler_output
        torch.testing.assert_close(found @ model.text.text_projection, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        (dict(no_causal_mask=True), 'no_causal_mask=True'),
        (dict(pool_type='last'), "pool_type='last'"),
        (dict(ls_init_value=0.1), r'blocks with .*ls_1'),
        (dict(eos_id=2), 'set the tokenizer.s own eos_id'),
    ],
)
def test_what_a_text_model_cannot_do_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        clip_text_model(clip(20, **text))


def test_stable_diffusion_takes_the_text_encoder(folder, small_sd_config, tmp_path):
    """A pipeline's folder around it: prompts become open_clip's own states."""
    path, _ = folder
    save_text_encoder(path, tmp_path)
    unet = dict(small_sd_config['unet'], cross_attention_dim=16)
    diffusers.UNet2DConditionModel.from_config(unet).save_pretrained(tmp_path / 'unet')
    diffusers.AutoencoderKL.from_config(small_sd_config['vae']).save_pretrained(tmp_path / 'vae')
    diffusers.DDIMScheduler.from_config(small_sd_config['scheduler']).save_pretrained(
        tmp_path / 'scheduler'
    )
    denoiser = StableDiffusion(pretrained=str(tmp_path), keep_text_encoder=True)
    model, _, tokenizer = load_clip(path)
    prompts = ['a striped red disc in front of sand', 'A purple zebra!']
    wanted, _ = hidden_states(model, tokenizer(prompts))
    torch.testing.assert_close(denoiser.encode_text(prompts), wanted, rtol=0, atol=1e-5)
    assert denoiser.encode_text(prompts).shape == (2, 12, 16)


# ---- files ----------------------------------------------------------------------------------------------------


def test_open_clip_loads_the_file_and_the_folder(folder):
    path, model = folder
    open_clip.add_model_config(path / 'tiny-test-clip.json')
    by_file, _, _ = open_clip.create_model_and_transforms(
        'tiny-test-clip', pretrained=str(path / 'open_clip_model.safetensors')
    )
    by_folder, _, preprocess = open_clip.create_model_and_transforms(f'local-dir:{path}')
    ours, our_preprocess, tokenizer = load_clip(path)
    for other in (by_file, by_folder, ours):
        state = other.state_dict()
        assert state.keys() == model.state_dict().keys()
        for name, value in model.state_dict().items():
            wanted = value.half().float() if value.dim() else value
            assert torch.equal(state[name], wanted), name
    assert not ours.training
    picture = Image.fromarray(generate_scene(0, 1, (20, 30)).image)
    x = our_preprocess(picture)
    assert torch.equal(x, preprocess(picture)) and x.shape == (3, 16, 16)
    resized = (
        np.asarray(picture.resize((16, 16), Image.BICUBIC), np.float64) / 255
    )  # the whole picture, squashed
    std = np.array(open_clip.constants.OPENAI_DATASET_STD)
    np.testing.assert_allclose(x.permute(1, 2, 0), (resized - 0.5) / std, atol=0.02)
    with torch.no_grad():
        assert (
            ours.encode_text(tokenizer(['a red disc'])).shape
            == ours.encode_image(x[None]).shape
            == (1, 6)
        )


def test_half_precision_and_the_scales_bound(folder, tokenizer, tmp_path):
    path, model = folder
    stored = load_file(path / 'open_clip_model.safetensors')
    assert {name for name, v in stored.items() if v.dtype == torch.float32} == {'logit_scale'}
    large = clip(len(tokenizer.tokenizer))
    large.logit_scale.data.fill_(9.0)
    save_clip(large, config(len(tokenizer.tokenizer)), tokenizer, tmp_path, dtype=torch.float32)
    stored = load_file(tmp_path / 'open_clip_model.safetensors')
    assert stored['logit_scale'].exp() == pytest.approx(100) and large.logit_scale == 9
    assert torch.equal(stored['text_projection'], large.text_projection)
    assert (path / 'open_clip_model.safetensors').stat().st_size < (
        tmp_path / 'open_clip_model.safetensors'
    ).stat().st_size * 0.6


def test_loading_errors(folder, tmp_path, monkeypatch):
    path, _ = folder
    with pytest.raises(FileNotFoundError, match="mmdiffrep/no-clip'.*no such model ships"):
        load_clip('mmdiffrep/no-clip')
    with pytest.raises(FileNotFoundError, match='lacks .*open_clip_model.safetensors.*it holds'):
        load_clip('mmdiffrep/toy-unet')
    with pytest.raises(FileNotFoundError, match="'missing/folder': no such folder"):
        load_clip('missing/folder')
    with pytest.raises(ValueError, match="'ViT-B-23' is unknown to open_clip. Nearest: .*ViT-B-32"):
        load_clip('ViT-B-23')
    with pytest.raises(
        ValueError,
        match="'ViT-B-32' needs weights: give pretrained=FILE or one of its tags .*'openai'",
    ):
        load_clip('ViT-B-32')
    with pytest.raises(ValueError, match="pretrained='opanai' is neither a file nor a tag"):
        load_clip('ViT-B-32', 'opanai')
    with pytest.raises(
        FileNotFoundError, match="pretrained='weights.pt' is neither a file nor a tag"
    ):
        load_clip('ViT-B-32', 'weights.pt')
    with pytest.raises(ValueError, match="has weights of its own: leave pretrained='openai' out"):
        load_clip(path, 'openai')

    def offline(*_, **__):
        raise RuntimeError('no network here')

    with monkeypatch.context() as patch:
        patch.setattr(open_clip, 'create_model_and_transforms', offline)
        with pytest.raises(
            FileNotFoundError, match='could not be fetched .*no network here.*Check the network'
        ):
            load_clip('ViT-B-32', 'openai')
        with pytest.raises(FileNotFoundError, match='hf-hub:org/name.* could not be fetched'):
            load_clip('hf-hub:org/name')
    broken = tmp_path / 'broken'
    broken.mkdir()
    (broken / 'open_clip_config.json').write_text((path / 'open_clip_config.json').read_text())
    save_file(dict(visual=torch.zeros(1)), str(broken / 'open_clip_model.safetensors'))
    with pytest.raises(ValueError, match='cannot be loaded by open_clip'):
        load_clip(broken)


def test_config_errors():
    with pytest.raises(ValueError, match=r"clip config lacks \['vision_cfg'\]"):
        build_clip(dict(embed_dim=4, text_cfg={}))
    with pytest.raises(ValueError, match='does not fit open_clip.CLIP: .*wdith'):
        build_clip(dict(CONFIG, text_cfg=dict(wdith=4)))
    with pytest.raises(ValueError, match="hf_model_name='roberta-base': only open_clip's own"):
        build_clip(dict(CONFIG, text_cfg=dict(hf_model_name='roberta-base')))


def test_the_core_knows_no_toolkit():
    files = list((ROOT / 'mmdiffrep' / 'openvocab').glob('*.py'))
    assert len(files) >= 4
    for file in files:
        imports = re.findall(r'^\s*(?:from|import) (\w+)', file.read_text(), re.MULTILINE)
        assert not {'mmengine', 'mmseg', 'mmdet', 'mmcv'} & set(imports), file.name
