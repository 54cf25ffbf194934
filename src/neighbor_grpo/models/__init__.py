"""Flow models: a family for each diffusers pipeline, and how models are loaded, sampled and trained with a LoRA."""
