# Luo et al. mix every layer of the way up at eleven of fifty inverted steps; here four blocks at three noised looks. 5 % of SPair-71k's
# training pairs are 2,667: max_pairs.
_base_ = ['dift_sd21_spair-71k-768x768.py', '../_base_/schedules/match_4e.py']
backbone = _base_.backbone
backbone.update(
    taps=['up_blocks.0', 'up_blocks.1', 'up_blocks.2', 'up_blocks.3'],
    timesteps=[50, 261, 500],
    noise=dict(kind='shared', seed=0, draws=1),
)
model = dict(
    backbone=backbone,
    size=512,
    neck=dict(type='mmdiffrep.LayerMixing', out_channels=384, stride=8, timesteps=3),
)
train_dataloader = dict(
    batch_size=4,
    num_workers=4,
    sampler=dict(type='DefaultSampler', shuffle=True),
    collate_fn=dict(type='pseudo_collate'),
    dataset=dict(type='mmdiffrep.SPairDataset', data_root=_base_.data_root, split='trn'),
)
train_cfg = dict(max_epochs=2)
