"""The size of the cache: on a simulated device with a budget, no pass runs out of memory."""

from __future__ import annotations

import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from swe_infer.errors import ConfigError
from swe_infer.types import LlamaModel

if TYPE_CHECKING:
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    from swe_infer.llama.engine import Engine, EngineOptions
    from swe_infer.llama.memory import DeviceMemory, _groups_left, largest_pass
    from swe_infer.llama.process_worker import process_engines
    from swe_infer.llama.sampler import SamplingParams
    from swe_infer.llama.tokenizer import LlamaTokenizer
    from tests.llama.helpers import ask, generate, load, random_prompt
    from tests.support.checkpoints import make_checkpoint

MB = 1 << 20
SMALL: dict[str, Any] = {"hidden_size": 32, "head_dim": 16, "num_hidden_layers": 1}


@contextmanager
def simulated_device(budget: int) -> Iterator[Any]:
    """A device of ``budget`` bytes, on which all tensors of the block lie. One more raises OutOfMemoryError."""

    class Allocations(TorchDispatchMode):  # type: ignore[no-untyped-call]
        used: int = 0
        peak: int = 0

        def __init__(self) -> None:
            super().__init__()  # type: ignore[no-untyped-call]
            self.storages: dict[int, Any] = {}

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            found = func(*args, **(kwargs or {}))
            for tensor in tree_leaves(found):
                if isinstance(tensor, torch.Tensor):
                    self.add(tensor.untyped_storage())
            if self.used > budget:
                raise torch.OutOfMemoryError(f"{self.used} bytes are used, and there are {budget}")
            return found

        def add(self, storage: Any) -> None:
            key, size = storage._cdata, storage.nbytes()
            if key in self.storages:
                return
            self.storages[key] = weakref.ref(storage, lambda _: self.free(key, size))
            self.used += size
            self.peak = max(self.peak, self.used)

        def free(self, key: int, size: int) -> None:
            del self.storages[key]
            self.used -= size

    class Simulated(DeviceMemory):
        measures_passes = True
        reserve_bytes = 4 * MB
        most_bytes = 0
        """Used at most in the largest pass."""

        def __init__(self) -> None:
            self.device = torch.device("cpu")

        def free_bytes(self) -> int:
            return budget - allocations.used

        def peak_bytes(self, work: Callable[[], object]) -> int:
            allocations.peak = allocations.used
            work()
            self.most_bytes = allocations.peak
            return allocations.peak - allocations.used

    allocations = Allocations()
    with allocations:
        yield Simulated()


def fill(engine: Engine) -> None:
    """Run the largest pass beside the full cache, and sample from all of its logits."""
    options = engine.options
    largest = largest_pass(engine.model, engine.context_window, options.max_batch_tokens, options.max_sequences)
    with torch.inference_mode():
        logits_RV = engine.model.run(largest, engine.cache)
        engine.sampler(logits_RV, [SamplingParams(1.0, 0.9, row, 0) for row in range(len(logits_RV))])


@pytest.mark.parametrize(
    ("shape", "options", "budget"),
    [
        ({"vocab_size": 65_536, "max_position_embeddings": 4096}, (40, 4), 320 * MB),
        ({"max_position_embeddings": 32_768}, (64, 8), 900 * MB),
    ],
)
def test_the_cache_leaves_memory_for_the_largest_pass(
    tmp_path: Path, checkpoint: Path, shape: dict[str, Any], options: tuple[int, int], budget: int
) -> None:
    directory = make_checkpoint(tmp_path, tokenizer=False, **SMALL, **shape)
    asked = [ask(n, random_prompt(30 + 40 * n, n), 3, temperature=n % 2, top_p=0.9, seed=n) for n in range(4)]
    with simulated_device(budget) as memory:
        engine = Engine(load(directory), LlamaTokenizer(checkpoint), EngineOptions(*options), memory=memory)
        fill(engine)
        assert len(generate(engine, asked)) == 4
        most = options[1] * shape["max_position_embeddings"]
        assert engine.cache_tokens == most or engine.cache.nbytes > 0.15 * budget


def test_a_device_that_is_too_small_is_a_configuration_error(tmp_path: Path, checkpoint: Path) -> None:
    directory = make_checkpoint(tmp_path, tokenizer=False, vocab_size=20_000, **SMALL)

    def load_engine(memory: DeviceMemory, gigabytes: float | None = None) -> Engine:
        return Engine(load(directory), LlamaTokenizer(checkpoint), EngineOptions(64, 4, gigabytes), memory=memory)

    with simulated_device(1000 * MB) as memory:
        load_engine(memory)
    for budget, message in (
        (memory.most_bytes - MB, r"runner\.max_batch_tokens: cpu has too little memory beside the weights"),
        (memory.most_bytes + MB, r"runner\.kv_cache_gb: 0\.000 GB is less than one cache block.*max_batch_tokens"),
    ):
        with simulated_device(budget) as memory, pytest.raises(ConfigError, match=message):
            load_engine(memory)
    with simulated_device(100 * MB) as memory:
        assert load_engine(memory, 0.001).cache_tokens > 0
        with pytest.raises(ConfigError, match=r"runner\.kv_cache_gb=0\.2: cpu has 0\.\d+ GB free beside the weights"):
            load_engine(memory, 0.2)


def test_engines_that_share_a_gpu_need_the_size_of_the_cache() -> None:
    with pytest.raises(ConfigError, match=r"runner\.workers=2: engines that share a GPU need runner\.kv_cache_gb"):
        process_engines(LlamaModel(path="x"), EngineOptions(), ["cuda:0", "cuda:0"])


def group(folder: Path, limit: str, used: int, inactive: int, *, version: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = {1: ("memory.limit_in_bytes", "memory.usage_in_bytes"), 2: ("memory.max", "memory.current")}[version]
    for name, value in zip(names, (limit, used), strict=True):
        (folder / name).write_text(f"{value}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{'total_' if version == 1 else ''}inactive_file {inactive}\n")


@pytest.mark.parametrize("version", [1, 2])
def test_the_limits_of_all_control_groups_of_the_process_count(version: int, tmp_path: Path) -> None:
    """Slurm and systemd limit a group within others; a container may have its own mounted as the root."""
    root, own = tmp_path / "cgroup", tmp_path / "own"
    own.write_text(f"5:cpu:/other\n{'4:memory:' if version == 1 else '0::'}/job_7/step_0\n")
    top = root / "memory" if version == 1 else root
    group(top, "max" if version == 2 else str((1 << 63) - 4096), 9000, 0, version=version)
    group(top / "job_7", "4000", 2500, 500, version=version)
    assert list(_groups_left(root, own)) == [2000]
    group(top / "job_7" / "step_0", "3000", 2500, 400, version=version)
    assert list(_groups_left(root, own)) == [900, 2000]
    (top / "job_7" / "memory.stat").unlink()
    (top / "job_7" / "step_0" / "memory.stat").write_text("odd\n")
    assert list(_groups_left(root, own)) == [500, 1500]
    own.write_bytes(own.read_bytes().replace(b"step_0", b"step_\xe9"))
    assert list(_groups_left(root, own)) == [1500]
    own.unlink()
    assert list(_groups_left(root, own)) == []


def test_a_limit_of_the_address_space_counts() -> None:
    code = "import resource; from swe_infer.llama.memory import DeviceMemory; import torch; "
    code += "resource.setrlimit(resource.RLIMIT_AS, (6 << 30, resource.RLIM_INFINITY)); "
    code += "print(DeviceMemory(torch.device('cpu')).free_bytes())"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0 < int(ended.stdout) < 6 << 30
