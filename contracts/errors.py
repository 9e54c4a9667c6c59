"""Why a record is refused. The codes are stable: consumers of orders.dlq select by them."""

from __future__ import annotations

from typing import Final

from errors import OrdersError

NOT_JSON: Final = "not_json"
NOT_CLOUDEVENT: Final = "not_cloudevent"
TYPE_UNKNOWN: Final = "type_unknown"
TYPE_WRONG_TOPIC: Final = "type_wrong_topic"
VERSION_UNKNOWN: Final = "version_unknown"
FIELD_MISSING: Final = "field_missing"
FIELD_MALFORMED: Final = "field_malformed"
TOTAL_MISMATCH: Final = "total_mismatch"
DISCOUNT_TOO_LARGE: Final = "discount_too_large"
TAX_TOO_LARGE: Final = "tax_too_large"
CURRENCY_UNKNOWN: Final = "currency_unknown"
TOMBSTONE: Final = "tombstone"
ITEM_REPEATED: Final = "item_repeated"
KEY_CONFLICT: Final = "key_conflict"
ORDER_CURRENCY: Final = "order_currency"
ORDER_ITEM: Final = "order_item"
ORDER_SELLER: Final = "order_seller"
ORDER_TOO_LARGE: Final = "order_too_large"
RECORD_TOO_LARGE: Final = "record_too_large"
UNREADABLE: Final = "unreadable"
ORIGIN_UNKNOWN: Final = "origin_unknown"

REASONS: Final = {
    NOT_JSON: "the value is not JSON (or nested deeper than any event is)",
    NOT_CLOUDEVENT: (
        "a required CloudEvents 1.0 attribute is missing or wrong, or both `data` and `data_base64` are there"
    ),
    TYPE_UNKNOWN: "no such event type",
    TYPE_WRONG_TOPIC: "a known type on another type's topic",
    VERSION_UNKNOWN: "dataschema names a version other than /v1",
    FIELD_MISSING: "a required field is missing (the detail has its path)",
    FIELD_MALFORMED: "a field has the wrong form or is out of bounds (the detail has its path)",
    TOTAL_MISMATCH: "total_amount is not the sum of its parts",
    DISCOUNT_TOO_LARGE: "discount_amount is above the sum of price * quantity",
    TAX_TOO_LARGE: "prices include tax, and a line has more of it than it costs",
    CURRENCY_UNKNOWN: "not an ISO 4217 currency",
    TOMBSTONE: "a record without a value",
    ITEM_REPEATED: "an item_id stands twice in one list of items",
    KEY_CONFLICT: "a known natural key with other content; the first in the log stays",
    ORDER_CURRENCY: "the order has another currency",
    ORDER_ITEM: "the order has no such item",
    ORDER_SELLER: "the order has no such seller, or the item is another seller's",
    ORDER_TOO_LARGE: (
        "the order has taken in as many facts of this type as one order may, or its order.created is larger"
        " than one order may begin; this one was not taken in"
    ),
    RECORD_TOO_LARGE: "the record came under another key than its order's and is too large to be passed on",
    UNREADABLE: "no client can parse the record; its bytes are the value, if they can be told apart at all",
    ORIGIN_UNKNOWN: (
        "a record of orders.rekeyed that doesn't say where it came from: another program wrote it"
    ),
}
"""Reason code -> what it means."""


class Refused(Exception):
    """This record can never be applied.
    `code` is one of REASONS, `detail` says where; it holds no value of a free-text field.
    """

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail


class SourceError(OrdersError):
    """The source cannot be read as it is. The message names the file, the line or column."""

    remedy = "mend the file and send it again"
