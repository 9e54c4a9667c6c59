"""Printing for all commands: consoles that fit any terminal and encoding, tables that cut no id, progress for
people."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Annotated, Any, Final

import typer
from rich.cells import cell_len
from rich.console import Console, ConsoleDimensions, ConsoleOptions, RenderableType, RenderResult
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.segment import Segment
from rich.status import Status
from rich.text import Text

from cli.text import encodable
from contracts.printable import printable

NARROWEST: Final = 40
"""Columns below which nothing is laid out any more: the terminal wraps."""
UNCUT: Final = 100_000
"""Columns of what is no terminal: nothing is cut or wrapped there."""
USUAL: Final = (80, 25)
RATE_SECONDS: Final = 0.2
"""Seconds of work before which its rate says nothing."""
GAP: Final = "  "

Wide = Annotated[bool, typer.Option("--wide", help="Print each row on one line, however wide it is.")]

Cell = object | tuple[object, str]
"""What str() makes a cell of, or that and its style."""


class Terminal(Console):
    """A console that takes text as text (no markup, no emoji codes), wraps only where it is asked to, and
    never raises for an encoding.

    Whatever reaches it with control characters leaves it without. Its width is COLUMNS where that says one,
    else the terminal's; what is no terminal has all the width that there is.
    """

    def __init__(self, *, stderr: bool = False, file: IO[str] | None = None) -> None:
        super().__init__(stderr=stderr, file=file, markup=False, emoji=False, highlight=False, soft_wrap=True)

    @property
    def size(self) -> ConsoleDimensions:
        columns, lines = USUAL if self.watched else (UNCUT, USUAL[1])
        if self.watched:
            try:
                terminal = os.get_terminal_size(self.file.fileno())
                columns, lines = terminal.columns or columns, terminal.lines or lines
            except (OSError, ValueError):
                pass
        return ConsoleDimensions(max(NARROWEST, _number("COLUMNS") or columns), _number("LINES") or lines)

    @size.setter
    def size(self, new_size: tuple[int, int]) -> None:
        raise AttributeError("a terminal has the size that it has")

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            text = segment.text
            if segment.control or (text.isascii() and text.isprintable()):
                yield segment
            else:
                yield Segment(encodable(printable(text, lines=True), self.encoding), segment.style)

    @property
    def watched(self) -> bool:
        """Whether it is a terminal. (is_terminal also says so of a file where FORCE_COLOR is set.)"""
        return self.file.isatty()

    def can(self, text: str) -> bool:
        """Whether its encoding has these characters."""
        return encodable(text, self.encoding) == text

    def status(self, status: RenderableType, **options: Any) -> Status:
        options.setdefault("spinner", "dots" if self.can("⠋") else "line")
        return super().status(status, **options)


def _number(name: str) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 6 else 0


@contextmanager
def sane_dimensions() -> Iterator[None]:
    """Let others that print (Typer's help) see no COLUMNS, LINES or TERMINAL_WIDTH that is no size, as
    containers and CI set them.
    """
    wrong = {
        name: os.environ[name]
        for name in ("COLUMNS", "LINES", "TERMINAL_WIDTH")
        if name in os.environ and not _number(name)
    }
    narrow = {
        name: os.environ[name] for name in ("COLUMNS", "TERMINAL_WIDTH") if 0 < _number(name) < NARROWEST
    }
    for name in wrong:
        del os.environ[name]
    os.environ.update(dict.fromkeys(narrow, str(NARROWEST)))
    try:
        yield
    finally:
        os.environ.update(wrong | narrow)


def output() -> Terminal:
    """Standard output."""
    return Terminal()


def messages() -> Terminal:
    """Standard error."""
    return Terminal(stderr=True)


def interactive() -> bool:
    """Tell whether a person can be asked: they see standard error and answer on standard input."""
    return sys.stdin is not None and sys.stdin.isatty() and sys.stderr is not None and sys.stderr.isatty()


def confirmed(question: str) -> bool:
    """Ask a person, on standard error; no is the default. Raises typer.Abort on Ctrl-C and Ctrl-D.
    Blocks until they answer.
    """
    return typer.confirm(question, err=True)


class Bar:
    """One line of progress: what is at work, how much of it is done, and how fast. It never blocks."""

    def __init__(self, lines: Progress, what: str, total: int | None) -> None:
        self._lines = lines
        self._line = lines.add_task(what, total=total, rate="")
        self._begun = time.monotonic()

    def show(self, done: int, total: int | None = None) -> None:
        """Say how much is done and, where it wasn't known or changes, of how much."""
        elapsed = time.monotonic() - self._begun
        rate = f"{done / elapsed:,.0f}/s" if elapsed > RATE_SECONDS else ""
        self._lines.update(self._line, completed=done, total=total, rate=rate)

    def step(self, what: str) -> None:
        """Begin another kind of work, at nothing."""
        self._begun = time.monotonic()
        # A line that is there keeps its total.
        self._lines.remove_task(self._line)
        self._line = self._lines.add_task(what, total=None, rate="")

    def work(self, what: str, done: int, total: int) -> None:
        """show() of work that names itself each time."""
        self._lines.update(self._line, description=what)
        self.show(done, total)

    def say(self, what: str) -> None:
        """Print a line that stays, above the progress; also where that is silent."""
        self._lines.console.print(printable(what))

    def hide(self) -> None:
        """Take the line away, before something is printed."""
        self._lines.stop()

    def another(self, what: str, total: int | None = None) -> Bar:
        """Begin another line, below this one."""
        return Bar(self._lines, what, total)


@contextmanager
def progress(
    what: str = "",
    total: int | None = None,
    *,
    quiet: bool = False,
    rate: bool = False,
    transient: bool = True,
    console: Terminal | None = None,
    form: str = "{task.description}",
) -> Iterator[Bar]:
    """Show progress on standard error (or `console`) where a person looks, unless `quiet`.

    `rate`: with what it does a second.

    `transient`: nothing of it stays. `form`: how the description is set.
    """
    console = console or messages()
    more = (TextColumn("{task.fields[rate]}", markup=False),) if rate else ()
    columns = (TextColumn(form, markup=False), BarColumn(), MofNCompleteColumn(), *more, TimeElapsedColumn())
    with Progress(
        *columns, console=console, transient=transient, disable=quiet or not console.watched
    ) as lines:
        yield Bar(lines, what, total)


class Rows:
    """A table that fits: as one where the terminal is wide enough, else a few lines for each row.

    No cell is cut.

    `prose`: headings of columns that may be wrapped. `right`: of those that are numbers. `wide`: one line a
    row, whatever the terminal has. The first column is what a row is known by.
    """

    def __init__(
        self,
        *headings: str,
        title: str = "",
        prose: Iterable[str] = (),
        right: Iterable[str] = (),
        header: bool = True,
        wide: bool = False,
    ) -> None:
        self.title = title
        self._wide = wide
        self._headings = headings
        self._prose = [heading in prose for heading in headings]
        self._right = [heading in right for heading in headings]
        self._header = header and any(headings)
        self._rows: list[list[tuple[str, str]]] = []

    def add(self, *cells: Cell) -> None:
        """Add a row, a cell for each heading."""
        pairs = [cell if isinstance(cell, tuple) else (cell, "") for cell in cells]
        self._rows.append([(printable(text), style) for text, style in pairs])

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self.title:
            yield _line(Text(self.title, "bold"))
        if not self._rows:
            return
        rows = [[Text(encodable(text, options.encoding), style) for text, style in row] for row in self._rows]
        widths = self._widths(rows, UNCUT if self._wide else options.max_width)
        for line in (
            self._records(console, rows, options.max_width)
            if widths is None
            else self._grid(console, rows, widths)
        ):
            yield _line(line)

    def _widths(self, rows: Sequence[Sequence[Text]], width: int) -> list[int] | None:
        """Each column's, or None when they don't fit beside each other."""
        columns = list(zip(*rows, strict=True))
        heads = [cell_len(heading) if self._header else 0 for heading in self._headings]
        natural = [
            max(head, *(cell.cell_len for cell in cells)) for head, cells in zip(heads, columns, strict=True)
        ]
        remaining = width - len(GAP) * (len(natural) - 1)
        if sum(natural) <= remaining:
            return natural
        least = [
            min(full, max(20, head, *(min(_longest_word(cell), NARROWEST) for cell in cells)))
            if prose
            else full
            for full, head, cells, prose in zip(natural, heads, columns, self._prose, strict=True)
        ]
        remaining -= sum(least)
        if remaining < 0:
            return None
        for number, full in enumerate(natural):
            more = min(full - least[number], remaining)
            least[number] += more
            remaining -= more
        return least

    def _grid(
        self, console: Console, rows: Sequence[Sequence[Text]], widths: Sequence[int]
    ) -> Iterator[Text]:
        if self._header:
            yield self._joined([Text(heading, "bold") for heading in self._headings], widths)
        for row in rows:
            cells = [
                cell.wrap(console, width, overflow="fold") if prose else [cell]
                for cell, width, prose in zip(row, widths, self._prose, strict=True)
            ]
            for number in range(max(map(len, cells))):
                yield self._joined([cell[number] if number < len(cell) else Text() for cell in cells], widths)

    def _joined(self, cells: Sequence[Text], widths: Sequence[int]) -> Text:
        line = Text()
        for cell, width, right in zip(cells, widths, self._right, strict=True):
            space = " " * (width - cell.cell_len)
            line.append_text(Text.assemble(space if right else "", cell, "" if right else space, GAP))
        line.rstrip()
        return line

    def _records(self, console: Console, rows: Sequence[Sequence[Text]], width: int) -> Iterator[Text]:
        for first, *others in rows:
            first.stylize("bold")
            yield first
            line = Text(GAP)
            for heading, cell, prose in zip(self._headings[1:], others, self._prose[1:], strict=True):
                if not cell.plain:
                    continue
                pair = Text.assemble((f"{heading} " if heading else "", "dim"), cell)
                parts = list(pair.wrap(console, width - len(GAP), overflow="fold")) if prose else [pair]
                for part in parts:
                    part.rstrip()
                    if line.cell_len > len(GAP) and line.cell_len + len(GAP) + part.cell_len > width:
                        yield line
                        line = Text(GAP)
                    line.append_text(Text.assemble(GAP if line.cell_len > len(GAP) else "", part))
                if len(parts) > 1:
                    yield line
                    line = Text(GAP)
            if line.cell_len > len(GAP):
                yield line


def _line(text: Text) -> Text:
    text.no_wrap, text.overflow = True, "ignore"
    return text


def _longest_word(text: Text) -> int:
    return max(map(cell_len, text.plain.split()), default=0)
