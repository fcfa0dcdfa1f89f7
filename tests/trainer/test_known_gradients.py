"""Agents that know the gradients of their losses: no backward pass where nobody sees it, and the same weights."""

from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch

from rl_lightning import A2C, RLModule, Trainer
from rl_lightning.envs import GymEnvModule
from rl_lightning.optimization import Optimization
from tests.trainer.helpers import quiet, small_ppo


def small_a2c():
    return A2C(hidden_sizes=(16,), entropy_weight=0.01)


@pytest.fixture
def ways(monkeypatch):
    """How losses were minimised: one letter each, "g" for given gradients and "b" for a backward pass."""
    seen = []
    with_gradients, backward = Optimization.with_gradients, Optimization._backward

    def noting(letter, method):
        def note(*args):
            seen.append(letter)
            return method(*args)

        return note

    monkeypatch.setattr(Optimization, "with_gradients", noting("g", with_gradients))
    monkeypatch.setattr(Optimization, "_backward", noting("b", backward))
    return seen


def trained(make, *callbacks, module=RLModule, env="CartPole-v1", **arguments):
    """The weights after 160 env steps."""
    pl.seed_everything(0, verbose=False)
    agent = make()
    Trainer(max_steps=160, **{**quiet(*callbacks), **arguments}).fit(module(agent), GymEnvModule(env, num_envs=4))
    return {name: parameter.detach().clone() for name, parameter in agent.named_parameters()}


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"accumulate_grad_batches": 2},
        {"gradient_clip_val": 0.01},
        {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
    ],
    ids=str,
)
@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
@pytest.mark.parametrize("make", [small_ppo, small_a2c])
def test_the_same_weights_as_by_a_backward_pass(make, env, arguments, ways, monkeypatch):
    given = trained(make, env=env, **arguments)
    assert set(ways) == {"g"}
    ways.clear()
    monkeypatch.setattr(Optimization, "takes_gradients", lambda self, parameters: False)
    expected = trained(make, env=env, **arguments)
    assert set(ways) == {"b"}
    for name, weight in expected.items():
        assert torch.equal(given[name], weight), name


class Seeing(pl.Callback):
    def on_before_backward(self, trainer, module, loss):
        assert loss.grad_fn is not None


class SeeingAfter(pl.Callback):
    def on_after_backward(self, trainer, module):
        assert all(parameter.grad is not None for parameter in module.parameters())


class Own(RLModule):
    def backward(self, loss):
        loss.backward()


class Hooked(RLModule):
    """Somebody is told of every gradient of one parameter."""

    def on_fit_start(self):
        self.seen = []
        self.agent.network.value_layers[0].weight.register_hook(self.seen.append)


class HookedAfter(RLModule):
    def on_fit_start(self):
        self.seen = []
        weight = self.agent.network.value_layers[0].weight
        weight.register_post_accumulate_grad_hook(lambda parameter: self.seen.append(parameter.grad.clone()))


@pytest.mark.parametrize(
    ("callbacks", "arguments"),
    [
        ([Seeing()], {}),
        ([SeeingAfter()], {}),
        ([], {"module": Own}),
        ([], {"module": Hooked}),
        ([], {"module": HookedAfter}),
        ([], {"detect_anomaly": True}),
    ],
)
def test_whoever_wants_to_see_a_backward_pass_does(callbacks, arguments, ways):
    modules = []
    if "module" in arguments:
        kind = arguments["module"]
        arguments = {**arguments, "module": lambda agent: modules.append(kind(agent)) or modules[-1]}
    weights = trained(small_ppo, *callbacks, **arguments)
    count = len(ways)
    assert count > 10 and set(ways) == {"b"}
    assert all(len(module.seen) == count for module in modules if hasattr(module, "seen"))
    if "detect_anomaly" not in arguments:  # which leaves NumPy out, too
        for name, weight in trained(small_ppo).items():
            assert torch.equal(weights[name], weight), name


def test_frozen_parameters_stay(ways):
    class Frozen(RLModule):
        def on_fit_start(self):
            layer = self.agent.network.policy_layers[0].requires_grad_(False)
            self.before = layer.weight.clone()

    modules = []
    weights = trained(small_ppo, module=lambda agent: modules.append(Frozen(agent)) or modules[-1])
    assert set(ways) == {"g"}
    assert torch.equal(weights["network.policy_layers.0.weight"], modules[0].before)
    assert modules[0].agent.network.policy_layers[0].weight.grad is None
