"""What full-size open-vocabulary configs cost: the tool, on the paper's config around tiny networks, and its random weights."""

import json
import re
import runpy
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

import mmdiffrep  # noqa: F401  before the toolkits
from mmdiffrep.models.openvocab.clip_branch import ClipBranch
from mmdiffrep.openvocab import RandomText, TextBanks, build_text_encoder
from mmdiffrep.utils.comparison.random_weights import ARCHITECTURES, with_random_weights

pytest.importorskip('mmdet')
ROOT = Path(__file__).parents[1]
TOOL = ROOT / 'tools/odise_cost.py'
pytestmark = pytest.mark.skipif(not TOOL.is_file(), reason='the tests do not run in a checkout')
CONFIGS = sorted((ROOT / 'configs/odise').glob('*.py'))
CLIP = dict(
    embed_dim=12, vision_cfg=dict(image_size=32, layers=2, width=16, head_width=8, patch_size=8),
    text_cfg=dict(context_length=8, vocab_size=40, width=8, heads=1, layers=1),
)  # fmt: skip


@pytest.fixture(scope='module')
def tool():
    return runpy.run_path(str(TOOL))


@pytest.fixture(scope='module')
def config(tmp_path_factory, tiny_sd_config):
    """The paper's config, its networks small: captioner, windows and CLIP branch stay as they are."""
    folder = tmp_path_factory.mktemp('cost')
    clip = folder / 'clip'
    clip.mkdir()
    (clip / 'open_clip_config.json').write_text(json.dumps(dict(model_cfg=CLIP, preprocess_cfg={})))
    paper = ROOT / 'configs/odise/odise_sd15_8xb8-lsj-92k_coco-panoptic-1024x1024.py'
    networks = json.loads(json.dumps(tiny_sd_config))
    networks['vae']['layers_per_block'] = 2  # the paper's taps
    path = folder / 'tiny.py'
    path.write_text(
        f'_base_ = [{str(paper)!r}]\nclip = {str(clip)!r}\n'
        f'model = dict(backbone=dict(dtype="fp32", windows=dict(size=64), conditioner=dict(clip=dict(name=clip)), '
        f'denoiser=dict(pretrained=None, config={networks!r}), adapter=dict(out_channels=32)), '
        'panoptic_head=dict(in_channels=[32] * 4), text=dict(encoder=dict(name=clip)), clip=dict(name=clip), '
        'train_cfg=dict(num_points=64))\n'
    )
    return path


def test_a_step_and_a_prediction_are_measured(tool, config, capsys):
    argv = [str(config), '--size', '96', '--batch-size', '2', '--device', 'cpu']  # four windows an image
    found = tool['measure'](tool['make_parser']().parse_args(argv))
    assert found['missing'] == [] and found['frozen_touched'] == []
    assert set(found['seconds']) == {'forward', 'backward', 'optimizer', 'prediction'} and min(found['seconds'].values()) > 0
    assert min(found['memory'].values()) > 2**27  # torch alone takes more
    assert set(found['frozen']) == {'backbone.holder', 'backbone.conditioner.clip', 'clip'}
    assert found['classes'] == 133 and torch.isfinite(torch.tensor(found['loss']))
    # W1, pos, a for 77 tokens of width 8; W2, pos, a for the time embedding of width 4 · 8; CLIP's width is 12
    assert found['trained']['backbone.conditioner'] == 12 * 8 + 2 * 77 * 8 + 12 * 32 + 2 * 32
    assert found['trained']['panoptic_head.classifier'] == 12 * 256 + 256 + 12 + 1
    text = tool['report'](tool['make_parser']().parse_args(argv), found)
    assert 'trained tensors without a finite gradient: none' in text and '2 images of 96×96' in text


def test_missing_and_unwanted_gradients_are_found(tool):
    model = torch.nn.ModuleDict(dict(a=torch.nn.Linear(2, 1), b=torch.nn.Linear(2, 1), c=torch.nn.Linear(2, 1)))
    model.clip = None
    model['c'].requires_grad_(False)
    (model['a'](torch.ones(1, 2)) * float('nan')).backward()
    model['c'].bias.grad = torch.ones(1)
    assert tool['without_gradient'](model) == ['a.weight', 'a.bias', 'b.weight', 'b.bias']
    assert tool['frozen_with_gradient'](model) == ['c.bias']


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['configs/odise/odise_swin-t_8xb8-lsj-92k_coco.py'], 'is not a file. Nearest: .*odise_swin-t_8xb8-lsj'),
        ([str(ROOT / 'configs/_base_/models/odise-words.py')], 'has no mmdiffrep.OpenVocabSegmentor'),
        ([str(CONFIGS[0]), '--size', '16'], '--size 16 .*at least 32'),
        ([str(CONFIGS[0]), '--batch-size', '0'], '--batch-size 0 .*at least one image'),
    ],
)
def test_mistakes_are_told_in_a_line(tool, capsys, arguments, message):
    assert tool['main'](arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith('error: ') and error.count('\n') == 1
    assert re.search(message, error)


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_nothing_of_a_config_is_fetched(path):
    """Every weight that a config names is drawn or lies here."""

    def leaves(value):
        if isinstance(value, dict):
            assert 'checkpoint' not in value
            for key, inner in value.items():
                yield from [inner] if key == 'pretrained' else leaves(inner)

    model = Config.fromfile(path).model
    before = model.to_dict() if hasattr(model, 'to_dict') else None
    drawn = with_random_weights(model)
    assert all(value is None or value.startswith('mmdiffrep/') for value in leaves(drawn))
    assert drawn.backbone.get('denoiser', dict(random_seed=0))['random_seed'] == 0
    assert before is None or model.to_dict() == before  # a copy


def test_an_architecture_that_is_not_known_is_refused():
    model = Config(dict(m=dict(backbone=dict(type='x', denoiser=dict(pretrained='org/other')), text=dict(encoder=dict(kind='random'))))).m
    with pytest.raises(ValueError, match=r"'org/other': its architecture is not known.*'facebook/DiT-XL-2-256'.*config=…, one of \['adm-256'"):
        with_random_weights(model)
    assert set(ARCHITECTURES.values()) <= set(mmdiffrep.diffusion.model_files.known_configs())


def test_random_embeddings_depend_on_text_and_seed_alone():
    encoder = build_text_encoder(dict(kind='random', width=64, seed=3))
    a, b = encoder(['cat', 'dog', 'cat']), RandomText(64, 3)(['dog'])
    assert torch.equal(a[0], a[2]) and torch.equal(a[1], b[0])
    torch.testing.assert_close(a.norm(dim=1), torch.ones(3))
    other = RandomText(64, 4)
    assert abs(float(a[0] @ other(['cat'])[0])) < 0.6 and other.fingerprint != encoder.fingerprint
    many = encoder([f'name {i}' for i in range(500)])
    cosines = (many @ many.T)[~torch.eye(500, dtype=torch.bool)]
    assert abs(cosines.mean()) < 0.01 and cosines.std() == pytest.approx(64**-0.5, rel=0.05)
    assert TextBanks(encoder, 'vild')(mmdiffrep.openvocab.Vocabulary.parse('a; b')).embeddings.shape == (2, 64)
    with pytest.raises(ValueError, match='width=0 does not fit'):
        RandomText(0)


def test_a_random_clip_is_the_same_for_the_same_seed():
    a, b, c = (ClipBranch(random_seed=seed) for seed in (1, 1, 2))
    assert a.classifier.fingerprint == b.classifier.fingerprint != c.classifier.fingerprint
    assert a.banks.encoder.width == a.classifier.width
    assert a.classifier.fingerprint != ClipBranch().classifier.fingerprint
    with pytest.raises(ValueError, match="pretrained='openai' has no use with random_seed=0"):
        ClipBranch(name='ViT-B-32', pretrained='openai', random_seed=0)
