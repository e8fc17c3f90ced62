# citrus with CUDA. Build: docker build -t citrus .
# Run:   docker run --rm --gpus all -v "$PWD:/data" citrus certify-uap /data/M.onnx --eps 0.1 --json -
# BASE is any image with Python >= 3.11 and the CUDA runtime that torch was built for.
ARG BASE=pytorch/pytorch:2.13.0-cuda13.0-cudnn9-runtime
FROM ${BASE}

LABEL org.opencontainers.image.title="citrus" \
      org.opencontainers.image.description="Hardens ONNX image classifiers against universal adversarial perturbations and proves the result"

ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_BREAK_SYSTEM_PACKAGES=1 \
    PYTHONUNBUFFERED=1

WORKDIR /opt/citrus
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY citrus_tool ./citrus_tool
COPY models ./models
RUN python3 -m pip install . --constraint constraints.txt

RUN useradd --create-home citrus
USER citrus
WORKDIR /data
ENTRYPOINT ["citrus"]
CMD ["--help"]
