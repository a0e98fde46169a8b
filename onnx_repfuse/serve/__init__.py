"""`onnx-repfuse serve`: a page in the browser instead of a terminal; `pip install 'onnx-repfuse[serve]'`.

The server answers this machine only, and holds files and processes; a job is a process of its own, whose command the
caller gives (`cli/serve_job.py`).
"""
