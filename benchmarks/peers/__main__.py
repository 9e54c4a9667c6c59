"""The whole job of orders-stream beside programs that do a part of it: one stack, one workload, one run.

    .venv/bin/python -m benchmarks.peers
    .venv/bin/python -m benchmarks.peers --orders 8000 --seconds 5 --only bytewax,orders-stream

Each peer is drained, sent events at a fixed rate, and killed in the middle of a drain; its rows are compared
with those of a fold that none of them shares. benchmarks/results/README.md says what the figures mean and
what each leaves out; how each is set up stands at the top of its file in benchmarks/peers/clients. The first
run makes an environment for each in build/peers, from packages. A run takes some nine minutes on two cores.
Results are written by a run of all with the default numbers, by others only with --out.
"""

from __future__ import annotations

import argparse
import datetime
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.markup import escape

from benchmarks.peers import measure, report
from benchmarks.peers.catalogue import PEERS, Peer
from errors import OrdersError

RESULTS: Final = Path(__file__).parents[1] / "results"
FEWEST_ORDERS: Final = 2_000
"""With fewer a peer is done before it can be looked at."""


def main(arguments: Sequence[str] | None = None) -> None:
    """The command. Exits with 2 for options that make no sense, with 1 and one line when servers fail."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.orders < FEWEST_ORDERS:
        parser.error(f"--orders: at least {FEWEST_ORDERS}")
    if options.out is not None and not options.out.absolute().parent.is_dir():
        parser.error(f"--out: there is no folder {options.out.parent}")
    try:
        peers = _chosen(options.only)
    except KeyError as error:
        parser.error(f"--only: there is no {error}; there are {', '.join(peer.name for peer in PEERS)}")
    # What it repeats until topics have leaders is no news.
    logging.getLogger("aiokafka").setLevel(logging.ERROR)
    console = Console(stderr=True, highlight=False)
    with console.status("starting the servers") as status:

        def say(message: str) -> None:
            console.print(escape(message), style="dim")
            status.update(escape(message))

        plan = measure.Plan(options.orders, options.rate, options.seconds, options.seed, peers, say)
        try:
            document = measure.run(plan)
        except OrdersError as error:
            status.stop()
            sys.exit("\n".join(filter(None, (str(error), error.log))))
    out = options.out or _results(plan)
    if out is not None:
        out.write_text(json.dumps(document, indent=2) + "\n")
        out.with_suffix(".svg").write_text(report.chart(document))
        console.print(escape(f"written: {out}, {out.with_suffix('.svg').name}"), style="dim")
    sys.stdout.write(json.dumps(document, indent=2) + "\n" if options.json else report.table(document))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--orders", type=int, default=60_000, help="orders to drain, 4.08 events each (default: 60000)"
    )
    parser.add_argument(
        "--rate", type=int, default=500, help="events a second while latency is measured (default: 500)"
    )
    parser.add_argument(
        "--seconds", type=int, default=20, help="seconds for which latency is measured (default: 20)"
    )
    parser.add_argument("--seed", type=int, default=1, help="seed of the workload (default: 1)")
    parser.add_argument(
        "--only", help=f"names with commas between them: {', '.join(peer.name for peer in PEERS)}"
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="the JSON file; the chart is beside it (default: DATE-peers.json in benchmarks/results)",
    )
    parser.add_argument(
        "--json", action="store_true", help="one JSON document on stdout, and nothing else there"
    )
    return parser


def _results(plan: measure.Plan) -> Path | None:
    """Where results are kept; a try's are not."""
    full = measure.Plan(peers=PEERS, seed=plan.seed, say=plan.say)
    return RESULTS / f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}-peers.json" if plan == full else None


def _chosen(names: str | None) -> Sequence[Peer]:
    """The peers of these names, in their order. Raises KeyError for a name that there isn't."""
    if names is None:
        return PEERS
    known = {peer.name: peer for peer in PEERS}
    wanted = [known[name.strip()] for name in names.split(",")]
    return [peer for peer in PEERS if peer in wanted]


if __name__ == "__main__":
    main()
