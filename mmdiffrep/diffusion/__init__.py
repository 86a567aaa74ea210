"""The toolkit-free core: schedules, noise, taps, denoisers. Imports torch and diffusers, no OpenMMLab toolkit."""
