"""What the client makes of an engine's answers, and how an engine is started; no engine runs."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from rljob.api import ConfigurationError, InfrastructureError, RLJob
from rljob.plan.estimate import engine_bytes
from rljob.rollout.client import EngineClient, EngineMetrics, SamplingParams, failure_reason, parse_completion, parse_metrics
from rljob.rollout.engine import engine_argv, kv_cache_bytes, preloads, zygote_environment
from rljob.wire.data import Prepared

PREPARED = Prepared(
    model_type="llama", eos_token_ids=(2,), vocab_size=49152, context_length=8192, max_length=100,
    parameters=1, train=1, heldout=0, warmstart=0, digest="",
)  # fmt: skip


def job(**spec: Any) -> RLJob:
    head = {"apiVersion": "rljob.dev/v1alpha1", "kind": "RLJob", "metadata": {"name": "x"}}
    return RLJob.model_validate(
        head | {"spec": {"model": {"source": {"path": "m"}}, "data": {"train": {"path": "t"}}, "rollout": {"maxTokens": 64}, **spec}}
    )


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return folder(tmp_path, "llama")


def folder(path: Path, family: str, **changes: int) -> Path:
    heads = {"num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 576, "num_hidden_layers": 30}
    config = heads | {"model_type": family, "intermediate_size": 1536, "vocab_size": 49152, "rms_norm_eps": 1e-5} | changes
    (path / "config.json").write_text(json.dumps(config))
    return path


def option(argv: list[str], name: str) -> str:
    return argv[argv.index(f"--{name}") + 1]


def test_an_engine_on_cpu_starts_with_dummy_weights_and_room_for_every_sequence(model: Path) -> None:
    argv = engine_argv(job(), PREPARED, model, "127.0.0.1", 8000)
    assert (option(argv, "load-format"), option(argv, "dtype"), option(argv, "max-model-len")) == ("dummy", "float32", "100")
    assert option(argv, "port") == "8000"
    assert "--enforce-eager" in argv
    assert json.loads(option(argv, "weight-transfer-config")) == {"backend": "rljob-arena"}
    # 100 tokens are 4 blocks of 32 and one to spare, for 128 sequences and the null block; K and V, 30 layers, 3 heads of 64, fp32
    assert int(option(argv, "kv-cache-memory-bytes")) == (128 * 5 + 1) * 32 * 2 * 30 * 3 * 64 * 4


@pytest.mark.parametrize(("accelerator", "dtype"), [("cpu", "float32"), ("nvidia", "bfloat16")])
def test_arithmetic_is_as_wide_as_the_job_says_else_exact_on_cpu_and_half_on_gpus(model: Path, accelerator: str, dtype: str) -> None:
    for said, expected in (("auto", dtype), ("float32", "float32"), ("bfloat16", "bfloat16")):
        asked = job(accelerator={"type": accelerator}, rollout={"maxTokens": 64, "engine": {"dtype": said}})
        assert option(engine_argv(asked, PREPARED, model, "127.0.0.1", 8000), "dtype") == expected
        assert engine_bytes(asked) == {"float32": 4, "bfloat16": 2}[expected]


def test_memory_asked_for_is_memory_given_and_smaller_arithmetic_needs_less(model: Path) -> None:
    asked = job(rollout={"maxTokens": 64, "engine": {"kvCacheMemory": "3Gi"}})
    assert kv_cache_bytes(asked, PREPARED, model) == 3 << 30
    half = job(rollout={"maxTokens": 64, "engine": {"dtype": "bfloat16"}})
    assert kv_cache_bytes(half, PREPARED, model) * 2 == kv_cache_bytes(job(), PREPARED, model)


def test_heads_are_as_large_in_the_cache_as_in_the_trainer(tmp_path: Path) -> None:
    """A qwen3 file that does not say how large they are means 128, whatever its hidden size is."""
    said, silent = (kv_cache_bytes(job(), PREPARED, folder(tmp_path, "qwen3", **given)) for given in ({"head_dim": 128}, {}))
    assert said == silent == 2 * kv_cache_bytes(job(), PREPARED, folder(tmp_path, "qwen3", head_dim=64))


@pytest.mark.parametrize(
    ("policy", "sleep", "eager"),
    [("auto", "--enable-sleep-mode", "--no-enforce-eager"), ("restart", "--no-enable-sleep-mode", "--enforce-eager")],
)
def test_a_kept_engine_on_a_gpu_sleeps_and_has_graphs_a_restarted_one_neither(model: Path, policy: str, sleep: str, eager: str) -> None:
    argv = engine_argv(job(switch={"policy": policy}, accelerator={"type": "nvidia"}), PREPARED, model, "::", 1)
    assert sleep in argv
    assert eager in argv
    assert option(argv, "dtype") == "bfloat16"
    assert "--kv-cache-memory-bytes" not in argv


def test_the_engine_of_a_rollout_pod_has_graphs_whatever_the_policy_since_no_trainer_takes_its_turn(model: Path) -> None:
    restarted = job(switch={"policy": "restart"}, accelerator={"type": "nvidia"})
    assert "--no-enforce-eager" in engine_argv(restarted, PREPARED, model, "::", 1, alone=True)
    assert "--enforce-eager" in engine_argv(job(), PREPARED, model, "::", 1, alone=True), "CPU has none"


def test_extra_arguments_come_last_and_win(model: Path) -> None:
    extra = {"max-num-batched-tokens": "512", "seed": "9", "enable-prefix-caching": "false", "enforce-eager": "true"}
    argv = engine_argv(job(rollout={"maxTokens": 64, "engine": {"extraArgs": extra}}), PREPARED, model, "h", 1)
    assert (option(argv, "max-num-batched-tokens"), option(argv, "seed")) == ("512", "9")
    assert "--no-enable-prefix-caching" in argv
    assert argv.count("--seed") == 1


def test_a_folder_without_a_model_is_the_users_to_mend(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"config\.json"):
        engine_argv(job(), PREPARED, tmp_path, "h", 1)
    (tmp_path / "config.json").write_text('{"model_type": "llama", "num_attention_heads": 9}')
    with pytest.raises(ConfigurationError, match=r"config\.json: .* is missing"):
        engine_argv(job(), PREPARED, tmp_path, "h", 1)


def test_the_zygotes_environment_keeps_what_the_shim_has_and_adds_what_libraries_read_at_load() -> None:
    found = zygote_environment(job(), {"PATH": "/bin", "OMP_NUM_THREADS": "3"})
    assert (found["PATH"], found["OMP_NUM_THREADS"], found["SPT_NOENV"], found["VLLM_SERVER_DEV_MODE"]) == ("/bin", "3", "1", "1")
    gpu = zygote_environment(job(accelerator={"type": "nvidia"}), {})
    assert gpu["PYTORCH_NVML_BASED_CUDA_CHECK"] == "1"
    assert "OMP_NUM_THREADS" not in gpu


def test_an_engine_on_a_gpu_needs_no_compiler_to_sample_unless_somebody_wants_that() -> None:
    name = "VLLM_USE_FLASHINFER_SAMPLER"
    gpu = job(accelerator={"type": "nvidia"})
    assert [zygote_environment(gpu, inherited)[name] for inherited in ({}, {name: "1"})] == ["0", "1"]
    assert name not in zygote_environment(job(), {})


def test_fp32_on_a_gpu_is_fp32_in_attention_too() -> None:
    full = job(accelerator={"type": "nvidia"}, rollout={"maxTokens": 64, "engine": {"dtype": "float32"}})
    assert zygote_environment(full, {})["TRITON_F32_DEFAULT"] == "ieee"
    assert "TRITON_F32_DEFAULT" not in zygote_environment(job(accelerator={"type": "nvidia"}), {})


def test_tcmalloc_is_preloaded_if_found_and_never_twice(tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libtcmalloc_minimal.so.4").touch()
    found = preloads(tmp_path, "/x.so")
    assert found.endswith("libtcmalloc_minimal.so.4:/x.so")
    assert preloads(tmp_path, found) == found


def answer(**changes: Any) -> dict[str, Any]:
    choice: dict[str, Any] = {
        "token_ids": [5, 6],
        "logprobs": {"content": [{"token_id": 5, "logprob": -0.5}, {"token_id": 6, "logprob": -1.5}]},
        "finish_reason": "length",
        "weight_versions": [{"version": "3:abc", "start": 0, "end": 2}],
    }
    return {"choices": [choice | changes]}


def test_an_answer_is_tokens_log_probs_reason_and_who_wrote_it() -> None:
    completion = parse_completion(answer())
    assert (completion.tokens, completion.logprobs) == ((5, 6), (-0.5, -1.5))
    assert (completion.finish_reason, completion.weight_version) == ("length", "3:abc")


def test_an_answer_aborted_before_its_first_token_has_no_author() -> None:
    completion = parse_completion(answer(token_ids=[], logprobs=None, weight_versions=None, finish_reason="abort"))
    assert (completion.tokens, completion.weight_version) == ((), "")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"weight_versions": [{"version": "1:a"}, {"version": "2:b"}]}, "weights changed"),
        ({"token_ids": [5]}, "1 tokens with 2 log-probs"),
        ({"logprobs": {"content": [{"logprob": float("nan")}, {"logprob": 0.0}]}}, "not numbers"),
        ({"finish_reason": "error"}, "error"),
        ({"logprobs": {"content": [{}]}}, "not one"),
        ({"token_ids": ["a", 6]}, "no number"),
        ({"token_ids": [1.5, 6]}, "no number"),
        ({"token_ids": [2**40, 6]}, "no number"),
        ({"token_ids": [-1, 6]}, "no number"),
    ],
)
def test_an_answer_that_cannot_be_trained_on_is_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(InfrastructureError, match=reason):
        parse_completion(answer(**changes))
    with pytest.raises(InfrastructureError, match="not one"):
        parse_completion({})


def test_metrics_are_read_from_prometheus_text() -> None:
    text = """# HELP vllm:num_requests_running x
vllm:num_requests_running{engine="0",model_name="policy"} 3.0
vllm:num_requests_waiting{engine="0",model_name="policy"} 2.0
vllm:generation_tokens_total{engine="0",model_name="policy"} 1.5e+03
vllm:kv_cache_usage_perc{engine="0",model_name="policy"} 0.25
vllm:num_requests_running_other 9.0
"""
    assert parse_metrics(text) == EngineMetrics(running=3, waiting=2, generation_tokens=1500, kv_cache_usage=0.25)
    assert parse_metrics("") == EngineMetrics(0, 0, 0, 0.0)
    for figure in ("NaN", "Inf", "many"):
        with pytest.raises(InfrastructureError, match="not readable"):
            parse_metrics(f"vllm:num_requests_running {figure}\n")


def test_of_a_long_trace_the_reason_is_kept() -> None:
    trace = 'Traceback ...\\n  File ...\\nrljob.checkpoint_engine.arena.WeightsRefused: x is half written: export again\\n"}}'
    assert failure_reason(trace) == "x is half written: export again"
    assert failure_reason("one\ntwo") == "two"
    assert failure_reason("") == "no reason given"


@pytest.mark.asyncio
async def test_every_way_to_fail_is_an_infrastructure_error_that_names_engine_and_call() -> None:
    def respond(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/resume":
            raise httpx.ConnectError("refused")
        if request.url.path == "/weight_info":
            return httpx.Response(200, text="<html>")
        return httpx.Response(503, text="engine is dead")

    async with httpx.AsyncClient(transport=httpx.MockTransport(respond)) as http:
        engine = EngineClient("http://engine:1/", http)
        with pytest.raises(InfrastructureError, match=r"http://engine:1/inference/v1/generate answered 503: engine is dead"):
            await engine.generate("r", [1], SamplingParams(max_tokens=1))
        with pytest.raises(InfrastructureError, match=r"http://engine:1/resume: ConnectError refused"):
            await engine.resume()
        with pytest.raises(InfrastructureError, match="did not answer JSON"):
            await engine.weight_version()
        assert not await engine.healthy()
