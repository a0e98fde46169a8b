"""One run, from file to file: `run.run` plans, proves, writes and compares."""
