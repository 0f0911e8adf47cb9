"""Steps of the engine on a CPU as shares of the machine's limits, and a breakdown of their time.

    python -m benchmarks.engine_cpu MODEL_DIR [--threads 2] [--rounds 5] [--dtype float32]

The limits are measured in the same run: a product of 2,048 cubed in the same type, the faster of torch's and ours; a
copy of 256 MB on large pages (bytes read and written); and reading 256 MB in a product with a vector. A prefill step
runs 2,048 tokens of two prompts; a decode step runs one token of each sequence of 1,024. Prints one JSON line per
step: medians of the rounds. ``parts`` are the compiled kernels alone, at the step's shapes and with each layer's own
weights and keys, as shares of the step.

``of_bandwidth`` compares with the copy. ``of_roof`` is the least time of the step as a share of the measured time:
for products and attention each, the larger of the time for their bytes, at the faster of copy and reading, and the
time for their operations.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from swe_infer.llama.config import read_config
from swe_infer.llama.large_pages import zeros
from swe_infer.llama.model import Layer, Linear, LlamaForCausalLM, ModelInput, Step
from swe_infer.llama.native.kernels import Kernels, PackedWeight, Units, load_kernels
from swe_infer.llama.weights import load_weights
from swe_infer.text import report_errors

CONTEXT = 1024
PREFILL = 2048


def seconds(work: Callable[[], object], rounds: int) -> float:
    """Median seconds; of one thread its processor time, which other work on the machine changes less."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    work()
    times = []
    for _ in range(rounds):
        started = clock()
        work()
        times.append(clock() - started)
    return statistics.median(times)


@dataclass(frozen=True, slots=True)
class Limits:
    """What the machine reaches: operations and bytes per second."""

    rate: float
    copy: float
    read: float

    def roof(self, nbytes: float, operations: float) -> float:
        """The least seconds in which this work could run."""
        return max(nbytes / max(self.copy, self.read), operations / self.rate)


def limits(rounds: int, kernels: Kernels) -> Limits:
    left, right = torch.randn(2, 2048, 2048).to(kernels.dtype).unbind(0)
    packed = kernels.pack(right)
    source, target = zeros([2, 1 << 26], torch.float32).unbind(0)
    source.fill_(1)
    product = min(
        seconds(lambda: left @ right, 4 * rounds), seconds(lambda: kernels.linear(left, packed, None), 4 * rounds)
    )
    return Limits(
        rate=2 * 2048**3 / product,
        copy=2 * source.nbytes / seconds(lambda: target.copy_(source), 4 * rounds),
        read=source.nbytes / seconds(lambda: source.view(-1, 4096) @ target[:4096], 4 * rounds),
    )


class StepBenchmark:
    """Measures steps of one model."""

    def __init__(self, directory: Path, rounds: int, kernels: Kernels) -> None:
        self.model = LlamaForCausalLM(read_config(directory), dtype=kernels.dtype)
        load_weights(self.model, directory, allow_pickle=False)
        self.model.pack()
        self.rounds = rounds
        self.kernels = kernels

    def report(self, name: str, starts: Sequence[int], count: int, limits: Limits) -> dict[str, object]:
        """Measure a step in which each sequence has ``count`` tokens from its start."""
        config, size = self.model.config, self.model.backend.block_size
        tables, used = [], 1
        for start in starts:
            blocks = -(-(start + count) // size)
            tables.append(range(used, used + blocks))
            used += blocks
        cache = self.model.new_cache(used)
        rows = [count * (n + 1) - 1 for n in range(len(starts))]
        ids = torch.randint(5, config.vocab_size, (count * len(starts),)).tolist()
        step = self.model.step(ModelInput(ids, starts, [count] * len(starts), tables, rows))
        for pool in (*cache.keys, *cache.values):
            pool.normal_()
        whole = seconds(lambda: self.model.decode(step, cache), self.rounds)
        head_weights = config.vocab_size * config.hidden_size
        weights = config.parameters - (0 if config.tie_word_embeddings else head_weights)  # of all products
        seen = sum(count * start + count * (count + 1) / 2 for start in starts)
        heads, dim, layers = config.num_attention_heads, config.head_dim, config.num_hidden_layers
        keys = 2 * sum(start + count for start in starts) * config.num_key_value_heads * dim
        work = {  # bytes and operations
            "products": (packed_bytes(self.model.layers), 2.0 * (weights - head_weights) * count * len(starts)),
            "attention": (keys * layers * self.kernels.dtype.itemsize, 4 * seen * heads * dim * layers),
            "head": (packed_bytes(self.model.lm_head), 2.0 * head_weights * len(starts)),
        }
        roofs = {part: limits.roof(*both) for part, both in work.items()}
        parts = self.parts(step, cache.keys, cache.values)
        return {
            "pass": name,
            "ms": round(1000 * whole, 2),
            "tokens_per_s": round(count * len(starts) / whole),
            "of_matrix_rate": round(sum(operations for _, operations in work.values()) / whole / limits.rate, 3),
            "of_bandwidth": round(sum(nbytes for nbytes, _ in work.values()) / whole / limits.copy, 3),
            "of_roof": round(sum(roofs.values()) / whole, 3),
            "parts": {part: round(taken / whole, 3) for part, taken in parts.items()},
            "parts_of_roof": {part: round(roofs[part] / parts[part], 3) for part in ("products", "attention")},
        }

    def parts(self, step: Step, k_pools: Sequence[torch.Tensor], v_pools: Sequence[torch.Tensor]) -> dict[str, float]:
        """Seconds of each kernel in all layers."""
        config, kernels, tokens = self.model.config, self.kernels, len(step.positions_T)
        layers = [layer for layer in self.model.layers if isinstance(layer, Layer)]
        heads, kv_heads, dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        x_TE, inner_TI = torch.randn(tokens, config.hidden_size), torch.randn(tokens, config.intermediate_size)
        x_TE, inner_TI = x_TE.to(kernels.dtype), inner_TI.to(kernels.dtype)
        qkv_THD = torch.randn(tokens, heads + 2 * kv_heads, dim).to(kernels.dtype)
        turned_THD = qkv_THD[:, : heads + kv_heads].contiguous()
        cos_sin = self.model.rope(step.positions_T, step.max_position)
        units = step.plan
        assert isinstance(units, Units)

        def products() -> None:
            for layer in layers:
                for product, given in (
                    (layer.self_attn.qkv_proj, x_TE),
                    (layer.self_attn.o_proj, turned_THD[:, :heads].flatten(1)),
                    (layer.mlp.gate_up_proj, x_TE),
                    (layer.mlp.down_proj, inner_TI),
                ):
                    assert isinstance(product.packed, PackedWeight)
                    kernels.linear(given, product.packed, None)

        def attention() -> None:
            for k_pool, v_pool in zip(k_pools, v_pools, strict=True):
                kernels.attend(turned_THD[:, :heads], k_pool, v_pool, units)

        def norms() -> None:
            for layer in layers:
                for norm in (layer.attention_norm, layer.mlp_norm):
                    kernels.add_rms_norm(x_TE, x_TE, norm.weight, norm.eps)

        def rotation() -> None:
            for _ in layers:
                kernels.rotate(qkv_THD[:, : heads + kv_heads], *cos_sin)

        def cache_writes() -> None:
            for k_pool, v_pool in zip(k_pools, v_pools, strict=True):
                k_TKD, v_TKD = turned_THD[:, heads:], qkv_THD[:, heads + kv_heads :]
                kernels.write_cache(k_pool, v_pool, k_TKD, v_TKD, step.slots)

        return {
            part.__name__: seconds(part, self.rounds) for part in (products, attention, norms, rotation, cache_writes)
        }


def packed_bytes(module: nn.Module) -> int:
    """Bytes of all packed weights in a module."""
    packed = [part.packed for part in module.modules() if isinstance(part, Linear)]
    return sum(weight.data.nbytes for weight in packed if isinstance(weight, PackedWeight))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    kernels = load_kernels(getattr(torch, asked.dtype))
    if isinstance(kernels, str):
        raise SystemExit(f"--dtype {asked.dtype}: no compiled kernels here: {kernels}")
    with torch.inference_mode():
        found = limits(asked.rounds, kernels)
        rates = {
            "tflop_per_s": round(found.rate / 1e12, 3),
            "gb_per_s": round(found.copy / 1e9, 1),
            "read_gb_per_s": round(found.read / 1e9, 1),
        }
        print(json.dumps(rates), flush=True)
        benchmark = StepBenchmark(asked.model, asked.rounds, kernels)
        for name, starts, count in (
            ("prefill", [0, 0], PREFILL // 2),
            *((f"decode_{batch}", [CONTEXT - 1] * batch, 1) for batch in (1, 8, 32)),
        ):
            print(json.dumps(benchmark.report(name, starts, count, found)), flush=True)


if __name__ == "__main__":
    sys.exit(report_errors(main))
