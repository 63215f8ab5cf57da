"""Draw a training's loss: `python -m demo.loss_curve LOG.jsonl... > loss.svg`.

Several logs are of trainings that went on from one another.
"""

import json
import sys
from pathlib import Path

WIDTH, HEIGHT, MARGIN = 720, 320, 44
SMOOTHING = 25  # steps of which the mean is drawn


def curve(*logs: Path) -> str:
    """An SVG of the loss per answer token, over steps; the MTP layer's in a second colour."""
    latest: dict[int, dict[str, float]] = {}
    for log in logs:
        before = max(latest, default=0)
        for line in map(json.loads, log.read_text("utf-8").splitlines()):
            latest[before + line["step"]] = line  # a resumed training repeats a few steps
    series = {
        name: _pieces([(step, line[name]) for step, line in latest.items() if name in line])
        for name in ("loss", "mtp_loss")
    }
    last_step = max(latest)
    highest = max(value for pieces in series.values() for points in pieces for _, value in points)

    def x(step: float) -> float:
        return MARGIN + step / last_step * (WIDTH - 2 * MARGIN)

    def y(value: float) -> float:
        return HEIGHT - MARGIN - value / highest * (HEIGHT - 2 * MARGIN)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    for value in range(int(highest) + 1):
        parts.append(
            f'<line x1="{MARGIN}" x2="{WIDTH - MARGIN}" y1="{y(value):.1f}" y2="{y(value):.1f}" '
            f'stroke="#ddd"/><text x="{MARGIN - 18}" y="{y(value) + 4:.1f}">{value}</text>'
        )
    for quarter in range(5):
        step = last_step * quarter // 4
        parts.append(f'<text x="{x(step) - 12:.1f}" y="{HEIGHT - MARGIN + 18}">{step}</text>')
    labels = {"loss": ("#1f77b4", "next token"), "mtp_loss": ("#d62728", "MTP, the one after")}
    for row, (name, (colour, label)) in enumerate(labels.items()):
        for piece in series[name]:
            points = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in piece)
            parts.append(f'<polyline fill="none" stroke="{colour}" points="{points}"/>')
        parts.append(
            f'<text x="{WIDTH - 200}" y="{MARGIN + 16 * row}" fill="{colour}">{label}</text>'
        )
    parts.append(f'<text x="{MARGIN}" y="20">loss per answer token, by step</text></svg>')
    return "\n".join(parts) + "\n"


def _smooth(points: list[tuple[int, float]]) -> list[tuple[float, float]]:
    groups = [points[i : i + SMOOTHING] for i in range(0, len(points), SMOOTHING)]
    return [
        (sum(step for step, _ in group) / len(group), sum(v for _, v in group) / len(group))
        for group in groups
    ]


def _pieces(points: list[tuple[int, float]]) -> list[list[tuple[float, float]]]:
    """Smooth, and cut where another layer learnt in between."""
    pieces: list[list[tuple[int, float]]] = []
    for step, value in points:
        if not pieces or step > pieces[-1][-1][0] + 1:
            pieces.append([])
        pieces[-1].append((step, value))
    return [_smooth(piece) for piece in pieces]


if __name__ == "__main__":
    sys.stdout.write(curve(*map(Path, sys.argv[1:])))
