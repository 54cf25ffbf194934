"""Rewards with published weights, as transformers models."""
