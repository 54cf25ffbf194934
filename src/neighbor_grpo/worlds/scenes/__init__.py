"""The world of the bundled model: coloured shapes, their prompts, rewards and measures, and how the model was made."""
