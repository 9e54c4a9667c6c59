# The workers' image: the pipeline and the `orders` command, without the local servers and without anything for development.
FROM python:3.12-slim AS build

WORKDIR /build
ENV PIP_CACHE_DIR=/var/cache/pip
RUN python -m venv /opt/orders
COPY requirements-worker.txt .
RUN --mount=type=cache,target=/var/cache/pip /opt/orders/bin/pip install --require-hashes -r requirements-worker.txt

COPY . .
RUN --mount=type=cache,target=/var/cache/pip pip wheel --no-deps --wheel-dir /wheels . && /opt/orders/bin/pip install --no-deps /wheels/*.whl

FROM python:3.12-slim

RUN useradd --system --uid 10001 --no-create-home orders && install -d -o orders /data
COPY --from=build /opt/orders /opt/orders
ENV PATH=/opt/orders/bin:$PATH PYTHONUNBUFFERED=1 ORDERS_DATA=/data
USER orders
WORKDIR /data
STOPSIGNAL SIGTERM
ENTRYPOINT ["orders"]
CMD ["worker"]
