"""What stays although it might fold: fused patterns, operators to avoid, sizes; and why."""
