"""DiffusionClassifier through the runner: it learns, resumes, is evaluated, and says what does not fit."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner, load_checkpoint

import mmdiffrep  # noqa: F401
from mmdiffrep.registry import MODELS
from mmdiffrep.structures import ClassSample

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / 'configs/difformer/difformer_cifar-unet_15e_cifar10-32x32.py'
pytestmark = [
    pytest.mark.skipif(not CONFIG.is_file(), reason='the tests do not run in a checkout'),
    pytest.mark.usefixtures('all_on_accelerator'),
]
COLOURS = dict(blue=(220, 40, 40), green=(40, 220, 40), red=(40, 40, 220))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Twelve images a class, told apart by their colour."""
    root = tmp_path_factory.mktemp('colours')
    draws = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (root / name).mkdir()
        for i in range(12):
            picture = np.clip(colour + draws.integers(-30, 30, (16, 16, 3)), 0, 255)
            cv2.imwrite(str(root / name / f'{i:02}.png'), picture.astype(np.uint8))
    return root


def config(folder, work_dir, tiny, **changes):
    cfg = Config.fromfile(CONFIG)
    cfg.work_dir, cfg.experiment_name = str(work_dir), work_dir.name
    cfg.model.backbone.backbone.update(
        denoiser=dict(type='mmdiffrep.PixelUNet', config=tiny, random_seed=0), taps=['mid_block', 'up_blocks.1'], timesteps=[10, 100]
    )
    cfg.model.head.update(num_classes=3, image_size=16, dim=16, heads=2)
    cfg.train_dataloader.update(batch_size=6)
    cfg.train_dataloader.dataset.update(data_root=str(folder), last=8)
    for loader in (cfg.val_dataloader, cfg.test_dataloader):
        loader.batch_size = 5
        loader.dataset.update(data_root=str(folder), first=8)
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        evaluator.topk = (1, 2)
    cfg.train_cfg.update(max_epochs=3, val_interval=3)
    cfg.param_scheduler[0].update(T_max=3, end=3)
    cfg.optim_wrapper.optimizer.lr = 5e-3
    cfg.merge_from_dict(changes)
    return cfg


def run(cfg):
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner


def load(path):
    return torch.load(path, map_location='cpu', weights_only=True)


def test_it_learns_is_evaluated_and_resumes(folder, tmp_path, tiny_config):
    through = run(config(folder, tmp_path / 'through', tiny_config))
    found = through.message_hub.get_scalar('val/accuracy/top1').current()
    assert found > 80 and through.message_hub.get_scalar('val/accuracy/top2').current() >= found
    store = through.model.backbone.store  # images as they are, mirrored, and those held out: none twice
    assert 24 + 12 < store.computed == len(store) <= 2 * 24 + 12
    (picture,) = (tmp_path / 'through').rglob('confusion.png')
    assert picture.with_suffix('.csv').read_text().startswith('true / predicted,blue,green,red\nblue,')
    run(config(folder, tmp_path / 'cut', tiny_config, **{'train_cfg.max_epochs': 2}))
    resumed = run(config(folder, tmp_path / 'cut', tiny_config, resume=True))
    assert resumed.epoch == 3
    a, b = (load(tmp_path / name / 'epoch_3.pth') for name in ('through', 'cut'))
    assert a['state_dict'].keys() == b['state_dict'].keys()
    # exactly but for maps that were computed in another batch and rounded to half precision
    assert all(torch.allclose(a['state_dict'][k], b['state_dict'][k], atol=2e-4) for k in a['state_dict'])
    assert not any('denoiser' in k or 'down_blocks' in k for k in a['state_dict'])
    tested = Runner.from_cfg(config(folder, tmp_path / 'tested', tiny_config, load_from=str(tmp_path / 'through/epoch_3.pth')))
    assert tested.test()['accuracy/top1'] == pytest.approx(found)


def test_a_frozen_backbone_stays_as_it_is(folder, tmp_path, tiny_config):
    """Statistics, dropout, weights: of the network nothing changes, with fresh noise and images that differ each time."""
    cfg = config(folder, tmp_path / 'run', {**tiny_config, 'dropout': 0.5})
    cfg.model.backbone = dict(cfg.model.backbone.backbone, noise=dict(kind='fresh'))
    cfg.train_cfg.max_epochs = 1
    runner = Runner.from_cfg(cfg)
    network = runner.model.backbone.denoiser.network
    before = {k: v.clone() for k, v in network.state_dict().items()}
    modes = []

    def watch(module, *_):
        modes.append(module.training)

    for module in network.modules():
        module.register_forward_pre_hook(watch)
    runner.train()
    assert modes and not any(modes)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert not any(p.requires_grad or p.grad is not None for p in network.parameters())


def classifier(tiny, noise, classes=3):
    backbone = dict(
        type='mmdiffrep.DiffusionBackbone', denoiser=dict(type='mmdiffrep.PixelUNet', config=tiny, random_seed=0),
        taps=['mid_block'], timesteps=500, noise=noise, image_mean=[0] * 3, image_std=[1] * 3,
    )  # fmt: skip
    head = dict(type='mmdiffrep.PooledHead', num_classes=classes)
    return MODELS.build(dict(type='mmdiffrep.DiffusionClassifier', backbone=backbone, head=head))


def test_seeded_noise_gives_the_same_answer(tiny_config):
    image = torch.randint(0, 256, (4, 3, 16, 16)).float()
    for kind in ('shared', 'per_image'):
        model = classifier(tiny_config, dict(kind=kind, seed=3)).eval()
        assert torch.equal(model(image), model(image))
        assert torch.allclose(model(image)[2:], model(image[2:]), atol=1e-5)
    model = classifier(tiny_config, dict(kind='fresh')).eval()
    assert not torch.equal(model(image), model(image))


def test_modes_and_losses(tiny_config):
    model = classifier(tiny_config, dict(kind='shared', seed=0)).eval()
    image = torch.randint(0, 256, (4, 3, 16, 16)).float()
    samples = [ClassSample() for _ in range(4)]
    for sample, label in zip(samples, (0, 2, 1, 1)):
        sample.gt_label = label
    logits = model(image)
    losses = model(image, samples, mode='loss')
    by_hand = -sum(row.softmax(0)[k].log() for row, k in zip(logits, (0, 2, 1, 1))) / 4
    assert losses['loss'].item() == pytest.approx(by_hand.item(), rel=1e-5)
    hits = sum(int(row.argmax()) == k for row, k in zip(logits, (0, 2, 1, 1)))
    assert losses['accuracy'].item() == 25 * hits
    for sample, row in zip(model(image, samples, mode='predict'), logits):
        assert torch.allclose(sample.pred_scores, row.softmax(0)) and sample.pred_label == int(row.argmax())
    data = dict(inputs=[image[0].byte()], data_samples=[samples[0]])
    (said,) = model.test_step(data)
    assert torch.allclose(said.pred_scores, model(image[:1].flip(1))[0].softmax(0))  # BGR came in
    samples[3].gt_label = 3
    with pytest.raises(ValueError, match='of class 3, and the head has 3 classes'):
        model(image, samples, mode='loss')
    with pytest.raises(ValueError, match="mode='train'"):
        model(image, mode='train')


def test_a_checkpoint_for_other_classes_is_refused(tmp_path, tiny_config):
    other = classifier(tiny_config, dict(kind='shared'), classes=5)
    torch.save(dict(state_dict=other.state_dict()), tmp_path / 'five.pth')
    model = classifier(tiny_config, dict(kind='shared'))
    with pytest.raises(ValueError, match=r'head.fc.weight is \(5, 16\), this model.s \(3, 16\).*other\s+classes'):
        load_checkpoint(model, str(tmp_path / 'five.pth'))
    with pytest.raises(ValueError, match='1000'):
        backbone = dict(type='mmdiffrep.DiffusionBackbone', timesteps=1000, taps=['mid_block'],
                        denoiser=dict(type='mmdiffrep.PixelUNet', config=tiny_config, random_seed=0))  # fmt: skip
        MODELS.build(dict(type='mmdiffrep.DiffusionClassifier', backbone=backbone, head=dict(type='mmdiffrep.PooledHead', num_classes=2)))
