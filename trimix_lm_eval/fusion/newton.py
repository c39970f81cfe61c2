"""Newton's method on the negative log-likelihood: the exact best point of the unit square.

The negative log-likelihood of a text is convex in the source weights, and its gradient and Hessian
are moments of the sources' logits under the fused distribution. So a handful of evaluations find
the point that a grid can only come near to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from trimix_lm_eval.fusion.logits import fuse
from trimix_lm_eval.fusion.weights import Weights

#: Relative error of a sum of NLL in fp32.
_ROUNDING = 1e-6


class Moments(NamedTuple):
    """Value and derivatives of a sum of negative log-likelihoods in the source weights.

    Attributes:
        nll: Scalar, natural logarithm.
        gradient: ``[S]``, expected logit minus target's logit, per source.
        hessian: ``[S, S]``, covariance of the sources' logits under the fused distribution.
    """

    nll: Tensor
    gradient: Tensor
    hessian: Tensor

    def plus(self, other: Moments) -> Moments:
        """The moments of both sums together."""
        return Moments(
            self.nll + other.nll, self.gradient + other.gradient, self.hessian + other.hessian
        )

    def times(self, factor: float) -> Moments:
        """The moments of the sum times a number."""
        return Moments(self.nll * factor, self.gradient * factor, self.hessian * factor)


def moments(logits: Sequence[Tensor], targets: Tensor, weights: Tensor) -> Moments:
    """Sum over positions of NLL, gradient and Hessian with respect to the source weights.

    NLL = logsumexp(sum_s w_s L_s) - sum_s w_s L_s[target] is convex in w, with gradient
    E_p[L] - L[target] and Hessian Cov_p(L).

    Args:
        logits: One ``[N, V]`` tensor per source.
        targets: ``[N]`` token ids.
        weights: ``[S]`` source weights.

    Returns:
        The sums, in float64 on the CPU.
    """
    fused = fuse(logits, weights)
    log_z = fused.logsumexp(dim=-1)  # [N]
    p = (fused - log_z.unsqueeze(-1)).exp()  # [N, V]
    picked = [source.gather(-1, targets.unsqueeze(-1)).squeeze(-1) for source in logits]
    # Around each source's own target logit, so that the covariance does not cancel.
    centred = [source - pick.unsqueeze(-1) for source, pick in zip(logits, picked, strict=True)]
    mean = [(p * source).sum(dim=-1) for source in centred]  # S times [N]
    # Around the means, both factors: where the target is improbable one alone would cancel.
    centred = [c - m.unsqueeze(-1) for c, m in zip(centred, mean, strict=True)]
    size = len(logits)
    hessian = torch.zeros(size, size, dtype=torch.float64)
    for i in range(size):
        weighted = p * centred[i]
        for j in range(i, size):
            hessian[i, j] = hessian[j, i] = (weighted * centred[j]).sum(dtype=torch.float64)
    target = sum(w * pick for w, pick in zip(weights.to(log_z), picked, strict=True))
    nll = (log_z - target).sum(dtype=torch.float64).cpu()
    gradient = torch.stack([m.sum(dtype=torch.float64) for m in mean]).cpu()
    return Moments(nll, gradient, hessian)


def minimise(
    objective: Callable[[Tensor], Moments], names: Sequence[str], tolerance: float = 1e-4
) -> Weights:
    """Exact minimum of a convex objective over (alpha, beta) in the unit square.

    Newton steps, projected onto the square and damped as Levenberg and Marquardt do where a full
    step does not help (few tokens, sharp logits: the curvature says nothing of the way ahead). A
    coordinate that sits on its bound with the gradient pointing outwards is held there. Quadratic
    convergence: about five evaluations.

    Args:
        objective: Source weights ``[S]`` to the moments of the NLL.
        names: The sources, in the order of the weights.
        tolerance: Ends when no coordinate moves further than this.

    Returns:
        The optimal point, gamma = alpha.
    """
    origin = torch.tensor(Weights(0.0, 0.0).vector(names), dtype=torch.float64)
    to_weights = torch.stack(  # [S, 2]: d w / d (alpha, beta)
        [
            torch.tensor(Weights(1.0, 0.0).vector(names), dtype=torch.float64) - origin,
            torch.tensor(Weights(0.0, 1.0).vector(names), dtype=torch.float64) - origin,
        ],
        dim=1,
    )
    theta = torch.tensor([0.5, 0.5], dtype=torch.float64)
    here = objective(origin + to_weights @ theta)
    damping = 0.0
    for _ in range(60):
        slope, free = _downhill(theta, to_weights.T @ here.gradient)  # [2]
        length = float(slope.norm())
        if length == 0.0:
            break
        hessian = to_weights.T @ here.hessian @ to_weights  # [2, 2]
        # A damped step is at most 1 / damping long; the rest keeps fp32's noise out of the solve.
        extra = length * (damping + 1e-12) + 1e-6 * float(hessian.trace())
        system = hessian * free[:, None] * free[None, :] + torch.diag(1.0 - free)
        step = -torch.linalg.solve(system + extra * torch.eye(2, dtype=torch.float64), slope)
        candidate = (theta + step).clamp(0.0, 1.0)
        there = objective(origin + to_weights @ candidate)
        moved = float((candidate - theta).abs().max())
        gain = float(here.nll - there.nll)
        left, _ = _downhill(candidate, to_weights.T @ there.gradient)
        # Where the gain drowns in fp32's rounding of the sum, the gradient still tells the way.
        drowned = abs(gain) <= _ROUNDING * float(here.nll.abs())
        better = gain >= -1e-4 * float(slope @ (candidate - theta))
        if better or (drowned and float(left.norm()) < length):
            theta, here = candidate, there
            damping = damping / 8 if damping > 1e-2 else 0.0
        else:
            damping = max(4 * damping, 1.0)
        if moved < tolerance:
            break
    return Weights(float(theta[0]), float(theta[1]))


def _downhill(theta: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient without the coordinates that it holds on a bound, and which are free (1 or 0).

    Args:
        theta: ``[2]`` in the unit square.
        gradient: ``[2]``.
    """
    held = ((theta <= 0) & (gradient > 0)) | ((theta >= 1) & (gradient < 0))
    free = (~held).to(torch.float64)
    return gradient * free, free
