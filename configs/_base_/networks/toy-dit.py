# A DiT on pixels: tokens of 4×4 pixels. diffusers' DiTPipeline wants an autoencoder; tools/sample.py draws from this one.
network = dict(
    _class_name='DiTTransformer2DModel',
    sample_size=64,
    patch_size=4,
    in_channels=3,
    out_channels=3,
    num_layers=6,
    num_attention_heads=4,
    attention_head_dim=32,
    num_embeds_ada_norm=1,
)
