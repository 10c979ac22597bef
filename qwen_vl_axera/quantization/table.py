"""A preview for the screen."""

from typing import Any

HEADER = ("setting", "8-bit MACs", "mean", "lowest", "centred", "rel. error", "re-typed", "clipped", "time (est.)")


def table(report: dict[str, Any]) -> str:
    """The figures of `quantization.json`: a row for each setting, then what to know about them."""
    judged = report["evaluation"]
    rows = [HEADER, *(_row(entry) for entry in (report["floor"], *report["settings"]))]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]
    lines.append(
        f"calibrated on {report['calibration']['samples']} samples, judged on {judged['simulated_steps']} steps of "
        f"{', '.join(judged['clips'])}; cosines of merged tokens to the float network"
    )
    lines += [f"found: {entry['finding']}\n  {entry['remedy']}" for entry in report["census"]["findings"]]
    if found := report.get("search"):
        wide = ", ".join(found["wide"]) or "none"
        lines.append(f"mixed: every linear layer at 8 bits, at 16: {wide}")
        if judged := found.get("judged"):
            lines.append(
                f"mixed on {len(judged['clips'])} clips that did not choose it: loss {judged['loss']:.4f}, with other "
                f"clips {judged['low']:.4f} to {judged['high']:.4f} (90 %); the target is {found['target_loss']:g}"
            )
    lines += [f"note: {note}" for note in dict.fromkeys([*report["notes"], *_notes(report)])]
    for entry in report.get("text", ()):
        lines += [entry["prompt"], *(f"  {name:<24} {said['text']}" for name, said in entry["answers"].items())]
    return "\n".join(lines)


def _notes(report: dict[str, Any]) -> list[str]:
    return [f"{entry['name']}: {note}" for entry in report["settings"] for note in entry["notes"]]


def _row(entry: dict[str, Any]) -> tuple[str, ...]:
    time = entry.get("relative_time")
    return (
        entry["name"],
        "" if entry["mac8"] is None else f"{entry['mac8']:.1%}",
        f"{entry['mean_token_cosine']:.5f}",
        f"{entry['min_token_cosine']:.5f}",
        f"{entry['centred_cosine']:.5f}",
        f"{entry['relative_error']:.2e}",
        "" if entry["border_bytes"] is None else f"{entry['border_bytes'] / 1e6:.1f} MB",
        f"{entry['clipped']['share']:.1e}",
        "" if time is None else f"{time[0]:.2f}-{time[1]:.2f}",
    )
