"""Observations in, distributions out: every space, against torch.distributions."""

from __future__ import annotations

import copy
import math
from collections import OrderedDict

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import distributions as td
from torch import nn

from rl_lightning.nn import (
    ActorCritic,
    Bernoulli,
    Categorical,
    Gaussian,
    Layers,
    NoisyLinear,
    QNetwork,
    init_orthogonal,
    make_encoder,
    make_policy_head,
    mlp,
)
from rl_lightning.types import ConfigurationError

BOX = spaces.Box(-1.0, 1.0, (3,), np.float32)


def image(*shape: int) -> spaces.Box:
    return spaces.Box(0, 255, shape, np.uint8)


# --- encoders ---


def test_vectors_pass_as_they_are():
    encoder, obs = make_encoder(spaces.Box(-1.0, 1.0, (2, 3), np.float64)), torch.randn(5, 2, 3, dtype=torch.float64)
    features = encoder(obs)
    assert features.dtype == torch.float32
    assert torch.equal(features, obs.flatten(1).float())
    assert encoder.out_features == 6


def test_a_number_without_shape_becomes_a_column():
    assert make_encoder(spaces.Box(0.0, 1.0, (), np.float32))(torch.tensor([1.0, 2.0])).tolist() == [[1.0], [2.0]]


def test_bytes_in_a_row_are_scaled():
    assert make_encoder(image(2))(torch.tensor([[0, 255]], dtype=torch.uint8)).tolist() == [[0.0, 1.0]]


def test_discrete_is_one_hot_from_its_start():
    encoder = make_encoder(spaces.Discrete(3, start=-1))
    assert encoder(torch.tensor([-1, 1])).tolist() == [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]


def test_multi_discrete_is_one_hot_side_by_side():
    encoder = make_encoder(spaces.MultiDiscrete([2, 3], start=[10, 5]))
    assert encoder(torch.tensor([[11, 5], [10, 7]])).tolist() == [[0, 1, 1, 0, 0], [1, 0, 0, 0, 1]]


def test_multi_discrete_may_have_a_shape():
    space = spaces.MultiDiscrete(np.array([[2, 2], [2, 4]]))
    encoder = make_encoder(space)
    features = encoder(torch.from_numpy(np.stack([space.sample() for _ in range(7)])))
    assert features.shape == (7, encoder.out_features) == (7, 10)
    assert features.sum(dim=1).tolist() == [4.0] * 7


def test_multi_binary_is_numbers():
    assert make_encoder(spaces.MultiBinary((1, 2)))(torch.tensor([[[0, 1]]], dtype=torch.int8)).tolist() == [[0.0, 1.0]]


def test_nested_spaces_are_encoded_leaf_by_leaf():
    space = spaces.Dict(
        OrderedDict(robot=spaces.Dict(joint=BOX), pair=spaces.Tuple([spaces.Discrete(2), BOX]), camera=image(36, 36, 3))
    )
    encoder = make_encoder(space)
    obs = {
        "pair.1": torch.full((2, 3), 0.25),
        "pair.0": torch.tensor([0, 1]),
        "robot.joint": torch.full((2, 3), 0.5),
        "camera": torch.zeros(2, 36, 36, 3, dtype=torch.uint8),
    }
    features = encoder(obs)
    assert features.shape == (2, encoder.out_features) == (2, 3 + 2 + 3 + 512)
    assert features[:, :8].tolist() == [[0.5] * 3 + [1, 0] + [0.25] * 3, [0.5] * 3 + [0, 1] + [0.25] * 3]


@pytest.mark.parametrize(
    "shape", [(84, 84, 4), (4, 84, 84), (36, 50, 1), (1, 36, 36), (7, 7, 3), (3, 5, 5), (1, 1, 1), (4, 40, 44, 3)]
)
def test_images_of_any_size_and_layout(shape):
    space = image(*shape)
    encoder = make_encoder(space)
    obs = torch.from_numpy(np.stack([space.sample() for _ in range(2)]))
    assert encoder(obs).shape == (2, encoder.out_features)
    assert encoder(obs[:0]).shape == (0, encoder.out_features)


def test_channels_first_and_last_are_the_same_image():
    last, first = make_encoder(image(40, 44, 3)), make_encoder(image(3, 40, 44))
    first.load_state_dict(last.state_dict())
    obs = torch.randint(256, (2, 40, 44, 3), dtype=torch.uint8)
    torch.testing.assert_close(last(obs), first(obs.movedim(-1, 1)))


def test_a_stack_of_colour_frames_is_more_channels():
    stack, flat = make_encoder(image(4, 40, 44, 3)), make_encoder(image(12, 40, 44))
    flat.load_state_dict(stack.state_dict())
    obs = torch.randint(256, (2, 4, 40, 44, 3), dtype=torch.uint8)
    torch.testing.assert_close(stack(obs), flat(obs.movedim(-1, 2).flatten(1, 2)))


def test_images_are_scaled_to_one():
    encoder = make_encoder(image(8, 8, 1))
    seen = []
    encoder.layers.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    encoder(torch.full((1, 8, 8, 1), 255, dtype=torch.uint8))
    assert seen[0].unique().tolist() == [1.0]


@pytest.mark.parametrize(
    "space", [spaces.Text(5), spaces.Sequence(BOX), spaces.OneOf([BOX, BOX]), spaces.Graph(BOX, None)]
)
def test_unsupported_observations_are_named(space):
    with pytest.raises(ConfigurationError, match=type(space).__name__):
        make_encoder(space)
    with pytest.raises(ConfigurationError, match=r"at 'inner'"):
        make_encoder(spaces.Dict(inner=space))


def test_nothing_to_observe_is_refused():
    with pytest.raises(ConfigurationError, match="empty"):
        make_encoder(spaces.Dict())


@pytest.mark.parametrize("space", [BOX, spaces.Discrete(3), spaces.MultiDiscrete([2, 3]), image(8, 8, 3)])
def test_any_precision(space):
    encoder = make_encoder(space).double()
    assert encoder(torch.from_numpy(np.stack([space.sample()]))).dtype == torch.float64


# --- layers ---


def test_mlp_has_an_activation_after_every_layer():
    layers, features = mlp(3, (5, 7), "tanh")
    assert [type(layer) for layer in layers] == [nn.Linear, nn.Tanh, nn.Linear, nn.Tanh]
    assert features == 7 and nn.Sequential(*layers)(torch.zeros(2, 3)).shape == (2, 7)
    assert mlp(3, ()) == ([], 3)


def test_mlp_refuses_what_it_cannot_build():
    with pytest.raises(ConfigurationError, match=r"'sine'.*tanh, relu"):
        mlp(3, (5,), "sine")
    with pytest.raises(ConfigurationError, match=r"\[64, 0\]"):
        mlp(3, (64, 0))


def test_orthogonal_weights_have_the_gain():
    layer = nn.Linear(4, 4)
    init_orthogonal(layer, gain=3.0)
    torch.testing.assert_close(layer.weight @ layer.weight.T, 9 * torch.eye(4), atol=1e-5, rtol=0)
    assert layer.bias.tolist() == [0.0] * 4


# --- distributions ---


def reference(policy):
    """What torch makes of the same network output, with the action's parts as event dimensions."""
    if isinstance(policy, Categorical):
        return td.Independent(td.Categorical(logits=policy.logits), policy.logits.dim() - 2)
    if isinstance(policy, Bernoulli):
        return td.Independent(td.Bernoulli(logits=policy.logits), policy.logits.dim() - 1)
    return td.Independent(td.Normal(policy.mean, policy.log_std.exp()), policy.mean.dim() - 1)


POLICIES = [
    Categorical(torch.randn(6, 4)),
    Categorical(torch.randn(6, 2, 4)),
    Bernoulli(torch.randn(6, 3)),
    Bernoulli(torch.randn(6, 2, 3)),
    Gaussian(torch.randn(6, 3), torch.randn(3)),
    Gaussian(torch.randn(6, 2, 3), torch.randn(2, 3)),
    Gaussian(torch.randn(6), torch.randn(())),
]


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: type(policy).__name__)
def test_log_prob_and_entropy_agree_with_torch(policy):
    action, expected = policy.sample(), reference(policy)
    torch.testing.assert_close(policy.log_prob(action), expected.log_prob(action.float()))
    torch.testing.assert_close(policy.entropy(), expected.entropy())
    assert policy.log_prob(action).shape == policy.entropy().shape == (6,)
    assert policy.mode().shape == action.shape and policy.mode().dtype == action.dtype


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: type(policy).__name__)
def test_nothing_is_likelier_than_the_mode(policy):
    best = policy.log_prob(policy.mode())
    for _ in range(20):
        assert (policy.log_prob(policy.sample()) <= best + 1e-6).all()


def test_divergences_agree_with_torch():
    for policy, other in ((POLICIES[k], POLICIES[k]) for k in range(len(POLICIES))):
        torch.testing.assert_close(policy.kl_divergence(other), torch.zeros(6), atol=1e-6, rtol=0)
    pairs = [
        (Categorical(torch.randn(6, 4)), Categorical(torch.randn(6, 4))),
        (Categorical(torch.randn(6, 2, 4)), Categorical(torch.randn(6, 2, 4))),
        (Bernoulli(torch.randn(6, 3)), Bernoulli(torch.randn(6, 3))),
        (Gaussian(torch.randn(6, 3), torch.randn(3)), Gaussian(torch.randn(6, 3), torch.randn(3))),
        (Gaussian(torch.randn(6), torch.randn(())), Gaussian(torch.randn(6), torch.randn(()))),
    ]
    for policy, other in pairs:
        expected = td.kl_divergence(reference(policy), reference(other))
        torch.testing.assert_close(policy.kl_divergence(other), expected, rtol=1e-5, atol=1e-5)


def test_choices_that_are_never_taken_add_no_divergence():
    head = make_policy_head(5, spaces.MultiDiscrete([2, 3]))[-1]
    policy, other = head(torch.randn(4, 5)), head(torch.randn(4, 5, requires_grad=True))
    divergence = policy.kl_divergence(other)
    parts = [(policy.logits[:, k, : k + 2], other.logits[:, k, : k + 2]) for k in range(2)]
    expected = sum(Categorical(ours).kl_divergence(Categorical(theirs)) for ours, theirs in parts)
    torch.testing.assert_close(divergence, expected)
    (gradient,) = torch.autograd.grad(divergence.sum(), other.logits)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: type(policy).__name__)
def test_a_detached_policy_stays_as_it_was(policy):
    parameters = [value.clone().requires_grad_() for value in vars(policy).values() if torch.is_tensor(value)]
    given = type(policy)(*parameters[: 2 if isinstance(policy, Gaussian) else 1])
    fixed, action = given.detach(), policy.sample()
    assert not fixed.log_prob(action).requires_grad
    if isinstance(policy, Gaussian):
        before = fixed.log_prob(action)
        with torch.no_grad():
            given.log_std.add_(1.0)  # the parameter itself
        assert torch.equal(fixed.log_prob(action), before)


def test_samples_follow_the_probabilities():
    torch.manual_seed(0)
    share = torch.tensor([0.1, 0.2, 0.7])
    action = Categorical(share.log().expand(20_000, 3)).sample()
    torch.testing.assert_close(action.bincount() / 20_000, share, atol=0.015, rtol=0)
    bits = Bernoulli(torch.logit(share).expand(20_000, 3)).sample()
    torch.testing.assert_close(bits.float().mean(0), share, atol=0.015, rtol=0)
    numbers = Gaussian(torch.full((20_000, 1), 3.0), torch.tensor([math.log(2.0)])).sample()
    assert numbers.mean().item() == pytest.approx(3.0, abs=0.06) and numbers.std().item() == pytest.approx(2, abs=0.06)


def test_sampling_needs_no_gradient():
    logits = torch.randn(4, 3, requires_grad=True)
    assert not Categorical(logits).sample().requires_grad
    assert not Gaussian(logits, torch.zeros(3, requires_grad=True)).sample().requires_grad


# --- heads ---

ACTIONS = [
    spaces.Discrete(3),
    spaces.Discrete(4, start=2),
    spaces.MultiDiscrete([3, 3]),
    spaces.MultiDiscrete([2, 5, 3]),
    spaces.MultiDiscrete(np.array([[2, 3], [4, 2]])),
    spaces.MultiBinary(4),
    spaces.MultiBinary((2, 3)),
    spaces.Box(-2.0, 2.0, (3,), np.float32),
    spaces.Box(-np.inf, np.inf, (2, 2), np.float64),
    spaces.Box(0.0, 1.0, (), np.float32),
]


@pytest.mark.parametrize("space", ACTIONS, ids=str)
def test_every_action_space_has_a_policy(space):
    policy = Layers(*make_policy_head(5, space))(torch.randn(50, 5))
    action = policy.sample()
    assert action.shape == (50, *space.shape)
    log_prob, entropy = policy.log_prob(action), policy.entropy()
    assert log_prob.shape == entropy.shape == (50,)
    assert log_prob.isfinite().all() and entropy.isfinite().all()
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        start = np.asarray(space.start, space.dtype)
        assert all(space.contains(start + one.numpy().astype(space.dtype)) for one in action)


def test_choices_of_different_number_agree_with_torch():
    """Three choices among 2, 4 and 3, padded to 4 each inside."""
    linear, head = make_policy_head(5, spaces.MultiDiscrete([2, 4, 3]))
    init_orthogonal(linear, gain=2.0)
    numbers = linear(torch.randn(8, 5))
    policy = head(numbers)
    parts = [td.Categorical(logits=logits) for logits in numbers.split([2, 4, 3], dim=1)]
    action = torch.stack([part.sample() for part in parts], dim=1)
    log_prob = sum(part.log_prob(action[:, i]) for i, part in enumerate(parts))
    torch.testing.assert_close(policy.log_prob(action), log_prob)
    torch.testing.assert_close(policy.entropy(), sum(part.entropy() for part in parts))
    policy.entropy().sum().backward()
    assert linear.weight.grad.isfinite().all()


@pytest.mark.parametrize("space", [spaces.Box(0, 9, (2,), np.int64), spaces.Text(3), spaces.Dict(a=BOX)])
def test_unsupported_actions_are_named(space):
    with pytest.raises(ConfigurationError, match="no policy for action space"):
        make_policy_head(5, space)


# --- networks ---


def test_the_first_policy_hardly_depends_on_the_state():
    network = ActorCritic(BOX, spaces.Discrete(4), hidden_sizes=(64, 64), activation="tanh")
    policy, value = network(torch.randn(100, 3))
    assert (policy.log_probs.exp() - 0.25).abs().max() < 0.02
    assert value.shape == (100,) and value.std() > 0.1


def test_policy_and_value_alone_are_those_of_both():
    network = ActorCritic(image(8, 8, 1), spaces.Discrete(2), hidden_sizes=(8,), activation="relu")
    obs = torch.randint(256, (5, 8, 8, 1), dtype=torch.uint8)
    policy, value = network(obs)
    torch.testing.assert_close(network.policy(obs).logits, policy.logits)
    torch.testing.assert_close(network.value(obs), value)


def test_vectors_share_nothing_images_share_the_convolutions():
    assert not list(ActorCritic(BOX, BOX, hidden_sizes=(4,), activation="relu").encoder.parameters())
    assert list(ActorCritic(image(9, 9, 1), BOX, hidden_sizes=(4,), activation="relu").encoder.parameters())


def test_box_actions_are_clipped_and_the_sample_is_kept():
    torch.manual_seed(0)
    space = spaces.Box(np.array([-0.1, -5.0]), np.array([0.2, 5.0]), dtype=np.float64)
    network = ActorCritic(BOX, space, hidden_sizes=(4,), activation="relu")
    action, extras = network.act(torch.randn(200, 3), explore=True)
    assert torch.equal(action, extras["sample"].clamp(torch.tensor([-0.1, -5.0]), torch.tensor([0.2, 5.0])))
    assert not torch.equal(action, extras["sample"])


def test_q_values_by_hand():
    """Dueling: V = 1, A = 0, 2, 4 with mean 2: Q = -1, 1, 3."""
    network = QNetwork(BOX, 3, hidden_sizes=(4,), dueling=True)
    for stream, bias in ((network.value, [1.0]), (network.advantage, [0.0, 2.0, 4.0])):
        nn.init.zeros_(stream[-1].weight)
        stream[-1].bias.data = torch.tensor(bias)
    assert network(torch.randn(2, 3)).tolist() == [[-1.0, 1.0, 3.0]] * 2


def test_q_network_without_hidden_layers():
    for dueling in (False, True):
        assert QNetwork(BOX, 3, hidden_sizes=(), dueling=dueling)(torch.randn(2, 3)).shape == (2, 3)


@pytest.mark.parametrize("dueling", [False, True])
def test_numbers_of_each_action_lie_side_by_side(dueling):
    """Two actions with atoms 1, 2 and 3, 4. Dueling: V = 10, 20, the mean of the actions 2, 3."""
    network = QNetwork(BOX, 2, hidden_sizes=(4,), dueling=dueling, num_atoms=2)
    nn.init.zeros_(network.advantage[-1].weight)
    network.advantage[-1].bias.data = torch.tensor([1.0, 2.0, 3.0, 4.0])
    expected = [[1.0, 2.0], [3.0, 4.0]]
    if dueling:
        nn.init.zeros_(network.value[-1].weight)
        network.value[-1].bias.data = torch.tensor([10.0, 20.0])
        expected = [[9.0, 19.0], [11.0, 21.0]]
    assert network(torch.randn(3, 3)).tolist() == [expected] * 3


@pytest.mark.parametrize("dueling", [False, True])
def test_implicit_quantiles_are_of_the_fractions_asked_for(dueling):
    network = QNetwork(BOX, 2, hidden_sizes=(4, 4), dueling=dueling, num_atoms=3, implicit=True)
    obs, fractions = torch.randn(5, 3), torch.rand(5, 3)
    quantiles = network(obs, fractions=fractions)
    assert quantiles.shape == (5, 2, 3)
    torch.testing.assert_close(network(obs, fractions=fractions.flip(1)), quantiles.flip(2))
    for row in range(5):
        torch.testing.assert_close(network(obs[[row]], fractions=fractions[[row]]), quantiles[[row]])
    even = torch.tensor([1 / 6, 1 / 2, 5 / 6]).expand(5, 3)
    torch.testing.assert_close(network(obs), network(obs, fractions=even))


def test_a_fraction_is_embedded_in_cosines():
    """With the first two cosines alone, of 0 and of pi * fraction: at 1/2 they are 1 and 0."""
    network = QNetwork(BOX, 1, hidden_sizes=(), num_atoms=1, implicit=True)
    for weight in (network.fractions.linear.weight, network.advantage[-1].weight):
        nn.init.zeros_(weight)
    network.fractions.linear.weight.data[:, :2] = torch.tensor([2.0, 5.0])
    nn.init.zeros_(network.fractions.linear.bias)
    network.advantage[-1].weight.data[:] = 1.0
    nn.init.zeros_(network.advantage[-1].bias)
    for fraction, factor in ((0.5, 2.0), (0.0, 7.0), (1.0, 0.0)):
        q = network(torch.tensor([[1.0, 2.0, 3.0]]), fractions=torch.tensor([[fraction]]))
        assert q.item() == pytest.approx(6.0 * factor, abs=1e-5)


def test_a_noisy_layer_without_noise_is_linear():
    layer, x = NoisyLinear(4, 3), torch.randn(5, 4)
    assert torch.equal(layer(x), nn.functional.linear(x, layer.weight, layer.bias))


def test_noise_has_the_spread_that_was_learned_and_is_new_in_each_row():
    """f(e) = sign(e) sqrt(|e|) has the variance E|e| = sqrt(2 / pi), a product of two of them its square."""
    torch.manual_seed(0)
    layer, x = NoisyLinear(2, 3), torch.tensor([1.0, 2.0]).expand(100_000, 2)
    layer.weight_noise.data = torch.tensor([[0.0, 0.0], [1.0, 1.0], [1.0, 1.0]])
    layer.bias_noise.data = torch.tensor([0.0, 0.0, 1.0])
    noise = (layer(x, noise=True) - layer(x)).detach()
    variance = math.sqrt(2 / math.pi)
    expected = torch.tensor([0.0, variance**2 * 5, variance**2 * 5 + variance])
    torch.testing.assert_close(noise.var(dim=0), expected, rtol=0.03, atol=1e-6)
    torch.testing.assert_close(noise.mean(dim=0), torch.zeros(3), atol=0.03, rtol=0)


def test_noise_starts_as_the_paper_says():
    layer = NoisyLinear(16, 3)
    assert layer.weight.abs().max() <= 0.25 and layer.bias.abs().max() <= 0.25
    assert (layer.weight_noise == 0.125).all() and (layer.bias_noise == 0.125).all()


@pytest.mark.parametrize("flags", [{}, {"dueling": True}, {"num_atoms": 3, "implicit": True, "dueling": True}], ids=str)
def test_a_noisy_network_draws_only_where_it_is_asked_to(flags):
    network, obs = QNetwork(BOX, 2, hidden_sizes=(4, 4), noisy=True, **flags), torch.randn(5, 3)
    state = torch.get_rng_state()
    assert torch.equal(network(obs), network(obs)) and torch.equal(torch.get_rng_state(), state)
    first = network(obs, noise=True)
    assert not torch.equal(network(obs, noise=True), first)
    first.sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_convolutions_lie_channels_last_and_survive_a_copy():
    """Whatever the layout of the images, and after `load_state_dict` and `deepcopy`."""
    encoder = make_encoder(image(4, 84, 84))
    twin = make_encoder(image(4, 84, 84))
    twin.load_state_dict(encoder.state_dict())
    obs = torch.randint(256, (3, 4, 84, 84), dtype=torch.uint8)
    for each in (encoder, twin, copy.deepcopy(encoder)):
        weights = [layer.weight for layer in each.modules() if isinstance(layer, nn.Conv2d)]
        assert weights and all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)
        assert torch.equal(each(obs), encoder(obs))
    before = obs.clone()
    encoder(obs)
    assert torch.equal(obs, before)


def test_orthogonal_weights_are_the_same_in_either_layout():
    flat, last = (nn.Conv2d(4, 8, 3) for _ in range(2))
    last.to(memory_format=torch.channels_last)
    for layer in (flat, last):
        torch.manual_seed(0)
        init_orthogonal(layer, gain=2.0)
    assert torch.equal(flat.weight, last.weight)
