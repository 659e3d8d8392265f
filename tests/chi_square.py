"""The limit of a chi-square test."""

import torch


def chi_square_limit(level: float, degrees: int) -> float:
    """The value a chi-square variable of so many degrees exceeds with probability `level`."""
    low, high = 0.0, 10.0 * degrees + 200
    for _ in range(80):
        middle = (low + high) / 2
        half = torch.tensor([degrees / 2, middle / 2], dtype=torch.float64)
        low, high = (middle, high) if torch.special.gammaincc(half[0], half[1]) > level else (low, middle)
    return high
