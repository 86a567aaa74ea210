"""Which timestep, which block: every cell of timesteps × taps scored, one look a timestep."""
