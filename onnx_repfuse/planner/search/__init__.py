"""Which tensors to compute how: what may be absorbed, the ways to compute the rest, and the cheapest of them."""
