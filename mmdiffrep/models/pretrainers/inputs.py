"""How images reach a network that is pre-trained."""

# from mmcv's BGR, 0 … 255, to RGB in [-1, 1]
UNIT_RANGE = dict(type='ImgDataPreprocessor', mean=[127.5] * 3, std=[127.5] * 3, bgr_to_rgb=True)
