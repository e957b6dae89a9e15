"""Sections of the report with pictures, and with tables of single examples."""

import re
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any

from experiments.record.display import rounded
from experiments.show import page
from experiments.show.saved_results import is_shown

MOST_BYTES = 2**25
"""Largest picture that goes into the page: a run's folder may hold files of any size."""
_KINDS = {
    "samples": (
        "Samples",
        "Decoded from latents drawn from the prior; of a conditional model a row for each label.",
    ),
    "reconstructions": (
        "Reconstructions",
        "Held-out examples, each above its reconstruction by the model.",
    ),
    "worst_reconstructions": ("Worst reconstructions", ""),
    "best_reconstructions": ("Best reconstructions", ""),
    "least_likely": ("Least likely examples", ""),
    "interpolations": (
        "Interpolations",
        "Decoded along a path between the latents of two examples.",
    ),
    "traversals": ("Traversals", "In each row one latent changes and the others are fixed."),
    "latents": ("Latents", "Posterior means in the most active latents."),
    "latent_kl": (
        "KL of each latent",
        "Nats of KL in each latent, largest first; of a feature map, in each channel.",
    ),
    "latent_kl_places": ("KL at each place", "Nats of KL in all channels of a place."),
}
_DIAGRAMS = ("latent_kl", "latents")
"""Pictures on a white ground, whose colours a dark page inverts."""


def picture_sections(folder: Path, results: Mapping[str, Any]) -> Iterable[str]:
    """Format a section per kind of picture, known kinds first; numbered files show the last.

    Args:
        folder: folder of the pictures.
        results: results of the run, whose entry "shown" describes some of them.
    """
    found = [path for path in sorted(folder.glob("*.png")) if path.stat().st_size < MOST_BYTES]
    latest = {re.sub(r"[-_]?\d+$", "", path.stem): path for path in found}
    latest.pop("curves", None)
    shown = results["shown"] if is_shown(results.get("shown")) else {}
    extremes = shown.get("extremes") or {}
    known = [kind for kind in _KINDS if kind in latest or extremes.get(kind)]
    for kind in [*known, *(kind for kind in latest if kind not in known)]:
        title, caption = _KINDS.get(kind, (kind.replace("_", " ").capitalize(), ""))
        entries = extremes.get(kind) or []
        if entries:
            caption = _caption(kind, shown, results)
        if kind == "latents" and shown.get("latents"):
            caption = _about_latents(shown["latents"], shown["split"])
        content = ""
        if kind in latest and not _has_values(entries):
            alt = f"{title}. {caption}" if caption else title
            css_class = "drawn" if kind in _DIAGRAMS else "pixels"
            content = page.image(latest[kind].read_bytes(), alt, css_class)
        yield page.section(title, content + _examples(entries), caption)


def _has_values(entries: list[dict[str, Any]]) -> bool:
    return any("x" in entry for entry in entries)


def _caption(kind: str, shown: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    split = shown["split"]
    samples = ((results.get(split) or {}).get("log_likelihood") or {}).get("num_samples")
    likelihood = f"log p(x) by {samples:,} samples" if samples else "the ELBO"
    which, score = {
        "least_likely": ("least likely", likelihood),
        "worst_reconstructions": ("worst reconstructed", "log p(x|z) at one draw of z"),
        "best_reconstructions": ("best reconstructed", "log p(x|z) at one draw of z"),
    }[kind]
    return (
        f"The {which} examples of the {split} split, the most extreme first, with their index in "
        f"the data and {score}, in nats."
    )


def _about_latents(about: Mapping[str, Any], split: str) -> str:
    names = " and ".join(f"z[{i}]" for i in about["latents"])
    one = len(about["latents"]) == 1
    colours = " Colours are labels." if about["labelled"] else ""
    which = "the only latent" if one else f"the two latents with the largest {about['ranked_by']}"
    return (
        f"Posterior means of {about['num_examples']:,} {split} examples in {names}, {which}."
        f"{colours}"
    )


def _examples(entries: list[dict[str, Any]]) -> str:
    """Format the table of single examples; it is folded away where there is a picture."""
    if not entries:
        return ""
    names = [name for name in ("index", "file", "label") if any(name in e for e in entries)]
    width = max(len(entry.get("x", [])) for entry in entries)
    heads = "".join(f'<th scope="col">{name}</th>' for name in [*names, "score"])
    heads += '<th scope="col"></th>' if width else ""
    heads += "".join(f'<th scope="col" class="number">x[{i}]</th>' for i in range(width))
    lines = "".join(_lines(entry, names) for entry in entries)
    table = (
        f'<div class="wide" tabindex="0"><table><thead><tr>{heads}</tr></thead>'
        f"<tbody>{lines}</tbody></table></div>"
    )
    if not width:
        return f"<details><summary>{len(entries)} examples in a table</summary>{table}</details>"
    columns = max(entry.get("columns", 0) for entry in entries)
    more = f'<p class="faint">The first {width} of {columns:,} values.</p>' * (columns > width)
    return table + more


def _lines(entry: Mapping[str, Any], names: list[str]) -> str:
    """Format an example as a row, or as two if it has a reconstruction."""
    values = {"x": "x", "reconstruction": "mean of p(x|z)"}
    series = [name for name in values if name in entry] or [""]
    span = f' rowspan="{len(series)}"' if len(series) > 1 else ""
    cells = "".join(f"<td{span}>{escape(str(entry.get(name, '')))}</td>" for name in names)
    cells += f'<td{span} class="number">{rounded(entry["score"])[0]}</td>'
    lines = []
    for name in series:
        numbers = "".join(
            f'<td class="number">{"nan" if value is None else format(value, ",.3g")}</td>'
            for value in entry.get(name, [])
        )
        title = f"<td>{values[name]}</td>" if name else ""
        lines.append(f"<tr>{cells}{title}{numbers}</tr>")
        cells = ""
    return "".join(lines)
