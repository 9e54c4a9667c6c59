"""A lock on the consumer group: a membership that keeps all workers out.

Kafka admits a member only if it shares an assignment protocol with all other members. This member has a
protocol of its own. So the coordinator itself admits no worker while the lock is held, and doesn't grant the
lock while a worker is in the group. The lock takes no partition and commits nothing; the group's offsets stay
as they are.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from types import TracebackType
from typing import Any, Final, Self

from aiokafka.client import ConnectionGroup, CoordinationType
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment, ConsumerProtocolMemberMetadata
from aiokafka.errors import (
    CoordinatorNotAvailableError,
    InconsistentGroupProtocolError,
    KafkaError,
    MemberIdRequired,
    for_code,
)
from aiokafka.protocol.group import HeartbeatRequest, JoinGroupRequest, LeaveGroupRequest, SyncGroupRequest

from errors import OrdersError
from settings import Settings
from streams.transport.errors import LeaseLost, Stale
from streams.transport.lease import Lease, clock
from wire import clients

log = logging.getLogger(__name__)

SESSION_SECONDS: Final = 30.0
"""How long the door stays shut after this process was killed."""
HEARTBEAT_SECONDS: Final = 2.0
PATIENCE: Final = 30.0
"""Seconds until a coordinator that doesn't answer is given up."""
_TYPE: Final = "consumer"


class GroupBusy(OrdersError):
    """The group has members: workers, or another lock. The message names the group."""

    remedy = "stop all workers (SIGTERM lets them finish), and run this again"


class LockLost(OrdersError):
    """The group's coordinator no longer confirms the lock, so nothing more was written."""

    remedy = "run this again: what was written is right, and it goes on from there"


class GroupLock:
    """Use as `async with GroupLock(settings) as lock`, and call `lock.check()` right before every write.

    Entering raises GroupBusy, or a KafkaError when no coordinator answers. Nobody else must block the event
    loop for longer than the session, or the lock is lost: what check() raised leaves the block as LockLost.
    """

    def __init__(self, settings: Settings) -> None:
        self._group = settings.group
        self._client = clients.client(settings, "orders-lock")
        self._protocol = f"orders-lock-{uuid.uuid4()}"
        self._lease = Lease(SESSION_SECONDS)
        self._member = ""
        self._generation = -1
        self._beating: asyncio.Task[None] | None = None
        self._lost: KafkaError | None = None

    async def __aenter__(self) -> Self:
        try:
            await self._client.bootstrap()
            await asyncio.wait_for(self._join(), PATIENCE)
        except BaseException:
            await self._client.close()
            raise
        self._beating = asyncio.create_task(self._beat(), name="group-lock")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._beating is not None:
            self._beating.cancel()
            await asyncio.gather(self._beating, return_exceptions=True)
        # Whoever waits outside needn't wait for the session to end.
        with contextlib.suppress(KafkaError, TimeoutError):
            await asyncio.wait_for(self._ask(LeaveGroupRequest(self._group, self._member)), 5)
        await self._client.close()
        if isinstance(error, (LeaseLost, Stale)):
            raise LockLost(str(error)) from error

    def check(self) -> None:
        """Raises LeaseLost unless the coordinator has lately said that the lock is held, Stale when
        it has said that it isn't.

        Never blocks.
        """
        if self._lost is not None:
            raise Stale(f"group {self._group}: the lock was lost: {self._lost!r}")
        if not self._lease.valid(clock()):
            raise LeaseLost(f"group {self._group}: the coordinator has not confirmed the lock lately")

    async def _join(self) -> None:
        metadata = ConsumerProtocolMemberMetadata(0, [], b"").encode()
        session_ms = int(SESSION_SECONDS * 1000)
        while True:
            request = JoinGroupRequest(
                self._group, session_ms, session_ms, self._member, None, _TYPE, [(self._protocol, metadata)]
            )
            try:
                joined = await self._ask(request)
            except InconsistentGroupProtocolError:
                raise GroupBusy(f"group {self._group} has members") from None
            except KafkaError as error:
                if not error.retriable:
                    raise
                await asyncio.sleep(0.2)
                continue
            if for_code(joined.error_code) is MemberIdRequired:
                self._member = joined.member_id
                continue
            break
        self._member, self._generation = joined.member_id, joined.generation_id
        assignment = ConsumerProtocolMemberAssignment(0, [], b"").encode()
        await self._confirmed(
            SyncGroupRequest(self._group, self._generation, self._member, None, [(self._member, assignment)])
        )

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            try:
                await self._confirmed(HeartbeatRequest(self._group, self._generation, self._member))
            except KafkaError as error:
                if error.retriable:
                    continue  # a broker is replaced: the lease tells how long that may take
                self._lost = error
                return

    async def _confirmed(self, request: Any) -> None:
        sent = clock()
        await self._ask(request)
        self._lease.renew(sent)

    async def _ask(self, request: Any) -> Any:
        """The coordinator's answer.
        Raises what it says is wrong, but for MemberIdRequired, which is an answer.
        """
        coordinator = await self._client.coordinator_lookup(CoordinationType.GROUP, self._group)
        if not await self._client.ready(coordinator, group=ConnectionGroup.COORDINATION):
            raise CoordinatorNotAvailableError
        answer = await self._client.send(coordinator, request, group=ConnectionGroup.COORDINATION)
        error = for_code(answer.error_code)
        if answer.error_code and error is not MemberIdRequired:
            raise error
        return answer
