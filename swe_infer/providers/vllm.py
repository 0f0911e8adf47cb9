"""A model served by vLLM, for checkpoints that are too large or too new for the engine of this package.

The server is the user's own installation, started for the run and stopped at its end. Flags:
https://docs.vllm.ai/en/stable/cli/serve.html.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from swe_infer.errors import ConfigError, ProviderFatal, TransientError
from swe_infer.options import Option
from swe_infer.providers.base import Answer
from swe_infer.providers.faults import one_line
from swe_infer.providers.openai_chat import LimitKey, OpenAIChat
from swe_infer.providers.server_process import ServerProcess
from swe_infer.providers.wire import StreamChoice
from swe_infer.resources import resolve_path
from swe_infer.types import ApiModel, AttentionChoice, Decoding, LlamaModel, PathText, Pricing, Request

logger = logging.getLogger(__name__)

_POLL_S = 0.25
_TOLD_LINES = 12
_FREE = Pricing(input_per_mtok=Decimal(0), output_per_mtok=Decimal(0))
_SECRET = "_API_KEY"


@dataclass(kw_only=True, eq=False, repr=False)
class VLLM(OpenAIChat):
    """``vllm serve`` on this machine, on a free port of the loopback interface.

    A checkpoint of ``model=llama`` with ``prompt_format=raw`` uses text completions, all other models chat
    completions.
    """

    counts_input: ClassVar[bool] = False
    reserved: ClassVar[tuple[str, ...]] = (*OpenAIChat.reserved, "prompt")
    address_env: ClassVar[str | None] = None  # the run starts its own server
    through_proxy: ClassVar[bool] = False  # not for the loopback interface

    name: str = field(default="vllm", init=False)
    base_url: str | None = field(default=None, init=False)
    api_key_env: str | None = field(default=None, init=False)
    pricing_id: str | None = field(default="openai", init=False)
    service_tier: str | None = field(default=None, init=False)
    mode: Literal["live", "batch"] = field(default="live", init=False)
    stream: StreamChoice = field(default="never", init=False)
    send_cache_key: bool = field(default=False, init=False)
    store: bool | None = field(default=None, init=False)
    headers: Mapping[str, str] = field(default_factory=dict, init=False)
    accepts_prefill: bool = field(default=True, init=False)
    limit_key: LimitKey | None = field(default=None, init=False)
    seed_key: str = field(default="seed", init=False)
    refused_fields: tuple[str, ...] = field(default=(), init=False)
    lowest_temperature: float | None = field(default=None, init=False)
    highest_temperature: float = field(default=2.0, init=False)
    api_key_optional: bool = field(default=False, init=False)
    batches: bool = field(default=False, init=False)
    timeout_s: float = 3600.0
    executable: Annotated[PathText, Option("The vllm executable, as a name or path.", "speed")] = "vllm"
    tensor_parallel_size: Annotated[
        int | None,
        Option("Number of GPUs that each layer is split across; null: model.tensor_parallel, or 1.", "speed"),
    ] = None
    pipeline_parallel_size: Annotated[int, Option("Number of pipeline stages.", "speed")] = 1
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"] | None,
        Option("Data type; null: model.dtype, or vLLM's choice.", "answer"),
    ] = None
    max_model_len: Annotated[
        int | None,
        Option("Tokens of prompt and output together; null: model.context_window, or the checkpoint's.", "answer"),
    ] = None
    extra_args: Annotated[tuple[str, ...], Option("Additional arguments of vllm serve.", "answer")] = ()
    ready_timeout_s: Annotated[float, Option("Timeout in seconds for loading the model.", "speed")] = 1800.0

    def own_address(self) -> str:
        return "http://vllm.localhost/v1"  # for messages; the port changes

    @property
    def variant(self) -> str:
        return self._variant

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("tensor_parallel_size", "pipeline_parallel_size"):
            size = getattr(self, key)
            if size is not None and size < 1:
                raise ConfigError(f"provider.{key}={size}: must be at least 1")
        if self.max_model_len is not None and self.max_model_len < 2:
            raise ConfigError(f"provider.max_model_len={self.max_model_len}: must be at least 2 tokens")
        if not 0 < self.ready_timeout_s < float("inf"):
            raise ConfigError(f"provider.ready_timeout_s={self.ready_timeout_s}: must be a finite number above 0")
        self._served: ApiModel | None = None
        self._raw = False
        self._variant = ""
        self._load_format: str | None = None
        self._log: Path | None = None
        self._port_address = ""
        self._process: ServerProcess | None = None

    def served(self, model: ApiModel | LlamaModel) -> ApiModel:
        """See :meth:`swe_infer.providers.base.Provider.served`."""
        if isinstance(model, LlamaModel):
            _check_llama(model)
            self._raw = model.prompt_format == "raw"
            if self._raw and model.thinking is not None:
                raise ConfigError(
                    "model.thinking: only a chat template can use it; set model.prompt_format=chat or "
                    "model.thinking=null"
                )
            self.dtype = self.dtype or model.dtype
            self.tensor_parallel_size = self.tensor_parallel_size or model.tensor_parallel
            self._load_format = None if model.allow_pickle else "safetensors"
            window = self.max_model_len or model.context_window
            self._served = ApiModel(
                name=resolve_path(model.path, "model.path"),
                context_window=window,
                parameters=("temperature", "top_p", "seed", "stop", "n"),
                max_tokens_key="max_tokens",
                pricing=_FREE,
                thinking=None if model.thinks is None else "adaptive" if model.thinks else "off",
            )
        else:
            window = self.max_model_len or model.context_window
            self._served = replace(model, context_window=window, pricing=model.pricing or _FREE)
        if self._served.name.startswith("-"):  # vLLM would read it as an option
            key = "model.path" if isinstance(model, LlamaModel) else "model.name"
            raise ConfigError(
                f"{key}={self._served.name}: begins with a hyphen; write a folder as ./{self._served.name}"
            )
        self.max_model_len = window
        self._variant = f"{'raw' if self._raw else 'chat'}.{self.dtype or 'auto'}"
        self.address = f"http://{self._variant}.vllm.localhost/v1"
        return self._served

    def keep_log(self, directory: Path) -> None:
        """See :meth:`swe_infer.providers.base.Provider.keep_log`."""
        self._log = directory / "vllm.log"

    def check(self, model: ApiModel, decoding: Decoding) -> None:
        if self._served is None:
            raise ConfigError("provider=vllm starts the server of one model: it cannot be one of several deployments")
        super().check(model, decoding)

    def check_conversation(self, model: ApiModel) -> None:
        if self._raw:
            raise ConfigError(
                "a further turn needs a chat model; set model.prompt_format=chat if the checkpoint has a chat "
                "template, or feedback=none"
            )

    def check_access(self) -> None:
        if shutil.which(self.executable) is None:
            raise ConfigError(
                f"provider.executable={self.executable}: there is no such program; install vLLM into an environment "
                "of its own and name it with its path, such as provider.executable=/opt/vllm/bin/vllm"
            )
        super().check_access()

    def command(self, port: int) -> list[str]:
        """The server's command line."""
        assert self._served is not None
        values = {
            "--host": "127.0.0.1",
            "--port": port,
            "--tensor-parallel-size": self.tensor_parallel_size or 1,
            "--pipeline-parallel-size": self.pipeline_parallel_size,
            "--dtype": self.dtype,
            "--load-format": self._load_format,
            "--max-model-len": self.max_model_len,
        }
        flags = [word for flag, value in values.items() if value is not None for word in (flag, str(value))]
        return [self.executable, "serve", self._served.name, *flags, *self.extra_args]

    async def open(self) -> None:
        """Starts the server and waits until it answers.

        Raises:
            ProviderFatal: it ended, or was not ready in time. Its last lines are logged.
        """
        port = _free_port()
        log = self._log or Path(tempfile.mkdtemp(prefix="swe-infer-")) / "vllm.log"
        self._port_address = f"http://127.0.0.1:{port}/v1"
        self._process = ServerProcess(self.command(port), log, _environment())
        logger.info("vLLM is loading %s; its log is %s", self.command(port)[2], log)
        try:
            await self._until_ready(f"http://127.0.0.1:{port}/health")
            await super().open()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        await super().close()
        process, self._process = self._process, None
        if process is not None:
            await asyncio.get_running_loop().run_in_executor(None, process.stop)

    async def complete(
        self, request: Request, model: ApiModel, *, timeout_s: float, cache_prompt: bool = False
    ) -> Answer:
        try:
            return await super().complete(request, model, timeout_s=timeout_s, cache_prompt=cache_prompt)
        except TransientError:
            if self._process is not None and (ended := self._process.ended) is not None:
                raise self._fatal(self._process, f"the server {ended}") from None
            raise

    async def _until_ready(self, health: str) -> None:
        import httpx2

        process = self._process
        assert process is not None
        started = time.monotonic()
        async with httpx2.AsyncClient(timeout=5.0, trust_env=False) as client:
            while (ended := process.ended) is None:
                try:
                    async with client.stream("GET", health) as response:  # its body is not read
                        if response.status_code == 200:
                            logger.info("vLLM is ready after %.0f s", time.monotonic() - started)
                            return
                except httpx2.TransportError:
                    pass  # not listening yet
                if time.monotonic() - started > self.ready_timeout_s:
                    key = f"provider.ready_timeout_s={self.ready_timeout_s:g}"
                    raise self._fatal(process, f"the server was not ready in time ({key})")
                await asyncio.sleep(_POLL_S)
        raise self._fatal(process, f"the server {ended} before it was ready")

    def _fatal(self, process: ServerProcess, what: str) -> ProviderFatal:
        """The error that ends the run, in one line. The last lines of the server's log are logged before it."""
        lines = process.last_lines(_TOLD_LINES)
        for line in lines:
            logger.error("vllm: %s", line)
        last = f": {one_line(lines[-1])[:160]}" if lines else ""
        return ProviderFatal(f"provider=vllm: {what}{last} (its log: {process.log})")

    # Raw prompts: text completions instead of chat completions.

    def path(self, model: ApiModel) -> str:
        return "/completions" if self._raw else super().path(model)

    def body(self, request: Request, model: ApiModel, *, cache_prompt: bool = False) -> dict[str, Any]:
        body = super().body(request, model, cache_prompt=cache_prompt)
        if self._raw:
            for key in ("messages", "add_generation_prompt", "continue_final_message"):
                body.pop(key, None)
            body["prompt"] = request.prompt.text
        return body

    def max_samples(self, model: ApiModel, decoding: Decoding) -> int:
        return 1 if self._raw else super().max_samples(model, decoding)  # vLLM caches the prompt for the next request

    # The client.

    def _open_client(self, http: Any, key: str) -> tuple[Any, Any]:
        import openai

        return openai, openai.AsyncOpenAI(base_url=self._port_address, api_key=key, max_retries=0, http_client=http)


def _check_llama(model: LlamaModel) -> None:
    """Refuses options of ``model`` that only the engine of this package supports."""
    if model.peft_path is not None:
        raise ConfigError("model.peft_path: provider=vllm loads no adapter; merge it into the checkpoint first")
    if model.device != "auto":
        raise ConfigError(f"model.device={model.device}: vLLM uses CUDA_VISIBLE_DEVICES; set auto")
    if model.template_date is not None:
        raise ConfigError("model.template_date: vLLM's templates read the clock; set null")
    if model.attention != AttentionChoice():
        raise ConfigError("model.attention: vLLM chooses the backend; leave model/attention=auto")


def _environment() -> Mapping[str, str]:
    """The server's environment, without API keys, and without usage reports unless the user sets them."""
    kept = {name: value for name, value in os.environ.items() if not name.endswith(_SECRET)}
    return {"VLLM_NO_USAGE_STATS": "1", **kept}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
