# syntax=docker/dockerfile:1

# Every dependency is a wheel, so no stage needs a compiler. The second stage has neither sources nor caches.
FROM python:3.11-slim AS build
WORKDIR /src
# The image has the extra `embeddings`, which brings torch. Its default build is for CUDA: with --build-arg
# PIP_EXTRA_INDEX_URL=... and the address of PyTorch's CPU builds, the image is gigabytes smaller.
COPY requirements/install requirements/image.txt requirements/torch.txt requirements/torch-cpu.txt requirements/uv.txt ./requirements/
ARG PIP_EXTRA_INDEX_URL
RUN --mount=type=cache,target=/root/.cache requirements/install image /opt/magnus python
COPY pyproject.toml README.md LICENSE ./
COPY gateway ./gateway
COPY backends ./backends
COPY migrations ./migrations
RUN /opt/magnus/bin/pip install --disable-pip-version-check --no-deps --no-build-isolation . \
    && /opt/magnus/bin/pip uninstall --yes uv
# The gateway cannot write here at run time, so all byte code is compiled now.
RUN /opt/magnus/bin/python -m compileall -q -j 0 /opt/magnus/lib

FROM python:3.11-slim
RUN useradd --uid 10001 --create-home magnus \
    && install --directory --owner magnus --group magnus /var/lib/magnus
COPY --from=build /opt/magnus /opt/magnus
# Clients reach a container from outside, so the gateway listens on all addresses and requires API keys.
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
