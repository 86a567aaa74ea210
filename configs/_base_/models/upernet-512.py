# The UPerNet segmentor with the width of mmseg's own configs.
_base_ = ['upernet.py']
model = dict(decode_head=dict(channels=512))
