"""Fits in bfloat16 on a processor without its instructions: the same run, by way of float32."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import lightning as L
import pytest
import torch
import yaml
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from support import multimodal_fits
from support.tiny_mllms import evaluation_records, tiny_llava, training_records

from hpa_lightning import float32_products
from hpa_lightning.callbacks import SequentialTuning, TaskEvaluation
from hpa_lightning.data import CVITDataModule, MLLMCollator, Task
from hpa_lightning.lightning_commands import tuning_cli
from hpa_lightning.modules import EmulatedBF16Mixed, EmulatedBF16True, LoraSettings, MLLMModule, emulated_bfloat16
from hpa_lightning.results.run_results import RunResults, run_origin

pytestmark = pytest.mark.filterwarnings("ignore:isinstance:FutureWarning", "ignore:.*eval mode", "ignore:.*workers")

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(float32_products, "product_slowdown", lambda: 12.3)
    monkeypatch.setattr(emulated_bfloat16, "product_slowdown", lambda: 12.3)


class Counts(L.Callback):
    """Counts the products in float32 of forward passes, backward passes and answers."""

    def __init__(self) -> None:
        self.seen: dict[str, int] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._of("validation")

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: torch.Tensor) -> None:
        self._of("forward")

    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._of("backward")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, MLLMModule)
        Tally.count = 0
        pl_module.generate(MLLMCollator(pl_module.processor).generate(evaluation_records(2)), max_new_tokens=3)
        self._of("answers")

    def _of(self, phase: str) -> None:
        self.seen[phase], Tally.count = Tally.count, 0


class Tally(float32_products.Float32Products):
    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        Tally.count += func in float32_products._PRODUCTS
        return super().__torch_dispatch__(func, types, args, kwargs)


def tuned(precision: Any, plugin: Any, callbacks: list[L.Callback] | None = None) -> dict[str, torch.Tensor]:
    """The weights after two steps."""
    torch.manual_seed(0)
    module = MLLMModule.from_objects(*tiny_llava(), lora=LoraSettings(rank=2, alpha=4.0))
    how = {"plugins": [plugin]} if plugin is not None else {"precision": precision}
    trainer = L.Trainer(max_epochs=-1, reload_dataloaders_every_n_epochs=1, callbacks=callbacks, **how, **QUIET)
    assert trainer.precision == precision
    trainer.fit(module, datamodule=CVITDataModule([Task("one", training_records(8), steps=2)], train_batch_size=4))
    return {name: one.detach().double() for name, one in module.named_parameters()}


@pytest.mark.filterwarnings("ignore:precision")
@pytest.mark.parametrize(("precision", "plugin"), [("bf16-mixed", EmulatedBF16Mixed), ("bf16-true", EmulatedBF16True)])
def test_a_fit_is_that_of_lightnings_own_plugin(precision: str, plugin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tuned(precision, None)
    monkeypatch.setattr(float32_products, "Float32Products", Tally)
    counts = Counts()
    found = tuned(precision, plugin(), [counts])
    assert all(counts.seen[phase] > 0 for phase in ("forward", "backward", "answers")), counts.seen
    start = {name: one.detach().double() for name, one in _untuned().items()}
    moved = torch.cat([(own[name] - start[name]).flatten() for name in own])
    apart = torch.cat([(own[name] - found[name]).flatten() for name in own])
    assert float(moved.norm()) > 0 and float(apart.norm()) < 0.2 * float(moved.norm())


def _untuned() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return dict(MLLMModule.from_objects(*tiny_llava(), lora=LoraSettings(rank=2, alpha=4.0)).named_parameters())


def test_a_trainer_that_would_be_slow_is_told(slow: None) -> None:
    module = MLLMModule.from_objects(*tiny_llava(), lora=LoraSettings(rank=2, alpha=4.0))
    data = CVITDataModule([Task("one", training_records(4), steps=1)], train_batch_size=4)
    with pytest.warns(UserWarning, match=r"12 times.*plugins=\[EmulatedBF16Mixed\(\)\].*32-true"):
        L.Trainer(precision="bf16-mixed", fast_dev_run=True, **QUIET).fit(module, datamodule=data)
    assert emulated_bfloat16.is_slow(L.Trainer(precision="bf16-true", **QUIET))
    quiet: tuple[dict[str, Any], ...] = (
        {"precision": "32-true"},
        {"precision": "16-true"},
        {"plugins": [EmulatedBF16Mixed()]},
        {"plugins": [EmulatedBF16True()]},
    )
    for how in quiet:
        assert not emulated_bfloat16.is_slow(L.Trainer(**how, **QUIET)), how


def test_a_fast_processor_keeps_lightnings_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(float32_products, "product_slowdown", lambda: 0.6)
    trainer = L.Trainer(precision="bf16-mixed", **QUIET)
    emulated_bfloat16.emulate_where_slow(trainer)
    assert type(trainer.precision_plugin) is MixedPrecision


@pytest.mark.parametrize(("precision", "plugin"), [("bf16-mixed", EmulatedBF16Mixed), ("bf16-true", EmulatedBF16True)])
def test_the_command_line_helps_itself(
    precision: str,
    plugin: type,
    slow: None,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = yaml.safe_load((Path(__file__).parents[2] / "examples" / "nano_hpa.yaml").read_text())
    config["trainer"] |= {"precision": precision}
    config["trainer"]["logger"]["init_args"]["save_dir"] = str(tmp_path)
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    monkeypatch.setattr(L.Trainer, "fit", lambda *args, **kwargs: None)
    with caplog.at_level("INFO"):
        cli = tuning_cli(["fit", "--config", str(file)])
    assert type(cli.trainer.precision_plugin) is plugin
    assert cli.trainer.precision == precision  # so results say what was asked for
    (line,) = [line for line in caplog.messages if "slow in bfloat16" in line]
    assert plugin.__name__ in line and "precision 32-true" in line


def test_results_say_how_products_were_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And where the model was, whatever else the machine has."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "a card")
    quiet = {key: value for key, value in QUIET.items() if key != "logger"}
    told = []
    ways: dict[str, dict[str, Any]] = {
        "own": {"precision": "bf16-mixed"},
        "emulated": {"plugins": [EmulatedBF16Mixed()]},
    }
    for name, how in ways.items():
        module = MLLMModule.from_objects(*tiny_llava(), lora=LoraSettings(rank=2, alpha=4.0))
        data = CVITDataModule(
            [Task("one", training_records(4), test=evaluation_records(2), steps=1)], allow_overlap=True
        )
        logger = CSVLogger(tmp_path, name=name, version="")
        callbacks = [TaskEvaluation(initial=False, report=False)]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "precision")  # this processor may be slow in it
            L.Trainer(max_epochs=-1, callbacks=callbacks, logger=logger, **how, **quiet).fit(module, datamodule=data)
        versions = RunResults.from_file(tmp_path / name).about.versions or {}
        with monkeypatch.context() as context:
            context.setattr(torch.cuda, "is_available", lambda: True)
            assert run_origin(torch.device("cpu"), "")["versions"]["device"] == versions["device"]
        told.append(versions["precision"])
    assert told == ["bf16-mixed", "bf16-mixed, products by way of float32"]


def test_weights_in_bfloat16_are_slow_in_32_true_too(slow: None) -> None:
    module = MLLMModule.from_objects(*tiny_llava(), lora=LoraSettings(rank=2, alpha=4.0))
    trainer = L.Trainer(**QUIET)
    assert emulated_bfloat16.advice(trainer, module) is None
    module.to(torch.bfloat16)
    assert "dtype='float32'" in str(emulated_bfloat16.advice(trainer, module))
    assert emulated_bfloat16.advice(L.Trainer(plugins=[EmulatedBF16True()], **QUIET), module) is None


@pytest.mark.parametrize("plugin", [EmulatedBF16Mixed, EmulatedBF16True])
def test_a_model_on_a_card_is_an_error(plugin: Any) -> None:
    """Its autocast is that of the CPU: the model would be tuned in float32 without a word."""
    on_card: Any = SimpleNamespace(parameters=lambda: iter([SimpleNamespace(device=torch.device("cuda:0"))]))
    with pytest.raises(MisconfigurationException, match=r"on cuda; expected precision='bf16-"):
        plugin().connect(on_card, [], [])
    plugin().connect(torch.nn.Linear(2, 2), [], [])


class OptimizesInHalf(torch.optim.SGD):
    """As `torch.optim.Muon`, whose iteration is in bfloat16 whatever the precision is."""

    seen: ClassVar[list[bool]] = []

    def step(self, closure: Any = None) -> Any:
        found = super().step(closure)
        self.seen.append(float32_products.emulating())
        return found


def test_optimizers_are_helped_too() -> None:
    torch.manual_seed(0)
    module = MLLMModule.from_objects(
        *tiny_llava(),
        lora=LoraSettings(rank=2, alpha=4.0),
        optimizer=partial(OptimizesInHalf, lr=1e-3),
    )
    data = CVITDataModule([Task("one", training_records(8), steps=2)], train_batch_size=4)
    OptimizesInHalf.seen.clear()
    trainer = L.Trainer(plugins=[EmulatedBF16Mixed()], max_epochs=-1, reload_dataloaders_every_n_epochs=1, **QUIET)
    trainer.fit(module, datamodule=data)
    assert OptimizesInHalf.seen == [True, True]


def test_the_probe_of_the_focus_partition_goes_backward_as_training_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    backward = MLLMModule.backward

    def noted(self: MLLMModule, loss: Any, *args: Any, **kwargs: Any) -> None:
        seen.append(float32_products.emulating())
        backward(self, loss, *args, **kwargs)

    monkeypatch.setattr(MLLMModule, "backward", noted)
    callbacks = [SequentialTuning(), *multimodal_fits.method("in_training")]
    runner = multimodal_fits.trainer(tmp_path, callbacks, plugins=[EmulatedBF16Mixed()], max_epochs=-1)
    runner.fit(multimodal_fits.module(), datamodule=multimodal_fits.stream())
    assert len(seen) > 3 + 6 and all(seen)  # 3 and 6 steps of the tasks, and those of the probes
