"""Hypothesis draws the same examples on every run and on every machine."""

from hypothesis import settings

settings.register_profile("deterministic", derandomize=True, deadline=None, max_examples=100, database=None)
settings.load_profile("deterministic")
