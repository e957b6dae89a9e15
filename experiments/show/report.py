"""Report of a run: one HTML file that contains its numbers, curves and pictures."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any

from experiments.flags.config import TrainConfig
from experiments.flags.saved_flags import to_json
from experiments.record.display import duration, rounded
from experiments.record.files import write_text
from experiments.record.metrics import read_metrics
from experiments.show.pictures import curves, quantities
from experiments.show.saved_results import with_current_names

MOST_BYTES = 2**25
"""Largest picture that goes into the page: a run's folder may hold files of any size."""
_QUANTITIES = {
    "elbo": "elbo",
    "log_likelihood": "log p(x)",
    "reconstruction": "E log p(x|z)",
    "kl": "KL( q(z|x) ‖ p(z) )",
    "bits_per_dimension": "bits per dimension",
    "active_units": "active units",
    "sigma_squared": "sigma² of p(x|z)",
}
_PICTURES = {
    "samples": ("Samples", "Decoded from latents drawn from the prior."),
    "reconstructions": (
        "Reconstructions",
        "Held-out examples, each above its reconstruction by the model.",
    ),
    "interpolations": (
        "Interpolations",
        "Decoded along a path between the latents of two examples.",
    ),
    "traversals": ("Traversals", "In each row one latent changes and the others are fixed."),
    "latent_kl": ("KL of each latent", "Nats of KL in each latent, largest first."),
}
_STYLE = """
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
figure { margin: 0; overflow-x: auto; }
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
_PAGE = """<!doctype html>
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


def write_report(run: Path) -> Path:
    """Write `<run>/report.html` from the files in a run's folder; missing files are left out.

    Args:
        run: a folder with any of config.json, metrics.jsonl, results.json and pictures/*.png.

    Returns:
        The path of the report: one file, without scripts or references to other files.

    Raises:
        ValueError: the folder does not exist, or a JSON file in it is invalid.
    """
    if not run.is_dir():
        raise ValueError(
            f"write_report: run must be the folder of a run, {run} is not a folder. "
            "Pass the folder that has metrics.jsonl."
        )
    config = _read(run / "config.json")
    results = with_current_names(_read(run / "results.json"))
    metrics = run / "metrics.jsonl"
    rows = read_metrics(metrics) if metrics.exists() else []
    name = escape(run.resolve().name)
    timing = dict(_timing(*item) for item in (results.get("timing") or {}).items())
    device = {"device": results["device"]} if "device" in results else {}
    body = [
        f"<header><h1>{name}</h1>{_summary(config, results, rows)}</header>",
        _numbers(results),
        _curves(rows),
        *_pictures(run / "pictures"),
        _configuration(config),
        _section("Command", _command(results)),
        _pairs("Time", timing),
        _pairs("Device and versions", device | (results.get("versions") or {})),
    ]
    path = run / "report.html"
    write_text(path, _PAGE.format(name=name, style=_STYLE, body="\n".join(filter(None, body))))
    return path


def _read(path: Path) -> dict[str, Any]:
    """Read the object in a JSON file; an empty one if there is no file."""
    from jaxvae.checkpoints.contained import read_json  # here, since it loads jax

    if not path.exists():
        return {}
    try:
        return read_json(path)
    except ValueError as error:
        raise ValueError(
            f"write_report: {path} must hold a JSON object, it holds something else. "
            "Delete it, or rerun the command that wrote it."
        ) from error


def _section(title: str, content: str, note: str = "") -> str:
    note = f'<p class="faint">{escape(note)}</p>' if note else ""
    return f"<section><h2>{escape(title)}</h2>{content}{note}</section>" if content else ""


def _command(results: Mapping[str, Any]) -> str:
    words = (results.get("command") or "").split()
    spans = " ".join(f"<span>{escape(word)}</span>" for word in words)
    return spans and f"<pre>{spans}</pre>"


def _configuration(config: Mapping[str, Any]) -> str:
    """The flags of a run that differ from their defaults, and all of them folded away."""
    usual = to_json(TrainConfig())
    changed = {name: value for name, value in config.items() if usual.get(name) != value}
    table = _table(changed) or "<p>All flags have their defaults.</p>"
    others = f"<details><summary>All {len(config)} flags</summary>{_table(config)}</details>"
    return _section("Configuration", f"{table}{others}" if config else "")


def _pairs(title: str, values: Mapping[str, Any]) -> str:
    """Format a section with a table of names and values."""
    return _section(title, _table(values))


def _table(values: Mapping[str, Any]) -> str:
    cells = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(_text(value))}</td></tr>'
        for name, value in values.items()
    )
    return f'<table class="pairs"><tbody>{cells}</tbody></table>' if cells else ""


def _spaced(name: str) -> str:
    return name.replace("_", " ")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _timing(name: str, value: Any) -> tuple[str, str]:
    if not isinstance(value, (int, float)):
        return _spaced(name), _text(value)
    if "seconds" in name:
        return _spaced(name.replace("seconds", "")).strip(), duration(value)
    return _spaced(name), f"{value:,.0f}"


def _value(entry: Mapping[str, Any]) -> list[str]:
    """Format the value of an entry, and its standard error if it has one."""
    value, error = rounded(entry["value"], entry.get("standard_error"))
    return [value, f"± {error}"] if error else [value]


def _measured(results: Mapping[str, Any], split: str) -> dict[str, dict[str, Any]]:
    """Entries of a split that have a value."""
    entries = (results.get(split) or {}).items()
    return {name: entry for name, entry in entries if isinstance(entry, dict) and "value" in entry}


def _summary(
    config: Mapping[str, Any], results: Mapping[str, Any], rows: list[dict[str, Any]]
) -> str:
    """Format one line with the ELBO; without results, a notice with the last step of the run."""
    splits = [split for split in ("test", "validation") if "elbo" in _measured(results, split)]
    if splits:
        elbo = " ".join(_value(results[splits[0]]["elbo"]))
        checkpoint = results.get("checkpoint") or {}
        where = f" of {config['dataset']}" if "dataset" in config else ""
        which = [checkpoint["which"]] if "which" in checkpoint else []
        which += [f"step {checkpoint['step']:,}"] if "step" in checkpoint else []
        by = f" (checkpoint: {', '.join(which)})" if which else ""
        text = f"elbo {elbo} nats on the {splits[0]} split{where}{by}."
        return f"<p>{escape(text)}</p>"
    text = "This run has no results: it was interrupted, or it is still training."
    if rows:
        text += f" The last row of its metrics is of step {max(row['step'] for row in rows):,}."
    return f'<section class="notice" role="note">{escape(text)}</section>'


def _numbers(results: Mapping[str, Any]) -> str:
    splits = {split: _measured(results, split) for split in ("test", "validation")}
    splits = {split: entries for split, entries in splits.items() if entries}
    names = list(dict.fromkeys(name for entries in splits.values() for name in entries))
    known = [name for name in _QUANTITIES if name in names]
    ordered = [*known, *(name for name in names if name not in known)]
    heads = "".join(_head(split, results[split]) for split in splits)
    lines = "".join(_number_row(name, list(splits.values())) for name in ordered)
    notes = ["Means over the examples ± one standard error."]
    if "preprocessing" in results:
        notes.append(f"Preprocessing of the data: {results['preprocessing']}.")
    if "bits_per_dimension_of" in results:
        notes.append(f"Bits per dimension are those of {results['bits_per_dimension_of']}.")
    head = f'<tr><th scope="col">quantity</th>{heads}<th scope="col">unit</th></tr>'
    content = f"<table><thead>{head}</thead><tbody>{lines}</tbody></table>"
    return _section("Final numbers", content if names else "", " ".join(notes))


def _head(split: str, entries: Mapping[str, Any]) -> str:
    count = entries.get("num_examples")
    of = f"<br>{count:,} examples" if isinstance(count, int) else ""
    return f'<th scope="col" class="number">{split}{of}</th>'


def _number_row(name: str, splits: list[dict[str, dict[str, Any]]]) -> str:
    """Format a row of the table of final numbers: one quantity, a cell for each split."""
    first = next(entries[name] for entries in splits if name in entries)
    label = _QUANTITIES.get(name, _spaced(name))
    if "num_samples" in first:
        label += f", {first['num_samples']:,} samples"
    values = (_value(entries[name]) if name in entries else [] for entries in splits)
    spans = (" ".join(f"<span>{part}</span>" for part in parts) for parts in values)
    cells = "".join(f'<td class="number">{span}</td>' for span in spans)
    unit = first.get("unit") or ("bits" if name == "bits_per_dimension" else "")
    return f'<tr><th scope="row">{escape(label)}</th>{cells}<td>{escape(unit)}</td></tr>'


def _curves(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return ""
    last, images = max(row["step"] for row in rows), []
    for name in quantities(rows):
        png = io.BytesIO()
        curves(rows, name, png)
        alt = f"{_spaced(name)} over {last:,} steps of training."
        images.append(_image(png.getvalue(), alt, "drawn"))
    return _section("Training curves", f'<div class="curves">{"".join(images)}</div>')


def _pictures(folder: Path) -> Iterable[str]:
    """Format a section per kind of picture, known kinds first; numbered files show the last."""
    found = [path for path in sorted(folder.glob("*.png")) if path.stat().st_size < MOST_BYTES]
    latest = {re.sub(r"[-_]?\d+$", "", path.stem): path for path in found}
    latest.pop("curves", None)
    known = [kind for kind in _PICTURES if kind in latest]
    for kind in [*known, *(kind for kind in latest if kind not in known)]:
        title, caption = _PICTURES.get(kind, (_spaced(kind).capitalize(), ""))
        css_class = "drawn" if kind == "latent_kl" else "pixels"
        alt = f"{title}. {caption}" if caption else title
        yield _section(title, _image(latest[kind].read_bytes(), alt, css_class), caption)


def _image(png: bytes, alt: str, css_class: str) -> str:
    source = f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"
    image = f'<img class="{css_class}" alt="{escape(alt)}" src="{source}">'
    return f'<figure tabindex="0">{image}</figure>'
