"""Parts of an HTML page: its style, sections, tables and pictures. All text is escaped."""

import base64
import json
from collections.abc import Mapping
from html import escape
from typing import Any

STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #fff; --text: #1b1f24; --faint: #5f6670;
  --line: #e3e6ea; }
@media (prefers-color-scheme: dark) {
  :root { --page: #0e0e0e; --card: #181818; --text: #e7e7e7; --faint: #a0a0a0; --line: #303030; }
  img.drawn { filter: invert(0.906) hue-rotate(180deg); }
  img.pixels { filter: brightness(0.9); }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 60rem; padding: 2rem 1rem 4rem; background: var(--page);
  color: var(--text); font: 16px/1.55 system-ui, sans-serif; }
h1 { margin: 0; font-size: 1.8rem; line-height: 1.2; overflow-wrap: anywhere; }
h2 { margin: 0 0 .75rem; font-size: 1.1rem; }
p { margin: .4rem 0; }
.faint { color: var(--faint); font-size: .9rem; }
section { margin-top: 1.25rem; padding: 1.25rem; background: var(--card);
  border: 1px solid var(--line); border-radius: 10px; break-inside: avoid; }
.notice { border-left: 4px solid #d55e00; }
figure { margin: 0; }
.wide { overflow-x: auto; }
.wide table { font-size: .85rem; }
.wide td, .wide th { white-space: nowrap; padding: .2rem .5rem; }
.curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr));
  gap: .5rem; }
.curves figure:first-child { grid-column: 1 / -1; }
details > summary { cursor: pointer; color: var(--faint); margin: .5rem 0; }
img { display: block; max-width: 100%; height: auto; margin: 0 auto .5rem; border-radius: 4px; }
table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .6rem; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; }
thead th { color: var(--faint); font-size: .85rem; font-weight: 600; }
tbody th { font-weight: 400; }
tr:last-child > * { border-bottom: 0; }
.number { text-align: right; }
.number span { white-space: nowrap; }
.pairs th { width: 35%; }
.pairs td { overflow-wrap: anywhere; }
pre { margin: 0; padding: .8rem 1rem; background: var(--page); border-radius: 6px;
  font-size: .85rem; white-space: normal; }
pre span { display: inline-block; max-width: 100%; overflow-wrap: anywhere; }
@media (max-width: 32rem) {
  body { padding: 1rem .5rem; font-size: 14px; }
  section { padding: .8rem; }
  th, td { padding: .3rem; }
}
@media print { body { max-width: none; padding: 0; background: #fff; font-size: 10pt; } }
"""
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{name}, a jaxvae run</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""


def section(title: str, content: str, note: str = "") -> str:
    """Format a section, or nothing if it has no content; the note stands below the content."""
    note = f'<p class="faint">{escape(note)}</p>' if note else ""
    return f"<section><h2>{escape(title)}</h2>{content}{note}</section>" if content else ""


def pairs(title: str, values: Mapping[str, Any]) -> str:
    """Format a section with a table of names and values."""
    return section(title, table(values))


def table(values: Mapping[str, Any]) -> str:
    """Format a table of names and values, or nothing without values."""
    cells = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(text(value))}</td></tr>'
        for name, value in values.items()
    )
    return f'<table class="pairs"><tbody>{cells}</tbody></table>' if cells else ""


def text(value: Any) -> str:
    """Format a JSON value for a reader."""
    return value if isinstance(value, str) else json.dumps(value)


def image(png: bytes, alt: str, css_class: str) -> str:
    """Format a picture, whose bytes become part of the page."""
    source = f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"
    return f'<figure><img class="{css_class}" alt="{escape(alt)}" src="{source}"></figure>'
