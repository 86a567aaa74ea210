"""mmdiffrep: pre-trained diffusion networks as ordinary OpenMMLab components."""
