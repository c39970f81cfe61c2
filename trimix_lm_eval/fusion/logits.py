"""The mathematics of TriMix: pure tensors, no models.

Every function takes the sources' logits as a list of ``[N, V]`` tensors, one per source in one
fixed order, and works in fp32 (invariant 3): N positions, V tokens of the tokenizer's vocabulary.

    L = L_sb + alpha (L_li - L_lb) + beta (L_sc - L_sb) + gamma (L_lb - L_sb)

(Zhang et al., ACL 2026, "Efficient Low-Resource Language Adaptation via Multi-Source Dynamic Logit
Fusion"). With gamma = alpha, large_base cancels and three models are enough. Raw logits are
combined: each source's normaliser is a constant per position and drops out of the softmax.

All points of a grid at once need far fewer exponentials than point by point. With three sources the
fused logits are L_sb + alpha (L_li - L_sb) + beta (L_sc - L_sb), so the normaliser of a token falls
apart into factors that belong to alpha and factors that belong to beta:

    Z(alpha, beta) = sum_v exp(L_sb + alpha (L_li - L_sb))_v * exp(beta (L_sc - L_sb))_v

Six values of each make 36 points from 12 exponentials per vocabulary entry and one product of a
``[6, V]`` with a ``[V, 6]`` matrix, in place of 36 passes with an exponential each. Where the
logits span no more than fp32 can hold, each exponential is the one before times a factor, so that
six are computed instead of twelve. Where a sum comes out so small that terms which count may have
become zero, the points are computed one by one. To know of either the host looks at results, which
on a GPU would mean to wait for it: there all factors are exponentials in fp64, which holds any.

Longer than most modules, since one point and many points are one equation: a reader of either
wants the other beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from trimix_lm_eval.fusion.weights import PRIOR, Weights

#: Rows and vocabulary entries worked on at a time: the factors of a block fit into a CPU's cache.
#: Of a smaller vocabulary there are more rows, or the calls would take longer than the arithmetic.
_ROWS, _BLOCK = 8, 16384
#: Bytes that what is made of logits may take at a time, besides them; and attention, before them.
WORK_BYTES = 256 * 2**20
#: Of these, what it may take in any case; it is 8 times the logits of a source, if that is more.
_LEAST_WORK = 16 * 2**20
#: More pairs of weights than this times the points are not worth their products.
_SPARSE = 16
#: Columns side by side in which a CPU finds the extremes of a row.
_LANES = 64
#: exp of less is no normal number, in fp32 and in fp64: slow to multiply with, and soon zero.
_SMALLEST, _SMALLEST_FP64 = -87.0, -700.0
#: Where no source's logits span more than this, no factor is below exp(_SMALLEST), and a sum over
#: the vocabulary cannot overflow.
_SPAN = 72.0
#: Sums above exp(this) have lost less than 1e-6 of themselves to terms that became zero.
_RELIABLE = -55.0
#: Weights that differ by less are the same: times `_SPAN` that is what fp32 rounds off anyway.
_SAME = 1e-7
#: So many exponentials are made each from the one before; then rounding starts anew.
_CHAIN = 16


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Send a tensor of the CPU to a device without waiting: by pinned memory, if that is a GPU."""
    if device.type == "cpu" or tensor.device.type != "cpu":
        return tensor.to(device, non_blocking=True)
    return tensor.pin_memory().to(device, non_blocking=True)


def fuse(logits: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Combine the sources' logits.

    Args:
        logits: One ``[N, V]`` tensor per source, fp32.
        weights: ``[N, S]`` (a row of source weights per position) or ``[S]``.

    Returns:
        ``[N, V]`` fused logits, unnormalised.
    """
    weights = weights.to(logits[0].dtype)
    if weights.dim() == 1:
        weights = weights.expand(logits[0].shape[0], -1)
    fused = logits[0] * weights[:, 0, None]  # [N, V]
    for source, source_logits in enumerate(logits[1:], start=1):
        fused.addcmul_(source_logits, weights[:, source, None])
    return fused


def pair_weights(second: Tensor, names: Sequence[str], pair: tuple[str, str]) -> Tensor:
    """Source weights ``[N, S]`` of two sources: those of the second, and what they leave the first.

    Args:
        second: ``[N]`` weights of the second.
        names: The S sources.
        pair: The two of them.
    """
    weights = second.new_zeros(len(second), len(names))
    weights[:, names.index(pair[1])] = second
    weights[:, names.index(pair[0])] = 1.0 - second
    return weights


def plausible(fused: Tensor, reference: Tensor, a: float) -> Tensor:
    """Keep the tokens that a reference source finds plausible, set all others to minus infinity.

    Args:
        fused: ``[N, V]`` fused logits; changed in place.
        reference: ``[N, V]`` logits of the source that decides.
        a: Keeps logit > max + ln(a), i.e. at least a times the best token's probability
            (Li et al. 2023, "Contrastive Decoding", equation 2).

    Returns:
        ``fused``.
    """
    below = reference - reference.amax(dim=-1, keepdim=True)  # exactly 0 at the best token
    return fused.masked_fill_(below <= math.log(a), -torch.inf)


def log_prob(fused: Tensor, targets: Tensor) -> Tensor:
    """Log-probability of the target tokens: gather minus logsumexp, so no ``[N, V]`` copy.

    Args:
        fused: ``[N, V]`` logits.
        targets: ``[N]`` token ids.

    Returns:
        ``[N]`` natural-log probabilities.
    """
    chosen = fused.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    return chosen - fused.logsumexp(dim=-1)


def grid_nll_one_by_one(logits: Sequence[Tensor], targets: Tensor, points: Tensor) -> Tensor:
    """Negative log-likelihood of each target under each point.

    Args:
        logits: One ``[N, V]`` tensor per source.
        targets: ``[N]`` token ids.
        points: ``[P, S]`` source weights, on any device.

    Returns:
        ``[P, N]``, natural logarithm.
    """
    points = to_device(points, logits[0].device)
    return torch.stack([-log_prob(fuse(logits, point), targets) for point in points])


def grid_entropy(logits: Sequence[Tensor], points: Tensor) -> Tensor:
    """Entropy of the fused next-token distribution under each point.

    Args:
        logits: One ``[N, V]`` tensor per source.
        points: ``[P, S]`` source weights, on any device.

    Returns:
        ``[P, N]`` in nats.
    """
    rows = []
    for point in to_device(points, logits[0].device):
        log_p = fuse(logits, point).log_softmax(dim=-1)  # [N, V]
        rows.append(-(log_p.exp() * log_p).sum(dim=-1))
    return torch.stack(rows)


def best_point(nll: Tensor, count: int, points: Sequence[Weights]) -> int:
    """Index of the point with the lowest mean NLL.

    Differences below 1e-6 nats per token are rounding, not evidence: among such points the first
    wins, so that chunking and batching cannot flip a tie. With nothing to judge by, the point
    nearest to `PRIOR` is taken.

    Args:
        nll: ``[P]`` sums of NLL.
        count: Number of tokens in the sums.
        points: The P points.
    """
    if count == 0:
        return min(
            range(len(points)),
            key=lambda i: abs(points[i].alpha - PRIOR.alpha) + abs(points[i].beta - PRIOR.beta),
        )
    mean = nll.double() / count
    return int((mean <= mean.min() + 1e-6).to(torch.uint8).argmax())


def grid_nll(logits: Sequence[Tensor], targets: Tensor, points: Tensor) -> Tensor:
    """Negative log-likelihood of each target under each point.

    Args:
        logits: One ``[N, V]`` tensor per source, fp32.
        targets: ``[N]`` token ids.
        points: ``[P, S]`` source weights, each row of sum 1; on the CPU, or a GPU is waited for.

    Returns:
        ``[P, N]``, natural logarithm; what `grid_nll_one_by_one` gives, up to rounding.
    """
    if len(logits) != 3 or len(points) < 4 or not len(targets):
        return grid_nll_one_by_one(logits, targets, points)
    work = _Workspace(logits[0], points)
    points, rows = to_device(points, logits[0].device), work.rows
    # Factors may be beyond any number; and most pairs of axes may be no point.
    unfit = not work.on_cpu and not work.in_unit_box
    if unfit or len(work.alphas) * len(work.betas) > _SPARSE * len(points):
        return grid_nll_one_by_one(logits, targets, points)
    parts = []
    for start in range(0, len(targets), rows):
        part = [source[start : start + rows] for source in logits]
        target = targets[start : start + rows]
        nll = _factored(part, target, points, work)
        parts.append(grid_nll_one_by_one(part, target, points) if nll is None else nll)
    return torch.cat(parts, dim=1)


def grid_greedy(logits: Sequence[Tensor], targets: Tensor, points: Tensor) -> Tensor:
    """Whether each target is the most probable token under each point.

    Fused logits are affine in the weights. So a token that is the best at all corners of a box is
    the best at every point inside it, and the favourites of the corners are rivals that refute
    most of the others at a glance. What is left is looked up in the whole vocabulary.

    Args:
        logits: One ``[N, V]`` tensor per source.
        targets: ``[N]`` token ids.
        points: ``[P, S]`` source weights, each row of sum 1, on the CPU. A GPU is waited for once.

    Returns:
        ``[P, N]``; of tokens with equal logits the first one is the best.
    """
    corners, points = (to_device(x, logits[0].device) for x in (_corners(points), points))
    if len(corners) >= len(points):
        return torch.stack([fuse(logits, p).argmax(dim=-1) == targets for p in points])
    best = torch.stack([fuse(logits, corner).argmax(dim=-1) for corner in corners])  # [C, N]
    rivals = torch.cat([targets[None], best])  # [C + 1, N]
    picked = torch.stack([source.gather(1, rivals.T) for source in logits], dim=-1)  # [N, C + 1, S]
    values = picked @ points.to(picked).T  # [N, C + 1, P]
    beaten = (values[:, 1:] > values[:, :1]).any(dim=1).T  # [P, N]
    sure = (best == targets).all(dim=0)  # [N]
    greedy = sure.expand(len(points), -1).clone()
    for p, open_ in enumerate((~beaten & ~sure).cpu()):
        if bool(open_.any()):
            at = to_device(open_.nonzero()[:, 0], targets.device)
            fused = fuse([source[at] for source in logits], points[p])
            greedy[p, at] = fused.argmax(dim=-1) == targets[at]
    return greedy


def _corners(points: Tensor) -> Tensor:
    """``[C, S]`` the corners of the smallest box around points whose weights sum to 1."""
    axes = [x.unique()[[0, -1]].unique() for x in points[:, :-1].T]
    free = torch.cartesian_prod(*axes).reshape(-1, len(axes))
    return torch.cat([free, 1 - free.sum(dim=1, keepdim=True)], dim=1)


class _Workspace:
    """The axes of a grid, and memory for the factors of one block of logits.

    The memory is made once for many blocks. Handed back and asked for again block by block, it
    would come as pages that the system has to clear first, which takes as long as the arithmetic.

    Args:
        like: ``[N, V]`` logits.
        points: ``[P, 3]``, on the CPU.

    Attributes:
        rows: Positions in a block, at most.
    """

    def __init__(self, like: Tensor, points: Tensor) -> None:
        device = like.device
        self.on_cpu = device.type == "cpu"
        first, of_first = torch.unique(points[:, 0], return_inverse=True)  # ascending
        second, of_second = torch.unique(points[:, 1], return_inverse=True)
        self.alphas, self.betas = first.tolist(), second.tolist()
        self.second, self.of_first, self.of_second = (
            to_device(x, device) for x in (second, of_first, of_second)
        )
        self.in_unit_box = bool((points[:, :2].amin() >= 0) & (points[:, :2].amax() <= 1))
        kind = like.dtype if self.on_cpu else torch.float64
        # A quarter at most for the sums of all pairs of weights, the rest for factors: on a CPU for
        # twice as many, since the steps from each to the next may all differ.
        room = max(min(WORK_BYTES, 8 * like.nbytes), _LEAST_WORK) // kind.itemsize
        pairs, columns = len(self.alphas) * len(self.betas), len(self.alphas) + len(self.betas)
        fitting = max(_ROWS, _ROWS * _BLOCK // like.shape[1]) if self.on_cpu else len(like)
        most = min(fitting, len(like))
        self.rows = rows = max(1, min(most, room // (12 * pairs)))
        tensors = (2 if self.on_cpu else 1) * columns + 4
        most = min(_BLOCK, like.shape[1]) if self.on_cpu else like.shape[1]
        self.block = max(1, min(most, (room - 3 * rows * pairs) // (rows * tensors)))
        self.smallest = _SMALLEST if self.on_cpu else _SMALLEST_FP64
        self.large, self.cpt, self.base, self.scaled = (
            like.new_empty(rows, self.block, dtype=kind) for _ in range(4)
        )
        self.a = like.new_empty(rows, len(self.alphas), self.block, dtype=kind)
        self.b = like.new_empty(rows, len(self.betas), self.block, dtype=kind)
        self.factors: dict[float, Tensor] = {}


def _factored(
    logits: Sequence[Tensor], targets: Tensor, points: Tensor, work: _Workspace
) -> Tensor | None:
    """`grid_nll_one_by_one` by factors; None if fp32 cannot hold them.

    Args:
        logits: ``[n, V]`` of three sources.
        targets: ``[n]``.
        points: ``[P, 3]``.
        work: For blocks of at least n rows.

    Returns:
        ``[P, n]``
    """
    # From here on each source's highest logit is 0: shifts leave the distribution as it is.
    low = torch.stack([_extreme(x, torch.amin) for x in logits]) if work.on_cpu else None  # [3, n]
    top = torch.stack([_extreme(x, torch.amax) for x in logits])
    chained = low is not None and work.in_unit_box and bool((top - low).amax() < _SPAN)
    tops = top[:, :, None]  # [3, n, 1]
    lift = torch.zeros_like(top[0]) if chained else _highest_ratio(logits, tops)  # [n]
    total = work.a.new_zeros(len(targets), len(work.alphas), len(work.betas))
    width = logits[0].shape[1]
    for at in range(0, width, work.block):
        sources = [x[:, at : at + work.block] for x in logits]
        n, v = sources[0].shape
        large, cpt, base = (
            torch.sub(x, t, out=memory[:n, :v])
            for x, t, memory in zip(sources, tops, (work.large, work.cpt, work.base), strict=True)
        )
        large.sub_(base)
        cpt.sub_(base).sub_(lift[:, None])
        a = _exponentials(large, work.alphas, base, chained, work, work.a[:n, :, :v])  # [n, A, v]
        b = _exponentials(cpt, work.betas, None, chained, work, work.b[:n, :, :v])
        total.baddbmm_(a, b.mT)
    log_z = total.log()  # [n, A, B]
    if work.on_cpu and not bool((log_z.amin() > _RELIABLE) & log_z.isfinite().all()):
        return None
    log_z = (log_z + lift[:, None, None] * work.second).to(lift.dtype)
    picked = torch.stack([x.gather(1, targets[:, None])[:, 0] for x in logits]) - top  # [3, n]
    return log_z[:, work.of_first, work.of_second].T - points.to(picked) @ picked


def _extreme(x: Tensor, of: Callable[..., Tensor]) -> Tensor:
    """`of` (amin or amax) over the rows of ``[n, V]``.

    Over columns first: along a row, a CPU compares one number after the other.
    """
    whole = x.shape[1] // _LANES * _LANES
    if not whole:
        return of(x, 1)
    lanes = of(of(x[:, :whole].unflatten(1, (-1, _LANES)), 1), 1)  # [n, V / 64, 64] -> [n]
    rest = x[:, whole:]
    return of(torch.stack([lanes, of(rest, 1)]), 0) if rest.shape[1] else lanes


def _highest_ratio(logits: Sequence[Tensor], tops: Tensor) -> Tensor:
    """The highest log-odds of the second source against the third, ``[n]``."""
    return _extreme((logits[1] - tops[1]) - (logits[2] - tops[2]), torch.amax)


def _exponentials(
    step: Tensor,
    weights: list[float],
    base: Tensor | None,
    chained: bool,
    work: _Workspace,
    out: Tensor,
) -> Tensor:
    """exp(base + weight * step) for every weight.

    Args:
        step: ``[n, v]``.
        weights: K of them, ascending.
        base: ``[n, v]``, or None for 0.
        chained: Whether to make each from the one before, by a multiplication.
        work: Where other intermediate results go.
        out: ``[n, K, v]``, written to.

    Returns:
        ``out``
    """
    n, v = step.shape
    made: dict[float, Tensor] = {}
    reached = 0.0  # the weight that the last column stands for, which chaining must not let drift
    for i, weight in enumerate(weights):
        if chained and i % _CHAIN:
            near = (gap for gap in made if abs(reached + gap - weight) < _SAME)
            gap = next(near, weight - reached)
            if gap not in made:
                if gap not in work.factors:
                    work.factors[gap] = torch.empty_like(work.scaled)
                made[gap] = torch.mul(step, gap, out=work.factors[gap][:n, :v]).exp_()
            torch.mul(out[:, i - 1], made[gap], out=out[:, i])
            reached += gap
            continue
        scaled = work.scaled[:n, :v]
        if base is None:
            torch.mul(step, weight, out=scaled)
        else:
            torch.add(base, step, alpha=weight, out=scaled)
        torch.exp(scaled if chained else scaled.clamp_min_(work.smallest), out=out[:, i])
        reached = weight
    return out
