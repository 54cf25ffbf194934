"""Judging pictures: fixed prompts and seeds -> pictures -> scores -> intervals, comparisons, a gallery."""
