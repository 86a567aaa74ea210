# DAVIS 2017 at 480p, unpacked, of https://davischallenge.org: the 30 videos of val.
test_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='pseudo_collate'),
    dataset=dict(type='mmdiffrep.DavisDataset', data_root='data/DAVIS', split='val'),
)
test_evaluator = dict(type='mmdiffrep.RegionAndContour')
