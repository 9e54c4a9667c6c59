"""Every error as application/problem+json (RFC 9457)."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from queries.errors import NotFound, NotYet, Unavailable


class Fault(BaseModel):
    """One thing that is wrong with a request."""

    where: str = Field(description="The part of the request: query.limit, path.order_id.")
    what: str


class RefusedEvent(BaseModel):
    """An event that isn't taken in, and why."""

    index: int | None = Field(
        None, description="Its place in the request, from 0; not there: the batch as a whole is refused."
    )
    code: str = Field(description="The reason code, as in dead letters.")
    path: str = Field(description="What is wrong: $.items[0].price of the data, ce_id of the attributes.")
    detail: str


class Problem(BaseModel):
    """An error, as RFC 9457 describes it."""

    type: str = Field(
        "about:blank", description="urn:orders:..., stable; about:blank: the status says it all."
    )
    title: str
    status: int
    detail: str | None = None
    errors: list[Fault] | None = Field(None, description="Of a request that can't be understood.")
    refused: list[RefusedEvent] | None = Field(None, description="Of a request to take in events.")


class ProblemResponse(JSONResponse):
    """A problem as an answer."""

    media_type = "application/problem+json"


def problem(
    status: int,
    detail: str | None = None,
    kind: str | None = None,
    *,
    errors: list[Fault] | None = None,
    refused: list[RefusedEvent] | None = None,
    headers: Any = None,
) -> ProblemResponse:
    """An answer that says what went wrong."""
    document = Problem(
        type="about:blank" if kind is None else f"urn:orders:{kind}",
        title=HTTPStatus(status).phrase,
        status=status,
        detail=detail,
        errors=errors,
        refused=refused,
    )
    return ProblemResponse(document.model_dump(exclude_none=True), status, headers=headers)


def install(app: FastAPI) -> None:
    """Make every error of the app a problem."""

    @app.exception_handler(HTTPException)
    async def _http(_: Request, error: HTTPException) -> ProblemResponse:
        detail = None if error.detail == HTTPStatus(error.status_code).phrase else str(error.detail)
        headers = dict(error.headers or {})
        if headers.get("Allow") == "GET":
            headers["Allow"] = "GET, HEAD"  # see api.requests
        return problem(error.status_code, detail, headers=headers)

    @app.exception_handler(RequestValidationError)
    async def _invalid(_: Request, error: RequestValidationError) -> ProblemResponse:
        errors = [
            Fault(
                where=".".join(str(part) for part in each["loc"]),
                what=each["msg"].removeprefix("Value error, "),
            )
            for each in error.errors()
        ]
        return problem(
            422, "; ".join(f"{each.where}: {each.what}" for each in errors), "invalid-request", errors=errors
        )

    @app.exception_handler(NotFound)
    async def _missing(_: Request, error: NotFound) -> ProblemResponse:
        return problem(404, str(error), "not-found")

    @app.exception_handler(NotYet)
    async def _not_yet(_: Request, error: NotYet) -> ProblemResponse:
        return problem(503, str(error), "version-not-there-yet", headers={"Retry-After": "1"})

    @app.exception_handler(Unavailable)
    async def _unavailable(_: Request, error: Unavailable) -> ProblemResponse:
        return problem(503, str(error), "unavailable", headers={"Retry-After": "1"})

    @app.exception_handler(Exception)
    async def _broken(_: Request, error: Exception) -> ProblemResponse:
        # Starlette passes it on to the server, which logs it.
        return problem(500)
