# guided-diffusion's unconditional ImageNet network as DIFT reads it: eight fresh draws of noise averaged.
_base_ = ['adm-256.py']
backbone = dict(taps=['adm:out.4'], timesteps=101, noise=dict(_delete_=True, kind='fresh', draws=8))
