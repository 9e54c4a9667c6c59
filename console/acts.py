"""The addresses of what the console does: each has a page that says beforehand what will be done, asks for a
reason, and is noted in the journal of operations.
"""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Final
from uuid import UUID, uuid4

from fastapi import Depends, FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from api.binding import Record, path_of, record
from api.sending import TooLarge
from console.access import Role, Visitor, only, visitor
from console.doing import Doing, NotDone
from console.forms import Form, Sent
from console.pages import page
from console.parameters import Invalid, moment_of, number_of, uuid_of
from console.sources import Sources
from console.texts import text
from console.whatif import WhatIf, what_if
from contracts import times
from contracts.errors import Refused
from contracts.topics import CHECKOUT, INPUT
from domain.order import Order
from operations.journal import somebody
from operations.redrive import Selection
from streams.control import KINDS

Seen = Annotated[Visitor, Depends(visitor)]
SOURCE: Final = "/orders/console"
"""CloudEvents' source of what is sent from here. Who sent it is in the journal."""
EVENTS: Final = {"cancel": "order.cancel_requested", "grant": "refund.granted"}
"""What support sends, and the type of its event."""
TRIED: Final = tuple(topic for topic in INPUT if topic != CHECKOUT)
"""Types of events that a what-if takes: those of an order."""
MOST_REASON: Final = 500
SHOWN: Final = 200
"""Operations of a page."""


def offer_actions(app: FastAPI, reads: Sources, doing: Doing) -> None:
    """Register the addresses."""
    _of_dead_letters(app, doing)
    _resolve(app, doing)
    _of_an_order(app, reads, doing)
    _repairs(app, doing)
    _pauses(app, doing)
    _show_operations(app, doing)


def _reason(form: Mapping[str, str]) -> str:
    """The reason that a form gives. Raises Invalid if it gives none."""
    reason = " ".join(form.get("why", "").split())
    if not reason or len(reason) > MOST_REASON:
        raise Invalid(text("no_reason", most=MOST_REASON))
    return reason


def _by(seen_by: Visitor) -> str:
    return seen_by.name or somebody()


# -- what was done -------------------------------------------------------------------------------------------


def _show_operations(app: FastAPI, doing: Doing) -> None:
    @app.get("/operations")
    async def operations(request: Request, seen_by: Seen) -> Response:
        since = moment_of(request, "from")
        by, command = (request.query_params.get(name, "").strip() for name in ("by", "command"))
        chosen = [
            each
            for each in await doing.operations(since)
            if by in each.by and f"{each.command} ".startswith(f"{command} " if command else "")
        ]
        values = {
            "operations": chosen[: -SHOWN - 1 : -1],
            "total": len(chosen),
            "filters": {"by": by, "command": command, "from_": request.query_params.get("from", "")},
        }
        return page(request, "operations", seen_by, values)


# -- pauses --------------------------------------------------------------------------------------------------


_SAID: Final = {"pause": ("pause_did", "pause_was"), "resume": ("resume_did", "resume_was")}
"""What is said once it was done, and where it was so before."""


def _pauses(app: FastAPI, doing: Doing) -> None:
    async def shown(request: Request, seen_by: Visitor, **more: Any) -> Response:
        values = {"failed": None, "said": None, "kinds": KINDS, "fields": defaultdict(str)} | more
        values["paused"] = await doing.paused()
        values["letter"] = _letter_of(values["fields"])
        return page(request, "pauses", seen_by, values, 422 if values["failed"] else 200)

    @app.get("/pauses")
    async def pauses(request: Request, seen_by: Seen) -> Response:
        given = {name: request.query_params.get(name, "") for name in ("kind", "name")}
        return await shown(request, seen_by, fields=defaultdict(str, given))

    @app.post("/pauses")
    async def paused(request: Request, seen_by: Seen, form: Sent) -> Response:
        only(seen_by, Role.OPERATOR)
        kind = next((each for each in KINDS if each == form.get("kind")), None)
        step, name = form.get("step", ""), form.get("name", "").strip()
        if kind is None or step not in ("pause", "resume"):
            raise Invalid(text("bad_form"))
        try:
            act = doing.pause if step == "pause" else doing.resume
            changed = await act(kind, name, _by(seen_by), _reason(form))
        except (Invalid, NotDone) as error:
            return await shown(request, seen_by, failed=str(error), fields=defaultdict(str, form))
        said = text(_SAID[step][not changed], name=f"{text(f'kind_{kind}')} {name}")
        from_ = defaultdict(str, {"letter": form.get("letter", "")})
        return await shown(request, seen_by, said=said, fields=from_)


def _letter_of(fields: Mapping[str, str]) -> str | None:
    """The dead letter on whose page the form was."""
    letter = fields.get("letter", "")
    partition, _, offset = letter.partition(":")
    return None if None in (number_of(partition), number_of(offset)) else letter


# -- dead letters --------------------------------------------------------------------------------------------


def selection_of(fields: Mapping[str, str]) -> Selection:
    """The dead letters that an address or a form names: by id, else by reason, topic and times. Raises
    Invalid if it names none, since nobody means to send all back by a link that was cut.
    """
    letter = fields.get("id", "")
    if letter:
        partition, offset = (number_of(part) for part in ([*letter.split(":"), ""])[:2])
        if partition is None or offset is None or letter.count(":") != 1:
            raise Invalid(text("bad_letter", value=letter))
        return Selection(ids=frozenset({(partition, offset)}))
    reason, topic = fields.get("reason", ""), fields.get("topic", "")
    if not reason and not topic:
        raise Invalid(text("no_letters_named"))
    return Selection(
        frozenset({reason}) if reason else None,
        frozenset({topic}) if topic else None,
        since=fields.get("since", ""),
        # What is refused while somebody reads the page isn't what they have seen.
        until=fields.get("until", "") or datetime.now(UTC).isoformat(timespec="microseconds"),
    )


def _of_dead_letters(app: FastAPI, doing: Doing) -> None:
    def shown(request: Request, seen_by: Visitor, fields: Mapping[str, str], **more: Any) -> Response:
        selection = selection_of(fields)
        hidden = {name: fields.get(name, "") for name in ("id", "reason", "topic", "since")}
        values = {"hidden": hidden | {"until": selection.until}, "failed": None, "sent": None} | more
        status = 409 if values["failed"] else 200
        return page(request, "redrive", seen_by, values, status)

    @app.get("/redrive")
    async def preview(request: Request, seen_by: Seen) -> Response:
        only(seen_by, Role.OPERATOR)
        fields = dict(request.query_params)
        would = await doing.redrive(selection_of(fields), _by(seen_by), None)
        return shown(request, seen_by, fields, would=would)

    @app.post("/redrive")
    async def redriven(request: Request, seen_by: Seen, form: Sent) -> Response:
        only(seen_by, Role.OPERATOR)
        reason = _reason(form)
        try:
            sent = await doing.redrive(selection_of(form), _by(seen_by), reason)
        except NotDone as error:
            return shown(request, seen_by, form, would=None, failed=str(error))
        return shown(request, seen_by, form, would=None, sent=sent)


_REOPENS: Final = "reopen"


def _resolve(app: FastAPI, doing: Doing) -> None:
    async def shown(
        request: Request, seen_by: Visitor, fields: Mapping[str, str], selection: Selection, **more: Any
    ) -> Response:
        hidden = {name: fields.get(name, "") for name in ("id", "reason", "topic", "since")}
        values = {"failed": None, "resolved": None, "reopened": None, "why": fields.get("why", "")} | more
        values["hidden"] = hidden | {"until": selection.until}
        done = values["resolved"] or values["reopened"] is not None
        values["states"] = {} if done else await doing.states(selection)
        return page(request, "resolve", seen_by, values, 422 if values["failed"] else 200)

    @app.get("/resolve")
    async def preview(request: Request, seen_by: Seen) -> Response:
        only(seen_by, Role.OPERATOR)
        fields = dict(request.query_params)
        return await shown(request, seen_by, fields, selection_of(fields))

    @app.post("/resolve")
    async def resolved(request: Request, seen_by: Seen, form: Sent) -> Response:
        only(seen_by, Role.OPERATOR)
        selection, by = selection_of(form), _by(seen_by)
        try:
            reason = _reason(form)
            if form.get("step") != _REOPENS:
                result = await doing.resolve(selection, by, reason)
                return await shown(request, seen_by, form, selection, resolved=result)
            if selection.ids is None:
                raise Invalid(text("reopen_one"))
            count = await doing.reopen(selection, by, reason)
            return await shown(request, seen_by, form, selection, reopened=count)
        except (Invalid, NotDone) as error:
            return await shown(request, seen_by, form, selection, failed=str(error))


# -- an order ------------------------------------------------------------------------------------------------


def event_of(type_: str, data: Mapping[str, Any], id_: str, moment: datetime) -> Record:
    """An event as the API would write it. Raises Refused."""
    event = {
        "specversion": "1.0",
        "id": id_,
        "source": SOURCE,
        "type": type_,
        "time": times.text(int(moment.timestamp() * 1_000_000)),
        "data": data,
    }
    return record("structured", [], json.dumps(event).encode())


def _data_of(what: str, order_id: UUID, form: Mapping[str, str]) -> dict[str, Any]:
    """The data of the event that a form asks for. Raises Invalid for text that is no JSON."""
    if what == "whatif":
        try:
            data = json.loads(form.get("data", ""))
        except (ValueError, RecursionError) as error:
            raise Invalid(text("no_json", why=str(error))) from None
        if not isinstance(data, dict):
            raise Invalid(text("no_json", why=text("no_object")))
        return data
    data = {"order_id": str(order_id), "reason": _reason(form)}
    data |= {name: form[name] for name in ("seller_id", "amount", "currency", "grant_id") if form.get(name)}
    return data


def _of_an_order(app: FastAPI, reads: Sources, doing: Doing) -> None:
    def asked(request: Request, seen_by: Visitor, what: str, order: Order | None, **more: Any) -> Response:
        order_id, form = more["order_id"], more.get("form", {})
        created = None if order is None else order.created
        fields = {"event_id": str(uuid4()), "grant_id": str(uuid4())}
        if created is not None:
            fields["currency"] = created.currency
        fields |= {"type": "order.paid", "data": json.dumps({"order_id": str(order_id)}, indent=2)}
        values = {
            "what": what,
            "fields": defaultdict(str, fields | form),
            "sellers": sorted({str(UUID(bytes=item.seller_id)) for item in created.items} if created else ()),
            "types": TRIED,
            "may_send": reads.settings.api_write and seen_by.writes,
            "writes_on": reads.settings.api_write,
            "outcome": None,
            "failed": None,
            "place": None,
        } | more
        return page(request, "event", seen_by, values, 422 if values["failed"] else 200)

    @app.get("/orders/{id_}/{what}")
    async def form_of(request: Request, seen_by: Seen, id_: str, what: str) -> Response:
        order_id = _order_of(seen_by, id_, what)
        return asked(request, seen_by, what, await reads.state(order_id), order_id=order_id)

    @app.post("/orders/{id_}/{what}")
    async def filled(request: Request, seen_by: Seen, form: Sent, id_: str, what: str) -> Response:
        order_id = _order_of(seen_by, id_, what)
        order = await reads.state(order_id)
        sends = what in EVENTS and form.get("step") == "send"
        shown = {"order_id": order_id, "form": form}
        try:
            event = _event(what, order_id, form)
            if sends:
                if not (reads.settings.api_write and seen_by.writes):
                    raise HTTPException(403, text("no_writes" if seen_by.writes else "no_write_scope"))
                place = await doing.send(event, order_id, _by(seen_by), _reason(form))
                return asked(request, seen_by, what, order, **shown, place=place, topic=event.topic)
            outcome: WhatIf = await asyncio.to_thread(what_if, reads.settings, order_id, order, event)
        except Refused as refusal:
            said = text("refused", code=refusal.code, path=path_of(refusal), detail=refusal.detail)
            return asked(request, seen_by, what, order, **shown, failed=said)
        except (Invalid, NotDone) as error:
            return asked(request, seen_by, what, order, **shown, failed=str(error))
        except TooLarge:
            return asked(request, seen_by, what, order, **shown, failed=text("event_too_large"))
        return asked(request, seen_by, what, order, **shown, outcome=outcome)

    def _event(what: str, order_id: UUID, form: Form) -> Record:
        data = _data_of(what, order_id, form)
        type_ = EVENTS.get(what) or form.get("type", "")
        if type_ not in TRIED:
            raise Invalid(text("bad_choice", value=type_, those=", ".join(TRIED)))
        moment = _moment(form.get("time", ""))
        event = event_of(type_, data, form.get("event_id") or str(uuid4()), moment)
        if event.key != str(order_id).encode():
            raise Invalid(text("other_order", id=event.key.decode()))
        return event


def _moment(given: str) -> datetime:
    if not given.strip():
        return datetime.now(UTC)
    try:
        time = datetime.fromisoformat(given.strip())
    except ValueError:
        raise Invalid(text("bad_time", value=given)) from None
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time


def _order_of(seen_by: Visitor, id_: str, what: str) -> UUID:
    if what not in (*EVENTS, "whatif"):
        raise HTTPException(404)
    only(seen_by)
    return uuid_of(id_)


# -- repair --------------------------------------------------------------------------------------------------


def _repairs(app: FastAPI, doing: Doing) -> None:
    def shown(request: Request, seen_by: Visitor, order_id: UUID, **more: Any) -> Response:
        values = {"order_id": order_id, "found": None, "rows": None, "failed": None} | more
        return page(request, "repair", seen_by, values, 409 if values["failed"] else 200)

    @app.get("/repair/{id_}")
    async def form_of(request: Request, seen_by: Seen, id_: str) -> Response:
        only(seen_by, Role.OPERATOR)
        return shown(request, seen_by, uuid_of(id_))

    @app.post("/repair/{id_}")
    async def repaired(request: Request, seen_by: Seen, form: Sent, id_: str) -> Response:
        only(seen_by, Role.OPERATOR)
        order_id, step = uuid_of(id_), form.get("step", "")
        if step not in ("look", "rows", "all"):
            raise Invalid(text("bad_choice", value=step, those="look, rows, all"))
        reason = None if step == "look" else _reason(form)
        try:
            if step == "rows" and reason is not None:
                rows = await doing.repair_rows(order_id, _by(seen_by), reason)
                return shown(request, seen_by, order_id, rows=rows)
            result = await doing.repair(order_id, _by(seen_by), reason)
        except NotDone as error:
            return shown(request, seen_by, order_id, failed=str(error))
        return shown(request, seen_by, order_id, found=result)
