# syntax=docker/dockerfile:1

# Every dependency comes as a wheel, so neither stage has a compiler; the second leaves sources and caches behind.
FROM python:3.11-slim AS build
WORKDIR /src
RUN python -m venv /opt/magnus
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY gateway ./gateway
COPY backends ./backends
COPY migrations ./migrations
# sentence-transformers brings torch, which PyPI has for CUDA alone. --build-arg PIP_EXTRA_INDEX_URL=... that names
# PyTorch's index of CPU builds makes the image some gigabytes smaller.
ARG PIP_EXTRA_INDEX_URL
RUN --mount=type=cache,target=/root/.cache/pip \
    /opt/magnus/bin/pip install --disable-pip-version-check --constraint constraints.txt .

FROM python:3.11-slim
RUN useradd --uid 10001 --create-home magnus \
    && install --directory --owner magnus --group magnus /var/lib/magnus
COPY --from=build /opt/magnus /opt/magnus
# A container is reached from outside or not at all, and beyond loopback the gateway asks for keys.
ENV PATH=/opt/magnus/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    MAGNUS_SERVER_HOST=0.0.0.0 \
    MAGNUS_AUTH_MODE=keys \
    MAGNUS_DATABASE_DATA_DIR=/var/lib/magnus
USER magnus
WORKDIR /var/lib/magnus
VOLUME /var/lib/magnus
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/health/ready', timeout=4)"]
ENTRYPOINT ["magnus"]
CMD ["serve"]
