"""PixelEnsemble and what surrounds it, against ten separate networks, torch.mode, numbers by hand, upsampling first."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

pytest.importorskip('mmseg')

from mmseg.structures import SegDataSample  # noqa: E402

from mmdiffrep.diffusion.pixel_sampling import sample_pixels  # noqa: E402
from mmdiffrep.models.ensemble import EnsembleSegmentor, MLPEnsemble, PixelEnsemble  # noqa: E402
from mmdiffrep.models.ensemble.stopping import Stopping, unchanged  # noqa: E402
from mmdiffrep.models.ensemble.voting import image_uncertainty, jensen_shannon, vote_shares  # noqa: E402
from mmdiffrep.registry import MODELS  # noqa: E402

CHANNELS, HIDDEN, CLASSES, MEMBERS = [5, 3, 4], [7, 6], 4, 10


def one_by_one(seed=0, momentum=0.1):
    """The same members as ten networks of torch's own."""
    members = []
    for m in range(MEMBERS):
        a, b, c, d = sum(CHANNELS), *HIDDEN, CLASSES
        net = nn.Sequential(
            nn.Linear(a, b),
            nn.ReLU(),
            nn.BatchNorm1d(b),
            nn.Linear(b, c),
            nn.ReLU(),
            nn.BatchNorm1d(c),
            nn.Linear(c, d),
        )
        draws = torch.Generator().manual_seed(1000 * seed + m)
        for layer in (net[0], net[3], net[6]):
            nn.init.normal_(layer.weight, 0, 0.02, generator=draws)
            nn.init.zeros_(layer.bias)
        members.append(net)
    return members


def batches(steps, pixels=16, seed=1):
    g = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        yield (
            torch.randn(MEMBERS, pixels, sum(CHANNELS), generator=g),
            torch.randint(CLASSES, (MEMBERS, pixels), generator=g),
        )


def head(**kwargs):
    return PixelEnsemble(CHANNELS, CLASSES, MEMBERS, HIDDEN, **{'seed': 0, **kwargs})


def train(model, optimizer, data, epoch=0):
    for x, y in data:
        optimizer.zero_grad()
        losses = model.loss(x, y)
        losses['loss_ce'].backward()
        with unchanged(model.parameters(), optimizer, model.stopping.stopped):
            optimizer.step()
        model.stopping.note(losses['ce'], epoch)


@pytest.mark.parametrize('options', [{}, dict(fused=True), dict(weight_decay=0.1)])
def test_the_batched_ensemble_is_ten_separate_networks(options):
    ours, theirs = head(seed=3), one_by_one(seed=3)
    adam = torch.optim.Adam(ours.parameters(), 1e-2, **options)
    adams = [torch.optim.Adam(net.parameters(), 1e-2, **options) for net in theirs]
    for x, y in batches(8):
        losses = ours.loss(x, y)
        adam.zero_grad()
        losses['loss_ce'].backward()
        adam.step()
        for m, net in enumerate(theirs):
            loss = F.cross_entropy(net(x[m]), y[m])
            torch.testing.assert_close(losses['ce'][m], loss.detach(), rtol=1e-4, atol=1e-6)
            adams[m].zero_grad()
            loss.backward()
            adams[m].step()
    x, _ = next(batches(1, seed=9))
    ours.eval()
    for m, net in enumerate(theirs):
        torch.testing.assert_close(ours.mlps(x)[m], net.eval()(x[m]), rtol=2e-3, atol=2e-4)
        torch.testing.assert_close(
            ours.mlps.running_mean_0[m], net[2].running_mean, rtol=1e-4, atol=1e-6
        )
        torch.testing.assert_close(
            ours.mlps.running_var_1[m], net[5].running_var, rtol=1e-4, atol=1e-6
        )


def test_the_papers_widths_and_initialisation():
    assert PixelEnsemble(8, 29).mlps.widths == [8, 128, 32, 29]
    assert PixelEnsemble([4, 4], 30).mlps.widths == [8, 256, 128, 30]
    mlps = MLPEnsemble([300, 100], [128, 32], 10, 3, seed=5)
    for weight in [*mlps.first, *mlps.weights]:
        assert (
            weight.std().item() == pytest.approx(0.02, rel=0.1) and abs(weight.mean().item()) < 2e-3
        )
    assert not any(bias.any() for bias in mlps.biases)
    # a member's weights are those of its own stream, whatever the number of members
    assert torch.equal(
        mlps.first[1][2], MLPEnsemble([300, 100], [128, 32], 10, 5, seed=5).first[1][2]
    )


def test_vote_and_ties_are_torch_mode():
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 500, 3, generator=g)
    chosen = logits.argmax(-1)
    shares = vote_shares(logits)
    assert torch.equal(shares.argmax(-1), chosen.mode(0).values)
    assert ((shares * 6).round() == torch.stack([(chosen == c).sum(0) for c in range(3)], -1)).all()
    tied = torch.eye(4)[torch.tensor([3, 1, 3, 1])][:, None]
    assert vote_shares(tied).argmax(-1).item() == 1 and vote_shares(tied)[0].tolist() == [
        0,
        0.5,
        0,
        0.5,
    ]


def test_uncertainty_by_hand():
    p, q = [0.5, 0.5], [0.9, 0.1]
    logits = torch.tensor([[p, p, [1, 0.0]], [p, q, [0.0, 1]]]).log()
    mean = [0.7, 0.3]
    entropy = lambda values: -sum(v * math.log(v) for v in values)  # noqa: E731
    wanted = [0, entropy(mean) - (entropy(p) + entropy(q)) / 2]
    found = jensen_shannon(logits[:, :2])
    assert found.tolist() == pytest.approx(wanted, abs=1e-6)
    sure = torch.tensor([[[200.0, 0]], [[0, 200.0]]])
    assert jensen_shannon(sure).item() == pytest.approx(math.log(2))
    assert image_uncertainty(torch.arange(39.0).view(3, 13)) == pytest.approx((38 + 37 + 36) / 3)
    assert image_uncertainty(torch.tensor([[1.0, 3]])) == 3


@pytest.mark.parametrize('size', [(37, 51), (16, 16), (5, 3)])
def test_sampling_is_upsampling(size):
    g = torch.Generator().manual_seed(0)
    maps = [
        torch.randn(c, h, w, generator=g)
        for c, h, w in [(3, 5, 7), (2, 37, 51), (4, 1, 2), (2, 16, 16)]
    ]
    big = torch.cat(
        [F.interpolate(m[None], size, mode='bilinear', align_corners=False)[0] for m in maps]
    )
    y, x = (
        v.flatten()
        for v in torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing='ij')
    )
    found = sample_pixels([m.permute(1, 2, 0) for m in maps], y, x, size)
    torch.testing.assert_close(found, big.flatten(1).t(), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=f'{size[0]}×{size[1]}'):
        sample_pixels([m.permute(1, 2, 0) for m in maps], y, x + 1, size)


def opinionated(model):
    """Large weights, so that pixels are told apart and members disagree."""
    g = torch.Generator().manual_seed(8)
    for p in model.mlps.parameters():
        p.data += torch.randn(p.shape, generator=g) * 0.7
    return model.eval()


def trained_head():
    model = head()
    train(model, torch.optim.Adam(model.parameters(), 1e-2), batches(5))
    return opinionated(model)


def slow_answer(model, maps, out):
    """Upsample everything first, as the original does; each member by itself."""
    big = torch.cat(
        [F.interpolate(m[None], out, mode='bilinear', align_corners=False)[0] for m in maps]
    )
    x = big.flatten(1).t()
    logits = model.mlps(x.expand(MEMBERS, *x.shape))
    return logits.argmax(-1).mode(0).values.view(out), jensen_shannon(logits).view(out), logits


@pytest.mark.parametrize('rows', [1, 50, 100000])
def test_the_first_layer_at_native_size_is_the_upsampled_one(rows):
    model, g, out = trained_head(), torch.Generator().manual_seed(2), (23, 31)
    model.pixels_at_once = rows
    maps = [torch.randn(c, *s, generator=g) for c, s in zip(CHANNELS, [(3, 4), (6, 8), (3, 4)])]
    said = model.say(maps, out, (0, 0, *out), out)
    labels, uncertainty, logits = slow_answer(model, maps, out)
    assert torch.equal(said.labels, labels) and labels.unique().numel() > 1
    torch.testing.assert_close(said.uncertainty, uncertainty, rtol=1e-4, atol=1e-5)
    assert torch.equal(said.shares, vote_shares(logits).t().view(-1, *out))
    # in a padded input, and in another size than the input's
    wide = [F.pad(m, (0, m.shape[-1], 0, 0), mode='replicate') for m in maps]
    half = model.say(wide, (23, 62), (0, 0, 23, 31), (23, 31))
    assert (half.labels != labels).float().mean() < 0.005
    doubled = model.say(maps, out, (0, 0, *out), (46, 62))
    assert torch.equal(doubled.labels, slow_answer(model, maps, (46, 62))[0])


def test_stopping_is_the_originals_rule():
    """The loop of the original, written out for each member."""
    stopping = Stopping(3, begin=3, patience=4)
    g = torch.Generator().manual_seed(0)
    losses = torch.rand(60, 3, generator=g)
    losses[:, 1] = torch.linspace(5, 4, 60)  # always a new best
    for step, row in enumerate(losses):
        stopping.note(row, step // 5)
    ended = []
    for m in range(3):
        best, waited, end = 1e7, 0, None
        for step, loss in enumerate(losses[:, m].tolist()):
            if step // 5 > 1:  # from the third epoch
                best, waited = (loss, 0) if loss < best else (best, waited + 1)
                if waited > 4:
                    end = step
                    break
        ended.append(end)
    assert stopping.stopped.tolist() == [e is not None for e in ended] == [True, False, True]
    again = Stopping(3, begin=3, patience=4)
    times = [None] * 3
    for step, row in enumerate(losses):
        again.note(row, step // 5)
        times = [step if t is None and s else t for t, s in zip(times, again.stopped.tolist())]
    assert times == ended
    never = Stopping(1, 1, None)
    never.note(torch.ones(1), 5)
    never.note(torch.ones(1), 5)
    assert not never.waited.any()


@pytest.mark.parametrize('kind', [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD])
def test_what_has_stopped_does_not_change(kind):
    model = head()
    options = (
        dict(momentum=0.9, weight_decay=0.1) if kind is torch.optim.SGD else dict(weight_decay=0.1)
    )
    optimizer = kind(model.parameters(), 1e-2, **options)
    train(model, optimizer, batches(3))
    model.stopping.stopped[[2, 7]] = True

    def rows():
        tensors = dict(model.state_dict())
        for i, state in enumerate(optimizer.state.values()):
            tensors |= {f'{i}.{k}': v for k, v in state.items() if v.dim()}
        return {k: v.clone() for k, v in tensors.items()}

    before = rows()
    train(model, optimizer, batches(3, seed=4))
    after = rows()
    assert len(after) > 20
    for key, value in after.items():
        assert torch.equal(value[[2, 7]], before[key][[2, 7]]), key
        if 'stopping' not in key:
            assert not any(torch.equal(value[m], before[key][m]) for m in (0, 1, 9)), key
    # and the others learn as if nothing had stopped
    alone = head()
    other = kind(alone.parameters(), 1e-2, **options)
    train(alone, other, batches(3))
    train(alone, other, batches(3, seed=4))
    assert torch.equal(alone.mlps.first[0][3], model.mlps.first[0][3])


def test_ignored_pixels_count_in_no_loss():
    model = head()
    x, y = next(batches(1))
    y[:, ::2] = 255
    losses = model.loss(x, y)
    logits = MLPEnsemble(CHANNELS, HIDDEN, CLASSES, MEMBERS)(x)
    assert losses['ce'][4].item() == pytest.approx(
        F.cross_entropy(logits[4, 1::2], y[4, 1::2]).item(), rel=1e-5
    )


SEGMENTOR = dict(
    type='mmdiffrep.EnsembleSegmentor',
    data_preprocessor=dict(
        type='mmseg.SegDataPreProcessor', mean=[127.5] * 3, std=[127.5] * 3, bgr_to_rgb=True
    ),
    backbone=dict(type='mmdiffrep.RawPixels', strides=[1, 4]),
    decode_head=dict(type='mmdiffrep.PixelEnsemble', in_channels=[3, 3], num_classes=5, members=4),
    test_cfg=dict(mode='whole'),
)


def segmentor(**changes):
    return MODELS.build({**SEGMENTOR, **changes})


def samples(count, **meta):
    return [
        SegDataSample(metainfo=dict(ori_shape=(30, 44), img_shape=(17, 23), **meta))
        for _ in range(count)
    ]


def test_predictions_do_not_depend_on_the_batch():
    model = segmentor().eval()
    opinionated(model.decode_head)
    images = torch.randn(3, 3, 17, 23)
    together = model.predict(images, samples(3))
    alone = [model.predict(images[i : i + 1], samples(1))[0] for i in range(3)]
    for a, b in zip(together, alone):
        for name in ('seg_logits', 'pred_sem_seg', 'uncertainty'):
            assert torch.equal(a.get(name).data, b.get(name).data)
        assert a.pred_sem_seg.data.shape == a.uncertainty.data.shape == (1, 30, 44)
        assert a.seg_logits.data.shape == (5, 30, 44)
        assert (
            a.image_uncertainty
            == b.image_uncertainty
            == pytest.approx(image_uncertainty(a.uncertainty.data))
        )
        assert a.to_dict()['image_uncertainty'] == a.image_uncertainty
    assert together[0].pred_sem_seg.data.unique().numel() > 1
    # padding and flips
    model.backbone = MODELS.build(dict(type='mmdiffrep.RawPixels', strides=[1, 1]))
    padded = F.pad(images, (0, 1, 0, 3), mode='replicate')
    plain = model.predict(images, samples(3, flip=False))[0].pred_sem_seg.data
    cut = model.predict(padded, samples(3, padding_size=[0, 1, 0, 3]))[0].pred_sem_seg.data
    assert (plain != cut).float().mean() < 0.005
    turned = model.predict(images, samples(3, flip=True, flip_direction='horizontal'))[
        0
    ].pred_sem_seg.data
    assert torch.equal(turned.flip(-1), plain)
    assert model.encode_decode(images, []).shape == (3, 5, 17, 23)
    assert model(images).shape == (3, 5, 17, 23)


def test_pixels_are_classified_at_the_smaller_size():
    model = segmentor().eval()
    opinionated(model.decode_head)
    image = torch.randn(1, 3, 16, 24)
    at_input = model.predict(image, [SegDataSample(metainfo=dict(ori_shape=(16, 24)))])[0]
    shrunk = model.predict(image, [SegDataSample(metainfo=dict(ori_shape=(8, 12)))])[0]
    grown = model.predict(image, [SegDataSample(metainfo=dict(ori_shape=(32, 48)))])[0]
    shares = F.interpolate(at_input.seg_logits.data[None], (32, 48), mode='bilinear')[0]
    assert torch.equal(grown.seg_logits.data, shares)
    assert torch.equal(grown.pred_sem_seg.data[0], shares.argmax(0))
    assert torch.allclose(grown.uncertainty.data[:, ::2].mean(), at_input.uncertainty.data.mean(), atol=0.05)
    maps = [m[0] for m in model.extract_feat(image)]
    said = model.decode_head.say(maps, (16, 24), (0, 0, 16, 24), (8, 12))
    assert torch.equal(shrunk.seg_logits.data, said.shares)
    torch.manual_seed(4)
    first = segmentor().decode_head.mlps.seed
    assert first == 4


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match='num_classes=1'):
        PixelEnsemble(3, 1)
    with pytest.raises(ValueError, match='patience=-1'):
        PixelEnsemble(3, 2, patience=-1)
    with pytest.raises(ValueError, match='LabelledPixels'):
        head().loss(torch.zeros(2, 5, 12), torch.zeros(2, 5).long())
    with pytest.raises(ValueError, match='at least 2'):
        head().loss(torch.zeros(MEMBERS, 1, 12), torch.zeros(MEMBERS, 1).long())
    with pytest.raises(ValueError, match=r'\[2, 3, 4\] channels'):
        head().eval().say([torch.zeros(c, 2, 2) for c in (2, 3, 4)], (4, 4), (0, 0, 4, 4), (4, 4))
    with pytest.raises(ValueError, match='slide'):
        segmentor(test_cfg=dict(mode='slide', crop_size=(4, 4), stride=(4, 4)))
    fcn = dict(
        type='mmseg.FCNHead',
        in_channels=3,
        channels=3,
        num_convs=0,
        concat_input=False,
        num_classes=5,
        loss_decode=dict(type='mmseg.CrossEntropyLoss'),
    )
    with pytest.raises(ValueError, match='PixelEnsemble'):
        segmentor(decode_head=fcn)
    model = segmentor()
    assert isinstance(model, EnsembleSegmentor)
    with pytest.raises(ValueError, match='LabelledPixels'):
        model.train_step(dict(inputs=[], data_samples=[]), None)
    with pytest.raises(ValueError, match='PixelFeaturesHook'):
        model.train_step(dict(pixels=[torch.zeros(4, 4, 3).long()], epoch=[0]), None)


def test_ensembles_of_neighbouring_seeds_share_no_member():
    first, second = (MLPEnsemble(CHANNELS, HIDDEN, CLASSES, MEMBERS, seed=s).weights[0] for s in (0, 1))
    assert not any(torch.equal(a, b) for a in first for b in second)
