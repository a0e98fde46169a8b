"""Folds beside the search: each finds its own pattern in the graph and writes what replaces it."""
