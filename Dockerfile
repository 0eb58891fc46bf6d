# One image for the whole service; models run in environments that it builds into the data volume.
ARG BASE=python:3.11-slim

FROM ${BASE} AS build
WORKDIR /build
RUN python3 -m venv /opt/persephone
# Traces are a setting, and nobody can install packages into a running container.
COPY requirements.txt requirements-tracing.txt ./
RUN /opt/persephone/bin/pip install --no-cache-dir --disable-pip-version-check \
    -r requirements.txt -r requirements-tracing.txt
COPY pyproject.toml README.md LICENSE ./
COPY metrics metrics
COPY gpu gpu
COPY server server
RUN /opt/persephone/bin/pip install --no-cache-dir --disable-pip-version-check --no-deps .

FROM ${BASE}
# bubblewrap shuts models in where the container runtime allows it user namespaces; the service tries
# it at start, says what it found and works without.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends bubblewrap \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --user-group --create-home persephone \
    && install --directory --owner=persephone --group=persephone /data
COPY --from=build /opt/persephone /opt/persephone
ENV PATH=/opt/persephone/bin:$PATH \
    PYTHONSAFEPATH=1 \
    PYTHONUNBUFFERED=1 \
    PERSEPHONE_HOST=0.0.0.0 \
    PERSEPHONE_PORT=8000 \
    PERSEPHONE_DATA_DIR=/data \
    PERSEPHONE_ENDPOINT_PORTS=20000-20099 \
    PERSEPHONE_PUBLIC_URL=http://127.0.0.1:8000
USER persephone
WORKDIR /data
VOLUME /data
EXPOSE 8000 20000-20099
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s CMD ["python", "-c", "import os, urllib.request as u; u.urlopen(f'http://127.0.0.1:{os.environ[\"PERSEPHONE_PORT\"]}/healthz', timeout=2)"]
ENTRYPOINT ["python", "-m", "server"]
