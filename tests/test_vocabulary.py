"""Vocabularies: parsing, order, comparing, ready ones; prompt templates."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmdiffrep.openvocab.names import clean, key, nearest, settle
from mmdiffrep.openvocab.prompts import TEMPLATES, fill, templates
from mmdiffrep.openvocab.ready import READY, ready
from mmdiffrep.openvocab.vocabulary import Category, Vocabulary

parse = Vocabulary.parse


def as_lists(vocabulary):
    return [(list(c.names), c.is_thing) for c in vocabulary.categories]


THREE = [(['cat', 'kitten'], True), (['traffic light'], True), (['grass'], False)]
THREE_WAYS = {
    'string': 'cat, kitten; grass (stuff); traffic light',
    'spaces': '  cat ,kitten;grass( STUFF );traffic light (thing) ; ',
    'lines': 'cat, kitten\n\ngrass (stuff)\ntraffic light\n',
    'list': ['cat, kitten', 'grass (stuff)', 'traffic light'],
    'synonym lists': [['cat', 'kitten'], ('grass (stuff)',), ['traffic light']],
    'names': [dict(names=['cat', 'kitten']), dict(names='grass', isthing=0), dict(names=['traffic light'], isthing=True)],
    'name': [dict(name='cat', synonyms=['kitten']), dict(name='grass', isthing=0, id=4), dict(name='traffic_light', isthing=1)],
    'mixed': [Category(('cat', 'kitten')), 'grass (stuff)', dict(names=['traffic light'])],
    'meta': dict(classes=('cat, kitten', 'grass', 'traffic light'), thing_classes=['cat, kitten', 'traffic light'], stuff_classes=['grass']),
    'meta, stuff': dict(classes=['cat, kitten', 'grass', 'traffic light'], stuff_classes=['grass'], palette=[1]),
    'meta, things': dict(classes=['cat, kitten', 'grass', 'traffic light'], thing_classes=['cat, kitten', 'traffic light']),
    'coco': dict(images=[], categories=[dict(id=7, name='cat', synonyms=['kitten']), dict(id=9, name='grass', isthing=0), dict(id=1, name='traffic light')]),
}  # fmt: skip


@pytest.mark.parametrize('source', THREE_WAYS.values(), ids=list(THREE_WAYS))
def test_all_ways_to_say_it(source, tmp_path):
    vocabulary = parse(source)
    assert as_lists(vocabulary) == THREE  # things first
    assert vocabulary.order == (0, 2, 1) and vocabulary.place == (0, 2, 1)
    assert vocabulary.names == ('cat', 'traffic light', 'grass')
    assert vocabulary.is_thing == (True, True, False)
    assert (len(vocabulary), vocabulary.num_things) == (3, 2)
    assert parse(vocabulary) is vocabulary
    if isinstance(source, (list, dict)) and not any(isinstance(i, Category) for i in source):
        (tmp_path / 'names.json').write_text(json.dumps(source))
        assert parse(tmp_path / 'names.json') == parse(str(tmp_path / 'names.json')) == vocabulary


def test_text_file(tmp_path):
    (tmp_path / 'mine.txt').write_text(
        'cat, kitten\ngrass (stuff); traffic light\n', encoding='utf-8-sig'
    )
    assert as_lists(parse(tmp_path / 'mine.txt')) == THREE


@given(st.lists(st.booleans(), min_size=1, max_size=12))
def test_order_is_stable(kinds):
    given = [Category((f'class {i}',), kind) for i, kind in enumerate(kinds)]
    vocabulary = Vocabulary(tuple(given))
    assert [given[i] for i in vocabulary.order] == list(vocabulary.categories)
    assert list(vocabulary.categories) == [c for c in given if c.is_thing] + [
        c for c in given if not c.is_thing
    ]
    assert [vocabulary.categories[k] for k in vocabulary.place] == given
    assert Vocabulary.from_json(vocabulary.to_json()) == vocabulary  # with its order


def test_hashable_and_equal():
    one, two = parse('cat; grass (stuff)'), parse(['cat', 'grass (stuff)'])
    assert one == two and hash(one) == hash(two) and len({one, two}) == 1
    assert one != parse('grass (stuff); cat')  # the labels of what was given differ
    assert one.categories == parse('grass (stuff); cat').categories
    assert str(one) == 'cat; grass (stuff)' and parse(str(one)) == one


def test_names_stay_as_written():
    vocabulary = parse(['Traffic-Light', 'wall-other-merged', 'mouse_(computer)'])
    assert vocabulary.names == ('Traffic-Light', 'wall-other-merged', 'mouse_(computer)')


@pytest.mark.parametrize(
    'other', ['traffic light', 'Traffic_Light', ' TRAFFIC-LIGHT ', 'traffic  light']
)
def test_comparison_ignores_spelling(other):
    assert key(other) == 'traffic light'
    assert parse(['traffic-light']).seen_in(parse([other])) == (True,)
    assert parse(['cat', 'traffic-light']).find(other) == 1
    with pytest.raises(ValueError, match='two categories'):
        parse(['traffic-light', other])


def test_seen_by_any_synonym():
    asked = parse('kitten, cat; puppy; lawn, GRASS (stuff); auto')
    assert asked.seen_in(parse('dog; cat, pussy; grass')) == (True, False, False, True)
    assert asked.names[3] == 'lawn'


def test_without():
    vocabulary = parse('grass (stuff); cat, kitten; dog')
    assert vocabulary.without(['Kitten']).names == ('dog', 'grass')
    assert vocabulary.without([]) == vocabulary
    with pytest.raises(ValueError, match=r"'kiten'.*Nearest: \['kitten'"):
        vocabulary.without(['kiten'])
    with pytest.raises(ValueError, match='one string'):
        vocabulary.without('cat')
    with pytest.raises(ValueError, match='empty vocabulary'):
        vocabulary.without(['cat', 'dog', 'grass'])


@pytest.mark.parametrize(
    'source, message',
    [
        ('', 'empty vocabulary'),
        (' \n ', 'empty vocabulary'),
        ([], 'empty vocabulary'),
        (dict(classes=()), 'empty vocabulary'),
        ('cat;;dog', 'empty category'),
        ('; cat', 'empty category'),
        ('cat,,kitten; dog', "'cat,,kitten' has an empty name"),
        (['cat', ''], 'empty name'),
        (['(stuff)'], 'empty name'),
        (['cat', '-_'], 'empty name'),
        (['cat', []], 'empty name'),
        ([['cat', 3]], '3.*no string'),
        (['cat', 3], '3 is no category'),
        (3, '3 is no vocabulary'),
        (['cat; dog'], 'several entries'),
        ('grass (stuff); Grass', r"'Grass' is both a thing \('Grass'\) and stuff \('grass \(stuff\)'\)"),
        ('cat (thing), kitten (stuff); dog', 'both thing and stuff'),
        ([dict(names=['cat (stuff)'], isthing=1)], 'both thing and stuff'),
        ('cat, kitten; dog; Kitten', "'Kitten' is a name of two categories, 'cat, kitten' and 'Kitten'"),
        ([dict(name='cat'), dict(name='cat')], "'cat' is a name of two"),
        ([dict(synonyms=['cat'])], "needs 'name' or 'names'"),
        ([dict(name='cat', names=['cat'])], "needs 'name' or 'names'"),
        ([dict(name=' ')], 'empty name'),
        ([dict(name='cat', isthing='yes')], "isthing='yes'"),
        (dict(names=['cat']), "needs 'classes'"),
        (dict(classes=['cat', 'cat, ']), 'empty name'),
        (dict(classes=['cat'], thing_classes=['cot']), r"thing_classes has \['cot'\].*Nearest: \['cat'\]"),
        (dict(classes=['cat'], thing_classes=['cat'], stuff_classes=['cat']), r"\['cat'\] are among both"),
        (dict(classes=['cat', 'sky'], thing_classes=['cat'], stuff_classes=[]), r"\['sky'\] are in neither"),
        ('coco-panoptik', r"not a ready vocabulary. Nearest: \['coco-panoptic'"),
        ('ade20k', 'ade20k-150'),
        ('CityScapes', 'cityscapes'),
    ],
)  # fmt: skip
def test_bad_vocabularies(source, message):
    with pytest.raises(ValueError, match=message):
        parse(source)


@pytest.mark.parametrize('names', ['cat', (), ('',), (3,), None])
def test_bad_category(names):
    with pytest.raises(ValueError, match='names='):
        Category(names)


def test_bad_constructor():
    with pytest.raises(ValueError, match="'cat' is not a Category"):
        Vocabulary(('cat',))


@pytest.mark.parametrize('text', ['{', '3', '"cat"', '[[]]'])
def test_bad_files(tmp_path, text):
    file = tmp_path / 'names.json'
    file.write_text(text)
    with pytest.raises(ValueError, match='names.json'):
        parse(file)
    with pytest.raises(ValueError):
        Vocabulary.from_json(text)
    with pytest.raises(FileNotFoundError, match='nothing.json.*no such file'):
        parse(str(tmp_path / 'nothing.json'))
    with pytest.raises(ValueError, match=r"'\.json'"):
        parse(tmp_path / 'names.csv')


def test_one_word_is_one_class():
    assert as_lists(parse('elephant')) == [(['elephant'], True)]
    assert parse(['cityscape']).names == ('cityscape',)  # in a list no ready name is meant


def test_commas_alone_are_warned_of():
    with pytest.warns(UserWarning, match='one class with synonyms'):
        assert len(parse('cat, dog, bird')) == 1


@pytest.mark.filterwarnings('error')
def test_no_warning_where_it_is_meant():
    assert len(parse('cat, kitten;')) == 1
    assert len(parse('cat, kitten; dog')) == 2


# ---- data sets' names -----------------------------------------------------------------------


@pytest.mark.parametrize(
    'raw, names',
    [
        ('painting, picture', ('painting', 'picture')),
        ('bed ', ('bed',)),
        ('wall-other-merged', ('wall',)),
        ('ceiling-merged', ('ceiling',)),
        ('floor-other-merged', ('floor',)),
        ('door-stuff', ('door',)),
        ('water-other', ('water',)),
        ('wall-brick', ('brick wall',)),
        ('window-blind', ('window blind',)),
        ('playingfield', ('playing field',)),
        ('aerosol_can', ('aerosol can',)),
        ('flip-flop_(sandal)', ('flip-flop (sandal)', 'flip-flop')),
        ('monitor_(computer_equipment) computer_monitor', ('monitor (computer equipment)', 'computer monitor', 'monitor')),
        ('tvmonitor', ('tv monitor', 'tv', 'television')),
        ('other', ('other',)),
    ],
)  # fmt: skip
def test_clean(raw, names):
    assert clean(raw) == names


def test_shared_synonyms_of_a_data_set_are_dropped():
    meta = dict(classes=['counter', 'buffet, counter, sideboard', 'earth, ground', 'land, ground', 'mirror', 'mirror-stuff', 'bat_(animal)', 'bat_(club)'])  # fmt: skip
    assert [c.names for c in parse(meta).categories] == [
        ('counter',), ('buffet', 'sideboard'), ('earth',), ('land',), ('mirror',), ('mirror-stuff',),
        ('bat (animal)',), ('bat (club)',),
    ]  # fmt: skip
    # a user's own are not touched
    assert settle([('cat', 'pet'), ('dog', 'pet')], [None, None]) == [
        ('cat', 'pet'),
        ('dog', 'pet'),
    ]


def test_background_is_stuff():
    assert parse(dict(classes=['background', 'cat'])).is_thing == (True, False)


def test_nearest():
    assert nearest('Traffic-lihgt', ['cat', 'traffic_light'])[0] == 'traffic_light'


# ---- ready ------------------------------------------------------------------------------------

NEED_MMDET = ('coco-panoptic', 'ade20k-150', 'ade20k-panoptic', 'cityscapes', 'lvis')
NEED_MMSEG = ('ade20k-150', 'pascal-context-59', 'voc-21', 'cityscapes')
COUNTS = {
    'coco-panoptic': (80, 53, 'mmdet', 'CocoPanopticDataset'),
    'ade20k-150': (100, 50, 'mmseg', 'ADE20KDataset'),
    'ade20k-panoptic': (100, 50, 'mmdet', 'ADE20KPanopticDataset'),
    'pascal-context-59': (20, 39, 'mmseg', 'PascalContextDataset59'),
    'voc-21': (20, 1, 'mmseg', 'PascalVOCDataset'),
    'cityscapes': (8, 11, 'mmseg', 'CityscapesDataset'),
    'lvis': (1203, 0, 'mmdet', 'LVISV1Dataset'),
}


def made(name):
    for package, needed in (('mmdet', NEED_MMDET), ('mmseg', NEED_MMSEG)):
        if name in needed:
            pytest.importorskip(f'{package}.datasets')
    return ready(name)


@pytest.mark.parametrize('name', COUNTS)
def test_ready_counts_and_order(name):
    vocabulary = made(name)
    things, stuff, package, dataset = COUNTS[name]
    assert (vocabulary.num_things, len(vocabulary)) == (things, things + stuff)
    classes = getattr(sys.modules[f'{package}.datasets'], dataset).METAINFO['classes']
    assert len(classes) == len(vocabulary)
    for k, label in enumerate(vocabulary.order):  # the labels of the data set
        assert vocabulary.categories[k].name == clean(classes[label])[0]
    assert parse(name) is vocabulary


def test_ready_things():
    city = made('cityscapes')
    assert city.names[:8] == (
        'person',
        'rider',
        'car',
        'truck',
        'bus',
        'train',
        'motorcycle',
        'bicycle',
    )
    assert city.names[8] == 'road' and city.order[8] == 0
    voc = made('voc-21')
    assert voc.names[-1] == 'background' and voc.order[-1] == 0
    coco = made('coco-panoptic')
    things = sys.modules['mmdet.datasets'].CocoPanopticDataset.METAINFO['thing_classes']
    assert coco.names[:80] == tuple(things)
    assert sum(voc.seen_in(coco)) == 20  # all but the background
    context = made('pascal-context-59')
    assert {'person', 'table', 'tv monitor'} <= set(context.names[:20])


def test_ade20k_orders_agree():
    semantic, panoptic = made('ade20k-150'), made('ade20k-panoptic')
    assert all(semantic.seen_in(panoptic)) and all(panoptic.seen_in(semantic))
    things = {
        semantic.find(c.name): c.is_thing
        for c in panoptic.categories
        if c.name not in ('window', 'pool')
    }
    assert all(semantic.is_thing[k] == kind for k, kind in things.items())
    assert semantic.categories[semantic.find('ashcan')].names == ('ashcan', 'trash can')


def test_metainfo_of_a_data_set():
    coco = made('coco-panoptic')
    assert parse(sys.modules['mmdet.datasets'].CocoPanopticDataset.METAINFO) == coco


def test_toyscenes():
    whole, seen = ready('toyscenes'), ready('toyscenes-seen')
    assert (whole.num_things, len(whole)) == (36, 43)
    assert (seen.num_things, len(seen)) == (30, 37)
    held_out = [name for name, known in zip(whole.names, whole.seen_in(seen)) if not known]
    assert 'red star' in held_out and len(held_out) == 6
    assert ready('toyscenes', without=held_out).categories == seen.categories
    with pytest.raises(ValueError, match='red stars'):
        ready('toyscenes', without=['red stars'])


def test_unknown_ready():
    with pytest.raises(ValueError, match="Nearest: .*'voc-21'"):
        ready('voc-20')
    assert set(COUNTS) | {'toyscenes', 'toyscenes-seen'} == set(READY)


def test_missing_package(monkeypatch):
    from mmdiffrep.openvocab.ready import _metainfo

    monkeypatch.setitem(sys.modules, 'mmseg.datasets', None)
    with pytest.raises(ImportError, match='pip install mmsegmentation'):
        _metainfo('mmseg', 'PascalVOCDataset')


def test_imports_no_toolkit():
    code = (
        'import sys; from mmdiffrep.openvocab.ready import ready; import mmdiffrep.openvocab.text_bank; ready("toyscenes-seen");'
        'print([m for m in ("mmseg", "mmdet", "mmdiffrep.datasets") if m in sys.modules])'
    )
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, '-c', code], cwd=root, capture_output=True, text=True)
    assert done.stdout.strip() == '[]', done.stderr


# ---- prompts ------------------------------------------------------------------------------------


def test_templates():
    assert templates('none') == ('{}',) and templates('single') == ('a photo of a {}.',)
    assert len(templates('vild')) == len(set(templates('vild'))) == 14
    assert 'There is a medium {} in the scene.' in templates('vild')
    assert templates('a {}') == ('a {}',) and templates(['{}', 'one {}']) == ('{}', 'one {}')
    assert all(t.count('{}') == 1 for group in TEMPLATES.values() for t in group)
    assert fill('a {} {0}', 'b{}c') == 'a b{}c {0}'


def test_imagenet_templates():
    open_clip = pytest.importorskip('open_clip')
    found = templates('imagenet')
    assert len(found) == 80
    assert [fill(t, 'cat') for t in found] == [
        t('cat') for t in open_clip.OPENAI_IMAGENET_TEMPLATES
    ]


@pytest.mark.parametrize(
    'source, message',
    [('vidl', "'vidl' is neither.*Nearest: .*'vild'"), ([], 'at least one'), (['a photo'], 'a photo'), (['{} {}'], 'once'), ([3], '3')],
)  # fmt: skip
def test_bad_templates(source, message):
    with pytest.raises(ValueError, match=message):
        templates(source)
