"""Scorers with published weights."""
