"""Every model source ends in the same kind of folder, which transformers loads."""

import json
import re
import shutil
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from tests.prepare.support import SCRATCH, Place, spec, words
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from rljob.api import ConfigurationError, RLJob
from rljob.api.families import Architecture, families, read
from rljob.api.families.tensors import tensors
from rljob.master.inputs import read_tokenizer
from rljob.plan import Machine, estimate, read_shape
from rljob.plan.estimate import database_bytes
from rljob.prepare.files import NoSpace, require_space
from rljob.prepare.model_folder import disk_bytes, inspect
from rljob.trainer.hf_map import pieces
from rljob.trainer.place import alone

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
        ({"path": "."}, "config.json is missing; download all of the model, or save it with `save_pretrained`"),
        ({"package": {"name": "no_such_package", "file": "x.gguf"}}, "no_such_package is not installed; `pip install"),
        ({"package": {"name": "__main__", "file": "x.gguf"}}, "package.name: __main__ is not installed"),
        ({"hub": {"repo": "owner/model.git"}}, "owner/model.git cannot be asked for .*; check `repo`"),
        ({"url": "https://example.org/model.bin"}, "names neither a .gguf file nor"),
    ],
)
def test_a_source_that_holds_no_model_is_refused(place: Place, source: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        place.prepare(model={"source": source}, warmStart=None)


def _read(folder: Path) -> Architecture:
    return read(json.loads((folder / "config.json").read_text()), folder)


def _filled(folder: Path) -> Path:
    """The folder with the tensors that its config.json speaks of, all zeros."""
    save_file({name: np.zeros(shape, np.float32) for name, shape in tensors(_read(folder))}, folder / "model.safetensors")
    return folder


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
    with pytest.raises(ConfigurationError, match=r"quantized weights cannot be trained"):
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


def test_every_familys_tensors_are_those_that_the_trainer_reads(saved_model: Saved) -> None:
    sizes = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 32}
    folder = saved_model(layers=2)
    for name in families():
        _changed(folder, model_type=name, shared_expert_intermediate_size=48, **sizes)
        for kind in ({"tie_word_embeddings": True}, {"architectures": [f"{name}ForSequenceClassification"]}, {}):
            architecture = _read(_changed(folder, **{"tie_word_embeddings": False, "architectures": [f"{name}ForCausalLM"]} | kind))
            found = list(tensors(architecture))
            assert dict(found) == {piece.name: piece.shape for piece in pieces(architecture, alone(architecture.layers))}
            assert sum(prod(shape) for _, shape in found) == architecture.parameters


@pytest.mark.parametrize("name", families())
def test_what_transformers_saves_of_a_family_is_taken(tmp_path: Path, name: str) -> None:
    experts = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 16}
    config = AutoConfig.for_model(name, num_key_value_heads=1, eos_token_id=1, shared_expert_intermediate_size=48, **sizes, **experts)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path, max_shard_size="20KB")
    facts = inspect(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert facts.parameters == facts.architecture.parameters


def _in_two_files(folder: Path) -> Path:
    """Move the second layer into a file of its own, as large models have it."""
    held = load_file(folder / "model.safetensors")
    files = {name: f"model-0000{1 + ('layers.1.' in name)}-of-00002.safetensors" for name in held}
    for file in set(files.values()):
        save_file({name: value for name, value in held.items() if files[name] == file}, folder / file)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return folder / "model-00002-of-00002.safetensors"


def test_a_missing_file_of_several_is_found_and_bringing_it_is_enough(place: Place, saved_model: Saved) -> None:
    folder = saved_model(layers=2)
    second = _in_two_files(folder)
    held = second.read_bytes()
    second.unlink()
    with pytest.raises(ConfigurationError, match=r"has no model-00002-of-00002.safetensors, which model.safetensors.index.json names"):
        place.prepare(model={"source": {"path": str(folder)}}, warmStart=None)
    second.write_bytes(held)
    prepared = place.prepare(model={"source": {"path": str(folder)}}, warmStart=None)
    assert prepared.parameters == _read(folder).parameters
    assert (place.folders.model / second.name).read_bytes() == held


def _without(folder: Path, part: str) -> None:
    held = load_file(folder / "model.safetensors")
    save_file({name: value for name, value in held.items() if part not in name}, folder / "model.safetensors")


def _with(folder: Path, **more: np.ndarray[Any, Any]) -> None:
    save_file(load_file(folder / "model.safetensors") | more, folder / "model.safetensors")


ONES = np.ones(64, np.float32)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: _without(f, "layers.1."), "the weights lack model.layers.1.input_layernorm.weight, .*; download them again"),
        (lambda f: _with(f, **{"model.layers.0.self_attn.q_proj.bias": ONES}), "hold model.layers.0.self_attn.q_proj.bias, .* would lose"),
        (lambda f: _with(f, **{"model.norm.weight": ONES[:32]}), r"model.norm.weight is \[32\], config.json's model has \[64\]"),
        (lambda f: (f / "model.safetensors").rename(f / "weights.safetensors"), "neither model.safetensors nor .* the name model.safe"),
        (lambda f: (f / "model.safetensors.index.json").write_text("{}"), "index.json has no weight_map from tensors to files"),
    ],
    ids=["a layer less", "a bias more", "another shape", "another file name", "an empty index"],
)
def test_weights_that_are_not_those_of_the_model_are_refused(
    place: Place, saved_model: Saved, damage: Callable[[Path], object], message: str
) -> None:
    folder = saved_model(layers=2)
    damage(folder)
    with pytest.raises(ConfigurationError, match=message):
        place.prepare(model={"source": {"path": str(folder)}}, warmStart=None)


def test_tables_that_old_models_keep_and_an_output_layer_that_is_the_embedding_are_left_unread(place: Place, saved_model: Saved) -> None:
    folder = _changed(saved_model(), tie_word_embeddings=True)
    _with(folder, **{"model.layers.0.self_attn.rotary_emb.inv_freq": ONES})
    assert place.prepare(model={"source": {"path": str(folder)}}, warmStart=None).train == 5


@pytest.mark.parametrize("value", ["2", 0, 1.5, True])
def test_a_size_that_is_no_positive_whole_number_is_named(place: Place, saved_model: Saved, value: object) -> None:
    folder = _changed(saved_model(), num_hidden_layers=value)
    with pytest.raises(ConfigurationError, match=r"config.json: num_hidden_layers is .*, a positive whole number is needed"):
        place.prepare(model={"source": {"path": str(folder)}}, warmStart=None)


@pytest.mark.parametrize(
    ("field", "value"), [("rms_norm_eps", "small"), ("rope_parameters", [1]), ("rope_theta", "far"), ("architectures", 3)]
)
def test_a_field_of_config_json_of_another_kind_is_a_message(saved_model: Saved, field: str, value: object) -> None:
    folder = _changed(saved_model(), **{"rope_parameters": None} | {field: value})
    with pytest.raises(ConfigurationError, match=r": a field is of another kind \(.*\); use the file that came with"):
        _read(folder)


def test_what_a_model_says_of_experts_that_its_family_does_not_have_does_not_matter(tmp_path: Path) -> None:
    config = AutoConfig.for_model("qwen3_moe", num_experts=8, num_hidden_layers=1, shared_expert_intermediate_size=0).to_dict()
    assert read(config, "config.json").experts == read(config | {"shared_expert_intermediate_size": None}, "config.json").experts
    shared = AutoConfig.for_model("qwen2_moe", shared_expert_intermediate_size=0).to_dict()
    with pytest.raises(ConfigurationError, match="shared_expert_intermediate_size is 0"):
        read(shared, "config.json")


@pytest.mark.parametrize("header", [{"a": 1}, {"a": {"data_offsets": [0, 4]}}, {"a": {"data_offsets": [0], "shape": [1]}}])
def test_a_damaged_header_of_weights_is_named(place: Place, saved_model: Saved, header: object) -> None:
    folder = saved_model()
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
    with pytest.raises(ConfigurationError, match=r"model.safetensors has a damaged header \(.*\); download it again"):
        place.prepare(model={"source": {"path": str(folder)}})


def test_weights_in_a_folder_of_their_own_are_refused_before_they_are_copied(place: Place, saved_model: Saved) -> None:
    folder = saved_model()
    _in_two_files(folder)
    index = folder / "model.safetensors.index.json"
    index.write_text(re.sub(r'"(model-[^"]*)"', r'"parts/\1"', index.read_text()))
    with pytest.raises(ConfigurationError, match=r"names parts/model-.*; put all files of the model into one folder"):
        place.prepare(model={"source": {"path": str(folder)}})
    assert not (place.folders.model / ".source.json").exists()


def test_answers_end_at_the_models_end_tokens_and_at_that_of_the_tokenizer(place: Place, saved_model: Saved) -> None:
    folder = saved_model()
    (folder / "generation_config.json").write_text('{"eos_token_id": [0, 1]}')
    prepared = place.prepare(model={"source": {"path": str(folder)}})
    demonstration = place.split("warmstart")[0].demonstration
    assert demonstration is not None
    assert prepared.eos_token_ids == (0, 1, demonstration[-1])


def test_a_generation_configuration_without_an_end_token_leaves_it_to_config_json(place: Place, saved_model: Saved) -> None:
    folder = saved_model()
    (folder / "generation_config.json").write_text('{"eos_token_id": null}')
    assert place.prepare(model={"source": {"path": str(folder)}}).eos_token_ids == (2,)
    other = saved_model()
    (other / "generation_config.json").write_text('{"eos_token_id": "2"}')
    with pytest.raises(ConfigurationError, match=r"eos_token_id is '2'; it must be the number of a token"):
        place.prepare(model={"source": {"path": str(other)}})


@pytest.mark.parametrize("file", ["chat_template.jinja", "tokenizer.json"])
def test_what_a_model_folder_lacks_can_be_added_to_it(place: Place, saved_model: Saved, file: str) -> None:
    folder = saved_model()
    held = (folder / file).read_bytes()
    (folder / file).unlink()
    with pytest.raises(ConfigurationError, match=rf"^{folder}\b.*add {file}"):
        place.prepare(model={"source": {"path": str(folder)}})
    (folder / file).write_bytes(held)
    assert place.prepare(model={"source": {"path": str(folder)}}).train == 5


NO_SYSTEM = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}{{ m.content }}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ messages[0]", r"template refuses this chat \(unexpected end of template.*\); mend the template"),
        ("{{ messages[0].content + 1 }}", r"template refuses this chat \(can only concatenate str.*\); mend the template"),
    ],
    ids=["damaged", "faulty"],
)
def test_a_chat_template_that_renders_no_question_is_refused_and_can_be_mended(
    place: Place, saved_model: Saved, template: str, message: str
) -> None:
    folder = saved_model()
    whole = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").write_text(template)
    job: dict[str, Any] = {"model": {"source": {"path": str(folder)}}}
    with pytest.raises(ConfigurationError, match=f"^{folder}: the model's chat {message}$"):
        place.prepare(**job)
    (folder / "chat_template.jinja").write_text(whole)
    assert place.prepare(**job).train == 5


def test_a_template_that_refuses_a_system_message_or_wants_one_is_judged_by_the_jobs_own_chats(place: Place, saved_model: Saved) -> None:
    folder = saved_model()
    (folder / "chat_template.jinja").write_text(NO_SYSTEM)
    job: dict[str, Any] = {"model": {"source": {"path": str(folder)}}}
    message = r"^train.jsonl line 1: .* refuses this chat \(no system\); leave out spec.data.system, or change its messages$"
    with pytest.raises(ConfigurationError, match=message):
        place.prepare(**job, data={"train": {"path": "train.jsonl"}, "system": "Be brief."})
    assert place.prepare(**job).train == 5
    other = saved_model(seed=1)
    wants = "{% if messages[0].role != 'system' %}{{ raise_exception('no system') }}{% endif %}{{ messages[-1].content }}"
    (other / "chat_template.jinja").write_text(wants)
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "a"}]
    place.write("train.jsonl", [{"messages": chat, "reference": "b", "demonstration": "b"}])
    assert place.prepare(model={"source": {"path": str(other)}}, warmStart=None).train == 1


def test_a_chat_that_the_template_refuses_is_named(place: Place, saved_model: Saved) -> None:
    folder = saved_model()
    (folder / "chat_template.jinja").write_text(NO_SYSTEM)
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "a"}]
    place.write("train.jsonl", [*words(1), {"messages": chat, "reference": "b"}])
    with pytest.raises(ConfigurationError, match=r"^train.jsonl line 2: .* refuses this chat \(no system\); change its messages$"):
        place.prepare(model={"source": {"path": str(folder)}})


def test_a_tokenizer_without_a_chat_template_is_refused(place: Place, saved_model: Saved) -> None:
    folder = saved_model()
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ConfigurationError, match=r"no chat template; add chat_template.jinja"):
        place.prepare(model={"source": {"path": str(folder)}}, warmStart=None)


def test_a_tokenizer_in_two_files_becomes_the_one_that_the_master_reads(place: Place, saved_model: Saved) -> None:
    folder = saved_model()
    whole = json.loads((folder / "tokenizer.json").read_text())
    (folder / "vocab.json").write_text(json.dumps(whole["model"]["vocab"]))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer.json").unlink()
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"tokenizer_class": "Qwen2Tokenizer"}))
    place.prepare(model={"source": {"path": str(folder)}})
    assert "word0" in read_tokenizer(place.folders.model)(list(place.split("train")[0].tokens))


def test_a_tokenizer_that_its_library_cannot_read_is_named(place: Place, saved_model: Saved) -> None:
    folder = saved_model()
    whole = json.loads((folder / "tokenizer.json").read_text())
    whole["model"]["merges"] = [["q", "zz"]]
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    with pytest.raises(ConfigurationError, match=rf"^{folder} has no usable tokenizer \(Token `zz` out of vocabulary"):
        place.prepare(model={"source": {"path": str(folder)}})


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
        (
            {},
            {"trainer": {"expertParallel": 4}, "accelerator": {"perNode": 12}},
            r"expertParallel is 4, but the model has 6 experts .* for 12 ranks .* set it to 3 or 6$",
        ),
        ({}, {"rollout": {"tensorParallel": 4, "maxTokens": 8}}, r"rollout.tensorParallel is 4, .* size of 96; set it to 3$"),
        ({"moe_intermediate_size": 40}, {}, r"experts of size 40 on each of 1 rollout ranks.* on CPU need multiples of 32; take another"),
    ],
)
def test_what_experts_do_not_allow_is_refused(
    place: Place, saved_model: Saved, changes: dict[str, object], job: dict[str, object], message: str
) -> None:
    experts = {"model_type": "qwen3_moe", "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 96, "head_dim": 32}
    experts["architectures"] = ["Qwen3MoeForCausalLM"]
    folder = _filled(_changed(saved_model(heads=6, kvHeads=3, hiddenSize=192), **experts | changes))
    with pytest.raises(ConfigurationError, match=message):
        place.prepare(**{"model": {"source": {"path": str(folder)}}, "accelerator": {"perNode": 6}, "warmStart": None} | job)


def test_a_disk_without_room_is_found_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"copying x needs 10 MiB in .*, 3 MiB are free; free some space"):
        require_space(tmp_path, 10 << 20, "copying x", free=lambda folder: 3 << 20)


def test_a_job_that_its_disk_cannot_hold_is_refused_when_its_model_is_known(place: Place, saved_model: Saved) -> None:
    message = r"a job with [\d,]+ parameters and spec.checkpoint.keep \(1000000000\) needs \d+ MiB in .*; free .* lower spec.check"
    with pytest.raises(NoSpace, match=message):
        place.prepare(model={"source": {"path": str(saved_model())}}, checkpoint={"keep": 1_000_000_000}, iterations=1_000_000_000)
    assert not list(place.folders.model.glob("*.safetensors"))


@pytest.mark.parametrize(
    ("changes", "times"),
    [
        ({}, 3 * 4),
        ({"algorithm": {"resetOptimizer": False}}, 3 * 12),
        ({"checkpoint": {"keep": 3, "keepEvery": 4}}, 4 * 4),
        ({"iterations": 1}, 2 * 4 + 4),  # the warm start's and its own
        ({"iterations": 2, "checkpoint": {"keep": 9}, "algorithm": {"resetOptimizer": False}}, 3 * 12 + 4),
    ],
)
def test_a_disk_is_refused_only_if_it_cannot_do_and_the_plan_asks_for_more(changes: dict[str, Any], times: int) -> None:
    """The plan says it before anything starts, where it knows the model; with the starting model, and what is not trained on yet."""
    document = {"apiVersion": "rljob.dev/v1alpha1", "kind": "RLJob", "metadata": {"name": "a"}, "spec": {}}
    job = RLJob.model_validate(document | {"spec": spec(**changes)})
    sizes = estimate(job, shape := read_shape(job, Path()), Machine(2, True))
    assert shape is not None
    needed = disk_bytes(shape.parameters, job.spec)
    assert needed == times * shape.parameters
    assert sizes.disk >= 4 * shape.parameters + needed + database_bytes(job, sizes.trained_tokens)


def test_a_full_disk_and_a_missing_permission_are_explained() -> None:
    import errno

    from rljob.prepare.files import explained

    with pytest.raises(ConfigurationError, match=r"disk full at /x; free some space"), explained("preparing"):
        raise OSError(errno.ENOSPC, "No space left on device", "/x")
    with pytest.raises(ConfigurationError, match=r"no permission for /x .* change its owner or mode"), explained("preparing"):
        raise OSError(errno.EACCES, "Permission denied", "/x")
    with pytest.raises(OSError, match=r"Input/output"), explained("preparing"):
        raise OSError(errno.EIO, "Input/output error", "/x")
