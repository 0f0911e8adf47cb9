"""llama.cpp's part of ``benchmarks.engine``. It runs in a Python with ik-llama-cpp-python, gguf and numpy.

    PYTHON benchmarks/engine_llama_cpp.py MODEL_DIR THREADS

Converts a Llama to GGUF in float16 in a temporary file. Reads one JSON line per task from standard input
(``prompts``: token ids, ``new``), decodes greedily, and prints one line: wall seconds, CPU seconds, output tokens.
Prompts are prefilled one by one; all sequences decode in one batch.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


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


class Peer:
    def __init__(self, path: Path, threads: int, vocabulary: int) -> None:
        from ik_llama_cpp import _ctypes_api as api  # type: ignore[import-not-found]

        self.api: Any = api
        self.vocabulary = vocabulary
        api.llama_backend_init()
        model = api.llama_model_load_from_file(str(path).encode(), api.llama_model_default_params())
        params = api.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = 16384, 512, 512, 32
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn = False  # the wheel's flash attention aborts on processors without AVX-VNNI
        self.context = api.llama_init_from_model(model, params)
        self.batch = api.llama_batch_init(512, 0, 1)
        if not self.context:
            raise SystemExit("llama.cpp did not create a context")

    def decode(self, tokens: list[tuple[int, int, int]], wanted: set[int]) -> dict[int, int]:
        """Run tokens (id, position, sequence); return the likeliest next token of the batch positions ``wanted``."""
        import numpy

        self.batch.n_tokens = len(tokens)
        for place, (token, position, sequence) in enumerate(tokens):
            self.batch.token[place], self.batch.pos[place] = token, position
            self.batch.n_seq_id[place], self.batch.seq_id[place][0] = 1, sequence
            self.batch.logits[place] = place in wanted
        if self.api.llama_decode(self.context, self.batch):
            raise SystemExit("llama_decode failed")
        found = {}
        for place in wanted:
            row = self.api.llama_get_logits_ith(self.context, place)
            found[place] = int(numpy.ctypeslib.as_array(row, (self.vocabulary,)).argmax())
        return found

    def generate(self, prompts: list[list[int]], new: int) -> list[list[int]]:
        self.api.llama_kv_cache_clear(self.context)
        outputs: list[list[int]] = []
        for sequence, prompt in enumerate(prompts):
            for start in range(0, len(prompt), 512):
                part = prompt[start : start + 512]
                last = {len(part) - 1} if start + 512 >= len(prompt) else set()
                rows = [(token, start + i, sequence) for i, token in enumerate(part)]
                found = self.decode(rows, last)
            outputs.append(list(found.values()))
        for step in range(new - 1):
            rows = [(out[-1], len(prompts[s]) + step, s) for s, out in enumerate(outputs)]
            for s, token in self.decode(rows, set(range(len(rows)))).items():
                outputs[s].append(token)
        return outputs


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
        wall, processor = time.perf_counter(), time.process_time()
        outputs = peer.generate(task["prompts"], task["new"])
        taken = [time.perf_counter() - wall, time.process_time() - processor, sum(map(len, outputs))]
        print(json.dumps([*taken, outputs] if task.get("outputs") else taken), file=answers, flush=True)


if __name__ == "__main__":
    main()
