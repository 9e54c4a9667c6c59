"""The stack of this folder, for commands that nobody told where the servers are."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import settings
from contracts.printable import printable

if TYPE_CHECKING:
    from stack import Stack

NEEDED: Final = ("ORDERS_KAFKA", "ORDERS_POSTGRES", "ORDERS_REDIS")
ADDRESSES: Final = (*NEEDED, "ORDERS_POSTGRES_REPLICA")


def servers() -> dict[str, str]:
    """Settings by name that lead to a stack that runs in .stack: this folder's, as for `orders stack`,
    else that of this checkout.

    Only if the environment names no server, and said so on standard error; it is said too if the environment
    names some of them. Reads a file and asks for processes; never raises.
    """
    set_names = {name.upper() for name in os.environ}
    set_names |= {name.removesuffix("_FILE") for name in set_names}
    if set_names.issuperset(NEEDED):
        return {}
    stack = next((each for each in map(_running, _folders()) if each is not None), None)
    if stack is None:
        return {}
    named = [name for name in ADDRESSES if name in set_names]
    if named:
        lacking = ", ".join(name for name in NEEDED if name not in set_names)
        _say(
            f"set: {', '.join(named)}; not set: {lacking}. So the stack that runs in {stack.folder} is not"
            " used: set all of them or none"
        )
        return {}
    _say(f"using the stack in {stack.folder}, as none of {', '.join(NEEDED)} is set")
    return {
        name.removeprefix("ORDERS_").lower(): value
        for name, value in stack.env.items()
        if name not in set_names
    }


def _folders() -> list[Path]:
    here = Path(".stack")
    return list(dict.fromkeys((here.absolute(), here.resolve(), Path(settings.__file__).parent / ".stack")))


def _running(folder: Path) -> Stack | None:
    try:
        if (folder / "stack.json").stat().st_uid != os.geteuid():
            return None  # somebody else's: what it leads to isn't ours to trust
        from stack import Stack, StackError
    except (OSError, ModuleNotFoundError):
        return None
    try:
        stack = Stack.open(folder)
        if stack.running:
            return stack
        down = [each.name for each in stack.status if not each.running]
        if len(down) < len(stack.status):
            _say(
                f"the stack in {folder} is not used, as {', '.join(down)} of it does not run: see orders"
                " stack status; orders stack up starts what is down"
            )
        return None
    except StackError as error:
        _say(f"{error.message}; not used")
        return None


def _say(line: str) -> None:
    print(f"orders: {printable(line)}", file=sys.stderr)
