"""The engine on a GPU: prefill and decode as shares of the machine's limits, and workloads compared with
transformers and vLLM. ``benchmarks.gpu_table`` runs all of it within eight minutes.

    python -m benchmarks.engine_gpu [--shape 8b] [--parts prefill,decode,profile,work,drafting,peer,vllm]
                                    [--attention varlen] [--lengths 2141,2909] [--vllm PYTHON]

The model has random weights in the shape of Llama 3 8B (grouped-query attention) or of SWE-Llama 7b, created on the
device. The limits are measured in the same run: a large matrix product in bfloat16, and a copy (bytes read and
written). Prefill's share counts the operations of the layers' products and of causal attention. Decode's share counts
the bytes of all weights except the embedding, and of the keys and values of all tokens. ``work`` generates for
prompts with the lengths of real SWE-bench prompts: once, in eight samples, and at four temperatures; ``peer``
(transformers' ``generate_batch``) and ``vllm`` do the first of these, vLLM all three. ``drafting`` generates the gold
patches of the bundled instances, to which it is steered, with and without drafts. Prints one JSON line for each
figure. On a machine without a GPU only ``--shape tiny`` runs, on the CPU and with all lengths divided by 64: a trial
of the script, not a measurement.
"""

from __future__ import annotations

import argparse
import gc
import json
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from benchmarks.drafting import source_of
from benchmarks.engine import ChildProcess
from benchmarks.speculation import SteeredSampler, one_run, requests_for
from swe_infer.llama.config import LlamaConfig, RopeConfig
from swe_infer.llama.engine import Engine, EngineOptions
from swe_infer.llama.model import LlamaForCausalLM
from swe_infer.llama.sequence import GenerationRequest
from swe_infer.llama.stopping import StopParams
from swe_infer.llama.tokenizer import LlamaTokenizer
from swe_infer.text import report_errors
from swe_infer.types import AttentionChoice, Failure, Skip

SHAPES = {
    "8b": LlamaConfig(128256, 4096, 14336, 32, 32, 8, 128, 131072, rope=RopeConfig(500_000.0)),
    "7b": LlamaConfig(32000, 4096, 11008, 32, 32, 32, 128, 100_000, rope=RopeConfig(10_000.0)),
    "small": LlamaConfig(1536, 512, 1024, 4, 8, 4, 64, 16384, rope=RopeConfig(10_000.0)),
    "tiny": LlamaConfig(1536, 64, 128, 2, 4, 2, 16, 4096, rope=RopeConfig(10_000.0)),
}
LENGTHS = (2141, 2909, 3090, 3295, 3586, 3887, 4135, 4517, 5832, 6533, 6689, 7200, 7258, 8428, 8716, 9072)
"""Tokens of the shorter half of available SWE-bench oracle prompts, estimated from their characters."""
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ACTIVITY = torch.profiler.ProfilerActivity.CUDA if DEVICE == "cuda" else torch.profiler.ProfilerActivity.CPU
SCALE = 1 if DEVICE == "cuda" else 64
"""All lengths are divided by this."""
NEW = 256 // SCALE
PARTS = ("prefill", "decode", "profile", "work", "drafting", "peer", "vllm")
WORKLOADS = (("n=1", (0.0,), 1), ("n=8", (0.8,), 8), ("4 temperatures", (0.2, 0.4, 0.6, 0.8), 1))
"""Name, temperatures, samples of each."""


def say(**line: object) -> None:
    print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in line.items()}), flush=True)


def seconds(work: Callable[[], object], rounds: int = 5) -> float:
    """Median seconds on the device."""
    work()
    times = []
    for _ in range(rounds):
        if DEVICE == "cpu":
            started = time.perf_counter()
            work()
            times.append(time.perf_counter() - started)
            continue
        events: list[Any] = [torch.cuda.Event(enable_timing=True) for _ in range(2)]  # type: ignore[no-untyped-call]
        start, end = events
        start.record()
        work()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1000)
    return float(statistics.median(times))


def synchronize() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def limits() -> tuple[float, float]:
    """Operations and bytes per second of this GPU."""
    size = 8192 // SCALE
    left, right = torch.randn(2, size, size, device=DEVICE, dtype=torch.bfloat16).unbind(0)
    rate = 2 * size**3 / seconds(lambda: left @ right, 10)
    source = torch.randint(0, 255, ((4 << 30) // SCALE,), device=DEVICE, dtype=torch.uint8)
    target = torch.empty_like(source)
    bandwidth = 2 * source.numel() / seconds(lambda: target.copy_(source), 10)
    return rate, bandwidth


def make_engine(config: LlamaConfig, max_batch_tokens: int, attention: str) -> Engine:
    choice = AttentionChoice(backends=(attention,)) if attention else None
    model = LlamaForCausalLM(config, device=DEVICE, dtype=torch.bfloat16, attention=choice)
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.02) if parameter.ndim == 2 else parameter.data.fill_(1.0)
    with resources.as_file(resources.files("swe_infer.sample") / "tiny_llama") as directory:
        tokenizer = LlamaTokenizer(Path(directory), "raw")
    return Engine(model, tokenizer, EngineOptions(max_batch_tokens, 128, 24.0 / SCALE))


def prompts(config: LlamaConfig, lengths: tuple[int, ...]) -> list[tuple[int, ...]]:
    generator = torch.Generator().manual_seed(1)
    return [tuple(torch.randint(5, config.vocab_size, (length,), generator=generator).tolist()) for length in lengths]


def requests(
    texts: list[tuple[int, ...]], new: int, temperatures: tuple[float, ...] = (0.0,), samples: int = 1
) -> Iterator[GenerationRequest]:
    stop_params = StopParams(new, closed_patch=False, repetition=False)
    for index, text in enumerate(texts):
        for temperature in temperatures:
            for sample in range(samples):
                key = (index, temperature, sample)
                yield GenerationRequest(key, text, stop_params, temperature, None, 1000 * index + sample)


def answer(engine: Engine, asked: Iterator[GenerationRequest]) -> tuple[float, int]:
    """Wall seconds and output tokens, from an empty prefix cache."""

    def rejected(request: GenerationRequest, why: Failure | Skip) -> None:
        raise SystemExit(f"{request.key}: {why}")

    engine.clear_prefix_cache()
    engine.reset_stats()
    synchronize()
    started = time.perf_counter()
    tokens = sum(len(found.token_ids) for found in engine.generate(asked, rejected))
    return time.perf_counter() - started, tokens


def layer_parameters(config: LlamaConfig) -> int:
    heads, kv = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    each = 2 * config.hidden_size * (heads + kv) + 3 * config.hidden_size * config.intermediate_size
    return config.num_hidden_layers * each


def prefill(engine: Engine, rate: float, length: int, count: int) -> None:
    config = engine.model.config
    texts = prompts(config, (length,) * count)
    answer(engine, requests(texts[:1], 1))
    wall = statistics.median(answer(engine, requests(texts, 1))[0] for _ in range(3))
    tokens = length * count
    attention = 2 * config.num_hidden_layers * config.num_attention_heads * config.head_dim * length * tokens
    operations = 2 * layer_parameters(config) * tokens + attention
    say(
        figure="prefill",
        prompts=count,
        length=length,
        chunk=engine.options.max_batch_tokens,
        tokens_per_s=tokens / wall,
        share_of_matrix_rate=operations / wall / rate,
    )


def decode(engine: Engine, bandwidth: float, length: int, count: int, steps: int = 40) -> None:
    config = engine.model.config
    engine.clear_prefix_cache()
    for request in requests(prompts(config, (length,) * count), 2 * steps + 40):
        engine.add_request(request)
    while engine.scheduler.waiting or any(sequence.remaining > 1 for sequence in engine.scheduler.running):
        engine.step()
    for _ in range(5):
        engine.step()
    synchronize()
    started = time.perf_counter()
    for _ in range(steps):
        engine.step()
    synchronize()
    wall = (time.perf_counter() - started) / steps
    on_device = device_seconds(engine)
    engine.abandon()
    weights = 2 * (layer_parameters(config) + config.vocab_size * config.hidden_size)
    token = 4 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    moved = weights + token * count * (length + 25)
    say(
        figure="decode",
        sequences=count,
        length=length,
        ms_a_step=1000 * wall,
        tokens_per_s=count / wall,
        share_of_bandwidth=moved / wall / bandwidth,
        ms_on_the_device=1000 * on_device,
        device_share_of_bandwidth=moved / max(on_device, 1e-9) / bandwidth,
    )


def device_seconds(engine: Engine) -> float:
    """Device seconds of one decode step without host overhead, measured by replaying its graph."""
    graphs = engine.graphs
    if graphs is None or not graphs.last_graph:
        return 0.0
    return seconds(graphs.last_graph.replay, 10)


def work(engine: Engine, lengths: tuple[int, ...]) -> None:
    texts = prompts(engine.model.config, lengths)
    answer(engine, requests(texts[:2], 8))
    once = 0.0
    for name, temperatures, samples in WORKLOADS:
        wall, tokens = answer(engine, requests(texts, NEW, temperatures, samples))
        once = once or wall
        figures = engine.figures()
        say(
            figure="work",
            what=name,
            prompts=len(texts),
            prompt_tokens=sum(lengths),
            wall_s=wall,
            output_tokens_per_s=tokens / wall,
            times_one_run=wall / once,
            cache_hit_rate=figures["cache_hit_rate"],
            gb_reserved=torch.cuda.memory_reserved() / 1e9,  # 0 without a GPU
            gb_allocated_at_most=torch.cuda.max_memory_allocated() / 1e9,
        )


@contextmanager
def time_limit(limit: int) -> Iterator[None]:
    def late(*_: object) -> None:
        raise TimeoutError(f"not done within {limit} s")

    signal.signal(signal.SIGALRM, late)
    signal.alarm(limit)
    try:
        yield
    finally:
        signal.alarm(0)


def drafting(engine: Engine) -> None:
    """Gold patches of the bundled instances. Prompts are computed before."""
    with resources.files("swe_infer.sample").joinpath("instances.jsonl").open(encoding="utf-8") as file:
        rows = [json.loads(next(file)) for _ in range(8)]
    answers = [engine.tokenizer.encode_text(row["patch"].strip() + "\n")[: 512 // SCALE] for row in rows]
    texts = [engine.tokenizer.encode_text(row["text"]) for row in rows]
    sources = [source_of(row["text"]) for row in rows]
    sampler, engine.sampler = engine.sampler, SteeredSampler(answers)
    engine.clear_prefix_cache()
    one_run(engine, requests_for(texts, [1] * len(rows), "none", sources), len(rows))
    for batch in (1, 8):
        for kind in ("none", "diff") * 2:  # the first of each captures graphs and compiles kernels
            done = one_run(engine, requests_for(texts, list(map(len, answers)), kind, sources), batch)
            say(
                figure="drafting",
                drafter=kind,
                sequences=batch,
                wall_s=done.wall,
                output_tokens_per_s=done.tokens / done.wall,
                tokens_a_step=done.tokens / done.steps,
            )
    engine.sampler = sampler


def transformers_config(config: LlamaConfig) -> Any:
    import transformers

    shape: Any = transformers.LlamaConfig
    return shape(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        max_position_embeddings=config.max_position_embeddings,
        architectures=["LlamaForCausalLM"],
        dtype=torch.bfloat16,
        attn_implementation="sdpa",
    )


def peer(config: LlamaConfig, lengths: tuple[int, ...], arguments: argparse.Namespace) -> None:
    """transformers' continuous batching on the workload ``n=1``."""
    import transformers

    torch.set_default_dtype(torch.bfloat16)
    with torch.device(DEVICE):
        model: Any = transformers.LlamaForCausalLM(transformers_config(config))
    torch.set_default_dtype(torch.float32)
    model.eval()
    generation: Any = transformers.GenerationConfig
    batching: Any = transformers.ContinuousBatchingConfig
    texts = [list(text) for text in prompts(config, lengths)]
    blocks = sum(-(-(length + NEW) // 256) for length in lengths) + 8

    def run(new: int, some: list[list[int]]) -> tuple[float, int]:
        started = time.perf_counter()
        answers = model.generate_batch(
            some,
            generation_config=generation(max_new_tokens=new, do_sample=False, eos_token_id=-1, pad_token_id=0),
            continuous_batching_config=batching(num_blocks=blocks, max_batch_tokens=2048),
            progress_bar=False,
        )
        return time.perf_counter() - started, sum(len(found.generated_tokens) for found in answers.values())

    with reported("transformers generate_batch n=1"), time_limit(arguments.peer_limit):
        run(2, texts[:1])
        wall, tokens = run(NEW, texts)
        say(figure="peer", what="transformers generate_batch n=1", wall_s=wall, output_tokens_per_s=tokens / wall)


@contextmanager
def reported(what: str) -> Iterator[None]:
    """A peer that fails must not lose the other figures."""
    try:
        yield
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a peer may raise anything
        say(figure="peer", what=what, failed=f"{type(error).__name__}: {error}"[:300])


def vllm(config: LlamaConfig, lengths: tuple[int, ...], arguments: argparse.Namespace) -> None:
    """vLLM with random weights on the same workloads as :func:`work`."""
    if not arguments.vllm:
        say(figure="peer", what="vllm", failed="--vllm is not given: the Python of an environment with vLLM")
        return
    with reported("vllm"), time_limit(arguments.peer_limit), tempfile.TemporaryDirectory() as folder:
        transformers_config(config).save_pretrained(folder)
        child = ChildProcess(arguments.vllm, "engine_vllm.py", folder, 16, "dummy")
        texts = prompts(config, lengths)
        for name, temperatures, samples in (("warm-up", (0.0,), 1), *WORKLOADS):
            task = {"prompts": texts, "new": NEW, "temperatures": temperatures, "samples": samples, "at_once": True}
            wall, _, tokens = child.ask(task)
            say(figure="peer", what=f"vllm {name}", wall_s=wall, output_tokens_per_s=tokens / wall)
        child.close()


def own_time(row: Any) -> float:
    """Microseconds."""
    return float(row.self_device_time_total if DEVICE == "cuda" else row.self_cpu_time_total)


def profile(engine: Engine) -> None:
    """The kernels with the most device time, for one prompt's prefill and 20 decode steps."""
    text = prompts(engine.model.config, (8192 // SCALE,))
    for name, asked in (("prefill", requests(text, 1)), ("decode", requests(text * 8, 24))):
        engine.clear_prefix_cache()
        if name == "decode":
            for request in asked:
                engine.add_request(request)
            while engine.scheduler.waiting or any(s.remaining > 1 for s in engine.scheduler.running):
                engine.step()
        with torch.profiler.profile(activities=[ACTIVITY]) as seen:
            if name == "prefill":
                answer(engine, asked)
            else:
                for _ in range(20):
                    engine.step()
            synchronize()
        engine.abandon()
        rows = sorted(seen.key_averages(), key=lambda row: -own_time(row))
        whole = sum(own_time(row) for row in rows)
        for row in rows[:9]:
            say(
                profile=name,
                kernel=row.key[:70],
                share=own_time(row) / whole,
                calls=row.count,
                us_each=own_time(row) / row.count,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="8b" if SCALE == 1 else "tiny")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--attention", default="", help="a backend, as in model/attention; default: auto")
    parser.add_argument("--lengths", default=",".join(map(str, LENGTHS)))
    parser.add_argument("--chunk", type=int, default=2048, help="runner.max_batch_tokens")
    parser.add_argument("--peer-limit", type=int, default=90, help="seconds for each peer")
    parser.add_argument("--vllm", default="", metavar="PYTHON")
    arguments = parser.parse_args()
    if SCALE != 1:
        torch.set_num_threads(1)
        if arguments.shape != "tiny":
            parser.error(f"--shape {arguments.shape} needs a GPU; --shape tiny tries the script on a CPU")
    parts = arguments.parts.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"--parts: {', '.join(sorted(unknown))}: there is {', '.join(PARTS)}")
    lengths = tuple(int(length) // SCALE for length in arguments.lengths.split(","))
    config = SHAPES[arguments.shape]
    rate, bandwidth = limits()
    say(
        figure="limits",
        device=torch.cuda.get_device_name() if SCALE == 1 else "CPU: a trial",
        torch=torch.__version__,
        matrix_tflops=rate / 1e12,
        copy_tb_per_s=bandwidth / 1e12,
    )
    if set(parts) - {"peer", "vllm"}:
        engine = make_engine(config, arguments.chunk, arguments.attention)
        backend = type(engine.model.backend).__module__.rpartition(".")[2]
        say(figure="engine", shape=arguments.shape, attention=backend, graphs=engine.graphs is not None)
        if "prefill" in parts:
            prefill(engine, rate, 4096 // SCALE, 8)
            prefill(engine, rate, 16384 // SCALE, 2)
        if "decode" in parts:
            for length, count in ((4096, 1), (4096, 8), (4096, 32), (1024, 64)):
                decode(engine, bandwidth, length // SCALE, count)
        if "profile" in parts:
            profile(engine)
        if "work" in parts:
            work(engine, lengths)
        if "drafting" in parts:
            drafting(engine)
        del engine
    for name, run in (("peer", peer), ("vllm", vllm)):
        if name in parts:
            gc.collect()
            torch.cuda.empty_cache()  # does nothing without a GPU
            run(config, lengths, arguments)


if __name__ == "__main__":
    sys.exit(report_errors(main))
