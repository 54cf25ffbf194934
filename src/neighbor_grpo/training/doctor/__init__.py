"""Checks of a configuration before its run, on the real model and reward, and of the files of a run."""
