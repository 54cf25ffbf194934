"""Prompts: files of them, and the order in which they are trained on."""
