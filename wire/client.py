"""The client below every consumer, producer and admin client, which says why brokers refuse it."""

from __future__ import annotations

from typing import Any

from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaConnectionError, NodeNotReadyError

from wire import denied
from wire.access import Access


class Client(AIOKafkaClient):  # type: ignore[misc]
    """aiokafka's. What it raises because no broker lets it in is an AccessRefused, or caused by one. What a
    broker doesn't allow is noted in wire.denied.
    """

    async def bootstrap(self) -> None:
        """Connect to the first broker that lets us in.
        Raises AccessRefused if one is there and doesn't, KafkaConnectionError if none is. Blocks until then.
        """
        access = self._sasl_oauth_token_provider
        if isinstance(access, Access):
            access.refusal = None
        try:
            await super().bootstrap()
        except KafkaConnectionError as error:
            if isinstance(access, Access) and access.refusal is not None:
                raise access.refusal from error
            raise

    async def send(self, node_id: Any, request: Any, **options: Any) -> Any:
        """See aiokafka. Blocks until the response is there."""
        try:
            response = await super().send(node_id, request, **options)
        except NodeNotReadyError as error:
            access = self._sasl_oauth_token_provider
            if isinstance(access, Access) and access.refusal is not None:
                raise error from access.refusal
            raise
        denied.note(request, response)
        return response
