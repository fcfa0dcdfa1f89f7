"""How much better an action was than expected, and how good the expectation was."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from rl_lightning.types import ShapeError


def gae(
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    done: Tensor,
    *,
    discount: float,
    trace_decay: float,
) -> Tensor:
    """Generalised advantage estimates over one rollout, computed backwards.

    delta_t = r_t + discount * (1 - terminated_t) * V(s_{t+1}) - V(s_t)
    A_t     = delta_t + discount * trace_decay * (1 - done_t) * A_{t+1}

    Args:
        reward: [T, B] float32, in the env's own units; neither clipped nor scaled.
        value: [T, B] float32, V(s_t).
        next_value: [T, B] float32, V(s_{t+1}). At a truncation, the value of the state the episode was cut at,
            never of the next episode's first state.
        terminated: [T, B] bool, the env ended the episode: nothing follows.
        done: [T, B] bool, terminated or truncated: the sum must not cross into the next episode.
        discount: per env step, between 0 and 1.
        trace_decay: lambda, between 0 (one-step TD error) and 1 (the whole return).
    Returns:
        [T, B] float32, not normalised.
    Raises:
        ShapeError: the five tensors do not share one shape.
    Source:
        Schulman et al., 2016, section 3. arXiv:1506.02438.
    """
    shapes = [tuple(tensor.shape) for tensor in (reward, value, next_value, terminated, done)]
    if len(set(shapes)) != 1:
        names = ("reward", "value", "next_value", "terminated", "done")
        given = ", ".join(f"{name} {shape}" for name, shape in zip(names, shapes, strict=True))
        raise ShapeError(f"gae() needs five tensors of one shape [T, B]. Given: {given}.")
    # A product would turn an infinite value after a termination into NaN.
    delta = reward - value + discount * next_value.masked_fill(terminated, 0.0)
    decay = (~done).to(delta.dtype) * (discount * trace_decay)
    rows, decays = delta.unbind(), decay.unbind()
    for t in range(len(rows) - 2, -1, -1):
        rows[t].addcmul_(decays[t], rows[t + 1])
    return delta


def normalize(x: Tensor, *, epsilon: float = 1e-8) -> Tensor:
    """Shift and scale to mean 0 and standard deviation 1.

    Args:
        x: any shape; the statistics are over all of it. A single number becomes 0.
        epsilon: a standard deviation much below it counts as this much, in the units of `x`.
    """
    return F.layer_norm(x, x.shape, eps=epsilon**2)  # one kernel


def explained_variance(prediction: Tensor, target: Tensor) -> Tensor:
    """1 - Var(target - prediction) / Var(target): 1 is perfect, 0 no better than a constant, below 0 worse.

    Args:
        prediction, target: of one shape; the variance is over all of it.
    Returns:
        a scalar; 0 where the target does not vary, for then there is nothing to explain.
    """
    variance = target.var(correction=0)
    residual = (target - prediction).var(correction=0)
    return (1 - residual / variance).nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
