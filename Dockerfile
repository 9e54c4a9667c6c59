# The workers' image: the pipeline and the `orders` command, without the local servers and without anything for development.
FROM python:3.12-slim AS build

WORKDIR /build
ENV PIP_CACHE_DIR=/var/cache/pip PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
RUN python -m venv --without-pip /opt/orders
COPY requirements.txt requirements-worker.txt ./
RUN --mount=type=cache,target=/var/cache/pip pip --python /opt/orders install --require-hashes -r requirements-worker.txt
# What builds the wheel is pinned too: build isolation would fetch whichever is the newest.
RUN --mount=type=cache,target=/var/cache/pip \
    sed -n '/^setuptools==/,/# via/p' requirements.txt > build.txt && pip install --require-hashes -r build.txt

COPY . .
RUN pip wheel --no-deps --no-build-isolation --wheel-dir /wheels . && pip --python /opt/orders install --no-deps /wheels/*.whl

FROM python:3.12-slim

RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin orders && install -d -o orders /data
COPY --from=build /opt/orders /opt/orders
ENV PATH=/opt/orders/bin:$PATH PYTHONUNBUFFERED=1 ORDERS_DATA=/data
USER orders
WORKDIR /data
STOPSIGNAL SIGTERM
ENTRYPOINT ["orders"]
CMD ["worker"]
