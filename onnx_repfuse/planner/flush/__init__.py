"""Weights so small that processors are slow with them become zeros where that cannot show."""
