"""Evaluation: fixed prompts and seeds -> pictures -> values of each measure -> intervals, comparisons, a gallery."""
