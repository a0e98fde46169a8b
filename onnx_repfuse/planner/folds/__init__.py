"""What the search found, as nodes: planned folds, and each of them as two small models."""
