"""Real exports, small enough to commit, and the code that rebuilds them (see README.md here)."""
