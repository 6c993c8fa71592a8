"""Pictures as PNG files, and one page that opens from disk. The same figures give the same bytes."""

import base64
import html
import io
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from state import config as configuration
from thousandfold.bench import grids

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1200px; margin: 2em auto; padding: 0 1em; color: #222; background: #fff }
div { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px }
th, td { padding: .25em .7em; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap }
th:first-child, td:first-child { text-align: left } img { max-width: 100% } h2 { font-size: 1.05em; margin-top: 2em }
code { background: #f3f3f3; padding: .1em .3em }
"""


def pyplot() -> Any:
    """Matplotlib without a screen.

    Raises:
        Refused: it is not installed.
    """
    try:
        import matplotlib as mpl  # noqa: PLC0415  (only plots need it)
    except ImportError as error:
        raise configuration.Refused("--out draws plots and needs matplotlib: pip install 'thousandfold[bench]'") from error
    mpl.use("agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    return plt


def begin(folder: pathlib.Path) -> None:
    """Make the folder of a page and see that its plots can be drawn, before anything is measured.

    Raises:
        Refused: there is no matplotlib, or no such folder can be made.
    """
    pyplot()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise configuration.Refused(f"--out {folder}: {error.strerror}; name a folder that can be written") from error


def png(figure: Any) -> bytes:
    """Of a figure, which is closed."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110, bbox_inches="tight", metadata={"Software": None})
    pyplot().close(figure)
    return out.getvalue()


def page(title: str, command: str, shown: Iterable[grids.Grid], pictures: Mapping[str, bytes], notices: Sequence[str]) -> str:
    """One page with its pictures inside; it reads nothing from outside."""
    told = "".join(f"<li>{html.escape(n)}</li>" for n in notices)
    drawn = "".join(_picture(html.escape(name), body) for name, body in pictures.items())
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style>'
    return (
        f'<!doctype html><html lang="en"><head>{head}</head>'
        f"<body><h1>{html.escape(title)}</h1><p><code>{html.escape(command)}</code></p>"
        + (f"<p>Not measured:</p><ul>{told}</ul>" if told else "")
        + "".join(grids.markup(grid) for grid in shown)
        + f"{drawn}</body></html>\n"
    )


def _picture(name: str, body: bytes) -> str:
    return f'<h2>{name}</h2><img alt="{name}" src="data:image/png;base64,{base64.b64encode(body).decode()}">'


def write(
    folder: pathlib.Path, title: str, command: str, shown: Sequence[grids.Grid], pictures: Mapping[str, bytes],
    notices: Sequence[str],
) -> pathlib.Path:  # fmt: skip
    """Write `index.html`, `tables.md` and the PNG files into a folder; returns the page."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, body in pictures.items():
        plain = re.sub(r"[^\w.-]+", "_", name)
        (folder / f"{plain}.png").write_bytes(body)
    told = "".join(f"- {n}\n" for n in notices)
    text = f"# {title}\n\n`{command}`\n\n{told}\n" + "\n".join(grids.markdown(grid) for grid in shown)
    (folder / "tables.md").write_text(text, encoding="utf-8")
    file = folder / "index.html"
    file.write_text(page(title, command, shown, pictures, notices), encoding="utf-8")
    return file
