# A classifier; backbone and head come from other files. Images as they are: the backbone maps 0 … 255 to [-1, 1].
model = dict(
    type='mmdiffrep.DiffusionClassifier',
    data_preprocessor=dict(type='mmengine.ImgDataPreprocessor', bgr_to_rgb=True),
)
