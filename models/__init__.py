"""Small real exports, and the code that rebuilds them: see models/README.md."""
