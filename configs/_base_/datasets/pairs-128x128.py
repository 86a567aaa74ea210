# Your own pairs: data_root with images/ and pairs.json, a list of dict(source, target, source_points, target_points, target_box, category).
dataset_type = 'mmdiffrep.KeypointPairs'
data_root = 'data/pairs'
test_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='pseudo_collate'),
    dataset=dict(type=dataset_type, data_root=data_root),
)
test_evaluator = dict(
    type='mmdiffrep.PCK', alphas=[0.05, 0.1, 0.2], by='box', per=['point', 'image']
)
