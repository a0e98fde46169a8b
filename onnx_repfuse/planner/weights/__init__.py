"""Kernels as the weights of nodes: in their layout, rounded once, and written once."""
