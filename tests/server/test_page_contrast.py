"""Text on the page is told from what lies behind it: WCAG 2's contrast of the stylesheet's colours, by its formula."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import elastikv.server.page

CSS = (Path(elastikv.server.page.__file__).parent / "static" / "styles" / "theme.css").read_text()

# Variables of text and of what it stands on, and the lowest ratio that level AA allows (small text).
PAIRS = [
    ("accent-text", "accent"),  # the send button
    ("text", "bg"),
    ("text", "surface"),
    ("text", "sunken"),
    ("text", "accent-soft"),
    ("soft", "bg"),
    ("soft", "surface"),
    ("soft", "sunken"),
    ("accent", "surface"),
    ("danger", "surface"),
    ("danger", "bg"),
    ("accent", "bg"),
    ("code-keyword", "sunken"),
    ("code-string", "sunken"),
    ("code-number", "sunken"),
    ("code-title", "sunken"),
    ("danger", "sunken"),
]
LEAST = 4.5


def colours(scheme: str) -> dict[str, str]:
    """The variables of a scheme."""
    found = re.findall(r"--([\w-]+): light-dark\((#[0-9a-f]{6}), (#[0-9a-f]{6})\);", CSS)
    return {name: dark if scheme == "dark" else light for name, light, dark in found}


def luminance(colour: str, brightness: float = 1.0) -> float:
    channels = [min(int(colour[i : i + 2], 16) / 255 * brightness, 1.0) for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: float, other: float) -> float:
    dark, light = sorted((one, other))
    return (light + 0.05) / (dark + 0.05)


def test_the_formula() -> None:
    assert contrast(luminance("#ffffff"), luminance("#000000")) == pytest.approx(21)
    assert contrast(luminance("#ffffff"), luminance("#777777")) == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("text", "behind"), PAIRS)
def test_text_can_be_read(scheme: str, text: str, behind: str) -> None:
    colour = colours(scheme)
    assert contrast(luminance(colour[text]), luminance(colour[behind])) >= LEAST


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_send_button_can_be_read_under_the_pointer(scheme: str) -> None:
    assert "button.primary { background: var(--accent); border-color: transparent; color: var(--accent-text); }" in CSS
    brightness = float(re.search(r"button\.primary:hover:enabled \{ filter: brightness\(([\d.]+)\)", CSS)[1])  # type: ignore[index]
    colour = colours(scheme)
    shown = [luminance(colour[name], brightness) for name in ("accent-text", "accent")]
    assert contrast(*shown) >= LEAST
