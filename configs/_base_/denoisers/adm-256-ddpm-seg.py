# adm-256 read as in DDPM-Seg: 2816 channels at each of three timesteps, 8448 in all; one noise for all images.
_base_ = ['adm-256.py']
backbone = dict(
    taps=['adm:out.5', 'adm:out.6', 'adm:out.7', 'adm:out.8', 'adm:out.12'],
    timesteps=[50, 150, 250],
)
