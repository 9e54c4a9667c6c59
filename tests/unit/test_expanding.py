"""A migration expands before it contracts: workers of the version before go on while it has run.

One that takes away, renames or forbids names the release whose workers no longer need what goes, in
`contracts_after`. One that replaces a CHECK by a wider one names it in `widens`, one that puts a table in the
place of a view names that in `replaces`.
"""

from __future__ import annotations

import io
import re
from contextlib import redirect_stdout
from typing import Final

import pytest
from alembic import command
from alembic.script import ScriptDirectory

from sinks.migrate import MIGRATIONS, Alembic
from tests.unit.recipes import ROOT

_NOT_NULL: Final = (
    r"\bADD (?:COLUMN )?(?!CONSTRAINT\b)(?:(?!,|\bDEFAULT\b).)*\bNOT NULL\b(?!(?:(?!,).)*\bDEFAULT\b)"
)
CONTRACTING: Final = re.compile(
    r"\bRENAME\b"
    # An index that goes is slow, and no more.
    r"|^DROP (?!INDEX\b)"
    # A default or a NOT NULL that is no more asks for nothing; what took part in a row's key does.
    r"|^ALTER TABLE .*\bDROP (?!NOT NULL\b|DEFAULT\b)"
    r"|\bALTER (?:COLUMN )?\S+ (?:DROP DEFAULT|SET NOT NULL|SET DATA TYPE|TYPE)\b"
    r"|^ALTER TABLE .*\bADD (?:CONSTRAINT|CHECK|UNIQUE|PRIMARY KEY|FOREIGN KEY|EXCLUDE)\b"
    r"|^CREATE UNIQUE INDEX|^CREATE (?:OR REPLACE )?(?:TRIGGER|RULE|POLICY)\b"
    r"|^(?:DELETE|TRUNCATE|REVOKE|SET SCHEMA)\b"
    r"|^ALTER TABLE .*" + _NOT_NULL,
    re.IGNORECASE,
)


def contracting(script: str, widens: str = "", replaces: str = "") -> list[str]:
    """The statements of a script that workers of the version before may not survive. `widens`: the CHECK that
    one of them replaces by a wider one; `replaces`: the view in whose place it makes a table.
    """
    without_comments = re.sub(r"--[^\n]*", "", script)
    statements = [" ".join(each.split()) for each in without_comments.split(";")]
    wider = re.compile(
        rf"ALTER TABLE \S+ DROP CONSTRAINT {widens}, ADD CONSTRAINT {widens} CHECK \((?:(?!ADD ).)*\)"
    )
    tables = [table for each in statements for table in re.findall(r"^CREATE TABLE (\S+) ", each)]
    # Nobody knows a table yet that the script makes.
    new = re.compile(rf"ALTER TABLE (?:{'|'.join(map(re.escape, tables)) or '(?!)'}) .*")
    replaced = [f"DROP VIEW {table}" for table in tables if replaces and table.endswith(f".{replaces}")]
    return [
        each
        for each in statements
        if CONTRACTING.search(each)
        and not wider.fullmatch(each)
        and not new.fullmatch(each)
        and each not in replaced
    ]


def test_each_migration_expands_or_says_after_which_release_it_contracts() -> None:
    script = ScriptDirectory.from_config(Alembic.config())
    released = re.findall(r"^## \[?(\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    revisions = list(script.walk_revisions())
    assert len(revisions) == len([*(MIGRATIONS / "versions").glob("0*.py")])
    assert revisions[-1].down_revision is None
    for revision in revisions[:-1]:  # before the first one there is nobody
        with redirect_stdout(io.StringIO()) as sql:
            steps = f"{revision.down_revision}:{revision.revision}"
            command.upgrade(Alembic.config(partition_by="user_id", partitions=2), steps, sql=True)
        after = getattr(revision.module, "contracts_after", None)
        if after is None:
            named = [getattr(revision.module, name, "") for name in ("widens", "replaces")]
            assert contracting(sql.getvalue(), *named) == [], f"{revision.path} contracts, and doesn't say so"
        else:
            assert after in released, f"{revision.path}: {after} is no release"


@pytest.mark.parametrize(
    "statement",
    [
        "ALTER TABLE public.orders_order DROP COLUMN region",
        "alter table public.orders_order drop region",
        "ALTER TABLE orders_order RENAME COLUMN region TO area",
        "ALTER TABLE orders_order ADD COLUMN sellers integer NOT NULL",
        "ALTER TABLE orders_order ADD sellers integer DEFAULT 0 NOT NULL, ADD more text NOT NULL",
        "ALTER TABLE orders_order ALTER COLUMN region SET NOT NULL",
        "ALTER TABLE orders_order ALTER version TYPE bigint",
        "ALTER TABLE orders_order ALTER COLUMN region DROP DEFAULT",
        "ALTER TABLE orders_order ADD CONSTRAINT known CHECK (region <> '')",
        "CREATE UNIQUE INDEX one ON orders_order (user_id)",
        "DROP TABLE orders_bulk_job",
        "DROP VIEW orders_summary",
        "ALTER TYPE orders_order_status RENAME VALUE 'closed' TO 'ended'",
        "DELETE FROM orders_order",
        "CREATE INDEX a ON b (c);\n-- harmless\nTRUNCATE orders_order",
    ],
)
def test_what_contracts(statement: str) -> None:
    assert len(contracting(statement)) == 1


def test_only_the_check_that_is_named_may_be_replaced() -> None:
    wider = "ALTER TABLE a DROP CONSTRAINT kind, ADD CONSTRAINT kind CHECK (kind IN ('a', 'b'))"
    assert contracting(wider, "kind") == []
    assert contracting(wider, "other") == [wider]
    assert contracting(f"{wider}, ADD CONSTRAINT more CHECK (n > 0)", "kind") != []


def test_only_the_view_that_is_named_may_become_a_table() -> None:
    replaced = "DROP VIEW public.parts; CREATE TABLE public.parts (id uuid)"
    assert contracting(replaced, replaces="parts") == []
    assert contracting(replaced) == ["DROP VIEW public.parts"]
    assert contracting("DROP VIEW public.parts", replaces="parts") == ["DROP VIEW public.parts"]
    assert contracting(f"{replaced}; ALTER TABLE public.parts ADD CHECK (id > 0)", replaces="parts") == []
    assert contracting(f"{replaced}; ALTER TABLE public.others ADD CHECK (id > 0)", replaces="parts") != []


@pytest.mark.parametrize(
    "statement",
    [
        "ALTER TABLE public.orders_order ADD COLUMN sellers integer NOT NULL DEFAULT 0",
        "ALTER TABLE orders_order ADD sellers integer DEFAULT 0 NOT NULL, ADD more text",
        "ALTER TABLE orders_order ALTER COLUMN region DROP NOT NULL",
        "ALTER TYPE orders_order_status ADD VALUE 'on_hold'",
        "CREATE TABLE more (id uuid NOT NULL, CONSTRAINT more_pkey PRIMARY KEY (id))",
        "CREATE OR REPLACE VIEW orders_summary AS SELECT 1",
        "CREATE INDEX a ON b (c); DROP INDEX a",
        "UPDATE alembic_version SET version_num='0004'",
    ],
)
def test_what_expands(statement: str) -> None:
    assert contracting(statement) == []
