# The command neighbor-grpo in a container:
#     docker build -t neighbor-grpo .
#     docker build --build-arg TORCH=cpu -t neighbor-grpo:cpu .
#     docker run --rm --gpus all -v "$PWD:/work" neighbor-grpo demo
ARG PYTHON=3.13
FROM python:${PYTHON}-slim

# cuda: the wheel of PyPI, which brings the CUDA libraries; the host needs NVIDIA's driver and container toolkit.
# cpu: the wheel without them, a tenth as large.
ARG TORCH=cuda
ARG EXTRAS=lean,ocr

# model.compile builds kernels with a C compiler
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends gcc libc6-dev \
 && rm -rf /var/lib/apt/lists/*

WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src ./src
RUN case "$TORCH" in \
      cuda) ;; \
      cpu) export PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu ;; \
      *) echo "TORCH=$TORCH: choose cuda or cpu" >&2; exit 1 ;; \
    esac \
 && pip install --no-cache-dir -c constraints.txt ".[${EXTRAS}]"

RUN useradd --uid 1000 --create-home user && mkdir /work && chown user /work
USER 1000
WORKDIR /work
ENTRYPOINT ["neighbor-grpo"]
CMD ["--help"]
