# Stable Diffusion 2.1 as DIFT reads it: a sample of the latent's posterior, eight fresh draws of noise averaged, told what is seen.
_base_ = ['sd21.py']
backbone = dict(
    denoiser=dict(latent='sample', keep_text_encoder=True),
    taps=['up_blocks.1'],
    timesteps=261,
    channels_last=True,
    noise=dict(_delete_=True, kind='fresh', draws=8),
)
