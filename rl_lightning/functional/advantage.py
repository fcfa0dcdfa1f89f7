"""How much better an action was than expected, and how good the expectation was."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rl_lightning.types import Array, Numbers, ShapeError


def gae(
    reward: Numbers,
    value: Numbers,
    next_value: Numbers,
    terminated: Numbers,
    done: Numbers,
    *,
    discount: float,
    trace_decay: float,
) -> Numbers:
    """Generalised advantage estimates over one rollout, computed backwards.

    delta_t = r_t + discount * (1 - terminated_t) * V(s_{t+1}) - V(s_t)
    A_t     = delta_t + discount * trace_decay * (1 - done_t) * A_{t+1}

    Args:
        reward: [T, B] float32, in the env's own units; neither clipped nor scaled. A tensor, or an array if all are.
        value: [T, B] float32, V(s_t).
        next_value: [T, B] float32, V(s_{t+1}). At a truncation, the value of the state the episode was cut at,
            never of the next episode's first state.
        terminated: [T, B] bool, the env ended the episode: nothing follows.
        done: [T, B] bool, terminated or truncated: the sum must not cross into the next episode.
        discount: per env step, between 0 and 1.
        trace_decay: lambda, between 0 (one-step TD error) and 1 (the whole return).
    Returns:
        [T, B] float32, not normalised, of the kind that was given.
    Raises:
        ShapeError: the five tensors do not share one shape.
    Source:
        Schulman et al., 2016, section 3. arXiv:1506.02438.
    """
    _check_one_shape("gae", reward=reward, value=value, next_value=next_value, terminated=terminated, done=done)
    # A product would turn an infinite value after a termination into NaN.
    if isinstance(value, np.ndarray):
        array: Array = reward - value + discount * np.where(terminated, np.float32(0.0), next_value)
        decays = (discount * trace_decay) * ~done
        for t in range(len(array) - 2, -1, -1):
            array[t] += decays[t] * array[t + 1]
        return array
    delta = reward - value + discount * next_value.masked_fill(terminated, 0.0)
    rows, decays = delta.unbind(), ((~done).to(delta.dtype) * (discount * trace_decay)).unbind()
    for t in range(len(rows) - 2, -1, -1):
        rows[t].addcmul_(decays[t], rows[t + 1])
    return delta


def runs_in_numpy(values: Tensor) -> bool:
    """Whether float32 numbers lie on the host, and no graph is made of what is done to them: then NumPy is quicker, for
    what costs there is the number of operations.
    """
    return values.is_cpu and values.dtype is torch.float32 and not torch.compiler.is_compiling()


def v_trace(
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    done: Tensor,
    log_ratio: Tensor,
    *,
    discount: float,
    trace_decay: float = 1.0,
    max_ratio: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Value targets and advantages of a policy pi from a rollout that an older policy mu has acted in.

    rho_t   = min(max_ratio, pi(a_t | s_t) / mu(a_t | s_t)),  c_t = trace_decay * min(1, pi / mu)
    delta_t = rho_t * (r_t + discount * (1 - terminated_t) * V(s_{t+1}) - V(s_t))
    v_t     = V(s_t) + delta_t + discount * (1 - done_t) * c_t * (v_{t+1} - V(s_{t+1}))
    A_t     = rho_t * (r_t + discount * (1 - terminated_t) * v_{t+1} - V(s_t))

    where v_{t+1} is V(s_{t+1}) at an episode's end and after the last row.

    Args:
        reward, value, next_value, terminated, done: [T, B], as in `gae`.
        log_ratio: [T, B] float32, log pi(a_t | s_t) - log mu(a_t | s_t).
        discount: per env step, between 0 and 1.
        trace_decay: lambda, between 0 and 1.
        max_ratio: the paper's rho-bar; infinity asks for the values of pi itself, at more variance.
    Returns:
        the targets v and the advantages A, each [T, B] float32.
    Raises:
        ShapeError: the six tensors do not share one shape.
    Source:
        Espeholt et al., 2018, section 4.1. arXiv:1802.01561.
    """
    names = {"reward": reward, "value": value, "next_value": next_value, "terminated": terminated, "done": done}
    _check_one_shape("v_trace", **names, log_ratio=log_ratio)
    ratio = log_ratio.exp()
    clipped = ratio.clamp(max=max_ratio)
    after = discount * next_value.masked_fill(terminated, 0.0)
    correction = clipped * (reward + after - value)  # v - V, once what follows is added
    decays = ((~done).to(ratio.dtype) * ratio.clamp(max=1.0) * (discount * trace_decay)).unbind()
    rows = correction.unbind()
    for t in range(len(rows) - 2, -1, -1):
        rows[t].addcmul_(decays[t], rows[t + 1])
    follows = torch.cat([correction[1:], torch.zeros_like(correction[:1])]).masked_fill(done, 0.0)
    return value + correction, clipped * (reward + after + discount * follows - value)


def sum_to_end(reward: Tensor, done: Tensor, *, discount: float) -> tuple[Tensor, Tensor, Tensor]:
    """Discounted rewards from each row of a rollout to its end, or to the end of the episode.

    Args:
        reward: [T, B] float32.
        done: [T, B] bool, terminated or truncated: the sum must not cross into the next episode.
        discount: per env step.
    Returns:
        the sums [T, B] float32; how many rewards are in each, and the row that each ends with, [T, B] int64.
    Raises:
        ShapeError: the two tensors do not share one shape.
    """
    _check_one_shape("sum_to_end", reward=reward, done=done)
    total, last = reward.clone(), torch.arange(len(reward), device=reward.device)[:, None].repeat(1, reward.shape[1])
    rows = last.clone()
    for t in range(len(reward) - 2, -1, -1):
        total[t] += discount * total[t + 1].masked_fill(done[t], 0.0)
        last[t] = torch.where(done[t], last[t], last[t + 1])
    return total, last - rows + 1, last


def normalize(x: Tensor, *, epsilon: float = 1e-8) -> Tensor:
    """Shift and scale to mean 0 and standard deviation 1.

    Args:
        x: any shape; the statistics are over all of it. A single number becomes 0.
        epsilon: a standard deviation much below it counts as this much, in the units of `x`.
    """
    return F.layer_norm(x, x.shape, eps=epsilon**2)  # one kernel


def explained_variance(prediction: Numbers, target: Numbers) -> Numbers:
    """1 - Var(target - prediction) / Var(target): 1 is perfect, 0 no better than a constant, below 0 worse.

    Args:
        prediction, target: of one shape, tensors or arrays; the variance is over all of it.
    Returns:
        a scalar; 0 where the target does not vary, for then there is nothing to explain.
    """
    if isinstance(target, np.ndarray):
        variance = _variance(target)
        return 1.0 - _variance(target - prediction) / variance if variance > 0.0 else 0.0
    variance = target.var(correction=0)
    residual = (target - prediction).var(correction=0)
    return (1 - residual / variance).nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)


def _variance(x: Array) -> float:
    count = max(x.size, 1)
    x = x - x.sum() / count
    return float((x * x).sum()) / count


def _check_one_shape(function: str, **tensors: Numbers) -> None:
    if len({tensor.shape for tensor in tensors.values()}) != 1:
        given = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
        raise ShapeError(f"{function}() needs tensors of one shape [T, B]. Given: {given}.")
