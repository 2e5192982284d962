"""Orthogonal matrices whose entries are all of one size, or nearly: randomized Hadamard matrices.

Multiplying by one spreads every coordinate over all the others, so that none stands out.
Sources: Paley, "On Orthogonal Matrices" (1933), for the constructions; Ashkboos et al., "QuaRot"
(2024, section 3) for random signs.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

SEARCHED = 4096
"""The largest order at which one of Paley's matrices is looked for."""


def randomized_hadamard(size: int, generator: torch.Generator) -> Tensor:
    """A Hadamard matrix over the root of its size, columns with random signs: float64 [n, n].

    Sylvester's matrix of order 2^k times one of Paley's, where orders can be found; else times a
    random orthogonal matrix of the odd rest, and for odd sizes that alone.
    """
    signs = torch.randint(0, 2, (size,), generator=generator).double() * 2 - 1
    rest = size
    core = None
    while core is None:
        core = paley(rest)
        if core is None and rest % 2:
            core = random_orthogonal(rest, generator)
        elif core is None:
            rest //= 2
    double = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64) / math.sqrt(2)
    while len(core) < size:
        core = torch.kron(double, core.contiguous())
    return core * signs


def random_orthogonal(size: int, generator: torch.Generator) -> Tensor:
    """An orthogonal matrix drawn uniformly (Haar): float64 [n, n]."""
    square = torch.randn(size, size, generator=generator, dtype=torch.float64)
    matrix, triangle = torch.linalg.qr(square)
    # Without this, signs would depend on the algorithm (Mezzadri, 2007).
    uniform: Tensor = matrix * triangle.diagonal().sign()
    return uniform


def paley(size: int) -> Tensor | None:
    """A Hadamard matrix of this order over its root, by Paley's constructions; None if not by them.

    The first is of order q + 1 for a prime q = 4n + 3, the second of order 2 (q + 1) for a prime
    q = 4n + 1.
    """
    if size == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    if size > SEARCHED or size % 4:
        return None
    if _is_prime(size - 1):
        skew = _bordered(size - 1)
        skew[1:, 0] = -1
        return (skew + torch.eye(size, dtype=torch.float64)) / math.sqrt(size)
    half = size // 2
    if half % 4 == 2 and _is_prime(half - 1):
        plus = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
        minus = torch.tensor([[1.0, -1.0], [-1.0, -1.0]], dtype=torch.float64)
        one = torch.eye(half, dtype=torch.float64)
        return (torch.kron(_bordered(half - 1), plus) + torch.kron(one, minus)) / math.sqrt(size)
    return None


def _bordered(prime: int) -> Tensor:
    """Legendre symbols of differences, with a border of ones: [q + 1, q + 1], zero diagonal."""
    symbols = torch.full((prime,), -1.0, dtype=torch.float64)
    symbols[torch.arange(1, prime) ** 2 % prime] = 1
    symbols[0] = 0
    index = torch.arange(prime)
    matrix = torch.ones(prime + 1, prime + 1, dtype=torch.float64)
    matrix[0, 0] = 0
    matrix[1:, 1:] = symbols[(index[:, None] - index) % prime]
    return matrix


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, math.isqrt(number) + 1))
