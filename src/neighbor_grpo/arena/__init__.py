"""Blind human evaluation: people choose between two models' pictures of the same prompt and noise."""
