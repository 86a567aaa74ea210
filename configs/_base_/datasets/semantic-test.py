# How a semantic data set is asked of an open-vocabulary model: mmseg's own loading, images resized to a short side of 640.
semantic_pipeline = [
    dict(type='mmcv.LoadImageFromFile'),
    dict(type='mmcv.Resize', scale=(2560, 640), keep_ratio=True),
    dict(type='mmseg.LoadAnnotations'),
    dict(type='mmseg.PackSegInputs'),
]
