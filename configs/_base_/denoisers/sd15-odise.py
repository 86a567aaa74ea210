# Stable Diffusion 1.5 read as ODISE reads it (Xu et al., CVPR 2023): t = 0, one shared draw, the inputs of ResBlocks in
# the U-Net and in the autoencoder, whose decoder gets the clean latent. Told the empty text, without ODISE's captioner.
_base_ = ['sd15.py']
backbone = dict(
    taps=[
        'vae.encoder.down_blocks.2.resnets.1:in',
        'vae.encoder.down_blocks.3.resnets.1:in',
        'up_blocks.0.resnets.2:in',
        'up_blocks.1.resnets.2:in',
        'up_blocks.2.resnets.2:in',
        'up_blocks.3.resnets.2:in',
        'vae.decoder.up_blocks.0.resnets.2:in',
        'vae.decoder.up_blocks.1.resnets.2:in',
    ],
    timesteps=0,
    noise=dict(kind='shared', seed=42),
)
