"""Pure: how a stack grows with its hosts, as an SVG picture. Text, no library: a line for each command, hosts to the right, seconds upwards."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from bench.fleet import VERBS, Fleet, in_one_stack

# Okabe and Ito's colours, which colour-blind people tell apart.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
_WIDTH, _HEIGHT, _LEFT, _TOP, _RIGHT, _BOTTOM = 640, 360, 52, 20, 150, 44
_STEPS = 4


def growth_chart(fleets: Sequence[Fleet]) -> str:
    """The picture; empty where fewer than two sizes were measured."""
    ordered = in_one_stack(fleets)
    if len(ordered) < 2:
        return ""
    most_hosts = ordered[-1].hosts
    most_seconds = max(seconds for one in ordered for seconds in one.seconds.values())

    def x(hosts: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * hosts / most_hosts

    def y(seconds: float) -> float:
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * seconds / most_seconds

    parts = []
    for step in range(_STEPS + 1):
        seconds = most_seconds * step / _STEPS
        parts.append(
            f'<line x1="{_LEFT}" y1="{y(seconds):.1f}" x2="{_WIDTH - _RIGHT}" y2="{y(seconds):.1f}" stroke="#ddd"/>'
            f'<text x="{_LEFT - 6}" y="{y(seconds) + 4:.1f}" text-anchor="end">{seconds:.1f}</text>'
        )
    for one in ordered:
        parts.append(
            f'<text x="{x(one.hosts):.1f}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{one.hosts}</text>'
        )
    parts.append(f'<text x="{x(most_hosts / 2):.1f}" y="{_HEIGHT - 8}" text-anchor="middle">hosts</text>')
    parts.append(f'<text x="{_LEFT}" y="{_TOP - 6}" text-anchor="end">s</text>')
    # A name stands beside its line's end, but never over another name.
    lowest = float(_HEIGHT)
    for (name, title), colour in sorted(
        zip(VERBS.items(), _COLOURS, strict=True), key=lambda item: ordered[-1].seconds[item[0][0]]
    ):
        points = " ".join(f"{x(one.hosts):.1f},{y(one.seconds[name]):.1f}" for one in ordered)
        lowest = min(y(ordered[-1].seconds[name]) + 4, lowest - 15)
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [
            f'<circle cx="{x(one.hosts):.1f}" cy="{y(one.seconds[name]):.1f}" r="3" fill="{colour}"/>'
            for one in ordered
        ]
        label = escape(title.replace("`", ""))
        parts.append(f'<text x="{_WIDTH - _RIGHT + 8}" y="{lowest:.1f}" fill="{colour}">{label}</text>')
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" font-size="12">\n'
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>\n{body}\n</svg>\n'
    )
