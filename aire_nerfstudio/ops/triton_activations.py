"""Sine activations in Triton: values and derivatives from pre-activations, or from what was kept of them.

Kinds are 0 SIREN, 1 FINER, 2 FINER with 1 + |z| a constant in backward, 3 SPDER. Sines are the GPU's special function
of an angle within a turn. Rounding is by adding and subtracting a large number: instructions for it have a fraction of
an addition's rate.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Added and subtracted it rounds to whole numbers, whose last bits are then the number's own.
ROUND = tl.constexpr(12582912.0)
TURN = tl.constexpr(6.283185307179586)


@triton.jit
def _probe():
    pass


# Triton's interpreter has no assembly.
_COMPILED = tl.constexpr(isinstance(_probe, triton.JITFunction))


@triton.jit
def without_turns(turns):
    """What is left of a number of turns, in [-1/2, 1/2]."""
    return turns - ((turns + ROUND) - ROUND)


@triton.jit
def without_whole_turns(angle):
    """What is left of an angle in radians, of products too large for their rounding: whole turns go in one step."""
    # 1 / 2 pi = 0.15915494 (24 bits) and what is left of it.
    whole = (angle * 0.15915493667125702 + ROUND) - ROUND
    return ((angle * 0.15915493667125702 - whole) + angle * 6.420638243e-9) * TURN


@triton.jit
def sine(angle):
    """sin(angle) for |angle| <= pi, absolute error below 1e-6."""
    if _COMPILED:
        return tl.inline_asm_elementwise(
            "sin.approx.ftz.f32 $0, $1;", "=f,f", [angle], dtype=tl.float32, is_pure=True, pack=1
        )
    r = tl.where(tl.abs(angle) > TURN / 4, tl.where(angle > 0, TURN / 2, -TURN / 2) - angle, angle) * (1 / TURN)
    q = r * r
    p = 42.058693944897654 - q * 15.0946425768229
    p = -76.70585975306136 + q * p
    p = 81.60524927607504 + q * p
    p = -41.341702240399755 + q * p
    return r * (6.283185307179586 + q * p)


@triton.jit
def cosine(angle):
    """cos(angle) for |angle| <= pi."""
    if _COMPILED:
        return tl.inline_asm_elementwise(
            "cos.approx.ftz.f32 $0, $1;", "=f,f", [angle], dtype=tl.float32, is_pure=True, pack=1
        )
    return sine(TURN / 4 - tl.abs(angle))


@triton.jit
def kept_of(z, bias, omega, KIND: tl.constexpr):
    """What backward needs of z + bias: the angle without whole turns (SIREN) or the sum itself.

    A number is multiplied once: what w0 and 1 / 2 pi are together rounds as their product would.
    """
    if KIND == 0:
        rate = omega * (1 / TURN)
        found = without_turns(z * rate + bias * rate) * TURN
    else:
        found = z + bias
    return found


@triton.jit
def stored(kept, KIND: tl.constexpr):
    """What was kept as it is stored: 16 bits of an angle, of which a full turn is 2^16 and half of one minus half."""
    found = (kept * (65536.0 / TURN) + ROUND).to(tl.int32, bitcast=True).to(tl.int16) if KIND == 0 else kept
    return found


@triton.jit
def loaded(kept, KIND: tl.constexpr):
    """The same backwards."""
    return kept.to(tl.float32) * (TURN / 65536.0) if KIND == 0 else kept


@triton.jit
def value_of(kept, omega, KIND: tl.constexpr):
    """The activation, from what was kept."""
    if KIND == 0:
        return sine(kept)
    if KIND == 3:
        u = omega * kept
        return sine(without_whole_turns(u)) * tl.sqrt(tl.abs(u))
    return sine(without_whole_turns(omega * (1 + tl.abs(kept)) * kept))


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
        t = without_whole_turns(safe)
        slope = omega * (cosine(t) * root + sine(t) * tl.where(safe > 0, 0.5, -0.5) / root)
        return tl.where(is_zero, 0.0, slope)
    size = tl.abs(kept)
    rate = omega * (1 + size) if KIND == 2 else omega * (1 + 2 * size)
    return rate * cosine(without_whole_turns(omega * (1 + size) * kept))


@triton.jit
def slope_times(kept, omega, gain, KIND: tl.constexpr):
    """The activation's derivative times a number, which for SIREN costs nothing."""
    if KIND == 0:
        return cosine(kept) * (omega * gain)
    return slope_of(kept, omega, KIND) * gain


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
        t = without_whole_turns(omega * (1 + size) * kept)
        rate = omega * (1 + 2 * size)
        growth = omega * tl.where(kept > 0, 2.0, tl.where(kept < 0, -2.0, 0.0))
        value = sine(t)
        along = cosine(t)
        slope = rate * along
        bend = growth * along - rate * rate * value
        third = -rate * (3 * growth * value + rate * slope)
    return value, slope, bend, third
