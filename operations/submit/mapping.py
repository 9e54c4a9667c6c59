"""Mappings: which column of somebody's file each field of an event comes from (docs/mapping.md).

A mapping is TOML. Its form is checked by the types below, what they can't say by `_wrong`.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Iterable, Iterator
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeAlias, TypeVar
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec
from msgspec import Meta, Struct

from errors import OrdersError
from operations.submit.cells import DIRECTIVES, RFC3339, SERIALS, Numbers, Times

MOST_BYTES: Final = 1 << 20
"""Of a mapping."""

_READY: Final = resources.files("operations.submit") / "mappings"

M = TypeVar("M", bound=Struct)
Name = Annotated[str, Meta(min_length=1, max_length=200)]
Names = Annotated[list[Name], Meta(min_length=1, max_length=20)]
Constant = Annotated[str, Meta(min_length=1, max_length=1000)]


class MappingError(OrdersError):
    """A mapping that can't be read or says what can't be. The message names the place in it."""

    remedy = "see docs/mapping.md, or what orders bulk mapping shopify prints"


class _Strict(Struct, forbid_unknown_fields=True, rename="kebab"):
    pass


class Text(_Strict):
    """A text: one `column`, the first of several that isn't empty, or a constant."""

    column: Name | None = None
    first_of: Names | None = None
    constant: Constant | None = None


class Id(_Strict):
    """A UUID as it stands in a column; or made (`uuid5` names the kind) of one or more columns' text."""

    column: Name | None = None
    first_of: Names | None = None
    columns: Names | None = None
    constant: Constant | None = None
    uuid5: Name | None = None
    from_: Literal["position"] | None = msgspec.field(default=None, name="from")


class Number(_Strict):
    """A whole number or an amount: a column or a constant."""

    column: Name | None = None
    constant: Constant | None = None


class Refunded(_Strict):
    """What was paid back: a column or a constant. `optional`: the file may be without the column."""

    column: Name | None = None
    constant: Constant | None = None
    optional: bool = False


class Word(_Strict):
    """One of an event's own words: a column, and what its `words` mean, or a constant."""

    column: Name | None = None
    constant: Constant | None = None
    words: dict[str, Name] = {}


class When(_Strict):
    """Which lines tell of one: those with a cell in a column (`filled`), or with one of the words `yes`.
    Lines with an empty cell or one of the words `no` don't; any other word is refused.
    """

    filled: Name | None = None
    column: Name | None = None
    yes: Names = msgspec.field(default_factory=lambda: ["true", "yes", "1"])
    no: Names = msgspec.field(default_factory=lambda: ["false", "no", "0"])


class Total(_Strict):
    """The order's total: a column; or `from = "sum"`, of its parts."""

    column: Name | None = None
    from_: Literal["sum"] | None = msgspec.field(default=None, name="from")


class Discount(_Strict):
    """The order's discount: a column; or `subtotal`, the column of what the goods cost after it."""

    column: Name | None = None
    subtotal: Name | None = None


class Time(_Strict):
    """A time: its column or a constant (RFC 3339), and how it is written."""

    column: Name | None = None
    constant: Constant | None = None
    format: Constant = RFC3339
    zone: Name | None = None
    twice: Literal["earlier", "later"] | None = None


class Tax(_Strict):
    """A tax: the column of its amount, and its code, or the column of that; `codes` shortens long ones.
    `optional`: the file may be without these columns.
    """

    column: Name
    optional: bool = False
    code: Name | None = None
    code_column: Name | None = None
    codes: dict[str, Name] = {}


class Choice(_Strict):
    """Yes or no: a constant; a column and its words; or `from = "total"`: what the total adds up with."""

    constant: bool | None = None
    column: Name | None = None
    yes: Names = msgspec.field(default_factory=lambda: ["true", "yes", "1"])
    no: Names = msgspec.field(default_factory=lambda: ["false", "no", "0"])
    from_: Literal["total"] | None = msgspec.field(default=None, name="from")


class OrderFields(_Strict, rename=None):
    """[order]: what belongs to the order. `shipping_amount` and `taxes` are shared by its lines."""

    order_id: Id
    user_id: Id
    time: Time
    currency: Text
    total_amount: Total
    region: Text | None = None
    discount_amount: Discount | None = None
    shipping_amount: Number | None = None
    taxes: Annotated[list[Tax], Meta(max_length=20)] = []
    prices_include_tax: Choice | None = None
    live_from: Time | None = None
    refunded_amount: Refunded | None = None


class ItemFields(_Strict, rename=None):
    """[item], or each [[items]]: what belongs to a line."""

    item_id: Id
    product_id: Id
    seller_id: Id
    sku: Text
    quantity: Number
    price: Number
    warehouse_id: Id | None = None
    shipping_amount: Number | None = None
    taxes: Annotated[list[Tax], Meta(max_length=20)] = []
    shipping_taxes: Annotated[list[Tax], Meta(max_length=20)] = []
    taxable: Choice | None = None


class PaymentFields(_Strict, rename=None):
    """[payment]: a line is a payment."""

    order_id: Id
    payment_id: Id
    time: Time
    amount: Number
    currency: Text
    method: Text | None = None
    when: When | None = None


class ShipmentFields(_Strict, rename=None):
    """[shipment]: a line is a scan of a parcel, which holds all the seller's units, or so many of an item."""

    order_id: Id
    shipment_id: Id
    seller_id: Id
    time: Time
    status: Word
    carrier: Text | None = None
    tracking_number: Text | None = None
    warehouse_id: Id | None = None
    item_id: Id | None = None
    quantity: Number | None = None
    when: When | None = None


class ReturnFields(_Strict, rename=None):
    """[return]: a line is a stage of a return."""

    order_id: Id
    return_id: Id
    item_id: Id
    time: Time
    status: Word
    reason: Text
    quantity: Number | None = None
    restock: Choice | None = None
    when: When | None = None


class CancellationFields(_Strict, rename=None):
    """[cancellation]: a line is an order, or a seller's part of it, or some units, that was called off."""

    order_id: Id
    time: Time
    reason: Text
    seller_id: Id | None = None
    item_id: Id | None = None
    quantity: Number | None = None
    when: When | None = None


class FileFormat(_Strict):
    """[file]: how the text is encoded, and what stands between two cells."""

    encoding: Literal["utf-8", "utf-16", "latin-1", "cp1252"] | None = None
    delimiter: Literal[",", ";", "\t", "|"] = ","


class NumberFormat(_Strict):
    """[numbers]: how numbers are written."""

    decimal: Literal[".", ","] | None = None
    thousands: Literal[".", ",", " ", "'"] | None = None
    currency: Annotated[list[Name], Meta(max_length=20)] = []


class Ids(_Strict):
    """[ids]: the namespace, a UUID, of the ids that are made."""

    namespace: UUID


Field: TypeAlias = Text | Id | Number | Refunded | Total | Discount | Time | Tax | Choice | Word | When
FlatFields: TypeAlias = PaymentFields | ShipmentFields | ReturnFields | CancellationFields

SECTIONS: Final = {
    "payments": "payment",
    "shipments": "shipment",
    "returns": "return",
    "cancellations": "cancellation",
}
"""What a file holds, of which a line is one -> the table of a mapping that says its columns."""
_OF_ORDERS: Final = frozenset({"lines", "order", "item", "items", "tax-on"})
"""Keys that say how orders are read."""


class Mapping(_Strict):
    """A whole mapping. Its `digest` and `name` are set by `load`."""

    lines: Literal["item", "order"]
    order: OrderFields
    item: ItemFields | None = None
    items: Annotated[list[ItemFields], Meta(max_length=1000)] = []
    order_number: Names | None = None
    tax_on: Literal["goods", "goods and shipping"] = "goods"
    file: FileFormat = msgspec.field(default_factory=FileFormat)
    numbers: NumberFormat = msgspec.field(default_factory=NumberFormat)
    ids: Ids | None = None
    digest: str = ""
    name: str = ""

    @property
    def key_columns(self) -> list[str]:
        """The columns of the order's number: lines in which they are the same are one order."""
        own = self.order.order_id
        return self.order_number or own.columns or [name for name in (own.column,) if name is not None]

    @property
    def how(self) -> Numbers:
        """How its numbers are written."""
        return Numbers(self.numbers.decimal, self.numbers.thousands, tuple(self.numbers.currency))

    def namespace(self) -> bytes:
        """The namespace of made ids, 16 bytes; only for a mapping that makes some."""
        assert self.ids is not None
        return self.ids.namespace.bytes

    @property
    def head_columns(self) -> list[str]:
        """The columns of the order's own fields."""
        return _columns_of(field for place, field in self.fields() if place.startswith("order."))

    def item_columns(self, item: ItemFields) -> list[str]:
        """The columns of one item's fields alone, without those that are the order's, too."""
        orders = {*self.key_columns, *self.head_columns}
        return [name for name in _columns_of(each for _, each in _fields_of("", item)) if name not in orders]

    def fields(self) -> Iterator[tuple[str, Field]]:
        """Every field that is mapped, with its place in the mapping."""
        tables: list[tuple[str, Any]] = [("order", self.order)]
        tables += [] if self.item is None else [("item", self.item)]
        tables += [(f"items[{n}]", each) for n, each in enumerate(self.items)]
        for place, table in tables:
            yield from _fields_of(place, table)

    def columns(self, *, optional: bool = True) -> list[str]:
        """Every column that it names, each once; without those that may be missing, if not `optional`."""
        fields = (field for _, field in self.fields() if optional or not getattr(field, "optional", False))
        return list(dict.fromkeys([*self.key_columns, *_columns_of(fields)]))


class FlatMapping(_Strict):
    """How the files are read of which a line is one event. `kind`, `digest` and `name` are set by `load`."""

    order_number: Names | None = None
    fill_down: Names = msgspec.field(default_factory=list)
    payment: PaymentFields | None = None
    shipment: ShipmentFields | None = None
    return_: ReturnFields | None = msgspec.field(default=None, name="return")
    cancellation: CancellationFields | None = None
    file: FileFormat = msgspec.field(default_factory=FileFormat)
    numbers: NumberFormat = msgspec.field(default_factory=NumberFormat)
    ids: Ids | None = None
    kind: str = ""
    digest: str = ""
    name: str = ""

    @property
    def how(self) -> Numbers:
        """How its numbers are written."""
        return Numbers(self.numbers.decimal, self.numbers.thousands, tuple(self.numbers.currency))

    def namespace(self) -> bytes:
        """The namespace of made ids, 16 bytes; only for a mapping that makes some."""
        assert self.ids is not None
        return self.ids.namespace.bytes

    def section(self, kind: str) -> FlatFields | None:
        """The fields of what a file of this kind holds; None: it doesn't say."""
        fields: FlatFields | None = getattr(self, {"returns": "return_"}.get(kind, SECTIONS[kind]))
        return fields

    @property
    def is_choosy(self) -> bool:
        """Whether not every line tells of one: there may be none."""
        table = self.section(self.kind)
        return table is not None and table.when is not None

    def fields(self) -> Iterator[tuple[str, Field]]:
        """Every field that is mapped, with its place in the mapping."""
        for kind, place in SECTIONS.items():
            if (table := self.section(kind)) is not None:
                yield from _fields_of(place, table)

    def columns(self, *, optional: bool = True) -> list[str]:
        """Every column that it names for its kind, each once."""
        table = self.section(self.kind)
        assert table is not None, "load has looked"
        fields = (field for _, field in _fields_of("", table))
        return list(dict.fromkeys([*(self.order_number or ()), *self.fill_down, *_columns_of(fields)]))


def times_of(field: Time) -> Times:
    """How a field's times are written."""
    fold = {"earlier": 0, "later": 1, None: None}[field.twice]
    return Times(field.format, None if field.zone is None else ZoneInfo(field.zone), fold)


def _fields_of(place: str, table: OrderFields | ItemFields | FlatFields) -> Iterator[tuple[str, Field]]:
    for name in table.__struct_fields__:
        value = getattr(table, name)
        if isinstance(value, list):
            yield from ((f"{place}.{name}[{n}]", each) for n, each in enumerate(value))
        elif value is not None:
            yield f"{place}.{name}", value


def _columns_of(fields: Iterable[Field]) -> list[str]:
    named: list[str] = []
    for field in fields:
        for key in ("column", "subtotal", "code_column", "filled"):
            named += [name] if (name := getattr(field, key, None)) is not None else []
        for key in ("first_of", "columns"):
            named += getattr(field, key, None) or []
    return list(dict.fromkeys(named))


def ready() -> list[str]:
    """Names of the mappings that come with the program."""
    return sorted(path.name.removesuffix(".toml") for path in _READY.iterdir() if path.name.endswith(".toml"))


def ready_text(name: str) -> str:
    """The text of a mapping that comes with the program. Raises MappingError if there is none."""
    if name not in ready():
        raise MappingError(f"no mapping {name!r}", f"there are: {', '.join(ready())}; or name a file")
    return (_READY / f"{name}.toml").read_text("utf-8")


def load(name: str) -> Mapping:
    """The mapping of a ready one's name, or in a file, for files of orders. Blocks. Raises MappingError."""
    return parse(_content(name), name)


def load_for(kind: str, name: str) -> Mapping | FlatMapping:
    """The same for files of any kind. Blocks. Raises MappingError."""
    return load(name) if kind == "orders" else parse_flat(_content(name), name, kind)


def namespace_of(name: str) -> bytes:
    """The namespace, 16 bytes, of the ids that a mapping makes. Blocks. Raises MappingError: it has none."""
    ids = _table(_content(name), name).get("ids")
    if ids is None:
        raise MappingError(f"{name}: no [ids], so it makes none")
    return _converted(ids, Ids, name).namespace.bytes


def _content(name: str) -> bytes:
    if name in ready():
        return ready_text(name).encode()
    path = Path(name)
    if path.suffix != ".toml" and not path.exists():
        ready_text(name)
    try:
        with path.open("rb") as file:
            return file.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise MappingError(f"--mapping {name}: {why}", "check the path") from None


def parse(content: bytes, name: str) -> Mapping:
    """A mapping of orders from its bytes; `name` stands in its errors.

    Raises MappingError: what, where, what to do.
    """
    table = _table(content, name)
    flat = {key: table.pop(key) for key in (*SECTIONS.values(), "fill-down") if key in table}
    mapping = _converted({**table}, Mapping, name)
    if flat:
        _flat({**{key: value for key, value in table.items() if key not in _OF_ORDERS}, **flat}, name)
    wrong = next(_wrong(mapping), None)
    if wrong is not None:
        raise MappingError(f"{name}: {wrong}")
    return msgspec.structs.replace(mapping, digest=hashlib.sha256(content).hexdigest(), name=name)


def parse_flat(content: bytes, name: str, kind: str) -> FlatMapping:
    """A mapping of what has a line each, from its bytes; as parse. It may say, too, how orders are read."""
    table = _table(content, name)
    mapping = _flat({key: value for key, value in table.items() if key not in _OF_ORDERS}, name)
    if mapping.section(kind) is None:
        raise MappingError(
            f"{name}: no [{SECTIONS[kind]}], so it reads no {kind}",
            "add the table (docs/mapping.md), or leave the mapping out for a file with our own columns",
        )
    digest = hashlib.sha256(content).hexdigest()
    return msgspec.structs.replace(mapping, digest=digest, name=name, kind=kind)


def _flat(table: dict[str, Any], name: str) -> FlatMapping:
    mapping = _converted(table, FlatMapping, name)
    wrong = next(_wrong_flat(mapping), None)
    if wrong is not None:
        raise MappingError(f"{name}: {wrong}")
    return mapping


def _table(content: bytes, name: str) -> dict[str, Any]:
    if len(content) > MOST_BYTES:
        raise MappingError(f"{name}: more than {MOST_BYTES:,} bytes")
    try:
        table = tomllib.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise MappingError(f"{name}: not UTF-8 (byte {error.start + 1})", "save it as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise MappingError(f"{name}: not TOML ({error})") from None
    except (RecursionError, ValueError) as error:
        raise MappingError(f"{name}: not TOML ({type(error).__name__})") from None
    for key in ("digest", "name", "kind"):
        if key in table:
            raise MappingError(f"{name}: {key} is no key of a mapping")
    return table


def _converted(table: dict[str, Any], into: type[M], name: str) -> M:
    try:
        return msgspec.convert(table, into)
    except msgspec.ValidationError as error:
        raise MappingError(f"{name}: {_place(str(error))}") from None
    except RecursionError:
        raise MappingError(f"{name}: nested too deep") from None


def _place(said: str) -> str:
    """The library's message with the place first, as it stands in TOML."""
    what, at, where = said.partition(" - at `$")
    return f"{where.strip('`.')}: {what}" if at else what


# -- what the types can't say --------------------------------------------------------------------------------


def _wrong(mapping: Mapping) -> Iterator[str]:
    """What is wrong with a mapping, place and reason."""
    if mapping.lines == "item" and (mapping.item is None or mapping.items):
        yield 'lines = "item" needs a table [item], and no [[items]]'
    if mapping.lines == "order" and (mapping.item is not None or not mapping.items):
        yield 'lines = "order" needs a table [[items]] for each item, and no [item]'
    if not mapping.key_columns:
        yield "order-number is missing: the columns whose text tells which order a line belongs to"
    numbers = mapping.numbers
    if numbers.thousands == (numbers.decimal or "."):
        yield f"numbers: thousands and decimal are both {numbers.thousands!r}; say decimal"
    for place, field in mapping.fields():
        for what in _wrong_field(field, mapping, place):
            yield f"{place}: {what}"
    taxes = any(isinstance(field, Tax) for _, field in mapping.fields())
    if taxes and mapping.order.prices_include_tax is None:
        yield "order.prices_include_tax is missing: taxes need it"
    if mapping.order.total_amount.from_ and getattr(mapping.order.prices_include_tax, "from_", None):
        yield "order: total_amount from the sum and prices_include_tax from the total need each other"
    yield from _shared_and_own(mapping)


def _wrong_flat(mapping: FlatMapping) -> Iterator[str]:
    if mapping.fill_down and mapping.order_number is None:
        yield "fill-down needs order-number: cells are filled from lines of the same order"
    for place, field in mapping.fields():
        for what in _wrong_field(field, mapping, place):
            yield f"{place}: {what}"
    for table in (mapping.shipment, mapping.cancellation):
        if table is not None and (table.item_id is None) != (table.quantity is None):
            yield "item_id and quantity need each other"


def _shared_and_own(mapping: Mapping) -> Iterator[str]:
    for item in [*mapping.items, *([] if mapping.item is None else [mapping.item])]:
        if item.shipping_amount is not None and mapping.order.shipping_amount is not None:
            yield "shipping_amount is given for the order and for its items; leave out one"
        if (item.taxes or item.shipping_taxes) and mapping.order.taxes:
            yield "taxes are given for the order and for its items; leave out one"


def _wrong_field(field: Field, mapping: Mapping | FlatMapping, place: str) -> Iterator[str]:
    ways = [
        name
        for name in ("column", "first_of", "columns", "constant", "subtotal", "from_", "filled")
        if getattr(field, name, None) is not None
    ]
    if len(ways) != 1:
        asked = [
            each.removesuffix("_").replace("_", "-")
            for each in ("column", "first_of", "columns", "constant", "subtotal", "from_", "filled")
            if each in field.__struct_fields__
        ]
        yield f"needs exactly one of {', '.join(asked)}"
    if isinstance(field, Id):
        yield from _wrong_id(field, mapping, place)
    if isinstance(field, Time):
        yield from _wrong_time(field)
    if isinstance(field, Number | Refunded) and field.constant is not None:
        whole = place.endswith(".quantity")
        form = r"[0-9]{1,9}" if whole else r"(0|[1-9][0-9]{0,17})(\.[0-9]{1,4})?"
        if not re.fullmatch(form, field.constant):
            yield f"constant {field.constant!r} is no {'whole number' if whole else 'amount like 4.90'}"
    if isinstance(field, Tax) and (field.code is None) == (field.code_column is None):
        yield "needs exactly one of code, code-column"
    if isinstance(field, Word) and field.words and field.constant is not None:
        yield "a constant is one of the event's own words; it needs no words"
    if isinstance(field, Choice | When):
        both = {each.casefold() for each in field.yes} & {each.casefold() for each in field.no}
        if both:
            yield f"{min(both)!r} is both yes and no"
        if (
            isinstance(field, Choice)
            and field.from_ is not None
            and not place.endswith(".prices_include_tax")
        ):
            yield "from is for prices_include_tax alone"


def _wrong_id(field: Id, mapping: Mapping | FlatMapping, place: str) -> Iterator[str]:
    if field.from_ is not None:
        flat = isinstance(mapping, FlatMapping)
        if flat and mapping.order_number is None:
            yield "from needs order-number: which lines are of one order"
        if not place.endswith(".item_id") and (not flat or place.endswith((".order_id", ".seller_id"))):
            yield "from is for item_id alone"
        if field.uuid5 is not None:
            yield "from needs no uuid5: it is made in the namespace of the order's id"
    elif field.uuid5 is not None:
        if mapping.ids is None:
            yield "uuid5 needs a table [ids] with namespace, a UUID of your own"
    elif field.columns is not None:
        yield "an id of several columns needs uuid5, the kind of thing that it is of"
    elif field.constant is not None:
        try:
            UUID(field.constant)
        except ValueError:
            yield f"constant {field.constant!r} is no UUID; with uuid5 one is made of it"


def _wrong_time(field: Time) -> Iterator[str]:
    if field.constant is not None and (field.format != RFC3339 or field.zone):
        yield "a constant is RFC 3339 with an offset; it needs neither format nor zone"
    if field.zone is not None:
        try:
            ZoneInfo(field.zone)
        except (OSError, ValueError, LookupError):
            yield f"no time zone {field.zone!r}; say one like Europe/Berlin or UTC"
    if field.format == RFC3339:
        if field.zone is not None or field.twice is not None:
            yield "rfc3339 has an offset of its own; leave out zone and twice, or say a format"
        return
    directives = re.findall(r"%(.?)", field.format.replace("%%", ""))
    if field.format not in SERIALS:
        strange = next((each for each in directives if each not in DIRECTIVES or not each), None)
        if strange is not None:
            yield f"format has %{strange}; it may have %{' %'.join(DIRECTIVES)}"
        repeated = next((each for each in directives if directives.count(each) > 1), None)
        if repeated is not None:
            yield f"format has %{repeated} twice"
        day = {"Y", "y"} & {*directives} and {"m", "b", "B"} & {*directives} and "d" in directives
        if not day:
            yield f'{field.format!r} has no year, month and day; say one like "%d.%m.%Y %H:%M"'
        if ("I" in directives) != ("p" in directives):
            yield "format has one of %I and %p without the other"
    if ("z" in directives) == (field.zone is not None):
        yield "needs a zone, or %z in its format, and not both"
