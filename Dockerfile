# The workers' image: the pipeline and the `orders` command, without the local servers and without anything for development.
# A tag may come to mean another image; a digest never does: --build-arg PYTHON_IMAGE=python:3.12-slim@sha256:...
ARG PYTHON_IMAGE=python:3.12-slim
FROM ${PYTHON_IMAGE} AS build

WORKDIR /build
ENV PIP_CACHE_DIR=/var/cache/pip PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
RUN python -m venv --without-pip /opt/orders
COPY requirements.txt requirements-worker.txt ./
RUN --mount=type=cache,target=/var/cache/pip pip --python /opt/orders install --require-hashes -r requirements-worker.txt
# What builds the wheel and compiles the rules is pinned too: build isolation would fetch whichever is the newest.
RUN --mount=type=cache,target=/var/cache/pip \
    for name in setuptools mypy mypy-extensions pathspec typing-extensions librt ast-serialize; do sed -n "/^$name==/,/# via/p" requirements.txt; done > build.txt \
    && pip install --require-hashes --no-deps -r build.txt
# Without a compiler the image runs the rules from their source, slower.
RUN { apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev; } || echo "No C compiler: the rules stay uncompiled"

COPY . .
RUN PYTHONPATH="$(echo /opt/orders/lib/python*/site-packages)" python -m compiled \
    && pip wheel --no-deps --no-build-isolation --wheel-dir /wheels . && pip --python /opt/orders install --no-deps /wheels/*.whl

FROM ${PYTHON_IMAGE}

RUN groupadd --gid 10001 orders \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /data --shell /usr/sbin/nologin orders \
    && install -d -o orders -g orders -m 0700 /data
COPY --from=build /opt/orders /opt/orders
# It writes to /data and to temporary files alone, so the rest may be read-only.
ENV PATH=/opt/orders/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 ORDERS_DATA=/data
# By number: Kubernetes can't tell of a name that it isn't root.
USER 10001:10001
WORKDIR /data
STOPSIGNAL SIGTERM
ENTRYPOINT ["orders"]
CMD ["worker"]
