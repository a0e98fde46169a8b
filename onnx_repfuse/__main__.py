"""`python -m onnx_repfuse`."""

import sys

from onnx_repfuse.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
