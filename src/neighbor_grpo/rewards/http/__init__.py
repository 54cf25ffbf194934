"""Scorers on other machines, asked over HTTP."""
