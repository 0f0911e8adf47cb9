"""The engine compared with transformers, vLLM and llama.cpp: same model, same workload, in turns, medians.

The workload resembles SWE-bench: long prompts of different lengths, short greedy outputs. Prompts are random token
ids with a fixed seed. The temperatures of a sweep run together, like a multirun, and ``_one_by_one``, like
``runner.max_concurrent_jobs=1``; so do vLLM's.

    python -m benchmarks.engine MODEL_DIR [--rounds 5] [--threads 2] [--dtype auto] [--vllm PYTHON]
                                [--llama-cpp PYTHON] [--only engine,single]

``--dtype`` is the engine's ``model.dtype``; transformers uses the same type, vLLM bfloat16, llama.cpp float16.
``--vllm`` and ``--llama-cpp`` name the Python of environments with vLLM, and with llama-cpp-python and gguf; without
them these peers are skipped. Prints one JSON line per peer: median wall and CPU seconds over the rounds, tokens per
second, and ratios to the peers. At the end, how many greedy outputs of ours, and of transformers with padding, equal
those of transformers one by one. Where they differ, a wider type decides: at a near tie, the exact logits of the two
tokens are closer than twice the error of transformers' logits. ``logit_errors`` are those of ours and of transformers
along its outputs. CPU seconds are more reliable on a busy machine.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from swe_infer.llama.engine import Engine, EngineOptions
from swe_infer.llama.sequence import GenerationRequest
from swe_infer.llama.stopping import StopParams
from swe_infer.text import report_errors
from swe_infer.types import DrafterKind, Failure, LlamaModel, Skip

TRANSFORMERS = ("single", "padded", "continuous")
PROCESSES = ("vllm", "llama_cpp")
SWEEP = (0.2, 0.4, 0.6, 0.8)

Measure = tuple[float, float, int]
"""Wall seconds, processor seconds, output tokens."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--shortest", type=int, default=512)
    parser.add_argument("--longest", type=int, default=1536)
    parser.add_argument("--new", type=int, default=48, help="output tokens of each prompt")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"])
    parser.add_argument("--vllm", default="", help="the Python of vLLM's environment")
    parser.add_argument("--llama-cpp", default="", help="the Python of llama.cpp's environment")
    parser.add_argument("--only", default="", help="names of peers, with commas between")
    return parser.parse_args()


def make_prompts(args: argparse.Namespace, vocabulary: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    prompts = []
    for _ in range(args.prompts):
        length = int(torch.randint(args.shortest, args.longest, (1,), generator=generator))
        prompts.append(torch.randint(5, vocabulary, (length,), generator=generator).tolist())
    return prompts


class EnginePeer:
    """Our engine. Each round starts with an empty prefix cache."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.new = args.new
        options = EngineOptions(kv_cache_gb=2.0)
        self.engine = Engine.load(LlamaModel(path=args.model, dtype=args.dtype, device=args.device), options)
        self.prompts = make_prompts(args, self.engine.model.config.vocab_size)
        self.greedy: dict[int, list[int]] = {}
        """Output tokens of each prompt in :meth:`base`."""

    def run(self, *temperatures: float, samples: int = 1, drafter: DrafterKind = "none") -> int:
        """Run all requests at once, prompt by prompt, like the jobs of a multirun."""
        stop_params = StopParams(self.new, closed_patch=False, repetition=False)
        requests = [
            GenerationRequest(
                (point, index, sample), tuple(prompt), stop_params, temperature, None, 1000 * index + sample, drafter
            )
            for index, prompt in enumerate(self.prompts)
            for point, temperature in enumerate(temperatures)
            for sample in range(samples)
        ]

        def rejected(request: GenerationRequest, why: Failure | Skip) -> None:
            raise SystemExit(f"{request.key}: {why}")

        answers = {answer.request.key: answer.token_ids for answer in self.engine.generate(requests, rejected)}
        if temperatures == (0.0,):
            self.greedy = {index: list(answers[0, index, 0]) for index in range(len(self.prompts))}
        return sum(map(len, answers.values()))

    def base(self) -> int:
        self.engine.clear_prefix_cache()
        return self.run(0.0)

    def drafted(self) -> int:
        """With random prompts and weights hardly any draft is accepted: the cost of useless drafting."""
        self.engine.clear_prefix_cache()
        return self.run(0.0, drafter="diff")

    def four_samples(self) -> int:
        self.engine.clear_prefix_cache()
        return self.run(0.8, samples=4)

    def sweep_of_four(self) -> int:
        self.engine.clear_prefix_cache()
        return self.run(*SWEEP)

    def sweep_one_by_one(self) -> int:
        """As with ``runner.max_concurrent_jobs=1``."""
        self.engine.clear_prefix_cache()
        return sum(self.run(temperature) for temperature in SWEEP)

    def drafted_sweep_of_four(self) -> int:
        self.engine.clear_prefix_cache()
        return self.run(*SWEEP, drafter="diff")


class TransformersPeer:
    """``generate`` one by one and padded, and ``generate_batch``."""

    def __init__(self, args: argparse.Namespace, dtype: torch.dtype) -> None:
        try:
            from transformers import LlamaForCausalLM
        except ImportError as error:
            raise SystemExit(f"transformers: {error}; --only engine leaves it out") from None

        loader: Any = LlamaForCausalLM

        def load(dtype: torch.dtype) -> Any:
            return loader.from_pretrained(args.model, dtype=dtype, attn_implementation="sdpa").eval().to(args.device)

        self.model = load(dtype)
        self.load = load
        self.greedy: dict[int, list[int]] = {}
        """Output tokens of each prompt in :meth:`single`."""
        self.padded_greedy: dict[int, list[int]] = {}
        self.prompts = make_prompts(args, self.model.config.vocab_size)
        self.options = {
            "do_sample": False,
            "max_new_tokens": args.new,
            "min_new_tokens": args.new,
            "pad_token_id": 0,
        }
        self.new: int = args.new

    @torch.no_grad()
    def single(self) -> int:
        for index, prompt in enumerate(self.prompts):
            ids = torch.tensor([prompt], device=self.model.device)
            answer = self.model.generate(ids, attention_mask=torch.ones_like(ids), **self.options)
            self.greedy[index] = answer[0, len(prompt) :].tolist()
        return self.new * len(self.prompts)

    @torch.no_grad()
    def padded(self) -> int:
        longest = max(map(len, self.prompts))
        ids = torch.zeros(len(self.prompts), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(self.prompts):
            ids[row, longest - len(prompt) :] = torch.tensor(prompt)
            mask[row, longest - len(prompt) :] = 1
        ids, mask = ids.to(self.model.device), mask.to(self.model.device)
        answers = self.model.generate(ids, attention_mask=mask, **self.options)
        self.padded_greedy = dict(enumerate(answers[:, longest:].tolist()))
        return self.new * len(self.prompts)

    @torch.no_grad()
    def continuous(self) -> int:
        from transformers import ContinuousBatchingConfig, GenerationConfig

        factory: Any = GenerationConfig
        config = factory(max_new_tokens=self.new, do_sample=False, eos_token_id=-1, pad_token_id=0)
        batching: Any = ContinuousBatchingConfig  # automatic sizing takes longer than the work
        blocks = sum(-(-(len(prompt) + self.new) // 256) for prompt in self.prompts) + 8
        answers = self.model.generate_batch(
            self.prompts,
            generation_config=config,
            continuous_batching_config=batching(page_size=256, num_blocks=blocks, max_batch_tokens=2048),
        )
        return sum(len(answer.generated_tokens) for answer in answers.values())


class ChildProcess:
    """A script in another Python, which prints one JSON line when it is ready and one for each line it reads.

    Args:
        python: of the script's environment.
        script: beside this file.

    Raises:
        SystemExit: if the process ends, with the last line that it wrote to standard error.
    """

    def __init__(self, python: str, script: str, model: str, threads: int, *more: str) -> None:
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  # open as long as the process
        command = [python, str(Path(__file__).with_name(script)), model, str(threads), *more]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
                env=environment,
            )
        except OSError as error:
            raise SystemExit(f"{python} cannot be started: {error.strerror}") from None
        self._name = f"{script} in {python}"
        self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            self._errors.seek(0)
            last = self._errors.read().strip().rpartition("\n")[2]
            raise SystemExit(f"{self._name} ended with exit code {code}: {last}")
        return json.loads(line)

    def ask(self, task: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # reported by _answer
            self._process.stdin.write(json.dumps(task) + "\n")
            self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        self._process.communicate()


class ProcessPeer:
    """vLLM or llama.cpp in a separate process for the whole benchmark."""

    def __init__(self, args: argparse.Namespace, prompts: list[list[int]], python: str, script: str) -> None:
        self._child = ChildProcess(python, script, args.model, args.threads)
        self._prompts, self._new = prompts, args.new
        self.close = self._child.close
        self._run((0.0,), 1, new=2)  # exclude one-time compilation and allocation

    def _run(self, temperatures: tuple[float, ...], samples: int, at_once: bool = True, new: int = 0) -> Measure:
        task = {"prompts": self._prompts, "new": new or self._new}
        task |= {"temperatures": temperatures, "samples": samples, "at_once": at_once}
        wall, processor, tokens, *_ = self._child.ask(task)
        return wall, processor, tokens

    def base(self) -> Measure:
        return self._run((0.0,), 1)

    def four_samples(self) -> Measure:
        return self._run((0.8,), 4)

    def sweep_of_four(self) -> Measure:
        return self._run(SWEEP, 1)

    def sweep_one_by_one(self) -> Measure:
        return self._run(SWEEP, 1, at_once=False)


def measured(peer: Callable[[], int]) -> Callable[[], Measure]:
    def measure() -> Measure:
        wall, processor = time.perf_counter(), time.process_time()
        tokens = peer()
        return time.perf_counter() - wall, time.process_time() - processor, tokens

    return measure


def report(seen: dict[str, list[Measure]]) -> None:
    medians = {name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in seen.items()}
    best = [min((medians[n][i] for n in medians if n in TRANSFORMERS), default=0.0) for i in (0, 1)]
    for name, (wall, processor, tokens) in medians.items():
        line = {
            "peer": name,
            "wall_s": round(wall, 2),
            "processor_s": round(processor, 2),
            "output_tokens_per_s": round(tokens / wall, 1),
            "output_tokens_per_processor_s": round(tokens / processor, 1),
        }
        if name.startswith("engine"):
            others = {peer: medians.get(name.replace("engine", peer).replace("_drafted", "")) for peer in PROCESSES}
            if "_4" not in name:
                others["best_of_transformers"] = best
            for peer, figures in others.items():
                if figures and figures[0]:
                    line[f"{peer}_over_this_wall"] = round(figures[0] / wall, 2)
                    line[f"{peer}_over_this_processor"] = round(figures[1] / processor, 2)
        if "_sweep_of_4" in name and (one := medians.get(name.partition("_sweep_of_4")[0])):
            line["times_one_run_wall"] = round(wall / one[0], 2)
            line["times_one_run_processor"] = round(processor / one[1], 2)
        print(json.dumps(line), flush=True)


@torch.no_grad()
def compare_answers(ours: EnginePeer, theirs: TransformersPeer) -> None:
    """Print how the greedy answers differ, and if some do, the errors of logits along those of transformers."""
    from tests.support.checkpoints import first_difference

    exact: Any = None
    for name, answers in (("engine", ours.greedy), ("padded", theirs.padded_greedy)):
        differences = []
        for index, tokens in answers.items():
            if tokens != theirs.greedy[index]:
                exact = exact or theirs.load(torch.float64 if theirs.model.dtype == torch.float32 else torch.float32)
                prompt = ours.prompts[index]
                found = first_difference(prompt, tokens, theirs.greedy[index], theirs.model, exact)
                assert found is not None
                differences.append({"prompt": index, **asdict(found), "near_tie": found.near_tie})
        ties = sum(bool(difference["near_tie"]) for difference in differences)
        counts = {"equal": len(answers) - len(differences), "differ_at_near_ties": ties}
        line = {"greedy_answers": name, **counts, "differ": len(differences) - ties, "differences": differences}
        if answers:
            print(json.dumps(line), flush=True)
    if exact is None:
        return
    errors: dict[str, list[torch.Tensor]] = {"engine": [], "transformers": []}
    for index, tokens in theirs.greedy.items():
        ids = torch.tensor([[*ours.prompts[index], *tokens]], device=theirs.model.device)
        exact_logits, rounded_logits = (
            each(ids, logits_to_keep=len(tokens)).logits[0] for each in (exact, theirs.model)
        )
        errors["engine"].append(ours.engine.model(ids)[0, -len(tokens) :] - exact_logits)
        errors["transformers"].append(rounded_logits - exact_logits)
    figures = {}
    for name, parts in errors.items():
        error = torch.cat(parts)
        figures[name] = {
            "rms": round(float(error.square().mean().sqrt()), 5),
            "max": round(float(error.abs().max()), 5),
        }
    print(json.dumps({"logit_errors": figures}))


def main() -> None:
    args = arguments()
    only = args.only.split(",") if args.only else []
    torch.set_num_threads(args.threads)
    ours = EnginePeer(args)
    peers: dict[str, Callable[[], Measure]] = {
        "engine": measured(ours.base),
        "engine_drafted": measured(ours.drafted),
        "engine_4_samples": measured(ours.four_samples),
        "engine_sweep_of_4": measured(ours.sweep_of_four),
        "engine_sweep_of_4_one_by_one": measured(ours.sweep_one_by_one),
        "engine_drafted_sweep_of_4": measured(ours.drafted_sweep_of_four),
    }
    theirs = None
    if not only or set(only) & set(TRANSFORMERS):
        theirs = TransformersPeer(args, ours.engine.model.dtype)
        peers |= {name: measured(getattr(theirs, name)) for name in TRANSFORMERS}
    vllm = None
    if args.vllm and Path(args.vllm).exists():
        vllm = ProcessPeer(args, ours.prompts, args.vllm, "engine_vllm.py")
        peers |= {"vllm": vllm.base, "vllm_4_samples": vllm.four_samples, "vllm_sweep_of_4": vllm.sweep_of_four}
        peers["vllm_sweep_of_4_one_by_one"] = vllm.sweep_one_by_one
    elif args.vllm or not only:
        print(f"vLLM is skipped: --vllm={args.vllm or 'PYTHON'} is not a Python with vLLM", file=sys.stderr)
    llama_cpp = None
    if args.llama_cpp:
        llama_cpp = ProcessPeer(args, ours.prompts, args.llama_cpp, "engine_llama_cpp.py")
        peers |= {"llama_cpp": llama_cpp.base, "llama_cpp_4_samples": llama_cpp.four_samples}
    if unknown := set(only) - set(peers):
        raise SystemExit(f"--only: {', '.join(sorted(unknown))}: there is {', '.join(peers)}")
    seen: dict[str, list[Measure]] = {name: [] for name in peers if not only or name in only}
    for _ in range(args.rounds):
        for name, rows in seen.items():
            rows.append(peers[name]())
    for process in filter(None, (vllm, llama_cpp)):
        process.close()
    report(seen)
    if theirs is not None and theirs.greedy:
        compare_answers(ours, theirs)


if __name__ == "__main__":
    sys.exit(report_errors(main))
