"""OpenVocabInferencer, its files and overlays, and tools/segment.py, on the toy model with a random head."""

import copy
import importlib.util
import json
import subprocess
import sys
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config

import mmdiffrep  # noqa: F401  before the toolkits
from mmdiffrep.openvocab.coco_export import read_panoptic_png
from mmdiffrep.openvocab.vocabulary import Vocabulary

pytest.importorskip('mmdet')
from mmdiffrep.apis import OpenVocabInferencer, ResultFolder, SegmentationResult  # noqa: E402
from mmdiffrep.apis.export import export_weights  # noqa: E402
from mmdiffrep.apis.inputs import gather, vocabularies  # noqa: E402
from mmdiffrep.apis.trained import load_trained, weight_file  # noqa: E402
from mmdiffrep.datasets.toyscenes import generate_scene  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
NAME = 'odise_toy-unet_1200i_toyscenes-64x64'
CONFIG = ROOT / f'configs/odise/{NAME}.py'
WORDS = 'red disc, crimson disc; blue star; sky (stuff); grass (stuff)'
KEYS = {'id', 'category', 'name', 'isthing', 'score', 'area', 'bbox', 'seen'}


def config():
    if not CONFIG.is_file():
        pytest.skip('the tests do not run in a checkout')
    cfg = Config.fromfile(CONFIG)
    cfg.merge_from_dict({'model.vocabulary': 'red disc; green ring; grass (stuff)'})
    # a random head thinks little of its masks: keep what overlaps
    cfg.merge_from_dict({'model.test_cfg.overlap_thr': 0.0, 'model.test_cfg.max_per_image': 5})
    return cfg


@pytest.fixture(scope='module')
def inferencer():
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match='without weights'):
        return OpenVocabInferencer(config(), device='cpu')


@pytest.fixture(scope='module')
def weights(inferencer, tmp_path_factory):
    """A folder as a training leaves it."""
    folder = tmp_path_factory.mktemp('run')
    torch.save(dict(state_dict=inferencer.model.state_dict(), meta={}), folder / 'iter_3.pth')
    (folder / 'last_checkpoint').write_text('/elsewhere/iter_3.pth')
    return folder


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    """Three pictures, of two sizes; files in the order of their names."""
    folder = tmp_path_factory.mktemp('photos')
    for i, (name, size) in enumerate(
        {'a.png': (64, 64), 'b.png': (64, 96), 'c.bmp': (64, 64)}.items()
    ):
        cv2.imwrite(str(folder / name), scene(i, size))
    return folder


def scene(number, size=(64, 64)):
    """BGR."""
    return np.ascontiguousarray(generate_scene(7, number, size).image[..., ::-1])


def same(a, b):
    np.testing.assert_array_equal(a.ids, b.ids)
    assert [s['name'] for s in a.segments] == [s['name'] for s in b.segments]
    np.testing.assert_allclose(
        [s['score'] for s in a.segments], [s['score'] for s in b.segments], rtol=1e-4
    )


# ---- asking --------------------------------------------------------------------------------------------------------


def test_an_image_is_segmented(inferencer, photos):
    result = inferencer(photos / 'b.png', WORDS)
    assert isinstance(result, SegmentationResult) and result.path == photos / 'b.png'
    assert result.ids.shape == (64, 96) and result.ids.dtype == np.int32 and result.segments
    assert result.vocabulary.names == ('red disc', 'blue star', 'sky', 'grass')
    np.testing.assert_array_equal(result.image[..., ::-1], cv2.imread(str(photos / 'b.png')))
    for s in result.segments:
        assert set(s) == KEYS
        inside = result.mask(s['id'])
        ys, xs = np.nonzero(inside)
        assert s['area'] == inside.sum() > 0 and 0 < s['score'] <= 1
        assert s['bbox'] == [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
        assert s['name'] == result.vocabulary.names[s['category']]
        assert s['isthing'] == (s['name'] in ('red disc', 'blue star'))
        assert s['seen'] == (s['name'] in ('red disc', 'grass'))
    assert set(np.unique(result.ids)) - {0} == {s['id'] for s in result.segments}
    assert result.semantic.shape == (64, 96) and result.semantic.max() < 4
    assert result.instances['masks'].shape == (5, 64, 96)
    assert set(result.instances['labels']) <= {0, 1}
    with pytest.raises(ValueError, match='no segment has id 99'):
        result.mask(99)


def test_arrays_in_either_order_of_channels(inferencer, photos):
    from_file = inferencer(photos / 'a.png', WORDS)
    bgr = cv2.imread(str(photos / 'a.png'))
    array = inferencer(bgr, WORDS)
    same(from_file, array)
    assert array.path is None
    rgb = inferencer(bgr[..., ::-1], WORDS, channel_order='rgb')
    same(from_file, rgb)
    np.testing.assert_array_equal(rgb.image, from_file.image)
    swapped = inferencer(bgr[..., ::-1], WORDS)
    assert (swapped.instances['scores'] != from_file.instances['scores']).any()


def test_a_folder_and_a_list_keep_their_order_whatever_the_batch(inferencer, photos, capfd):
    one_by_one = inferencer(photos, WORDS, progress=False)
    assert [r.path.name for r in one_by_one] == ['a.png', 'b.png', 'c.bmp']
    assert capfd.readouterr().err == ''
    mixed = inferencer([photos / 'c.bmp', cv2.imread(str(photos / 'a.png'))], WORDS, batch_size=2)
    assert '2/2' in capfd.readouterr().err  # the bar
    same(mixed[0], one_by_one[2])
    same(mixed[1], one_by_one[0])
    assert len(inferencer([photos / 'a.png'], WORDS)) == 1  # a list gives a list


def test_each_image_can_have_its_own_vocabulary(inferencer, photos):
    files = [photos / 'a.png', photos / 'c.bmp']
    asked = ['cat; rug (stuff)', WORDS]
    together = inferencer(files, asked, batch_size=2)
    assert [r.vocabulary.names for r in together] == [Vocabulary.parse(v).names for v in asked]
    for result, file, words in zip(together, files, asked):
        same(result, inferencer(file, words))
    assert not any(s['seen'] for s in together[0].segments)
    trained = inferencer(files[0])
    assert (
        trained.vocabulary.names
        == inferencer.vocabulary.names
        == ('red disc', 'green ring', 'grass')
    )
    assert all(s['seen'] for s in trained.segments)


def test_lists_of_names_and_lists_of_vocabularies_are_told_apart():
    names = vocabularies(['cat', 'dog'], 2)
    assert [v.names for v in names] == [('cat', 'dog')] * 2
    each = vocabularies([Vocabulary.parse(['cat']), 'dog;'], 2)
    assert [v.names for v in each] == [('cat',), ('dog',)]
    assert vocabularies(None, 2) == [None, None]
    with pytest.raises(ValueError, match='2 vocabularies were given for 3 images'):
        vocabularies(['cat; dog', 'sky;'], 3)
    with pytest.raises(ValueError, match='empty vocabulary'):
        vocabularies('', 1)


# ---- what cannot be asked ------------------------------------------------------------------------------------------


def test_what_is_no_image_is_refused_with_the_nearest(photos, tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"aa.png.*no such file or folder.*Nearest.*'a.png'"
    ):
        gather(photos / 'aa.png')
    with pytest.raises(FileNotFoundError, match='There is no folder'):
        gather(['/nowhere/at/all.png'])
    (tmp_path / 'deeper').mkdir()
    with pytest.raises(ValueError, match=r"has no image.*subfolders.*'deeper'"):
        gather(tmp_path)
    for bad in (
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((3, 4, 4), np.uint8),
    ):
        with pytest.raises(ValueError, match=r'needed: uint8 \(H, W, 3\)'):
            gather(bad)
    for bad, message in ((7, 'a int is no image'), ([], 'an empty list')):
        with pytest.raises(ValueError, match=message):
            gather(bad)
    with pytest.raises(ValueError, match="channel_order='gbr' is unknown"):
        gather(photos, 'gbr')


def test_an_unreadable_image_is_named_and_left_out(inferencer, photos, tmp_path):
    for name in ('a.png', 'c.bmp'):
        (tmp_path / name).write_bytes((photos / name).read_bytes())
    (tmp_path / 'b.jpg').write_bytes(b'no picture')
    with pytest.warns(UserWarning, match='b.jpg is not a readable image.*left out'):
        results = inferencer(
            tmp_path, [WORDS, 'tree;', 'cat; sky (stuff)'], batch_size=3, progress=False
        )
    assert [r.path.name for r in results] == ['a.png', 'c.bmp']
    assert results[1].vocabulary.names == ('cat', 'sky')  # a vocabulary stays with its image
    (tmp_path / 'empty.png').touch()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for bad in (tmp_path / 'empty.png', [tmp_path / 'b.jpg', tmp_path / 'empty.png']):
            with pytest.raises(ValueError, match='none of .*is a readable image'):
                inferencer(bad)


def test_mistakes_are_told_before_anything_runs(inferencer, photos, tmp_path):
    with pytest.raises(ValueError, match='batch_size=0'):
        inferencer.iterate(photos, batch_size=0)
    with pytest.raises(ValueError, match='both a thing'):
        inferencer.iterate(photos, 'cat; cat (stuff)')
    (tmp_path / 'file').touch()
    with pytest.raises(ValueError, match='is a file; give a folder'):
        inferencer(photos, out_dir=tmp_path / 'file')


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(model=dict(type='mmdet.Mask2Former')), 'has Mask2Former; allowed'),
        ({'model.test_cfg.panoptic': False}, 'model.test_cfg.panoptic=False'),
        ({'test_dataloader.dataset.pipeline': [dict(type='mmdet.PackDetInputs')]}, 'must begin with LoadImageFromFile'),
    ],
)  # fmt: skip
def test_a_config_that_cannot_be_asked_is_refused(change, message):
    cfg = config()
    if 'model' in change:
        cfg = Config(change)
    else:
        cfg.merge_from_dict(change)
    with pytest.raises(ValueError, match=message):
        OpenVocabInferencer(cfg, device='cpu')


def test_a_wrong_config_name_or_device_is_refused():
    with pytest.raises(FileNotFoundError, match=f'Nearest.*{NAME}'):
        OpenVocabInferencer(NAME.replace('toy', 'tay', 1))
    with pytest.raises(ValueError, match="device='tpu-9' cannot be used"):
        OpenVocabInferencer(config(), device='tpu-9')


# ---- weights -------------------------------------------------------------------------------------------------------


def changed(model):
    state = {key: value.clone() for key, value in model.state_dict().items()}
    for value in model.parameters():
        value.data.fill_(0.25)
    return state


@pytest.mark.parametrize('kind', ['pth', 'safetensors', 'folder', 'module'])
def test_weights_come_from_either_kind_of_file(inferencer, weights, tmp_path, kind):
    from safetensors.torch import save_file

    model = inferencer.model
    state = changed(model)
    try:
        if kind == 'safetensors':
            save_file(state, tmp_path / 'trained.safetensors')
            assert load_trained(model, tmp_path).name == 'trained.safetensors'
        elif kind == 'module':
            torch.save(
                {f'module.{key}': value for key, value in state.items()}, tmp_path / 'ddp.pth'
            )
            load_trained(model, tmp_path / 'ddp.pth')
        else:
            load_trained(model, weights if kind == 'folder' else weights / 'iter_3.pth')
        for key, value in model.state_dict().items():
            assert torch.equal(value, state[key]), key
    finally:
        model.load_state_dict(state)


def test_other_weights_are_refused(inferencer, tmp_path):
    model = inferencer.model
    state = {key: value.clone() for key, value in model.state_dict().items()}
    first = next(key for key, value in model.named_parameters())
    try:
        torch.save({**state, 'more': torch.zeros(1)}, tmp_path / 'more.pth')
        with pytest.raises(
            ValueError, match=r"lacks 0 tensors.*1 that the model does not know \['more'\]"
        ):
            load_trained(model, tmp_path / 'more.pth')
        torch.save({k: v for k, v in state.items() if k != first}, tmp_path / 'less.pth')
        with pytest.raises(ValueError, match=f'lacks 1 tensors.*{first}'):
            load_trained(model, tmp_path / 'less.pth')
        torch.save({**state, first: torch.zeros(3)}, tmp_path / 'shape.pth')
        with pytest.raises(ValueError, match='another shape'):
            load_trained(model, tmp_path / 'shape.pth')
    finally:
        model.load_state_dict(state)
    (tmp_path / 'broken.safetensors').write_bytes(b'nothing')
    with pytest.raises(ValueError, match='cannot be read'):
        load_trained(model, tmp_path / 'broken.safetensors')


def test_a_file_that_runs_code_is_refused(inferencer, tmp_path):
    torch.save(dict(state_dict={}, meta=subprocess.Popen), tmp_path / 'code.pth')
    with pytest.raises(ValueError, match='could run code'):
        load_trained(inferencer.model, tmp_path / 'code.pth')


def test_exported_weights_predict_the_same_up_to_half_precision(inferencer, weights, tmp_path):
    exported = export_weights(weights, CONFIG, tmp_path / 'toy')
    assert sum(file.stat().st_size for file in exported.iterdir()) < 2e6
    ask = OpenVocabInferencer(config(), exported, device='cpu')
    rounded = copy.deepcopy(inferencer.model)
    for tensor in rounded.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(tensor.half())
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole, half, loaded = (
            model.panoptic_head.predict(model.extract_feat(x), (64, 64))
            for model in (inferencer.model, rounded, ask.model)
        )
    torch.testing.assert_close(loaded.masks, half.masks)
    torch.testing.assert_close(loaded.embeddings, half.embeddings)
    # a mask that attention is cut by may turn at a pixel
    assert (loaded.masks.sigmoid() - whole.masks.sigmoid()).abs().mean() < 0.01
    assert (loaded.embeddings * whole.embeddings).sum(
        -1
    ).mean() > 0.999 * whole.embeddings.square().sum(-1).mean()


def test_weights_that_are_not_there_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='no such model ships'):
        weight_file('mmdiffrep/no-such-model')
    with pytest.raises(FileNotFoundError, match='checkpoint .* is not a file'):
        weight_file(tmp_path / 'no.pth')
    for name in ('a.pth', 'b.pth'):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r"a folder with \['a.pth', 'b.pth'\]"):
        weight_file(tmp_path)


# ---- files ---------------------------------------------------------------------------------------------------------


def test_files_say_what_the_results_say(inferencer, photos, tmp_path):
    asked = ['cat; rug (stuff)', WORDS, 'sky (thing); cat']
    out = tmp_path / 'deep' / 'out'
    results = inferencer(photos, asked, out_dir=out, progress=False)
    content = json.loads((out / 'panoptic.json').read_text())
    categories = {c['id']: c for c in content['categories']}
    assert len({(c['name'], c['isthing']) for c in categories.values()}) == len(categories) == 7
    assert [i['file_name'] for i in content['images']] == ['a.png', 'b.png', 'c.bmp']
    for result, image, entry in zip(results, content['images'], content['annotations']):
        np.testing.assert_array_equal(
            read_panoptic_png(out / 'panoptic' / entry['file_name']), result.ids
        )
        assert entry['image_id'] == image['id'] and [image['height'], image['width']] == list(
            result.ids.shape
        )
        for told, meant in zip(entry['segments_info'], result.segments, strict=True):
            assert categories[told['category_id']]['name'] == meant['name']
            assert categories[told['category_id']]['isthing'] == meant['isthing']
            assert (told['id'], told['area'], told['bbox']) == (
                meant['id'],
                meant['area'],
                meant['bbox'],
            )
        own = json.loads((out / 'segments' / f'{result.path.stem}.json').read_text())
        assert own['segments'] == result.segments and own['image'] == str(result.path)
        assert Vocabulary.parse(own['vocabulary']) == result.vocabulary
        overlay = cv2.imread(str(out / 'overlays' / f'{result.path.stem}.png'))[..., ::-1]
        np.testing.assert_array_equal(overlay, result.picture())
    written = {p.relative_to(out).as_posix() for p in out.rglob('*') if p.is_file()}
    kinds = ('overlays/{}.png', 'segments/{}.json', 'panoptic/{}.png')
    assert written == {'panoptic.json', *(k.format(n) for k in kinds for n in 'abc')}


def test_one_vocabulary_numbers_the_categories(inferencer, photos, tmp_path):
    inferencer(photos / 'a.png', WORDS, out_dir=tmp_path)
    content = json.loads((tmp_path / 'panoptic.json').read_text())
    assert [(c['id'], c['name'], c['isthing']) for c in content['categories']] == [
        (0, 'red disc', True), (1, 'blue star', True), (2, 'sky', False), (3, 'grass', False),
    ]  # fmt: skip


def test_equal_names_do_not_overwrite_each_other(tmp_path):
    folder = ResultFolder(tmp_path)
    names = []
    for path in (Path('x/cat.png'), Path('y/Cat.jpg'), None, None):
        ids = np.ones((8, 8), np.int32)
        segment = dict(
            id=1,
            category=0,
            name='cat',
            isthing=True,
            score=0.5,
            area=64,
            bbox=[0, 0, 8, 8],
            seen=True,
        )
        result = SegmentationResult(
            ids, [segment], Vocabulary.parse(['cat']), np.zeros((8, 8, 3), np.uint8), path=path
        )
        names.append(folder.add(result)[0].stem)
    assert names == ['cat', 'Cat-2', 'array', 'array-2']
    files = [entry['file_name'] for entry in json.loads(folder.finish().read_text())['annotations']]
    assert files == [f'{name}.png' for name in names]


# ---- the command line ----------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def tool():
    spec = importlib.util.spec_from_file_location('tools_segment', ROOT / 'tools/segment.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tool_prints_a_table_and_the_files(tool, inferencer, photos, weights, tmp_path, capsys):
    cfg = config()
    cfg.dump(tmp_path / 'config.py')
    options = [
        '--config',
        str(tmp_path / 'config.py'),
        '--weights',
        str(weights),
        '--device',
        'cpu',
    ]
    out = tmp_path / 'out'
    code = tool.main(
        [
            str(photos / 'a.png'),
            '--vocab',
            WORDS,
            '--out',
            str(out),
            '--templates',
            'none',
            *options,
        ]
    )
    printed = capsys.readouterr().out
    assert code == 0 and f'{photos / "a.png"} (64×64)' in printed
    found = json.loads((out / 'segments/a.json').read_text())['segments']
    assert found == inferencer(photos / 'a.png', WORDS).segments  # and so the weights were read
    lines = printed.splitlines()
    rows = lines[lines.index(next(line for line in lines if line.startswith('---'))) + 1 :][
        : len(found)
    ]
    for row, s in zip(rows, sorted(found, key=lambda s: -s['area'])):
        cells = [
            s['name'],
            'thing' if s['isthing'] else 'stuff',
            f'{s["score"]:.2f}',
            f'{s["area"] / 40.96:.1f}',
            'yes' if s['seen'] else 'no',
        ]
        assert row.split() == ' '.join(cells).split()
    for path in (line for line in lines if line.startswith(str(out))):
        assert Path(path).is_file()
    assert str(out / 'panoptic.json') in lines


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--config', NAME], 'without --weights'),
        (['--config', 'odise_toy-unet.py', '--weights', 'x.pth'], 'is not a file. Nearest'),
        (['--config', NAME, '--weights', '/nowhere/x.pth'], "checkpoint '/nowhere/x.pth' is not a file"),
        (['--templates', 'singel', '--weights', 'x.pth'], 'single'),
        (['--vocab', 'cat; cat'], 'a name of two categories'),
    ],
)  # fmt: skip
def test_the_tool_tells_mistakes_in_a_line(tool, tmp_path, photos, capsys, options, message):
    if not CONFIG.is_file():
        pytest.skip('the tests do not run in a checkout')
    assert tool.main([str(photos / 'a.png'), '--out', str(tmp_path / 'o'), *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith('error: ') and message in error and 'Traceback' not in error
    assert not (tmp_path / 'o').exists()


def test_the_tool_names_an_image_that_is_not_there(tool, photos, capsys):
    assert tool.main([str(photos / 'aa.png')]) == 2
    assert 'Nearest in' in capsys.readouterr().err


def test_the_api_is_imported_without_the_toolkits():
    code = (
        'import sys, mmdiffrep.apis; assert "OpenVocabInferencer" in dir(mmdiffrep.apis); '
        'print([m for m in ("mmdet", "mmseg", "cv2", "diffusers") if m in sys.modules])'
    )
    done = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip().endswith('[]'), done.stdout
