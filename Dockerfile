# gpta-local with its default models inside: nothing is downloaded when it runs.
#
#   docker build -t gpta-local .
#   docker run --rm --network none -v "$PWD:/work" gpta-local train config.yaml
#
# For a GPU, on a machine with NVIDIA's container toolkit (add --gpus all to docker run):
#
#   docker build -t gpta-local:cuda --build-arg BASE=nvidia/cuda:13.0.1-base-ubuntu24.04 --build-arg TORCH_INDEX= .
#
# BASE: Debian or Ubuntu with Python 3.11 or later, or one that has it as a package.
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE}

SHELL ["/bin/bash", "-o", "pipefail", "-c"]

# hadolint ignore=DL3008
RUN if ! python3 -c "import ensurepip, venv" 2>/dev/null; then \
        apt-get update && apt-get install --yes --no-install-recommends python3 python3-venv \
        && rm -rf /var/lib/apt/lists/*; \
    fi

# Where torch comes from: its builds for the CPU are a tenth of those with CUDA. Empty: the package index.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# What is converted into the image. Empty: nothing; the first run converts it, from packages that are there.
ARG ASSISTANT=Qwen2.5-Coder-1.5B-Instruct

# A user of any number can run it: what is kept between requests goes to /tmp.
ENV PATH=/opt/gpta-local/bin:$PATH XDG_DATA_HOME=/opt/models XDG_CACHE_HOME=/tmp/cache HOME=/tmp USER=user \
    HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY requirements requirements
COPY models models
COPY gpta_local gpta_local

RUN python3 -m venv /opt/gpta-local \
    && if [ -n "$TORCH_INDEX" ]; then \
        pip install --no-cache-dir --index-url "$TORCH_INDEX" "$(grep '^torch==' requirements/constraints.txt)"; \
    fi \
    && grep -v '^torch==' requirements/constraints.txt > /tmp/constraints.txt \
    && pip install --no-cache-dir -c /tmp/constraints.txt ".[demo,assistant,xlsx]" \
    && if [ -n "$ASSISTANT" ]; then gpta-local models add "$ASSISTANT"; fi \
    && useradd --no-create-home --uid 10001 user \
    && mkdir -p /opt/models /work && chmod -R a+rX /opt/models && chown user /work

# What is mounted here must be writable by uid 10001, or give docker run --user "$(id -u):$(id -g)".
USER 10001
WORKDIR /work
ENTRYPOINT ["gpta-local"]
CMD ["--help"]
