"""The world of short words in a few typefaces and colours: their prompts, measures, and how its model is made."""
