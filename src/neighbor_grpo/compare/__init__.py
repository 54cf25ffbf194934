"""Comparisons of several methods and seeds: settings -> runs -> rows -> tables and page."""
