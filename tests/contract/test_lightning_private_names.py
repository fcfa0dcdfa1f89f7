"""One test for each private Lightning name that `rl_lightning/_lightning/` uses: it exists and does what we rely on.

A failure here, after an upgrade of pytorch-lightning, says what to look at first.
"""

import inspect

import pytest
import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.core import optimizer
from pytorch_lightning.demos.boring_classes import BoringModel
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.loops.evaluation_loop import _EvaluationLoop
from pytorch_lightning.loops.fit_loop import _FitLoop
from pytorch_lightning.loops.prediction_loop import _PredictionLoop
from pytorch_lightning.loops.progress import _BaseProgress
from pytorch_lightning.loops.training_epoch_loop import _TrainingEpochLoop
from pytorch_lightning.strategies import Strategy
from pytorch_lightning.trainer import call
from pytorch_lightning.trainer.connectors.logger_connector import _LoggerConnector

from rl_lightning._lightning import Clock, Hooks, RLLoggerConnector


@pytest.fixture
def trainer():
    return pl.Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu")


@pytest.mark.parametrize("name", ["_call_callback_hooks", "_call_lightning_module_hook", "_call_strategy_hook"])
def test_hook_callers_take_trainer_and_name(name):
    assert list(inspect.signature(getattr(call, name)).parameters)[:2] == ["trainer", "hook_name"]


def test_callback_hooks_can_be_split_by_monitoring():
    assert "monitoring_callbacks" in inspect.signature(call._call_callback_hooks).parameters


NAMES = {
    "fit_loop": ["_can_stop_early", "epoch_progress", "on_run_end", "teardown", "setup_data", "state_dict"],
    "fit_loop.epoch_loop": ["_results", "batch_progress", "_batches_that_stepped", "_update_learning_rates"],
    "validate_loop": [
        "_max_batches",
        "_has_run",
        "_stage",
        "_module_mode",
        "_on_evaluation_model_eval",
        "_on_evaluation_model_train",
        "_on_evaluation_start",
        "_on_evaluation_epoch_start",
        "_on_evaluation_epoch_end",
        "_on_evaluation_end",
        "_print_results",
    ],
    "predict_loop": ["_predictions", "_module_mode", "current_batch_indices", "epoch_batch_indices"],
    "_logger_connector": [
        "_callback_metrics",
        "_progress_bar_metrics",
        "_first_loop_iter",
        "_evaluation_epoch_end",
        "epoch_end_reached",
        "log_eval_end_metrics",
        "log_metrics",
        "on_batch_end",
        "on_batch_start",
        "on_epoch_end",
        "update_eval_epoch_metrics",
        "update_train_epoch_metrics",
    ],
    "_checkpoint_connector": ["dump_checkpoint", "_select_ckpt_path", "restore_training_state", "_loaded_checkpoint"],
    "_signal_connector": [
        "register_signal_handlers",
        "_sigterm_notifier_fn",
        "_slurm_sigusr_handler_fn",
        "_has_already_handler",
        "teardown",
    ],
    "": ["_signal_connector", "_val_check_time_interval"],
}
"""By the part of the trainer, "" being the trainer itself."""


@pytest.mark.parametrize(("part", "name"), [(part, name) for part, names in NAMES.items() for name in names])
def test_what_we_use_of_a_part_is_there(trainer, part, name):
    for step in filter(None, part.split(".")):
        trainer = getattr(trainer, step)
    assert hasattr(trainer, name)


def test_loops_are_where_we_replace_them(trainer):
    assert isinstance(trainer.fit_loop, _FitLoop)
    assert isinstance(trainer.fit_loop.epoch_loop, _TrainingEpochLoop)
    assert isinstance(trainer.fit_loop.epoch_loop.val_loop, _EvaluationLoop)
    assert isinstance(trainer.validate_loop, _EvaluationLoop)
    assert isinstance(trainer.test_loop, _EvaluationLoop)
    assert isinstance(trainer.predict_loop, _PredictionLoop)
    assert isinstance(trainer._logger_connector, _LoggerConnector)


def test_update_learning_rates_takes_interval_and_plateau():
    parameters = list(inspect.signature(_TrainingEpochLoop._update_learning_rates).parameters)
    assert parameters == ["self", "interval", "update_plateau_schedulers"]


def test_results_hold_the_batch(trainer):
    results = trainer.fit_loop.epoch_loop._results
    results.batch, results.batch_size, results.dataloader_idx = {"obs": 1}, None, None
    assert results.batch == {"obs": 1}
    assert not results, "a result collection with nothing logged must be falsy"


def test_should_update_logs_is_a_property_that_we_override():
    assert isinstance(_LoggerConnector.should_update_logs, property)
    assert isinstance(RLLoggerConnector.should_update_logs, property)


def test_time_of_the_last_validation_is_kept_on_the_trainer():
    assert "_last_val_time" in inspect.getsource(_FitLoop) + inspect.getsource(_EvaluationLoop)


def test_sigterm_flag(trainer):
    assert trainer._signal_connector.received_sigterm is False


def test_current_fx_name_is_a_plain_attribute_of_the_module():
    assert "_current_fx_name" in BoringModel().__dict__


def test_before_batch_transfer():
    assert "dataloader_idx" in inspect.signature(pl.LightningModule._on_before_batch_transfer).parameters


def test_the_check_for_several_optimizers_is_where_we_replace_it():
    source = inspect.getsource(optimizer._init_optimizers_and_lr_schedulers)
    assert "_validate_multiple_optimizers_support(optimizers, model)" in source
    assert "_init_optimizers_and_lr_schedulers" in inspect.getsource(Strategy.setup_optimizers)


def test_progress_is_saved_with_the_loops():
    clock = Clock(env_steps=8, num_updates=2, num_episodes=1)
    assert isinstance(clock, _BaseProgress)
    restored = Clock()
    restored.load_state_dict(clock.state_dict())
    assert restored == clock


def test_model_checkpoint_counts_by_these_names():
    checkpoint = ModelCheckpoint(every_n_train_steps=7)
    assert checkpoint._every_n_train_steps == 7


def test_hooks_that_nobody_overrides_are_not_bound(trainer):
    module = BoringModel()
    trainer.strategy._lightning_module = module
    trainer.callbacks = [pl.Callback()]
    assert Hooks(trainer).bind("on_train_batch_start") is None
    trainer.callbacks = [pl.callbacks.LambdaCallback(on_train_batch_start=lambda *args: None)]
    assert Hooks(trainer).bind("on_train_batch_start") is not None


@pytest.mark.parametrize("name", ["_callback_metrics", "_progress_bar_metrics"])
def test_metrics_that_are_saved(trainer, name):
    assert isinstance(getattr(trainer._logger_connector, name), dict)


@pytest.mark.parametrize("kind", [TensorBoardLogger, CSVLogger])
def test_loggers_take_the_version_to_go_on_in(kind, tmp_path):
    logger = kind(tmp_path)
    logger._version = 7
    assert logger.log_dir.endswith("version_7")


def test_a_checkpoint_callback_is_known_by_its_interval():
    one, other = ModelCheckpoint(every_n_train_steps=1), ModelCheckpoint(every_n_train_steps=2)
    assert one.state_key != other.state_key
    other._every_n_train_steps = 1
    assert one.state_key == other.state_key


def test_a_checkpoint_callback_links_to_its_last_file():
    assert list(inspect.signature(ModelCheckpoint._link_checkpoint).parameters) == ["trainer", "filepath", "linkpath"]
