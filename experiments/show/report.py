"""Report of a run: one HTML file that contains its numbers, curves and pictures."""

from __future__ import annotations

import io
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from experiments.flags.combinations import LOCATION_SCALE
from experiments.flags.config import TrainConfig
from experiments.flags.saved_flags import to_json
from experiments.record.display import duration, rounded
from experiments.record.files import write_text
from experiments.record.metrics import read_metrics
from experiments.show import page
from experiments.show.next_commands import next_commands
from experiments.show.picture_sections import picture_sections
from experiments.show.plots import curves, quantities
from experiments.show.saved_results import with_current_names

_QUANTITIES = {
    "elbo": "elbo",
    "log_likelihood": "log p(x)",
    "reconstruction": "E log p(x|z)",
    "kl": "KL( q(z|x) ‖ p(z) )",
    "bits_per_dimension": "bits per dimension",
    "active_units": "active units",
    "sigma_squared": "sigma² of p(x|z)",
}


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
        *picture_sections(run / "pictures", results),
        _configuration(config),
        page.section("Command", _command(results.get("command") or "")),
        page.section("What to do next", _commands(next_commands(run, config, results, rows))),
        page.pairs("Time", timing),
        page.pairs("Device and versions", device | (results.get("versions") or {})),
    ]
    path = run / "report.html"
    write_text(
        path, page.PAGE.format(name=name, style=page.STYLE, body="\n".join(filter(None, body)))
    )
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


def _command(command: str) -> str:
    spans = " ".join(f"<span>{escape(word)}</span>" for word in command.split())
    return spans and f"<pre>{spans}</pre>"


def _commands(commands: list[tuple[str, str]]) -> str:
    return "".join(f"<p>{escape(what)}:</p>{_command(command)}" for what, command in commands)


def _configuration(config: Mapping[str, Any]) -> str:
    """The flags of a run that differ from their defaults, and all of them folded away."""
    usual = to_json(TrainConfig())
    if config.get("likelihood", usual["likelihood"]) not in LOCATION_SCALE:
        usual["standardize"] = "none"  # what "auto" is for other likelihoods
    changed = {name: value for name, value in config.items() if usual.get(name) != value}
    table = page.table(changed) or "<p>All flags have their defaults.</p>"
    others = f"<details><summary>All {len(config)} flags</summary>{page.table(config)}</details>"
    return page.section("Configuration", f"{table}{others}" if config else "")


def _spaced(name: str) -> str:
    return name.replace("_", " ")


def _timing(name: str, value: Any) -> tuple[str, str]:
    if not isinstance(value, (int, float)):
        return _spaced(name), page.text(value)
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
    return page.section("Final numbers", content if names else "", " ".join(notes))


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
        images.append(page.image(png.getvalue(), alt, "drawn"))
    return page.section("Training curves", f'<div class="curves">{"".join(images)}</div>')
