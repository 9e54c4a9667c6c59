"""Serving metrics and probes on ORDERS_METRICS_PORT."""

from __future__ import annotations

from prometheus_client import REGISTRY, CollectorRegistry, start_http_server

from errors import OrdersError
from settings import Settings
from streams.probes import Probes


def serve(settings: Settings, registry: CollectorRegistry = REGISTRY) -> Probes | None:
    """Serve metrics and probes in a thread, if they are to be served. Raises OrdersError where the port is
    taken.
    """
    if not settings.metrics_port:
        return None
    try:
        server, _ = start_http_server(settings.metrics_port, addr=settings.metrics_host, registry=registry)
    except OSError as error:
        where = f"ORDERS_METRICS_PORT={settings.metrics_port} on {settings.metrics_host}"
        raise OrdersError(f"{where}: {error.strerror}", "choose another port or address, or port 0") from None
    probes = Probes(server.get_app())  # type: ignore[arg-type]
    server.set_app(probes)
    return probes
