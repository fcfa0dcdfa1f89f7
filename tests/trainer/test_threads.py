"""On the host small networks are trained on one thread, unless the user says otherwise."""

import pytest
import pytorch_lightning as pl
import torch

from rl_lightning import ConfigurationError, Trainer
from tests.trainer.helpers import quiet, small_ppo


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


class Looking(pl.Callback):
    def on_train_batch_end(self, *_):
        self.seen = torch.get_num_threads()


def seen_by(agent, **arguments):
    looking = Looking()
    Trainer(max_steps=16, **quiet(looking), **arguments).fit(agent, "CartPole-v1")
    return looking.seen


@pytest.mark.parametrize(
    ("agent", "arguments", "expected"),
    [
        (small_ppo, {}, 1),
        (lambda: small_ppo(hidden_sizes=(300, 300)), {}, 3),
        (small_ppo, {"num_threads": 2}, 2),
        (lambda: small_ppo(hidden_sizes=(300, 300)), {"num_threads": 1}, 1),
    ],
)
def test_while_fitting_and_no_longer(agent, arguments, expected, three_threads):
    assert seen_by(agent(), **arguments) == expected
    assert torch.get_num_threads() == 3


def test_as_before_also_after_an_error(three_threads):
    class Failing(pl.Callback):
        def on_train_batch_end(self, *_):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Trainer(max_steps=16, **quiet(Failing())).fit(small_ppo(), "CartPole-v1")
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize("number", [0, 1.5])
def test_a_number_that_is_none(number):
    with pytest.raises(ConfigurationError, match=f"num_threads={number}"):
        Trainer(max_steps=16, num_threads=number)
