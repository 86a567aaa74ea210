# Mask2Former's AdamW: more weight decay, none on its embeddings, gradients clipped at 0.01.
_base_ = ['schedule_160k.py']
embedding = dict(lr_mult=1.0, decay_mult=0.0)
optim_wrapper = dict(
    optimizer=dict(weight_decay=0.05),
    clip_grad=dict(max_norm=0.01),
    paramwise_cfg=dict(
        custom_keys={
            'query_embed': embedding,
            'query_feat': embedding,
            'level_embed': embedding,
        }
    ),
)
