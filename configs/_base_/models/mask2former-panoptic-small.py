# mmdet's panoptic Mask2Former in a size that trains on two cores, for small square images.
_base_ = ['mask2former-panoptic.py']
attention = dict(embed_dims=64, num_heads=4)
positions = dict(num_feats=32, normalize=True)
model = dict(
    data_preprocessor=dict(batch_augments=None),
    panoptic_head=dict(
        feat_channels=64,
        out_channels=64,
        num_queries=30,
        pixel_decoder=dict(
            encoder=dict(
                num_layers=2,
                layer_cfg=dict(
                    self_attn_cfg=attention, ffn_cfg=dict(embed_dims=64, feedforward_channels=128)
                ),
            ),
            positional_encoding=positions,
        ),
        positional_encoding=positions,
        transformer_decoder=dict(
            num_layers=3,
            layer_cfg=dict(
                self_attn_cfg=attention,
                cross_attn_cfg=attention,
                ffn_cfg=dict(embed_dims=64, feedforward_channels=128),
            ),
        ),
    ),
    train_cfg=dict(num_points=1024),
    # a short training leaves its classes below the usual 0.8
    test_cfg=dict(object_mask_thr=0.1),
)
