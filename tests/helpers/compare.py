"""One comparator for losses and gradients, tested in test_compare.py.

Truth is float64. An entry may be off by bound * scale + factor * (largest error of the eager reference in the
same dtype), scale being the largest |truth|; caps on relative L2 (and so the angle), size and signed bias catch
what an elementwise bound hides, above all a gradient that is a little too large everywhere.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Bound(NamedTuple):
    loss: float  # of the largest entry, added to factor * (error of eager)
    gradient: float
    factor: float
    never: float  # of the largest entry, whatever eager does


# The numerics contract. The eager part counts only where the caller gives eager's result.
BOUNDS = {
    torch.float64: Bound(1e-12, 1e-12, 2, 1e-6),
    torch.float32: Bound(2e-6, 5e-6, 2, 1e-2),
    torch.bfloat16: Bound(1e-4, 1e-4, 1, 1e-2),
    torch.float16: Bound(1e-4, 1e-4, 1, 1e-2),
}


def _wide(x) -> Tensor:
    return torch.as_tensor(x).detach().to("cpu", torch.float64)


def assert_close(
    got: Tensor,
    truth,
    dtype: torch.dtype,
    kind: str,
    eager: Tensor | None = None,
    scale: float = 0.0,
    name: str = "",
    roundoff: float = 0.0,
) -> None:
    """Raises AssertionError with the worst entry where `got` is further from `truth` than its bound.

    got, truth: the same shape; NaN must lie at the same places, and so must Inf, with its sign.
    dtype: of the inputs. kind: "loss" or "gradient". eager: the reference's result in `dtype`.
    scale: least scale, for a truth that cancels to nearly 0.
    roundoff: of the dtype that the eager code computes in: its error counts as one rounding at least.
    """
    got, truth = _wide(got), _wide(truth)
    name = name or kind
    assert got.shape == truth.shape, f"{name}: shape {tuple(got.shape)}, expected {tuple(truth.shape)}"
    finite = truth.isfinite()
    for kind_of_value in (torch.isnan, torch.isposinf, torch.isneginf):
        differing = (kind_of_value(got) != kind_of_value(truth)).nonzero().tolist()
        assert not differing, f"{name}: {kind_of_value.__name__} differs at {len(differing)} places, {differing[:4]}"
    if not finite.any():
        return
    bound = BOUNDS[dtype]
    scale = max(scale, truth[finite].abs().max().item())
    eager_error = 0.0
    if eager is not None:
        errors = (_wide(eager) - truth)[finite].abs()
        # NaN or Inf where the truth is finite: any error is smaller, and Bound.never is the limit.
        eager_error = max(errors.nan_to_num(float("inf")).max().item(), roundoff * scale)
    allowed = min(getattr(bound, kind) * scale + bound.factor * eager_error, bound.never * scale)
    error = torch.where(finite, (got - truth).abs(), 0)
    worst = error.argmax().item()
    if not error.max().item() <= allowed:
        place = tuple(i.item() for i in torch.unravel_index(torch.tensor(worst), truth.shape))
        raise AssertionError(
            f"{name}: worst at {place}: got {got.flatten()[worst].item()!r}, truth {truth.flatten()[worst].item()!r}, "
            f"off by {error.max().item():.3e}, allowed {allowed:.3e}, eager off by {eager_error:.3e}, scale {scale:.3e}"
        )
    _assert_aggregates(got[finite], truth[finite], allowed, name)


def _assert_aggregates(got: Tensor, truth: Tensor, allowed: float, name: str) -> None:
    """Caps over all entries: rounding is spread and has no sign, a wrong formula is neither.

    Rounding to a coarse dtype spreads errors evenly over +-allowed, 0.58 of it in the mean square: the caps are 3.5
    standard deviations of what few such errors come to. The cap on the L2 error bounds the angle too: 1 - cosine is
    at most half the square of the relative L2 error.
    """
    # Equal rows are rounded alike, each time to the same side: one of them counts.
    groups = torch.stack([got.float(), truth.float()]).unique(dim=1, return_inverse=True)[1]
    one_of_each = groups.new_zeros(int(groups.max()) + 1).scatter_(0, groups, torch.arange(len(groups)))
    got, truth = got[one_of_each], truth[one_of_each]
    error, count, norm = got - truth, truth.numel(), truth.norm().item()
    if count < 16 or norm == 0:
        return
    l2, l2_allowed = error.norm().item(), allowed * max(3.0, 0.65 * count**0.5)
    assert l2 <= l2_allowed, f"{name}: relative L2 error {l2 / norm:.3e}, allowed {l2_allowed / norm:.3e}"
    # The error along the truth: a result that is a little too large or too small everywhere.
    along, along_allowed = (error * truth).sum().item() / norm, allowed * max(2.0, count**0.5 / 8)
    assert abs(along) <= along_allowed, (
        f"{name}: too large by the factor 1 + {along / norm:.3e}, allowed {along_allowed / norm:.3e}"
    )
    bias, bias_allowed = error.mean().item(), allowed * max(0.25, 2 / count**0.5)
    assert abs(bias) <= bias_allowed, f"{name}: signed bias {bias:.3e}, allowed {bias_allowed:.3e}"
