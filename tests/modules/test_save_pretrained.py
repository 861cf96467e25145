"""An export is one folder that loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, AdaptionPromptConfig, LoraConfig, PromptTuningConfig, get_peft_model
from peft import inject_adapter_in_model as inject
from support.merged_checkpoints import tiny_llama
from support.muted_modules import muted
from support.tiny_mllms import tiny_idefics3, tiny_llava, tiny_qwen, tiny_timm, training_records
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from hpa_lightning.data import MLLMCollator
from hpa_lightning.modules import LoraSettings, MLLMModule
from hpa_lightning.modules.save_pretrained import export_model

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

BUILDERS = [tiny_llava, tiny_qwen, tiny_idefics3, tiny_timm]


@pytest.fixture(params=BUILDERS, ids=lambda builder: builder.__name__)
def objects(request: Any) -> Any:
    return request.param()


def test_export_is_one_folder_that_loads(objects: Any, tmp_path: Path) -> None:
    module = muted(MLLMModule.from_objects(*objects, lora=LoraSettings(rank=2)))
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    module.eval()
    module.export(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    assert not any("lora" in name for name, _ in again.named_parameters())
    loaded = MLLMModule(model=str(tmp_path))
    assert {type(module) for module in again.modules()} == {type(module) for module in loaded.model.modules()}
    batch = MLLMCollator(loaded.processor).train(training_records(2))
    own = MLLMCollator(module.processor).train(training_records(2))
    # transformers may load the same image processor with another backend, which resizes a little differently.
    backends = {type(getattr(processor, "image_processor", None)) for processor in (loaded.processor, module.processor)}
    exact = [key for key in own if key != "pixel_values" or len(backends) == 1]
    assert all(torch.equal(batch[key], own[key]) for key in exact) and {"input_ids", "labels"} <= set(exact)
    with torch.no_grad():
        torch.testing.assert_close(again(**batch).logits, module.model(**batch).logits, rtol=1e-4, atol=1e-4)
        assert (module.model(**batch).logits - objects_logits(objects, batch)).abs().max() > 1e-3


def objects_logits(objects: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logits without the adapters."""
    model = objects[0]
    scales = [m for m in model.modules() if hasattr(m, "lora_B")]
    for layer in scales:
        layer.lora_B["default"].weight.data.zero_()
    return model(**batch).logits


TOKENS = torch.arange(2, 26)[None]


class NoProcessor:
    """Stands in for a processor, of which these tests read nothing."""

    def save_pretrained(self, folder: Path) -> None:
        assert folder.is_dir()


def tuned_with(model: Any) -> torch.Tensor:
    """Give every trained tensor another value and return the logits."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(part in name for part in ("lora_", "modules_to_save", "tokens_delta")):
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        return model.eval()(TOKENS).logits


def kind(**settings: Any) -> LoraConfig:
    return LoraConfig(r=2, **{"target_modules": ["q_proj"], **settings})


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("wrapped", [True, False], ids=["PeftModel", "injected"])
@pytest.mark.parametrize(
    "config",
    [
        kind(target_modules=["q_proj", "down_proj"], use_rslora=True, alpha_pattern={"down_proj": 7}),
        kind(target_parameters=["down_proj.weight"], target_modules=[]),
        kind(modules_to_save=["lm_head"]),
        kind(modules_to_save=["lm_head", "embed_tokens", "mlp"]),
        kind(target_modules=["q_proj", "up_proj"], modules_to_save=["norm"], bias="all"),
        kind(target_modules=["q_proj", "lm_head"]),
        kind(trainable_token_indices={"embed_tokens": [3, 4]}),
    ],
    ids=["rslora", "parameters", "head", "modules", "norm", "lora_head", "tokens"],
)
def test_what_peft_tunes_is_exported(config: LoraConfig, wrapped: bool, tied: bool, tmp_path: Path) -> None:
    base = tiny_llama(tied=tied)
    model: Any = get_peft_model(base, config) if wrapped else inject(config, base)
    base._hf_peft_config_loaded = not wrapped  # as transformers' add_adapter leaves it, which then saves adapters alone
    expected = tuned_with(model)
    export_model(model, NoProcessor(), tmp_path / "out")
    assert base._hf_peft_config_loaded is not wrapped
    again, loading = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(loading.values())
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(TOKENS).logits, expected, rtol=1e-4, atol=1e-5)
        assert (tiny_llama(tied=tied).eval()(TOKENS).logits - expected).abs().max() > 1e-3
    assert not (tmp_path / "out" / "adapter_config.json").exists()


@pytest.mark.parametrize("compiled", ["model", "block", "base"])
def test_a_compiled_model_is_exported_under_its_own_names(compiled: str, tmp_path: Path) -> None:
    """`torch.compile` puts `_orig_mod.` into the names; such a folder loaded with random weights."""
    base = tiny_llama(tied=True)
    if compiled == "block":
        base.model.layers[0] = torch.compile(base.model.layers[0])
    model: Any = get_peft_model(torch.compile(base) if compiled == "base" else base, kind(target_modules=["q_proj"]))
    with torch.compiler.set_stance("force_eager"):
        expected = tuned_with(model)
    export_model(torch.compile(model) if compiled == "model" else model, NoProcessor(), tmp_path / "out")
    again, loading = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(loading.values())
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(TOKENS).logits, expected, rtol=1e-4, atol=1e-5)


def test_a_head_that_is_no_longer_tied_is_named(tmp_path: Path) -> None:
    model = get_peft_model(tiny_llama(tied=True), kind(modules_to_save=["lm_head"]))
    export_model(model, NoProcessor(), tmp_path / "still")  # the copy is the embedding yet
    tuned_with(model)
    with pytest.warns(UserWarning, match="lm_head.weight and model.embed_tokens.weight were tied.*both are written"):
        export_model(model, NoProcessor(), tmp_path / "out")
    assert model.config.tie_word_embeddings
    ties = [AutoModelForCausalLM.from_pretrained(tmp_path / name).config for name in ("still", "out")]
    assert [config.tie_word_embeddings for config in ties] == [True, False]


def test_the_active_copy_is_exported(tmp_path: Path) -> None:
    model = inject(kind(modules_to_save=["lm_head"]), tiny_llama())
    expected = tuned_with(model)
    model.lm_head.update("other")
    with torch.no_grad():
        model.lm_head.modules_to_save["other"].weight.zero_()
    export_model(model, NoProcessor(), tmp_path / "out")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        torch.testing.assert_close(again(TOKENS).logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "match"),
    [
        (PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"), "prompt_encoder.*PROMPT_TUNING tunes it"),
        (AdaptionPromptConfig(adapter_len=2, adapter_layers=1, task_type="CAUSAL_LM"), "is a AdaptedAttention"),
        (AdaLoraConfig(target_modules=["q_proj"], total_step=9), "SVDLinear of peft's adalora"),
        (kind(target_modules=["embed_tokens"]), "embed_tokens: LoRA on an embedding"),
        (kind(use_dora=True), "DoraLinearVariant"),
    ],
    ids=["prompt", "adaption", "adalora", "embedding", "dora"],
)
def test_what_cannot_be_merged_is_refused_by_name(config: Any, match: str, tmp_path: Path) -> None:
    model = get_peft_model(tiny_llama(), config)
    with pytest.raises(ValueError, match=match):
        export_model(model, NoProcessor(), tmp_path / "out")
    assert not (tmp_path / "out").exists()
