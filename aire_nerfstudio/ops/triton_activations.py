"""Sine activations in Triton: values and derivatives from pre-activations, or from what was kept of them.

Kinds are 0 SIREN, 1 FINER, 2 FINER with 1 + |z| a constant in backward, 3 SPDER. Sines are the GPU's special function
of the phase in turns. Rounding is by adding and subtracting a large number: instructions for it have a fraction of an
addition's rate.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Added and subtracted it rounds to whole numbers, whose last bits are then the number's own.
ROUND = tl.constexpr(12582912.0)


@triton.jit
def _probe():
    pass


# Triton's interpreter has no assembly.
_COMPILED = tl.constexpr(isinstance(_probe, triton.JITFunction))


@triton.jit
def turns(angle):
    """An angle in turns, in [-1/2, 1/2]: what is left of the product when whole turns are taken off in one step."""
    # 1 / 2 pi = 0.15915494 (24 bits) and what is left of it.
    whole = (angle * 0.15915493667125702 + ROUND) - ROUND
    return (angle * 0.15915493667125702 - whole) + angle * 6.420638243e-9


@triton.jit
def sine(t):
    """sin(2 pi t) for |t| <= 1/2, absolute error below 1e-6."""
    if _COMPILED:
        return tl.inline_asm_elementwise(
            "sin.approx.ftz.f32 $0, $1;", "=f,f", [t * 6.283185307179586], dtype=tl.float32, is_pure=True, pack=1
        )
    r = tl.where(tl.abs(t) > 0.25, tl.where(t > 0, 0.5, -0.5) - t, t)
    q = r * r
    p = 42.058693944897654 - q * 15.0946425768229
    p = -76.70585975306136 + q * p
    p = 81.60524927607504 + q * p
    p = -41.341702240399755 + q * p
    return r * (6.283185307179586 + q * p)


@triton.jit
def cosine(t):
    """cos(2 pi t) for |t| <= 1/2."""
    if _COMPILED:
        return tl.inline_asm_elementwise(
            "cos.approx.ftz.f32 $0, $1;", "=f,f", [t * 6.283185307179586], dtype=tl.float32, is_pure=True, pack=1
        )
    return sine(0.25 - tl.abs(t))


@triton.jit
def value_and_kept(z, omega, KIND: tl.constexpr):
    """The activation, and what backward needs of z: the phase in turns for SIREN, z itself for the others."""
    if KIND == 0:
        t = turns(omega * z)
        return sine(t), t
    if KIND == 3:
        u = omega * z
        return sine(turns(u)) * tl.sqrt(tl.abs(u)), z
    return sine(turns(omega * (1 + tl.abs(z)) * z)), z


@triton.jit
def value_of(kept, omega, KIND: tl.constexpr):
    """The activation, from what was kept."""
    if KIND == 0:
        return sine(kept)
    value, _ = value_and_kept(kept, omega, KIND)
    return value


@triton.jit
def slope_of(kept, omega, KIND: tl.constexpr):
    """The activation's derivative, from what was kept."""
    if KIND == 0:
        return omega * cosine(kept)
    if KIND == 3:
        u = omega * kept
        is_zero = u == 0
        safe = tl.where(is_zero, 1.0, u)
        root = tl.sqrt(tl.abs(safe))
        t = turns(safe)
        slope = omega * (cosine(t) * root + sine(t) * tl.where(safe > 0, 0.5, -0.5) / root)
        return tl.where(is_zero, 0.0, slope)
    size = tl.abs(kept)
    rate = omega * (1 + size) if KIND == 2 else omega * (1 + 2 * size)
    return rate * cosine(turns(omega * (1 + size) * kept))


@triton.jit
def derivatives_of(kept, omega, KIND: tl.constexpr):
    """SIREN's or FINER's value and first three derivatives, exact, from what was kept; FINER's kink left out."""
    if KIND == 0:
        value = sine(kept)
        slope = omega * cosine(kept)
        bend = -(omega * omega) * value
        third = -(omega * omega) * slope
    else:
        size = tl.abs(kept)
        t = turns(omega * (1 + size) * kept)
        rate = omega * (1 + 2 * size)
        growth = omega * tl.where(kept > 0, 2.0, tl.where(kept < 0, -2.0, 0.0))
        value = sine(t)
        along = cosine(t)
        slope = rate * along
        bend = growth * along - rate * rate * value
        third = -rate * (3 * growth * value + rate * slope)
    return value, slope, bend, third
