"""`python -m compiled`: compiles what has changed since, or says why it can't. Part of `make install`."""

from __future__ import annotations

import os
import sys

os.environ["ORDERS_COMPILED"] = "auto"

from compiled import WHY_NOT
from compiled.build import CannotCompile, build

if WHY_NOT is not None:
    print("Compiling the rules (once, a minute)", flush=True)
    try:
        build()
    except CannotCompile as error:
        print(f"The rules run from their source, slower: {error}", file=sys.stderr)
