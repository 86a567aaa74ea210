# A model trained on COCO, asked for ADE20K's 847 classes: mIoU. Names and labels are the user's: a JSON list of names in the order of the labels
# (which count from 0 in images of 16 bits, 65535 to be ignored).
_base_ = ['odise_sd15_test_ade20k-150.py']
data_root = 'data/ade20k-full'
names = f'{data_root}/classes-847.json'
model = dict(ask=names)
val_dataloader = dict(
    dataset=dict(
        type='mmdiffrep.VocabularySegDataset',
        vocabulary=names,
        data_root=data_root,
        pipeline=[*_base_.load_image, dict(type='mmdiffrep.LoadWideAnnotations'), _base_.pack],
    )
)
test_dataloader = val_dataloader
val_evaluator = dict(ignore_index=65535)
test_evaluator = val_evaluator
