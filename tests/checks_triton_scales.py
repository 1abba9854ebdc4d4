"""Scales of float16 numbers: the worst that their bounds allow just fits, with every term and every factor in it.

python checks_triton_scales.py siren|finer cpu|cuda      # cpu: with TRITON_INTERPRET=1
"""

from __future__ import annotations

import torch
from torch import Tensor
from triton_oracle import ACTIVATION, DEVICE, done

from aire_nerfstudio.ops import triton_curvature_kernels as curvature
from aire_nerfstudio.ops import triton_sums as sums

KIND = {"siren": 0, "finer": 1}[ACTIVATION]
OMEGA, BLOCK = 3.0, 64
LARGEST = sums.LARGEST.value


def numbers(count: int) -> tuple[Tensor, float]:
    """So many positive numbers, and the largest of them."""
    found = 0.1 + torch.rand(count, device=DEVICE)
    return found, float(found.max())


def one(value: float) -> Tensor:
    """``[1]``."""
    return torch.tensor([float(value)], device=DEVICE)


def derivatives(size: float) -> tuple[float, float, float]:
    """Bounds of the activation's derivatives where |z| is at most ``size``."""
    if KIND == 0:
        return OMEGA, OMEGA**2, OMEGA**3
    rate, growth = OMEGA * (1 + 2 * size), 2 * OMEGA
    return rate, growth + rate**2, 3 * rate * growth + rate**3


def just_fits(scale: Tensor, worst: float) -> None:
    """The worst of numbers, scaled, is float16's end as we take it."""
    assert abs(float(scale) * worst / LARGEST - 1) < 1e-4, float(scale) * worst / LARGEST


def norms_of_rows() -> None:
    """Of a weight that fills no program's rows or columns."""
    weight = torch.randn(37, 300, device=DEVICE)
    found = weight.new_empty(3)
    sums.row_norms[(3,)](weight, found, *weight.shape, ROWS=sums.NORM_ROWS, COLUMNS=sums.NORM_COLUMNS)
    expected = [float(part.abs().sum(1).max()) for part in weight.split(sums.NORM_ROWS)]
    assert torch.allclose(found.cpu(), torch.tensor(expected))


def of_a_sum() -> None:
    """Value and gradient's dz."""
    (grads, g), (norms, n), (mixed, m), (mixed_norms, k), (sizes, z) = (numbers(c) for c in (70, 3, 5, 65, 9))
    before, scale, other, times, gain = 0.7, 1.3, 0.4, 2.5, 1.9
    slope, bend, _ = derivatives(z)
    for part in ((1, 0), (0, 1), (1, 1)):
        found, factors = one(0), torch.zeros(2, device=DEVICE)
        sums.scale_of_sum[(1,)](
            grads * part[0], 70, norms, 3, one(before), mixed * part[1], 5, mixed_norms, 65, gain, one(scale),
            one(other), one(times), sizes, 9, OMEGA, found, factors, KIND=KIND, BLOCK=BLOCK,
        )  # fmt: skip
        worst = part[0] * g * n / before * slope + part[1] * m * k * gain / scale / other * bend
        just_fits(found, times * worst)
        assert torch.allclose(factors, torch.cat([found / before, found * gain / scale / other]))


def of_a_source() -> None:
    """Mean curvature's T and what it adds to dz, or the last layer's dz and sigmas."""
    (tangents, t), (norms, n), (motions, m), (sizes, z) = (numbers(c) for c in (70, 3, 65, 9))
    before, s_scale, adjoint_scale, last_size = 0.7, 5e3, 2e4, 2.5
    slope, bend, third = derivatives(z)
    s, a = LARGEST / s_scale / slope, LARGEST / adjoint_scale / slope
    for part in ((1, 0), (0, 1), (1, 1)):
        tau, curved = part[0] * t * n / before, part[1] * 2 * m * s**2
        for is_last in (False, True):
            scales = torch.zeros(2, device=DEVICE)
            curvature.source_scales[(1,)](
                tangents * part[0], 70, norms, 3, one(before), motions * part[1], 65, one(s_scale), one(adjoint_scale),
                one(last_size), sizes, 9, OMEGA, scales, KIND=KIND, LAST=is_last, BLOCK=BLOCK,
            )  # fmt: skip
            if is_last:
                just_fits(scales[0], last_size * (tau * bend + curved * third))
                if part[1]:
                    just_fits(scales[1], 2 * m * last_size * bend * s)
            else:
                just_fits(scales[0], tau * slope + curved * bend)
                just_fits(scales[1], a * (tau * bend + curved * third))


def of_a_reverse() -> None:
    """Mean curvature's dz and sigmas."""
    (grads, g), (others, c), (norms, n), (motions, m), (sizes, z) = (numbers(k) for k in (70, 6, 3, 65, 9))
    s_scale, adjoint_scale, mixed_scale = 5e3, 2e4, 3e4
    before = torch.tensor([0.7, 0.3], device=DEVICE)
    slope, bend, _ = derivatives(z)
    s, a = LARGEST / s_scale / slope, LARGEST / adjoint_scale / slope
    for part in ((1, 1), (0, 1), (1, 0)):
        scales = torch.zeros(2, device=DEVICE)
        curvature.reverse_scales[(1,)](
            grads * part[0], 70, others * part[1], 6, norms, 3, before, motions * part[0], 65, one(s_scale),
            one(adjoint_scale), one(mixed_scale), sizes, 9, OMEGA, scales, KIND=KIND, BLOCK=BLOCK,
        )  # fmt: skip
        behind, across = part[0] * g * n / 0.7, part[1] * c * n / 0.3
        just_fits(scales[0], behind * slope + LARGEST / mixed_scale + 2 * bend * s * across)
        just_fits(scales[1], 2 * part[0] * m * a * bend * s + slope * across)


torch.manual_seed(0)
norms_of_rows()
of_a_sum()
of_a_source()
of_a_reverse()
done()
