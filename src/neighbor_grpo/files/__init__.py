"""Directories and pictures as files."""
