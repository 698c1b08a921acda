"""How different colours look, also to people with a colour vision deficiency; formulas and constants as published."""

import numpy as np

# Machado, Oliveira and Fernandes 2009, severity 1.0, on linear RGB.
VISION = {
    "normal": np.eye(3),
    "protanopia": np.array([
        [0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998],
    ]),
    "deuteranopia": np.array([
        [0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881],
    ]),
    "tritanopia": np.array([
        [1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900],
    ]),
}  # fmt: skip

OKABE_ITO = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")
"""The palette of eight that is usual where colour-blind people are to see it (Okabe and Ito 2002)."""

_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
_WHITE = np.array([0.95047, 1.0, 1.08883])


def contrast(one: str, other: str) -> float:
    """The contrast ratio of WCAG 2, from 1 to 21."""
    dark, light = sorted(_linear(colour) @ _XYZ[1] for colour in (one, other))
    return (light + 0.05) / (dark + 0.05)


def least_difference(colours: tuple[str, ...], vision: str) -> float:
    """CIEDE2000 of the two colours that look most alike."""
    seen = [_lab(VISION[vision] @ _linear(colour)) for colour in colours]
    return min(ciede2000(one, other) for i, one in enumerate(seen) for other in seen[:i])


def _linear(colour: str) -> np.ndarray:
    srgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def _lab(linear: np.ndarray) -> tuple[float, float, float]:
    t = _XYZ @ np.clip(linear, 0, 1) / _WHITE
    x, y, z = np.where(t > (6 / 29) ** 3, np.cbrt(t), t / (3 * (6 / 29) ** 2) + 4 / 29)
    return float(116 * y - 16), float(500 * (x - y)), float(200 * (y - z))


def ciede2000(one: tuple[float, float, float], other: tuple[float, float, float]) -> float:
    """The difference of two colours in CIELAB; 1 is just noticeable. Notation of Sharma, Wu and Dalal 2005."""
    lightness = np.array([one[0], other[0]])
    a, b = np.array([one[1], other[1]]), np.array([one[2], other[2]])
    g = 0.5 * (1 - _at_25(np.hypot(a, b).mean()))
    a = a * (1 + g)
    chroma, hue = np.hypot(a, b), np.degrees(np.arctan2(b, a)) % 360
    turn = (hue[1] - hue[0] + 180) % 360 - 180
    d_hue = 2 * np.sqrt(chroma.prod()) * np.sin(np.radians(turn / 2))
    mean_l, mean_c = lightness.mean(), chroma.mean()
    # Halfway along the shorter arc; of a grey the hue is nothing, and the other one counts.
    mean_h = hue[0] + turn / 2 if chroma.prod() else hue.sum()
    t = (
        1
        - 0.17 * np.cos(np.radians(mean_h - 30))
        + 0.24 * np.cos(np.radians(2 * mean_h))
        + 0.32 * np.cos(np.radians(3 * mean_h + 6))
        - 0.20 * np.cos(np.radians(4 * mean_h - 63))
    )
    s_l = 1 + 0.015 * (mean_l - 50) ** 2 / np.sqrt(20 + (mean_l - 50) ** 2)
    l_term = (lightness[1] - lightness[0]) / s_l
    c_term = (chroma[1] - chroma[0]) / (1 + 0.045 * mean_c)
    h_term = d_hue / (1 + 0.015 * mean_c * t)
    rotation = 60 * np.exp(-((((mean_h % 360) - 275) / 25) ** 2))
    r_t = -2 * _at_25(mean_c) * np.sin(np.radians(rotation))
    return float(np.sqrt(l_term**2 + c_term**2 + h_term**2 + r_t * c_term * h_term))


def _at_25(chroma: float) -> float:
    return float(np.sqrt(chroma**7 / (chroma**7 + 25.0**7)))
