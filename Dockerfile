# docker build -t onnx-repfuse .
# docker run --rm --user "$(id -u):$(id -g)" --volume "$PWD:/work" onnx-repfuse model.onnx
FROM python:3.11-slim AS build
COPY pyproject.toml README.md LICENSE /src/
COPY onnx_repfuse /src/onnx_repfuse
RUN python -m venv /opt/onnx-repfuse \
    && /opt/onnx-repfuse/bin/pip install --no-cache-dir "/src[onnx-ir,simplify]"

FROM python:3.11-slim
LABEL org.opencontainers.image.title="onnx-repfuse" \
    org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/onnx-repfuse /opt/onnx-repfuse
# Any user may run it, on files of the folder that is mounted at /work.
RUN useradd --create-home repfuse
USER repfuse
WORKDIR /work
ENTRYPOINT ["/opt/onnx-repfuse/bin/onnx-repfuse"]
CMD ["--help"]
