"""Tables as text: on the terminal, in Markdown and in a page."""

import html
from typing import NamedTuple

import numpy as np
from rich import table as rich_table


class Grid(NamedTuple):
    """Cells as text; the first column is a name, the others are numbers."""

    title: str
    heads: list[str]
    rows: list[list[str]]


def number(value: float | None) -> str:
    """Four digits, or a dash where there is none."""
    return "–" if value is None or not np.isfinite(value) else f"{value:.4f}"


def terminal(grid: Grid) -> rich_table.Table:
    """For a console."""
    shown = rich_table.Table(title=grid.title)
    for k, head in enumerate(grid.heads):
        shown.add_column(head, justify="right" if k else "left")
    for row in grid.rows:
        shown.add_row(*row)
    return shown


def markdown(grid: Grid) -> str:
    """With its title as a heading."""
    lines = [grid.heads, ["---", *("---:" for _ in grid.heads[1:])], *grid.rows]
    return (
        f"### {grid.title}\n\n"
        + "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
        + "\n"
    )


def markup(grid: Grid) -> str:
    """As HTML."""
    head = "".join(f"<th>{html.escape(h)}</th>" for h in grid.heads)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>" for row in grid.rows)
    return f"<h2>{html.escape(grid.title)}</h2><div><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
