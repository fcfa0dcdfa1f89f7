"""Against Stable-Baselines3: from the same weights and the same batch, the same losses, gradients and weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import Env, spaces

from rl_lightning.agents import A2C, DDPG, DQN, PPO, SAC, TD3
from rl_lightning.nn import Critics
from tests.unit.test_agents import optimizer_step

sb3 = pytest.importorskip("stable_baselines3")

OBS = spaces.Box(-1.0, 1.0, (3,), np.float32)
ARM = spaces.Box(-1.0, 1.0, (2,), np.float32)
SIZES = (32, 16)
NUM_UPDATES = 4
LR = 1e-2
PRECISION = {"rtol": 1e-7, "atol": 1e-9}
LOSSES = {"critic_loss": "critic_loss", "actor_loss": "actor_loss"}
NETWORKS = {
    "policy": "actor",
    "critic": "critic",
    "target_policy": "actor_target",
    "target_critic": "critic_target",
}


@pytest.fixture(autouse=True)
def _no_casts_to_float32(monkeypatch):
    monkeypatch.setattr(sb3.common.policies, "preprocess_obs", lambda obs, *args, **kwargs: obs)


class Nothing(Env):
    """For its spaces alone."""

    observation_space = OBS

    def __init__(self, action_space):
        self.action_space = action_space


def batches(action_space):
    """Rows in float64: what differs by more than rounding then shows."""
    rng = np.random.default_rng(0)
    for _ in range(NUM_UPDATES):
        if isinstance(action_space, spaces.Discrete):
            action = torch.from_numpy(rng.integers(action_space.n, size=64))
        else:
            action = torch.from_numpy(rng.uniform(-1, 1, (64, 2)))
        yield {
            "obs": torch.from_numpy(rng.normal(size=(64, 3))),
            "action": action,
            "reward": torch.from_numpy(rng.normal(size=64)),
            "next_obs": torch.from_numpy(rng.normal(size=(64, 3))),
            "terminated": torch.from_numpy(rng.random(64) < 0.2),
        }


class Peer:
    """One of its models, made to learn from given batches."""

    def __init__(self, kind, action_space, **arguments):
        defaults = {"policy_kwargs": {"net_arch": list(SIZES)}, "device": "cpu", "learning_rate": LR}
        self.model = kind("MlpPolicy", Nothing(action_space), **{**defaults, **arguments})
        self.model.policy.double()
        self.model.set_logger(sb3.common.logger.configure(format_strings=[]))

    def learn(self, batch):
        """One learning step. Returns what it logs."""
        action = batch["action"][:, None] if batch["action"].dim() == 1 else batch["action"]
        columns = [batch[name].double()[:, None] for name in ("terminated", "reward")]
        samples = sb3.common.type_aliases.ReplayBufferSamples(batch["obs"], action, batch["next_obs"], *columns)
        self.model.replay_buffer.sample = lambda *args, **kwargs: samples
        return self._train(gradient_steps=1, batch_size=len(action))

    def learn_from(self, minibatches):
        """One learning step on each. Returns what it logs."""
        self.model.rollout_buffer.get = lambda *args, **kwargs: iter(minibatches)
        return self._train()

    def _train(self, **arguments):
        self.model.logger.name_to_value.clear()
        self.model.train(**arguments)
        return dict(self.model.logger.name_to_value)


def linear_layers(module):
    return [layer for layer in module.modules() if isinstance(layer, torch.nn.Linear)]


def policy_pairs(policy, *theirs):
    """Pairs of our parameters and the peer's; where its last layer is in parts, ours has them one below the other."""
    layers, own = [layer for part in theirs for layer in linear_layers(part)], linear_layers(policy)
    for k, layer in enumerate(own):
        size = len(own[-1].bias) // (len(layers) - len(own) + 1)
        parts = layers[k:] if layer is own[-1] else [layers[k]]
        for i, part in enumerate(parts):
            rows = slice(i * size, (i + 1) * size) if layer is own[-1] else slice(None)
            for name in ("weight", "bias"):
                yield getattr(layer, name), rows, getattr(part, name)


def critic_pairs(critic, theirs):
    """Pairs of our critics' parameters, transposed where they lie the other way round, and the peer's."""
    for m, network in enumerate(theirs.q_networks):
        for k, layer in enumerate(linear_layers(network)):
            yield critic.weights[k], m, layer.weight
            yield critic.biases[k], (m, 0), layer.bias


def pairs(ours, *theirs):
    """Triples of our parameter, the part of it that is meant, and the peer's parameter."""
    return critic_pairs(ours, *theirs) if isinstance(ours, Critics) else policy_pairs(ours, *theirs)


def oriented(tensor, part):
    """The part of our tensor as the peer has it."""
    tensor = tensor[part]
    return tensor.T if tensor.dim() == 2 and isinstance(part, int) else tensor


def copy_from(ours, *theirs):
    for parameter, part, peer in pairs(ours, *theirs):
        oriented(parameter.data, part).copy_(peer.data)


def check(ours, *theirs, gradients=True):
    """The same weights, and of the last learning step the same gradients."""
    for parameter, part, peer in pairs(ours, *theirs):
        torch.testing.assert_close(oriented(parameter.data, part), peer.data, **PRECISION)
        if gradients:
            torch.testing.assert_close(oriented(parameter.grad, part), peer.grad, **PRECISION)


def built(agent, action_space):
    agent.build(OBS, action_space)
    return agent.double()


def agree(metrics, logged, names):
    for name, peer in names.items():
        if name in metrics:
            assert metrics[name].item() == pytest.approx(logged[f"train/{peer}"], rel=1e-7)


def test_sac():
    peer = Peer(sb3.SAC, ARM, tau=0.1)
    model, actor = peer.model, peer.model.actor
    actor.action_dist.epsilon = 0.0  # it adds that before a logarithm, where ours is exact
    model.log_ent_coef.data = model.log_ent_coef.data.double()
    agent = built(SAC(lr=LR, tau=0.1, hidden_sizes=SIZES), ARM)
    parts = actor.latent_pi, actor.mu, actor.log_std
    copy_from(agent.policy, *parts)
    copy_from(agent.critic, model.critic), copy_from(agent.target, model.critic_target)
    step = optimizer_step(agent)
    for batch in batches(ARM):
        # both draw noise for the two policies of a step, and not in the same order
        noise = [torch.randn(64, 2, dtype=torch.float64) for _ in range(2)]
        with pytest.MonkeyPatch.context() as patch:
            theirs, ours = iter(noise), reversed(noise)
            patch.setattr(torch.distributions.normal, "_standard_normal", lambda *_, it=theirs, **__: next(it))
            logged = peer.learn(batch)
            patch.setattr(torch, "randn_like", lambda like, it=ours: next(it))
            metrics = agent.update(batch, step)
        agree(metrics, logged, {**LOSSES, "entropy_weight": "ent_coef"})
        check(agent.policy, *parts)
        check(agent.critic, model.critic, gradients=False)  # its critics have those of the policy's loss too
        check(agent.target, model.critic_target, gradients=False)
        torch.testing.assert_close(agent.log_alpha[None], model.log_ent_coef, **PRECISION)


@pytest.mark.parametrize(("make", "kind"), [(TD3, sb3.TD3), (DDPG, sb3.DDPG)])
def test_deterministic_policies(make, kind):
    peer = Peer(kind, ARM, tau=0.1)
    model, agent = peer.model, built(make(lr=LR, tau=0.1, hidden_sizes=SIZES), ARM)
    for ours, theirs in NETWORKS.items():
        copy_from(getattr(agent, ours), getattr(model, theirs))
    step = optimizer_step(agent)
    for seed, batch in enumerate(batches(ARM)):
        torch.manual_seed(seed)
        logged = peer.learn(batch)
        torch.manual_seed(seed)
        agree(agent.update(batch, step), logged, LOSSES)
        for ours, theirs in NETWORKS.items():
            check(getattr(agent, ours), getattr(model, theirs), gradients=False)
        if make is TD3 and seed % 2 == 0:  # no policy's loss has gone through its critics
            check(agent.critic, model.critic)
        else:
            check(agent.policy, model.actor)


def test_dqn():
    space = spaces.Discrete(3)
    peer = Peer(sb3.DQN, space, max_grad_norm=1.0)
    agent = built(DQN(lr=LR, hidden_sizes=SIZES, max_grad_norm=1.0), space)
    copy_from(agent.network, peer.model.q_net), copy_from(agent.target, peer.model.q_net_target)
    step = optimizer_step(agent)
    for batch in batches(space):
        logged = peer.learn(batch)
        agree(agent.update(batch, step), logged, {"loss": "loss"})
        check(agent.network, peer.model.q_net)


@pytest.mark.parametrize(("make", "kind"), [(PPO, sb3.PPO), (A2C, sb3.A2C)])
@pytest.mark.parametrize("space", [spaces.Discrete(3), ARM], ids=["discrete", "box"])
def test_actor_critics(make, kind, space):
    """Each transition ends its episode: its return is its reward, whatever the values."""
    weights = {"max_grad_norm": 0.5, "normalize_advantage": False}
    more = {"batch_size": 64, "n_epochs": 1} if make is PPO else {}
    peer = Peer(kind, space, n_steps=64, ent_coef=0.1, vf_coef=0.4, **weights, **more)
    arguments = {"lr": LR, "entropy_weight": 0.1, "value_weight": 0.4, "hidden_sizes": SIZES, "activation": "tanh"}
    agent, policy = built(make(**arguments, **weights), space), peer.model.policy
    heads = [
        (agent.network.policy_layers, policy.mlp_extractor.policy_net, policy.action_net),
        (agent.network.value_layers, policy.mlp_extractor.value_net, policy.value_net),
    ]
    for head in heads:
        copy_from(*head)
    step = optimizer_step(agent)
    for batch in batches(space):
        with torch.no_grad():
            value, log_prob, _ = policy.evaluate_actions(batch["obs"], batch["action"])
        log_prob = log_prob + 0.3 * torch.randn(64)  # as if the policy had been another then
        advantage = batch["reward"] - value[:, 0]
        samples = sb3.common.type_aliases.RolloutBufferSamples(
            batch["obs"], batch["action"], value, log_prob, advantage, batch["reward"]
        )
        if make is PPO:
            batch |= {"log_prob": log_prob, "advantage": advantage, "return": batch["reward"]}
            metrics = agent.update(batch, step)
        else:
            batch |= {"terminated": torch.ones(64, dtype=torch.bool), "truncated": torch.zeros(64, dtype=torch.bool)}
            metrics = agent.update({name: field[:, None] for name, field in batch.items()}, step)
        logged = peer.learn_from([samples])
        names = {"policy_loss": "policy_gradient_loss" if make is PPO else "policy_loss", "value_loss": "value_loss"}
        agree(metrics, logged, names)
        for head in heads:
            check(*head)
