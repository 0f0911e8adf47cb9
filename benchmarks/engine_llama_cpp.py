"""llama.cpp's part of ``benchmarks.engine`` and ``benchmarks.speculation``. It runs in a Python with
llama-cpp-python, gguf and numpy.

    PYTHON benchmarks/engine_llama_cpp.py MODEL_DIR THREADS

Converts a Llama to GGUF in float16 in a temporary file. Reads one JSON line per task from standard input and prints
one line: wall seconds, CPU seconds, output tokens, passes. Tasks of ``benchmarks.engine`` have ``prompts`` (token
ids), ``new``, ``temperatures`` and ``samples``: each prompt is prefilled once, by itself, then all sequences decode
in one batch. Tasks of ``benchmarks.speculation`` have ``answers``, which are replayed: each pass costs what it costs
otherwise, and only the choice of tokens is forced. ``batch`` sequences decode concurrently; ``draft`` has the two
sizes of ``ngram-simple``, or is null. Prompts are prefilled before the clock starts.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from array import array
from pathlib import Path
from typing import Any

BATCH = 512
FORCE = 1e4


def convert(directory: Path, target: Path) -> None:
    """Write a GGUF file without a vocabulary."""
    import gguf  # type: ignore[import-not-found]
    import numpy

    raw = (directory / "model.safetensors").read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:start])
    header.pop("__metadata__", None)
    tensors: dict[str, Any] = {}
    for name, entry in header.items():
        first, end = entry["data_offsets"]
        found: Any = numpy.frombuffer(
            raw[start + first : start + end], {"BF16": "<u2", "F16": "<f2"}.get(entry["dtype"], "<f4")
        )
        if entry["dtype"] == "BF16":
            found = (found.astype("<u4") << 16).view("<f4")
        tensors[name] = found.reshape(entry["shape"])
    config = json.loads((directory / "config.json").read_text())
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer: Any = gguf.GGUFWriter(str(target), "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(1)
    writer.add_tokenizer_model("no_vocab")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for name, tensor in tensors.items():
        for end, count in (("q_proj.weight", heads), ("k_proj.weight", kv_heads)):
            if name.endswith(end):  # llama.cpp rotates neighbouring elements
                rows, columns = tensor.shape
                tensor = tensor.reshape(count, 2, rows // count // 2, columns).swapaxes(1, 2).reshape(rows, columns)
        dtype = numpy.float16 if tensor.ndim > 1 else numpy.float32
        writer.add_tensor(names.get_name(name, (".weight",)), numpy.ascontiguousarray(tensor, dtype))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def lookup(history: array[int], size: int, most: int) -> list[int]:
    """Draft as llama.cpp's ``ngram-simple`` (common/ngram-map.cpp): what followed the last earlier occurrence of the
    last ``size`` tokens."""
    text, width = history.tobytes(), history.itemsize
    key, end = text[-size * width :], len(text) - 2 * width
    while (at := text.rfind(key, width, end)) > 0 and at % width:
        end = at + len(key) - 1
    found = history[at // width + size : -1] if at > 0 else []
    return list(found[:most]) if len(found) >= size else []


class Peer:
    """Each sequence has its own part of the cache, so that a row reads only its own tokens."""

    def __init__(self, path: Path, threads: int, vocabulary: int) -> None:
        import numpy
        from llama_cpp import llama_cpp as api  # type: ignore[import-not-found]

        self.api: Any = api
        self.numpy: Any = numpy
        self.random = numpy.random.default_rng(0)
        self.threads, self.vocabulary = threads, vocabulary
        api.llama_backend_init()
        self.model = api.llama_model_load_from_file(str(path).encode(), api.llama_model_default_params())
        self.batch = api.llama_batch_init(BATCH, 0, 1)
        self.context: Any = None
        self.cache = (0, 0)
        """Sequences, and tokens of each."""
        self.prefilled: list[list[int]] = []

    def clear(self, sequences: int, length: int) -> None:
        """Empty the cache. Another size needs another context."""
        api, self.prefilled = self.api, []
        if self.cache == (sequences, length):
            api.llama_memory_clear(api.llama_get_memory(self.context), False)
            return
        if self.context:
            api.llama_free(self.context)
        self.cache = (sequences, length)
        params = api.llama_context_default_params()
        params.n_ctx, params.n_seq_max = sequences * (length + 255 & -256), sequences
        params.n_batch = params.n_ubatch = BATCH
        params.n_threads = params.n_threads_batch = self.threads
        params.flash_attn_type, params.kv_unified = 0, False  # flash attention decodes more slowly on AVX2
        self.context = api.llama_init_from_model(self.model, params)
        if not self.context:
            raise SystemExit("llama.cpp did not create a context")

    def decode(self, tokens: list[tuple[int, int, int]], outputs: range) -> Any:
        """Run tokens (id, position, sequence); return the logits of the batch positions ``outputs``."""
        self.batch.n_tokens = len(tokens)
        for place, (token, position, sequence) in enumerate(tokens):
            self.batch.token[place], self.batch.pos[place] = token, position
            self.batch.n_seq_id[place], self.batch.seq_id[place][0] = 1, sequence
            self.batch.logits[place] = place in outputs
        if self.api.llama_decode(self.context, self.batch):
            raise SystemExit("llama_decode failed")
        rows = self.api.llama_get_logits(self.context)
        return self.numpy.ctypeslib.as_array(rows, (len(outputs), self.vocabulary))

    def prefill(self, sequence: int, prompt: list[int]) -> Any:
        """Returns the logits after the last token, as one row."""
        for start in range(0, len(prompt), BATCH):
            part = prompt[start : start + BATCH]
            logits = self.decode(
                [(t, start + i, sequence) for i, t in enumerate(part)], range(len(part) - 1, len(part))
            )
        return logits

    def choose(self, logits: Any, temperature: float) -> list[int]:
        """Sample one token of each row."""
        if not temperature:
            return list(logits.argmax(-1).tolist())
        sums = self.numpy.exp((logits - logits.max(-1, keepdims=True)) / temperature).cumsum(-1)
        points = self.random.random(len(sums)) * sums[:, -1]
        return [int(row[:-1].searchsorted(point, "right")) for row, point in zip(sums, points, strict=True)]

    def generate(self, prompts: list[list[int]], new: int, temperature: float, samples: int) -> tuple[int, int]:
        lengths = [len(prompt) for prompt in prompts for _ in range(samples)]
        self.clear(len(lengths), max(lengths) + new)
        outputs: list[int] = []
        for prompt in prompts:
            first = len(outputs)
            logits = self.prefill(first, prompt)
            for copy in range(first + 1, first + samples):
                self.api.llama_memory_seq_cp(self.api.llama_get_memory(self.context), first, copy, -1, -1)
            outputs += (self.choose(logits, temperature)[0] for _ in range(samples))
        for step in range(new - 1):
            rows = [(token, lengths[s] + step, s) for s, token in enumerate(outputs)]
            outputs = self.choose(self.decode(rows, range(len(rows))), temperature)
        return new * len(outputs), new - 1

    def prepare(self, prompts: list[list[int]], new: int) -> None:
        """Prefill the prompts, unless they are in the cache."""
        if self.prefilled != prompts:
            self.clear(len(prompts), max(map(len, prompts)) + new)
            for sequence, prompt in enumerate(prompts):
                self.prefill(sequence, prompt)
            self.prefilled = prompts

    def replay(self, answers: list[list[int]], draft: list[int] | None, batch: int) -> tuple[int, int]:
        """Generate the answers. Their first pass computes the last token of the prompt again."""
        passes = 0
        memory = self.api.llama_get_memory(self.context)
        for first in range(0, len(answers), batch):
            group = range(len(answers))[first : first + batch]
            texts = {s: array("i", self.prefilled[s] + answers[s]) for s in group}
            ends = {s: len(self.prefilled[s]) for s in group}
            while ends:
                rows: list[tuple[int, int, int]] = []
                drafts: dict[int, list[int]] = {}
                for s, end in ends.items():
                    drafts[s] = lookup(texts[s][:end], *draft)[: len(texts[s]) - end - 1] if draft else []
                    self.api.llama_memory_seq_rm(memory, s, end - 1, -1)
                    rows += ((t, end - 1 + i, s) for i, t in enumerate([texts[s][end - 1], *drafts[s]]))
                logits = self.decode(rows, range(len(rows)))
                passes += 1
                for s, drafted in drafts.items():
                    wanted = texts[s][ends[s] : ends[s] + len(drafted) + 1]
                    forced, logits = logits[: len(wanted)], logits[len(wanted) :]
                    forced[range(len(wanted)), wanted] += FORCE
                    chosen = self.choose(forced, 0.0)
                    same = [a == b for a, b in zip([*drafted, -1], chosen, strict=True)]
                    ends[s] += same.index(False) + 1
                    if ends[s] == len(texts[s]):
                        del ends[s]
        return sum(map(len, answers)), passes


def main() -> None:
    directory, threads = Path(sys.argv[1]), int(sys.argv[2])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with tempfile.TemporaryDirectory() as folder:
        convert(directory, Path(folder) / "model.gguf")
        vocabulary = json.loads((directory / "config.json").read_text())["vocab_size"]
        peer = Peer(Path(folder) / "model.gguf", threads, vocabulary)
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        task = json.loads(line)
        if "answers" in task:
            peer.prepare(task["prompts"], max(map(len, task["answers"])))
        wall, processor = time.perf_counter(), time.process_time()
        if "answers" in task:
            counts = peer.replay(task["answers"], task["draft"], task["batch"])
        else:
            counts = peer.generate(task["prompts"], task["new"], task["temperatures"][0], task["samples"])
        taken = [time.perf_counter() - wall, time.process_time() - processor, *counts]
        print(json.dumps(taken), file=answers, flush=True)


if __name__ == "__main__":
    main()
