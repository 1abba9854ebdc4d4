"""Volume rendering of packed samples: compiled on processors and CUDA, in PyTorch elsewhere.

Names follow torch-ngp's ``raymarching``. Derivatives of :func:`composite_rays_train`:

=================  ==============  ================================================================
derivative         compiled        remark
=================  ==============  ================================================================
sigmas, rgbs       yes             of weights, colour, accumulation and depth
starts, ends       by reference    where they ask for it, the whole call is the reference's
second             by reference    with ``create_graph``
=================  ==============  ================================================================
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from aire_nerfstudio.ops.arguments import solid
from aire_nerfstudio.ops.create_graph import gradients_by_reference
from aire_nerfstudio.ops.ray_library import RayLibrary, has_shapes, ray_library
from aire_nerfstudio.ops.ray_marching import Samples
from aire_nerfstudio.shapes import Channels, PerRow


def exclusive_sum(values: Tensor, ray_indices: Tensor) -> Tensor:
    """For each sample the sum of ``values`` over the samples before it on its ray; packed, ``[M] -> [M]``.

    In float64, and of each ray for itself: the difference of two running sums over all rays would have in it what a ray
    before it, opaque or infinite, left of their digits. Sums over 1, 2, 4, ... samples are put together.
    """
    total = values.double()
    reach = 1
    while reach < len(values):
        is_same = ray_indices[reach:] == ray_indices[:-reach]
        # A device would be waited for; there it costs some more rounds.
        if not is_same.is_cuda and not is_same.any():
            break
        total = torch.cat([total[:reach], total[reach:] + torch.where(is_same, total[:-reach], 0)])
        reach *= 2
    before = torch.where(ray_indices[1:] == ray_indices[:-1], total[:-1], 0)
    return torch.cat([torch.zeros_like(total[:1]), before]).to(values.dtype)


def _library(sigmas: Tensor, rgbs: Tensor | None, samples: Samples, *states: Tensor) -> RayLibrary | None:
    """The library, where all is as it takes for granted; ``states [N, ...]`` are changed in place."""
    count = len(sigmas) if sigmas.dim() == 1 else -1
    colours = () if rgbs is None else ((rgbs, (count, rgbs.shape[-1] if rgbs.dim() else 0)),)
    if not has_shapes(*((t, (count,)) for t in (sigmas, *samples)), *colours):
        return None
    if samples.ray_indices.dtype != torch.long or not all(t.is_contiguous() for t in states):
        return None
    return ray_library(sigmas, *([] if rgbs is None else [rgbs]), *samples, *states)


@torch.no_grad()
def visibility(sigmas: PerRow, samples: Samples, depth: Tensor, epsilon: float) -> Tensor:
    """Which samples light reaches: those with a transmittance of more than ``epsilon`` in front of them.

    Args:
        sigmas: densities, ``[M]``, in inverse units of the intervals.
        samples: packed, of ``N`` rays.
        depth: optical depth in front of each ray's first sample, ``[N]``; changed in place to that behind its last.
        epsilon: in (0, 1).

    Returns:
        bool ``[M]``.
    """
    limit = -math.log(epsilon)
    library = _library(sigmas, None, samples, depth)
    if library is not None and depth.dim() == 1:
        reached = torch.empty(len(sigmas), dtype=torch.bool, device=sigmas.device)
        parts = [t.contiguous() for t in (sigmas, *samples)]
        library.call("aire_visibility", len(depth), len(sigmas), *parts, limit, depth, reached)
        return reached
    thickness = sigmas * (samples.ends - samples.starts)
    reached = depth[samples.ray_indices] + exclusive_sum(thickness, samples.ray_indices) < limit
    depth.index_add_(0, samples.ray_indices, thickness)
    return reached


@torch.no_grad()
def early_stop(
    samples: Samples, n_rays: int, density: Callable[[Samples], Tensor], epsilon: float, first_chunk: int = 16
) -> tuple[Tensor, Tensor]:
    """Find the samples that light reaches, evaluating the density front to back and stopping each ray when opaque.

    Args:
        samples: packed, ``M`` of them.
        n_rays: ``N``.
        density: samples ``[m] -> [m]``, in inverse units of the intervals.
        epsilon: a sample counts where the transmittance in front of it is more than this, in (0, 1).
        first_chunk: samples a ray evaluated in the first round; each further round takes twice as many.

    Returns:
        ``index [V]`` of the samples that light reaches, ascending, and their densities ``[V]``.
    """
    indices = samples.ray_indices
    limit = -math.log(epsilon)
    if len(indices) == 0:
        return indices, samples.starts
    # Not bincount, whose length CUDA would be waited for.
    counts = torch.zeros(n_rays, dtype=torch.long, device=indices.device).index_add_(
        0, indices, torch.ones_like(indices)
    )
    offsets = counts.cumsum(0) - counts
    rank = torch.arange(len(indices), device=indices.device) - offsets[indices]
    depth = samples.starts.new_zeros(n_rays)
    is_open = torch.ones(n_rays, dtype=torch.bool, device=indices.device)
    is_reached = torch.zeros_like(indices, dtype=torch.bool)
    densities = torch.zeros_like(samples.starts)
    begin, size = 0, first_chunk
    # One wait for the device a round: how many samples there are to evaluate.
    while len(chosen := ((rank >= begin) & (rank < begin + size) & is_open[indices]).nonzero().squeeze(1)):
        part = samples.select(chosen)
        sigma = density(part)
        is_reached[chosen] = visibility(sigma, part, depth, epsilon)
        densities[chosen] = sigma.to(densities)
        is_open = depth < limit
        begin, size = begin + size, 2 * size
    index = is_reached.nonzero().squeeze(1)
    return index, densities[index]


def composite_rays_train(
    sigmas: PerRow, rgbs: Channels, samples: Samples, n_rays: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Volume rendering of packed samples, without background; differentiable in ``sigmas`` and ``rgbs``.

    Args:
        sigmas: densities, ``[M]``, in inverse units of the intervals.
        rgbs: colours, ``[M, C]``.
        samples: packed; those of ray ``N`` belong to none (:mod:`~aire_nerfstudio.ops.padded_samples`).
        n_rays: ``N``.

    Returns:
        ``weights [M]``, zero where a sample belongs to no ray; colour ``[N, C]`` (premultiplied), accumulation ``[N]``
        in [0, 1], and depth ``[N]``, the sum of weight times middle of the interval (divide by the accumulation for the
        expected distance).
    """
    moves = samples.starts.requires_grad or samples.ends.requires_grad
    if moves or _library(sigmas, rgbs, samples) is None:
        return reference(sigmas, rgbs, samples, n_rays)
    return _Composite.apply(sigmas, rgbs, *samples, n_rays)


def reference(sigmas: Tensor, rgbs: Tensor, samples: Samples, n_rays: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The specification of :func:`composite_rays_train`."""
    thickness = sigmas * (samples.ends - samples.starts)
    weights = torch.exp(-exclusive_sum(thickness, samples.ray_indices)) * -torch.expm1(-thickness)
    middle = 0.5 * (samples.starts + samples.ends)
    weights = torch.where(samples.ray_indices < n_rays, weights, 0)
    colour = rgbs.new_zeros(n_rays + 1, rgbs.shape[-1]).index_add(0, samples.ray_indices, weights[:, None] * rgbs)
    accumulation = weights.new_zeros(n_rays + 1).index_add(0, samples.ray_indices, weights)
    depth = weights.new_zeros(n_rays + 1).index_add(0, samples.ray_indices, weights * middle)
    return weights, colour[:n_rays], accumulation[:n_rays], depth[:n_rays]


class _Composite(torch.autograd.Function):
    """One pass along each ray forward, and one back."""

    @staticmethod
    def forward(
        ctx: Any, sigmas: Tensor, rgbs: Tensor, starts: Tensor, ends: Tensor, ray_indices: Tensor, n_rays: int
    ) -> tuple[Tensor, ...]:
        parts = [solid(t) for t in (sigmas, rgbs, starts, ends, ray_indices)]
        library = ray_library(*parts)
        assert library is not None
        # Zero where no ray passes.
        weights = torch.zeros_like(parts[0])
        colour = weights.new_zeros(n_rays, rgbs.shape[-1])
        thickness, accumulation, depth = (weights.new_zeros(n_rays) for _ in range(3))
        sizes = (n_rays, len(weights), rgbs.shape[-1])
        library.call("aire_composite", *sizes, *parts, thickness, weights, colour, accumulation, depth)
        ctx.library, ctx.sizes = library, sizes
        ctx.set_materialize_grads(False)  # a loss of colours asks nothing of each sample
        ctx.save_for_backward(sigmas, rgbs, *parts, weights)
        return weights, colour, accumulation, depth

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        sigmas, rgbs, *parts, weights = ctx.saved_tensors
        if torch.is_grad_enabled():

            def outputs(sigmas: Tensor, rgbs: Tensor) -> tuple[Tensor, ...]:
                return reference(sigmas, rgbs, Samples(*parts[2:]), ctx.sizes[0])

            found = gradients_by_reference(outputs, (sigmas, rgbs), ctx.needs_input_grad[:2], grads)
            return *found, None, None, None, None
        d_sigmas, d_rgbs = torch.zeros_like(parts[0]), torch.zeros_like(parts[1])
        rays, _, channels = ctx.sizes
        sizes = ((rays, channels), rays, rays)
        given = [None if grads[0] is None else solid(grads[0])]
        given += [weights.new_zeros(size) if g is None else solid(g) for g, size in zip(grads[1:], sizes, strict=True)]
        ctx.library.call("aire_composite_backward", *ctx.sizes, *parts, weights, *given, d_sigmas, d_rgbs)
        return d_sigmas, d_rgbs, None, None, None, None


class Rendered(NamedTuple):
    """What rendering front to back has gathered so far on each ray.

    Attributes:
        thickness: optical depth passed, ``[N]``.
        colour: premultiplied, ``[N, C]``.
        accumulation: opacity, ``[N]`` in [0, 1].
        depth: sum of weight times middle of the interval, ``[N]``.
    """

    thickness: Tensor
    colour: Tensor
    accumulation: Tensor
    depth: Tensor

    @classmethod
    def nothing(cls, n_rays: int, channels: int, like: Tensor) -> Rendered:
        """Before the first sample; type and device of ``like``."""
        single = [like.new_zeros(n_rays) for _ in range(3)]
        return cls(single[0], like.new_zeros(n_rays, channels), single[1], single[2])


@torch.no_grad()
def composite_rays(sigmas: Tensor, rgbs: Tensor, samples: Samples, rendered: Rendered) -> Tensor:
    """Add the next samples of each ray to what was rendered, in place; returns their weights ``[M]``.

    Args:
        sigmas: densities, ``[M]``, in inverse units of the intervals.
        rgbs: colours, ``[M, C]``.
        samples: packed, behind all that were added before.
        rendered: of ``N`` rays.
    """
    library = _library(sigmas, rgbs, samples, *rendered)
    rays, channels = len(rendered.thickness), rgbs.shape[-1]
    single = ((t, (rays,)) for t in (rendered.thickness, rendered.accumulation, rendered.depth))
    if library is not None and has_shapes(*single, (rendered.colour, (rays, channels))):
        weights = torch.empty_like(sigmas, memory_format=torch.contiguous_format)
        parts = [t.contiguous() for t in (sigmas, rgbs, *samples)]
        sizes = (rays, len(sigmas), channels)
        thickness, colour, accumulation, depth = rendered
        library.call("aire_composite", *sizes, *parts, thickness, weights, colour, accumulation, depth)
        return weights
    indices = samples.ray_indices
    here = sigmas * (samples.ends - samples.starts)
    weights = torch.exp(-rendered.thickness[indices] - exclusive_sum(here, indices)) * -torch.expm1(-here)
    rendered.thickness.index_add_(0, indices, here)
    rendered.colour.index_add_(0, indices, weights[:, None] * rgbs)
    rendered.accumulation.index_add_(0, indices, weights)
    rendered.depth.index_add_(0, indices, weights * 0.5 * (samples.starts + samples.ends))
    return weights
