# syntax=docker/dockerfile:1
# docker build --target cpu  -t deltaserve:cpu .
# docker build --target cuda -t deltaserve:cuda .      carries the CUDA build of torch

FROM python:3.11-slim-bookworm AS base
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1
# A compiler: CPU kernels are small C++ sources, built on first use and cached.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --home-dir /cache --create-home deltaserve
# Everything that is downloaded or built while serving goes under /cache: mount a volume there.
ENV HOME=/cache
WORKDIR /build

FROM base AS cpu-build
ARG TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu
COPY deploy/requirements-cpu.txt ./
RUN python -m venv /opt/deltaserve \
    && /opt/deltaserve/bin/pip install --require-hashes --extra-index-url "$TORCH_INDEX_URL" \
        --requirement requirements-cpu.txt
COPY pyproject.toml README.md LICENSE ./
COPY server server
COPY engine engine
COPY kernels kernels
RUN /opt/deltaserve/bin/pip install --no-deps --no-build-isolation .

FROM base AS cuda-build
COPY deploy/requirements-cuda.txt ./
RUN python -m venv /opt/deltaserve \
    && /opt/deltaserve/bin/pip install --require-hashes --requirement requirements-cuda.txt
COPY pyproject.toml README.md LICENSE ./
COPY server server
COPY engine engine
COPY kernels kernels
RUN /opt/deltaserve/bin/pip install --no-deps --no-build-isolation .

FROM base AS runtime
ENV PATH=/opt/deltaserve/bin:$PATH
WORKDIR /cache
USER 10001:10001
VOLUME /cache
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/live', timeout=4)"]
# SIGTERM drains: running requests finish, up to --shutdown-timeout.
STOPSIGNAL SIGTERM
ENTRYPOINT ["deltaserve"]
CMD ["serve", "--host", "0.0.0.0"]

FROM runtime AS cuda
COPY --from=cuda-build /opt/deltaserve /opt/deltaserve

FROM runtime AS cpu
COPY --from=cpu-build /opt/deltaserve /opt/deltaserve
