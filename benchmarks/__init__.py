"""How fast the fused models and the tool are: `python -m benchmarks` (needs the extra `bench`)."""
