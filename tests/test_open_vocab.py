"""OpenVocabMask2FormerHead and OpenVocabSegmentor against slow versions; vocabularies of any size, image by image."""

import copy
import hashlib
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.structures import InstanceData, PixelData

import mmdiffrep  # noqa: F401  before the toolkits
from mmdiffrep.openvocab.text_bank import TextBank
from mmdiffrep.openvocab.vocabulary import Category, Vocabulary
from mmdiffrep.registry import MODELS

mmdet = pytest.importorskip('mmdet')
from mmdet.structures import DetDataSample  # noqa: E402
from mmdet.structures.mask import BitmapMasks  # noqa: E402

from mmdiffrep.models.openvocab.pooling import MaskPooledEmbedding  # noqa: E402
from mmdiffrep.models.openvocab.results import mmdet_ids  # noqa: E402
from mmdiffrep.models.openvocab.text_classifier import TextClassifier  # noqa: E402

CONFIG = 'configs/odise/odise_toy-unet_1200i_toyscenes-64x64.py'
SEEN = 'red disc; blue star; green ring; grass (stuff); sky (stuff)'


def config(**changes):
    root = __import__('pathlib').Path(__file__).parents[1]
    if not (root / CONFIG).is_file():
        pytest.skip('the tests do not run in a checkout')
    whole = Config.fromfile(root / CONFIG)
    small = {'vocabulary': SEEN, 'train_cfg.num_points': 64, **changes}
    whole.merge_from_dict({f'model.{key}': value for key, value in small.items()})
    return whole.model


def build(**changes):
    torch.manual_seed(0)
    model = MODELS.build(config(**changes))
    model.init_weights()
    return model


@pytest.fixture(scope='module')
def model():
    return build().eval()


def batch(count=2, size=64, vocabularies=None, seed=0):
    """Images as the loader gives them, with a square thing on two stuff halves."""
    generator = torch.Generator().manual_seed(seed)
    inputs, samples = [], []
    for i in range(count):
        inputs.append(torch.randint(256, (3, size, size), generator=generator, dtype=torch.uint8))
        mask = np.zeros((1, size, size), np.uint8)
        mask[0, 8 : 8 + 24, 8 * i : 8 * i + 24] = 1
        labels = torch.full((1, size, size), 3)
        labels[:, size // 2 :] = 4
        labels[torch.from_numpy(mask).bool()] = i % 3
        sample = DetDataSample(metainfo=dict(img_shape=(size, size), ori_shape=(size, size)))
        sample.gt_instances = InstanceData(
            labels=torch.tensor([i % 3]), masks=BitmapMasks(mask, size, size), bboxes=torch.zeros(1, 4)
        )
        sample.gt_sem_seg = PixelData(sem_seg=labels)
        if vocabularies is not None:
            sample.set_metainfo(dict(vocabulary=vocabularies[i]))
        samples.append(sample)
    return dict(inputs=inputs, data_samples=samples)


def predict(model, **options):
    with torch.no_grad():
        return model.test_step(batch(**options))


# ---- parts -------------------------------------------------------------------------------------------------------


def test_a_mask_pools_the_features_inside_it():
    torch.manual_seed(0)
    module = MaskPooledEmbedding(5, 8, 6)
    features, masks, queries = torch.randn(2, 5, 4, 6), torch.randn(2, 3, 4, 6), torch.randn(2, 3, 8)
    masks[1, 2] = -1.0  # empty
    got = module(features, masks, queries)
    for b in range(2):
        for q in range(3):
            total, area = torch.zeros(5), 0
            for y in range(4):
                for x in range(6):
                    if torch.sigmoid(masks[b, q, y, x]) > 0.5:
                        total, area = total + features[b, :, y, x], area + 1
            v = total / (area + 1e-8)
            v = (v - v.mean()) / (v.var(unbiased=False) + 1e-5).sqrt()
            z = module.project.weight @ v + module.project.bias + queries[b, q]
            z = (z - z.mean()) / (z.var(unbiased=False) + 1e-5).sqrt()
            for layer in (0, 2, 4):
                z = module.mlp[layer].weight @ z + module.mlp[layer].bias
                z = z.clamp(min=0) if layer < 4 else z
            torch.testing.assert_close(got[b, q], z, rtol=1e-5, atol=1e-5)
    assert got.isfinite().all()


def test_a_masks_features_get_gradients_and_its_mask_none():
    module = MaskPooledEmbedding(5, 8, 6)
    features, masks = torch.randn(1, 5, 4, 4, requires_grad=True), torch.randn(1, 3, 4, 4, requires_grad=True)
    module(features, masks, torch.zeros(1, 3, 8)).square().sum().backward()
    assert masks.grad is None and features.grad.abs().sum() > 0


def bank_of(counts, width=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    names = [tuple(f'{k}-{s}' for s in range(count)) for k, count in enumerate(counts)]
    owner = torch.tensor([k for k, count in enumerate(counts) for _ in range(count)])
    embeddings = F.normalize(torch.randn(len(owner), width, generator=generator), dim=-1)
    return TextBank(Vocabulary(tuple(map(Category, names))), embeddings, owner, torch.zeros(width))


def test_a_classs_logit_is_its_best_synonyms():
    torch.manual_seed(0)
    classifier, bank = TextClassifier(7, 6), bank_of([1, 3, 2])
    with torch.no_grad():
        classifier.log_scale.fill_(math.log(30))
    embeddings = torch.randn(2, 4, 6)
    got = classifier(embeddings, bank)
    assert got.shape == (2, 4, 4)
    with torch.no_grad():
        words = [classifier.project(t) for t in [*bank.embeddings, classifier.void]]
        for b in range(2):
            for q in range(4):
                e = embeddings[b, q]
                cosines = [float(e @ w / (e.norm() * w.norm())) for w in words]
                for k in range(3):
                    best = max(c for c, owner in zip(cosines, bank.owner) if owner == k)
                    assert got[b, q, k].item() == pytest.approx(30 * best, abs=1e-4)
                assert got[b, q, 3].item() == pytest.approx(30 * cosines[-1], abs=1e-4)


def test_the_scale_is_at_most_100_and_begins_at_1_over_007():
    classifier = TextClassifier(7, 6)
    assert classifier.scale.item() == pytest.approx(1 / 0.07, rel=1e-6)
    with torch.no_grad():
        classifier.log_scale.fill_(9.0)
    assert classifier.scale.item() == 100


def test_a_bank_of_another_width_is_refused():
    with pytest.raises(ValueError, match='width 7 were given to a head of text_channels=9'):
        TextClassifier(9, 6)(torch.randn(1, 1, 6), bank_of([1]))


# ---- training ----------------------------------------------------------------------------------------------------


def losses(model, **options):
    model.train()
    data = model.data_preprocessor(batch(**options), True)
    return model(**data, mode='loss')


def test_every_layer_has_losses_and_gradients_reach_exactly_what_is_trained():
    model = build()
    found = losses(model)
    layers = model.panoptic_head.num_transformer_decoder_layers
    assert len(found) == 3 * (layers + 1)
    sum(found.values()).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert without == []
    names = {name for name, _ in model.named_parameters()}
    assert {name.split('.')[0] for name in names} == {'backbone', 'panoptic_head'}
    assert all(name.startswith('backbone.adapter') for name in names if name.startswith('backbone'))


def test_the_classification_loss_is_a_cross_entropy_with_a_light_void():
    """One layer's loss against a loop, with the assignment that the head's own assigner makes."""
    model = build().train()
    head = model.panoptic_head
    data = model.data_preprocessor(batch(), True)
    bank = model.naming.training_bank('cpu')
    output = head.outputs(model.extract_feat(data['inputs']))[-1]
    targets = head._targets(data['data_samples'], bank)
    logits = head.classifier(output.embeddings, bank)
    torch.manual_seed(1)
    got = head._loss_by_feat_single(logits, output.masks, targets, [{}, {}])[0]
    torch.manual_seed(1)
    labels = head.get_targets(list(logits), list(output.masks), targets, [{}, {}])[0]
    total = weight = 0.0
    for image, wanted in zip(logits, labels):
        assert (wanted < 5).sum() == 3  # a thing and two stuffs
        for row, label in zip(image, wanted.tolist()):
            w = 0.1 if label == 5 else 1.0
            total, weight = total - w * row.log_softmax(-1)[label].item(), weight + w
    assert got.item() == pytest.approx(2.0 * total / weight, rel=1e-5)


def test_labels_of_another_vocabulary_are_refused():
    model = build()
    with pytest.raises(ValueError, match='is not the one that the model is trained on'):
        losses(model, vocabularies=['cat; dog', 'cat; dog'])


def test_a_stuff_class_that_would_be_void_is_refused():
    model = build(vocabulary='; '.join(f'thing {i} (stuff)' for i in range(256)))
    with pytest.raises(ValueError, match='class 255 of the vocabulary'):
        losses(model)


def test_captions_train_masks_without_classes(on_accelerator):
    model = build(**{'panoptic_head.supervision': 'captions'}).to(on_accelerator)
    data = batch()
    for sample, caption in zip(data['data_samples'], ['a red disc in front of grass', 'a blue star and a ring']):
        sample.set_metainfo(dict(caption=caption))
    model.train()
    found = model(**model.data_preprocessor(data, True), mode='loss')
    assert 'loss_grounding' in found and 'd0.loss_grounding' in found
    sum(found.values()).backward()
    without = {name for name, p in model.named_parameters() if p.grad is None}
    assert without == {name for name, p in model.named_parameters() if not p.requires_grad}
    assert without == {'panoptic_head.classifier.void'}
    result = predict(model.eval(), vocabularies=['cat; dog', 'a; b; c'])
    assert result[0].pred_panoptic['ids'].shape == (64, 64)


def test_an_image_without_a_caption_is_named():
    with pytest.raises(ValueError, match='has no caption'):
        losses(build(**{'panoptic_head.supervision': 'captions'}))


# ---- prediction --------------------------------------------------------------------------------------------------


def same(a, b):
    assert torch.equal(a.pred_panoptic['ids'], b.pred_panoptic['ids'])
    assert [s['category'] for s in a.pred_panoptic['segments']] == [s['category'] for s in b.pred_panoptic['segments']]
    # a pixel at a mask's threshold may fall to either side, and the mean over the mask with it
    torch.testing.assert_close(a.pred_instances.scores, b.pred_instances.scores, rtol=5e-3, atol=1e-6)
    assert torch.equal(a.pred_sem_seg.sem_seg, b.pred_sem_seg.sem_seg)


@pytest.mark.parametrize('clip', [True, False])
def test_each_image_of_a_batch_has_its_own_vocabulary(clip):
    model = build(**({} if clip else {'clip': None})).eval()
    asked = ['cat, kitten; grass (stuff)', 'red disc; blue star; green ring; sky (stuff)']
    together = predict(model, vocabularies=asked)
    for i in range(2):
        data = batch(vocabularies=asked)
        alone = model.test_step(dict(inputs=data['inputs'][i : i + 1], data_samples=data['data_samples'][i : i + 1]))
        same(together[i], alone[0])
        assert together[i].vocabulary.names == Vocabulary.parse(asked[i]).names
    assert together[0].seen == (False, True) and together[1].seen == (True, True, True, True)


def test_a_vocabulary_of_1500_names(model):
    many = Vocabulary(tuple(Category((f'thing number {i}',), i < 1200) for i in range(1500)))
    result = predict(model, count=1, vocabularies=[many])[0]
    assert all(0 <= s['category'] < 1500 for s in result.pred_panoptic['segments'])
    assert int(result.pred_sem_seg.sem_seg.max()) < 1500
    assert len(result.vocabulary) == 1500


def test_trained_on_ten_names_and_asked_for_three_1500_and_others():
    """After a training step; each image as if it were alone."""
    ten = SEEN + '; water (stuff); sand (stuff); road (stuff); brick (stuff); wood (stuff)'
    model = build(vocabulary=ten)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    sum(losses(model).values()).backward()
    optimizer.step()
    model.eval()
    many = Vocabulary(tuple(Category((f'thing number {i}',), i < 1200) for i in range(1500)))
    asked = ['red disc; purple cross; sky (stuff)', many, 'cat, kitten; dog; blue star; meadow (stuff)']
    together = predict(model, count=3, vocabularies=asked)
    for i, count in enumerate((3, 1500, 4)):
        data = batch(count=3, vocabularies=asked)
        alone = model.test_step(dict(inputs=data['inputs'][i : i + 1], data_samples=data['data_samples'][i : i + 1]))[0]
        same(together[i], alone)
        assert len(together[i].vocabulary) == len(alone.seen) == count
        assert len(together[i].pred_instances) > 0 and int(together[i].pred_instances.labels.max()) < count
    assert together[0].seen == (True, False, True) and not any(together[1].seen)


def test_permuted_names_give_the_same_segments(model):
    a = predict(model, count=1, vocabularies=['red disc; blue star; sky (stuff)'])[0]
    b = predict(model, count=1, vocabularies=['sky (stuff); blue star; red disc'])[0]
    names = [[r.vocabulary.names[s['category']] for s in r.pred_panoptic['segments']] for r in (a, b)]
    assert sorted(names[0]) == sorted(names[1])
    torch.testing.assert_close(
        a.pred_instances.scores.sort()[0], b.pred_instances.scores.sort()[0], rtol=1e-4, atol=1e-6
    )


def test_a_synonym_given_twice_changes_nothing(model):
    a = predict(model, count=1, vocabularies=['red disc; sky (stuff)'])[0]
    b = predict(model, count=1, vocabularies=['red disc, Red  disc; sky (stuff)'])[0]
    same(a, b)


def test_padding_changes_nothing_but_the_borders_rounding(model):
    """What is padded is in neither the masks nor the image that CLIP sees."""
    data = batch(count=1, size=48, vocabularies=['red disc; sky (stuff)'])
    result = model.test_step(data)[0]
    assert result.pred_panoptic['ids'].shape == (48, 48)
    assert result.pred_sem_seg.sem_seg.shape == (1, 48, 48)


def test_clip_counts_for_seen_and_unseen_as_configured(model):
    """Against the fusion written out for one mask."""
    vocabulary = Vocabulary.parse('red disc; purple cross; sky (stuff)')
    torch.manual_seed(0)
    embeddings, masks, image = torch.randn(4, 64), torch.randn(4, 32, 32) * 3, torch.rand(3, 32, 32)
    bgr = (image.flip(0) * 255).round()
    normalised = (bgr.flip(0) - model.data_preprocessor.mean) / model.data_preprocessor.std
    with torch.no_grad():
        got = model._name(embeddings, None, masks, normalised, vocabulary).exp()
        logits = model.panoptic_head.classifier(embeddings, model.naming.bank(vocabulary, 'cpu'))
    bank = model.clip.banks(vocabulary)
    shown = model.clip.classifier(((image * 255).round() / 255)[None], [masks.sigmoid()])[0]
    for q in range(4):
        p = logits[q].double().softmax(-1)
        head = p[:3] / p[:3].sum()
        scores = [float(shown[q] @ t) * model.clip.classifier.logit_scale for t in bank.embeddings]
        clip = torch.tensor(scores).double().softmax(-1)
        share = torch.tensor([0.3, 0.7, 0.3])  # only 'purple cross' is new
        mixed = head ** (1 - share) * clip**share
        wanted = mixed / mixed.sum() * (1 - p[3])
        torch.testing.assert_close(got[q, :3].double(), wanted, rtol=1e-3, atol=1e-5)


def test_clip_and_masks_see_the_image_without_its_padding(model, monkeypatch):
    seen = []

    def spy(logits, p_void, rgb, masks, *_):
        seen.append((rgb, masks))
        return torch.zeros(len(logits), logits.shape[1]).log_softmax(-1)

    monkeypatch.setattr(model.clip, 'fuse', spy)
    large, small = batch(1, 64), batch(1, 40, seed=5)
    predict_both = dict(inputs=large['inputs'] + small['inputs'], data_samples=large['data_samples'] + small['data_samples'])
    with torch.no_grad():
        found = model.test_step(predict_both)
    assert [tuple(rgb.shape) for rgb, _ in seen] == [(3, 64, 64), (3, 40, 40)]
    assert [tuple(masks.shape[1:]) for _, masks in seen] == [(64, 64), (40, 40)]
    for (rgb, _), image in zip(seen, predict_both['inputs']):
        torch.testing.assert_close(rgb, image.flip(0) / 255, rtol=0, atol=1e-5)
    assert found[1].pred_panoptic['ids'].shape == (40, 40)


def test_images_that_stay_bgr_are_turned_for_clip():
    model = build(**{'data_preprocessor.bgr_to_rgb': False, 'data_preprocessor.mean': [1.0, 2.0, 3.0], 'data_preprocessor.std': [2.0] * 3})
    image = batch(1)['inputs'][0]
    data = model.data_preprocessor(batch(1), False)
    torch.testing.assert_close(model._rgb(data['inputs'][0]), image.flip(0) / 255, rtol=0, atol=1e-5)


def test_mmdets_map_numbers_things_and_not_stuff():
    ids = torch.tensor([[0, 1, 2, 3]])
    segments = [dict(id=1, category=4, isthing=True), dict(id=2, category=4, isthing=True), dict(id=3, category=6, isthing=False)]
    assert mmdet_ids(ids, segments, 7).tolist() == [[7, 4 + 1000, 4 + 2000, 6]]
    assert mmdet_ids(ids, segments, 1500).tolist() == [[1500, 4 + 1501, 4 + 2 * 1501, 6]]


def test_voids_share_is_fixed_if_asked():
    model = build(clip=None, void='fixed').eval()
    embeddings, masks = torch.randn(5, 64), torch.randn(5, 16, 16)
    few, many = (model._name(embeddings, None, masks, torch.zeros(3, 16, 16), Vocabulary.parse(v)) for v in ('cat', 'cat; dog; sky; red disc'))
    torch.testing.assert_close(few[:, -1], many[:, -1])
    model.void = 'odise'
    few, many = (model._name(embeddings, None, masks, torch.zeros(3, 16, 16), Vocabulary.parse(v)) for v in ('cat', 'cat; dog; sky; red disc'))
    assert (few[:, -1] - many[:, -1]).abs().max() > 1e-3
    torch.testing.assert_close(many.exp().sum(-1), torch.ones(5))


def test_the_current_vocabulary_can_be_set(model):
    try:
        model.set_vocabulary('zebra; tree (stuff)')
        assert predict(model, count=1)[0].vocabulary.names == ('zebra', 'tree')
        with pytest.raises(ValueError):
            model.set_vocabulary('')
    finally:
        model.set_vocabulary(None)
    assert predict(model, count=1)[0].vocabulary.names == Vocabulary.parse(SEEN).names


# ---- checkpoints -------------------------------------------------------------------------------------------------


def test_a_checkpoint_holds_the_trained_part_alone(model):
    trained = {name for name, _ in model.named_parameters()}
    kept = set(model.state_dict()) - trained
    assert kept <= {name for name in kept if name.endswith(('digest', 'num_batches_tracked', 'running_mean', 'running_var'))}
    assert 'naming.encoder_digest' in kept
    clone = copy.deepcopy(model)
    assert clone.naming.encoder is model.naming.encoder


def test_a_checkpoint_says_which_frozen_parts_it_needs(tiny_sd_config):
    """Denoiser, captioner's CLIP and text encoder; the CLIP that looks at the masks is not needed by what was trained."""

    def with_captioner(seed=0, clip_seed=0, **changes):
        backbone = dict(
            _delete_=True, type='mmdiffrep.DiffusionBackbone', taps=['up_blocks.1', 'up_blocks.2', 'up_blocks.3'],
            denoiser=dict(type='mmdiffrep.StableDiffusion', config=tiny_sd_config, random_seed=seed),
            conditioner=dict(type='mmdiffrep.ImplicitCaptioner', clip=dict(name='mmdiffrep/toy-clip', random_seed=clip_seed)),
            adapter=dict(type='mmdiffrep.StridePyramid', out_channels=256, width=16),
        )  # fmt: skip
        return build(backbone=backbone, **changes)

    model = with_captioner()
    state = model.state_dict()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    fingerprints = {
        'backbone.holder.frozen_digest': model.backbone.denoiser.fingerprint,
        'backbone.conditioner.clip.frozen_digest': model.backbone.conditioner.clip.fingerprint,
        'naming.encoder_digest': model.naming.encoder.fingerprint,
    }
    assert set(state) == trained | set(fingerprints)
    for name, fingerprint in fingerprints.items():
        assert bytes(state[name].tolist()) == hashlib.sha256(fingerprint.encode()).digest()
    # none of the frozen weights is among them
    assert sum(value.numel() for value in state.values()) == sum(p.numel() for p in model.parameters()) + 3 * 32
    for change, message in (
        (dict(seed=1), r'other frozen diffusion weights than the config names now \(random:1:'),
        (dict(clip_seed=1), r'other frozen CLIP weights than the config names now \(random:1:'),
        ({'text.encoder': dict(_delete_=True, kind='random', width=model.naming.channels)}, 'another text encoder than the config'),
    ):
        with pytest.raises(ValueError, match=message):
            with_captioner(**change).load_state_dict(state)
    with_captioner(clip=None).load_state_dict(state)


def test_another_text_encoder_is_refused(model):
    state = model.state_dict()
    state['naming.encoder_digest'] = state['naming.encoder_digest'].flip(0)
    with pytest.raises(ValueError, match='another text encoder'):
        copy.deepcopy(model).load_state_dict(state)


def test_a_fixed_number_of_classes_is_refused():
    with pytest.raises(ValueError, match='classes come with the vocabulary'):
        build(**{'panoptic_head.num_things_classes': 3})
