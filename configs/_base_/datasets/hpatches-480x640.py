# HPatches' sequences, unpacked, of https://github.com/hpatches/hpatches-dataset: 540 pairs of 108 sequences, images at 480×640. Keypoints of your
# own, for instance SuperPoint's as in the paper: test_dataloader.dataset.keypoints=FOLDER with SEQUENCE/1.npy …; else SIFT's.
test_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='pseudo_collate'),
    dataset=dict(
        type='mmdiffrep.HPatchesDataset',
        data_root='data/hpatches-sequences-release',
        resize=(480, 640),
    ),
)
test_evaluator = dict(type='mmdiffrep.HomographyAccuracy', thresholds=[1, 3, 5])
