"""Flow models: an adapter for each diffusers pipeline family."""
