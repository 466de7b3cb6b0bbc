"""Client of one vLLM engine: tokens in, tokens and log-probs out; weights from an arena. Only httpx, no vLLM.

Log-probs are *raw*: those of the policy itself at temperature 1, before temperature and top-p (vLLM's `logprobs_mode=raw_logprobs`). That
is what the trainer computes and what the objective compares with. Only at temperature 1 and top-p 1 are they also those of the
distribution that was sampled from; at another temperature the answers come from another distribution than the one they speak of.

Requests carry no seed: a seeded request in a partial prefill ends vLLM's CPU engine ("CPU Generator does not use offset").
"""

import asyncio
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

import httpx

from rljob.api import InfrastructureError
from rljob.wire.weights import Manifest, TensorEntry

CONTROL_TIMEOUT = 30.0
"""Seconds for a call that moves no weights and generates nothing. One that moves weights takes as long as they are big: its caller ends it
(`switch.deadlineSeconds`)."""
NO_WEIGHTS = "none"
"""Weight version of an engine whose weights nobody vouches for: before the first load, during a load, and after one that failed."""
FinishReason = Literal["stop", "length", "abort"]


@dataclass(frozen=True)
class SamplingParams:
    """How to sample one answer. `stop_token_ids` must name the model's end tokens: the engine knows no tokenizer."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    stop_token_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Completion:
    """One answer, the stop token included."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    """One per token, raw (see above)."""
    finish_reason: FinishReason
    weight_version: str
    """`version:checksum` of the weights that wrote all of it (`weight_label`); empty if there are no tokens."""


@dataclass(frozen=True)
class EngineMetrics:
    """The engine's own figures, from `/metrics`."""

    running: int
    waiting: int
    generation_tokens: int
    """Since the engine started."""
    kv_cache_usage: float
    """Share of the KV cache in use, 0 to 1."""


def weight_label(version: int, checksum: str) -> str:
    """What an engine is told its weights are called, and what comes back with every answer."""
    return f"{version}:{checksum}"


class EngineClient:
    """One engine. Every failure to get a valid answer is an InfrastructureError that names the engine and the call."""

    def __init__(self, base_url: str, http: httpx.AsyncClient) -> None:
        """`http` is shared and stays open; its pool must allow as many connections as requests are in flight."""
        self.base_url = base_url.rstrip("/")
        self._http = http

    async def generate(self, request_id: str, prompt: Sequence[int], params: SamplingParams, seconds: float | None = None) -> Completion:
        """One answer to `prompt`. Cancelling the call aborts the request in the engine.

        Args:
            seconds: time limit; None waits as long as the engine lives.

        Raises:
            InfrastructureError: no valid answer, or weights changed while it was written.
        """
        body = {
            "request_id": request_id,
            "token_ids": list(prompt),
            "sampling_params": {**asdict(params), "logprobs": 0, "detokenize": False},
        }
        return parse_completion(await self._post("/inference/v1/generate", body, seconds=seconds))

    async def logprobs(self, tokens: Sequence[int]) -> list[float]:
        """Log-probability of tokens[1:], each given what stands before it: what the canary compares (`rljob.wire.weights.Canary`)."""
        params = {"max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0, "detokenize": False}
        answer = await self._post("/inference/v1/generate", {"token_ids": list(tokens), "sampling_params": params})
        try:
            rows = answer["prompt_logprobs"][1:]
            found = [float(row[str(token)]["logprob"]) for row, token in zip(rows, tokens[1:], strict=True)]
        except (KeyError, TypeError, ValueError) as error:
            raise InfrastructureError(f"engine {self.base_url} gave no prompt log-probs: {error!r}") from error
        return found

    async def abort(self, request_ids: Sequence[str]) -> None:
        """End these requests now: their `generate` calls return what there is, with finish reason `abort`."""
        if request_ids:  # an empty list would abort everything
            await self._post("/abort_requests", {"request_ids": [f"generate-tokens-{name}" for name in request_ids]})

    async def pause(self, mode: Literal["keep", "abort"]) -> None:
        """Stop generating. `keep` freezes what runs until `resume`; `abort` ends it. New requests wait in both."""
        await self._post("/pause", params={"mode": mode, "clear_cache": "true"})

    async def resume(self) -> None:
        """Go on generating."""
        await self._post("/resume")

    async def is_paused(self) -> bool:
        """Whether the engine is paused."""
        return bool((await self._get("/is_paused"))["is_paused"])

    async def unanswered(self) -> int:
        """Requests for tokens whose answer has not been sent yet. An engine that generates nothing any more may still have some."""
        return int((await self._get("/load"))["server_load"])

    async def load_weights(self, manifest: Manifest, arena_path: Path, share: bool = False, beside: bool = False) -> None:
        """Take the manifest's weights from the arena, drop the prefix cache, and call itself `version:checksum`.

        A serving engine is paused first; its running requests end with reason `abort`. The engine checks every byte before it touches
        its model: a refused set leaves the engine paused with its old weights, which nobody vouches for any more (`NO_WEIGHTS`).

        Args:
            share: let the engine read the arena's memory instead of copying it, where it can (CPU). Faster to load; in exchange the
                arena cannot be written as long as this engine runs.
            beside: another process needs the cores as well, so do the first forward pass, the canary's, on one thread (CPU). Threads wait
                for each other at every layer: a pass of 0.05 s takes 0.4 s when one of two has to share its core.

        Raises:
            InfrastructureError: refused or failed; the message holds the engine's reason.
        """
        paused = await self.is_paused()
        if not paused:
            await self.pause("abort")
        await self._post("/update_weight_version", {"new_version": NO_WEIGHTS})
        await self._post("/start_weight_update")
        update = update_info(manifest, arena_path, share, beside)
        await self._post("/update_weights", {"update_info": update}, seconds=None)
        if paused:  # whoever paused it may have kept its keys and values, which are of the old weights
            await self._post("/reset_prefix_cache")
        await self._post("/finish_weight_update", {"weight_version": weight_label(manifest.version, manifest.checksum)}, seconds=None)
        if not paused:
            await self.resume()

    async def release_weights(self) -> None:
        """Let go of a shared arena, so that the next version can be written into it: pauses, and disowns what the engine has.

        The engine must not be resumed before it has loaded weights again.
        """
        await self.pause("abort")
        await self._post("/update_weight_version", {"new_version": NO_WEIGHTS})
        await self._post("/shutdown_weight_transfer_engine")

    async def weight_version(self) -> str:
        """`version:checksum` of the weights; NO_WEIGHTS or vLLM's own default before the first load."""
        return str((await self._get("/weight_info"))["weight_version"])

    async def metrics(self) -> EngineMetrics:
        """Figures for dispatch and progress."""
        return parse_metrics((await self._send("GET", "/metrics")).text)

    async def healthy(self) -> bool:
        """Whether the engine answers and its core lives; never raises."""
        try:
            return (await self._http.get(f"{self.base_url}/health", timeout=CONTROL_TIMEOUT)).status_code == 200
        except httpx.HTTPError:
            return False

    async def sleep(self, level: int = 2) -> None:
        """Give back accelerator memory; level 2 drops the weights, which are written anew at the next load. On CPU: memory is kept."""
        await self._post("/sleep", params={"level": str(level)}, seconds=None)

    async def wake(self) -> None:
        """Take accelerator memory again."""
        await self._post("/wake_up", seconds=None)

    async def _get(self, path: str) -> dict[str, Any]:
        return self._json(path, await self._send("GET", path))

    async def _post(
        self,
        path: str,
        body: Mapping[str, Any] | None = None,
        params: Mapping[str, str] | None = None,
        seconds: float | None = CONTROL_TIMEOUT,
    ) -> dict[str, Any]:
        return self._json(path, await self._send("POST", path, body, params, seconds))

    async def _send(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        params: Mapping[str, str] | None = None,
        seconds: float | None = CONTROL_TIMEOUT,
    ) -> httpx.Response:
        try:
            response = await self._http.request(
                method, self.base_url + path, json=body, params=params, timeout=httpx.Timeout(seconds, connect=10.0)
            )
        except (httpx.HTTPError, asyncio.IncompleteReadError) as error:
            raise InfrastructureError(f"engine {self.base_url}{path}: {type(error).__name__} {error}".rstrip()) from error
        if response.status_code != 200:
            raise InfrastructureError(f"engine {self.base_url}{path} answered {response.status_code}: {failure_reason(response.text)}")
        return response

    def _json(self, path: str, response: httpx.Response) -> dict[str, Any]:
        if not response.content:
            return {}
        try:
            answer = response.json()
        except (ValueError, RecursionError) as error:
            raise InfrastructureError(f"engine {self.base_url}{path} did not answer JSON: {response.text[:200]!r}") from error
        return answer if isinstance(answer, dict) else {"answer": answer}


def update_info(manifest: Manifest, arena_path: Path, share: bool, beside: bool = False) -> dict[str, Any]:
    """The manifest as `rljob.rollout.weight_transfer` expects it."""

    def row(tensor: TensorEntry) -> list[Any]:
        first = min(tensor.shards, key=lambda shard: shard.start)
        return [tensor.name, tensor.dtype, list(tensor.shape), first.offset, tensor.checksum]

    return {
        "path": str(arena_path),
        "version": manifest.version,
        "checksum": manifest.checksum,
        "tensors": [row(tensor) for tensor in manifest.tensors],
        "share": share,
        "beside": beside,
    }


def parse_completion(answer: Mapping[str, Any]) -> Completion:
    """An answer of `/inference/v1/generate`.

    Raises:
        InfrastructureError: it is not complete, not a number, or written by more than one version of the weights.
    """
    try:
        choice = answer["choices"][0]
        tokens = tuple(choice["token_ids"] or ())
        if not all(type(token) is int and 0 <= token < 2**31 for token in tokens):
            raise ValueError("a token is no number of one")
        content = (choice["logprobs"] or {}).get("content") or ()
        logprobs = tuple(float(entry["logprob"]) for entry in content)
        spans = choice.get("weight_versions") or ()
        versions = {str(span["version"]) for span in spans}
        reason = choice["finish_reason"]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise InfrastructureError(f"an engine's answer is not one: {error!r}") from error
    if len(logprobs) != len(tokens) or not all(map(math.isfinite, logprobs)):
        raise InfrastructureError(f"an engine answered {len(tokens)} tokens with {len(logprobs)} log-probs, or some are not numbers")
    if len(versions) > 1:
        raise InfrastructureError(f"the weights changed while an answer was written: {', '.join(sorted(versions))}")
    if reason not in ("stop", "length", "abort"):
        raise InfrastructureError(f"an engine ended an answer with reason {reason!r}")
    return Completion(tokens, logprobs, cast(FinishReason, reason), versions.pop() if versions else "")


def parse_metrics(text: str) -> EngineMetrics:
    """Prometheus text of `/metrics`; several engine cores behind one server are added up (the KV cache: the fullest).

    Raises:
        InfrastructureError: a figure is no number.
    """
    found: dict[str, list[float]] = {}
    try:
        for name, value in re.findall(r"^vllm:(\w+)(?:\{[^}]*\})? ([-+.\w]+)$", text, re.MULTILINE):
            found.setdefault(name, []).append(float(value))
        return EngineMetrics(
            running=int(sum(found.get("num_requests_running", ()))),
            waiting=int(sum(found.get("num_requests_waiting", ()))),
            generation_tokens=int(sum(found.get("generation_tokens_total", ()))),
            kv_cache_usage=max(found.get("kv_cache_usage_perc", ()), default=0.0),
        )
    except (ValueError, OverflowError) as error:
        raise InfrastructureError(f"an engine's metrics are not readable: {error}") from error


def failure_reason(text: str) -> str:
    """The one line that matters of an engine's error body, which may be a stack trace."""
    refused = re.findall(r"(?:WeightsRefused|ConfigurationError|InfrastructureError): ([^\n\\\"]+)", text)
    if refused:
        return str(refused[-1]).strip()
    lines = [line.strip() for line in text.replace("\\n", "\n").splitlines() if line.strip()]
    return lines[-1][:500] if lines else "no reason given"
