"""Tables for people: at most as wide as the terminal, with every number whole and every row on one line.

What is the same in all rows is said once, under the title. If the rest is too wide, it is narrowed in this order: headings take
several lines; long texts go below the table; the least important columns are left out; the names of the rows, in the first
column, are folded; and the last columns become a table of their own, which begins with the first column again.
"""

import re
import shutil
import textwrap
from typing import NamedTuple

NARROWEST, WIDTH_OF_A_PIPE = 40, 80
SHORT_TEXT, SHORT_NAME = 24, 20  # what need not give way
NOTHING = ("", "–")
NUMBER = re.compile(r"[+−-]?\d")
PIECE = re.compile(r"(?:\de-|[^-_/\s])+[-_/\s]*|[-_/\s]+")  # of a name that is folded; 1e-05 is one piece


class Column(NamedTuple):
    """A heading, and the cells below it, of one line each unless they are folded."""

    heading: str
    cells: list[str]

    @property
    def width(self):
        return max(_width(line) for text in (self.heading, *self.cells) for line in text.split("\n"))

    @property
    def is_number(self):
        """Whether most of the cells are numbers, which are then aligned by their last digits."""
        filled = [cell for cell in self.cells if cell not in NOTHING]
        return 2 * sum(bool(NUMBER.match(cell)) for cell in filled) > len(filled)

    def with_high_heading(self):
        """The column with a heading of as many lines as its words need to be no wider than the widest of them and the cells."""
        width = max(map(_width, (*re.split(r" |(?<=\w-)", self.heading), *self.cells)))
        return self._replace(heading="\n".join(textwrap.wrap(self.heading, width, break_long_words=False)))

    def folded(self, width):
        return Column(_fold(self.heading, width), [_fold(cell, width) for cell in self.cells])


class Layout(NamedTuple):
    """What stands under a title: what all rows have in common, tables side by side in rows, and texts below them."""

    same: list[Column]
    tables: list[list[Column]]
    below: list[Column]


def print_table(title, rows, least=()):
    """Prints dicts, whose keys must be the same and head the columns, as the rows of a table.

    `least` are the keys of columns that may be left out if there is no room, in this order.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    width = max(NARROWEST, shutil.get_terminal_size((WIDTH_OF_A_PIPE, 0)).columns)
    console = Console(width=width, markup=False, highlight=False, emoji=False)
    layout = arrange(rows, width, least)
    console.print(title, style="bold")
    if layout.same:
        console.print(", ".join(f"{column.heading} {column.cells[0]}" for column in layout.same))
    for columns in layout.tables:
        table = Table(box=box.HEAVY_HEAD)
        for column in columns:
            heading = column.heading.replace("\N{NO-BREAK SPACE}", " ")
            table.add_column(Text(heading), justify="right" if column.is_number else "left", overflow="fold")
        for cells in zip(*(column.cells for column in columns), strict=True):
            table.add_row(*map(Text, cells))
        console.print(table)
    for column in layout.below:
        console.print(f"{column.heading}:")
        for name, cell in zip(layout.tables[0][0].cells, column.cells, strict=True):
            if cell not in NOTHING:
                text = f"{name.replace(chr(10), '')}: {cell}"
                console.print(textwrap.fill(text, width, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False))


def arrange(rows, width, least=()):
    """The `Layout` of dicts with the same keys in a terminal of a width; `least` is of `print_table`."""
    headings = _headings(list(rows[0]))
    first, *rest = (Column(heading, [_text(row[key]) for row in rows]) for key, heading in headings.items())
    constant = [column for column in rest if len(rows) > 1 and len(set(column.cells)) == 1]
    rest = [column for column in rest if column not in constant]
    if _total([first, *rest]) > width:
        first, *rest = (column.with_high_heading() for column in (first, *rest))
    below = []
    while _total([first, *rest]) > width and (long := [c for c in rest if not c.is_number and c.width > SHORT_TEXT]):
        below.append(max(long, key=lambda column: column.width))
        rest.remove(below[-1])
    for key in least:
        if _total([first, *rest]) > width:
            rest = [column for column in rest if column.heading.replace("\n", " ") != headings[key]]
    spare = width - _total([first, *rest])
    if spare < 0 and not first.is_number:
        first = first.folded(max(SHORT_NAME, first.width + spare))
    tables = [[first]]
    for column in rest:
        if len(tables[-1]) > 1 and _total([*tables[-1], column]) > width:
            tables.append([first])
        tables[-1].append(column)
    return Layout([column for column in constant if column.cells[0] not in NOTHING], tables, below)


def _total(columns):
    """The width of a table: each column has a space on both sides, and a line on the right."""
    return 1 + sum(column.width + 3 for column in columns)


def _width(text):
    from rich.cells import cell_len

    return cell_len(text)


def _headings(keys):
    """Headings by keys: of a key of a config only the last part, if that tells it apart."""
    last = [key.rpartition(".")[-1] for key in keys]
    return {key: part.replace("_", " ") if last.count(part) == 1 else key for key, part in zip(keys, last, strict=True)}


def _text(value):
    """A value as a cell: numbers to four digits, but whole ones and those above 1,000 whole, with commas from 10,000 on."""
    if value is None:
        return "–"
    if isinstance(value, tuple | list):
        return f"({', '.join(map(_text, value))}{',' * (len(value) == 1)})"
    if isinstance(value, float) and abs(value) < 1000:
        return f"{value:.4g}"
    if isinstance(value, float) or (type(value) is int and abs(value) >= 10_000):
        return f"{value:,.0f}"
    return " ".join(str(value).split("\n"))


def _fold(text, width):
    """A text in lines of a width, broken behind its separators where that is possible."""
    lines = [""]
    for piece in PIECE.findall(text):
        if _width(lines[-1] + piece.rstrip()) > width and lines[-1]:
            lines.append("")
        lines[-1] += piece
    return "\n".join(part for line in lines for part in textwrap.wrap(line, width, break_on_hyphens=False) or [""])
