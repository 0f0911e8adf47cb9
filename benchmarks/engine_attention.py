"""Attention of one prefill tile on this CPU: torch's fused kernel against plain products, in processor seconds.

    python -m benchmarks.engine_attention [--threads 1]

Prints one JSON line for each type and number of keys: medians in milliseconds for 256 rows of 12 query heads over 4
key-value heads of 64 dimensions. The choice in ``swe_infer.llama.attention.sdpa`` rests on these figures.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch.nn import functional

KV_HEADS, GROUP, HEAD_DIM, ROWS = 4, 3, 64, 256


def milliseconds(work: Callable[[], object], rounds: int = 9) -> float:
    times = []
    for _ in range(rounds):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return round(1000 * statistics.median(times), 2)


def measure(dtype: torch.dtype, keys: int) -> dict[str, object]:
    q_KRD = torch.randn(KV_HEADS, GROUP * ROWS, HEAD_DIM).to(dtype)
    k_KLD, v_KLD = torch.randn(2, KV_HEADS, keys, HEAD_DIM).to(dtype).unbind(0)
    q_1HRD = q_KRD.view(1, KV_HEADS * GROUP, ROWS, HEAD_DIM)
    mask_RL = torch.zeros(ROWS, keys, dtype=dtype)

    def fused() -> object:
        return functional.scaled_dot_product_attention(
            q_1HRD, k_KLD[None], v_KLD[None], attn_mask=mask_RL, enable_gqa=True
        )

    scores_KRL = torch.empty(KV_HEADS, GROUP * ROWS, keys, dtype=dtype)

    def products() -> object:
        torch.baddbmm(scores_KRL, q_KRD, k_KLD.transpose(1, 2), beta=0, alpha=HEAD_DIM**-0.5, out=scores_KRL)
        scores_KRL.view(-1, ROWS, keys)[..., -ROWS:] += mask_RL[:, -ROWS:]
        torch.softmax(scores_KRL, -1, out=scores_KRL)
        return torch.bmm(scores_KRL, v_KLD)

    return {
        "dtype": str(dtype).removeprefix("torch."),
        "keys": keys,
        "fused_ms": milliseconds(fused),
        "products_ms": milliseconds(products),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    torch.set_num_threads(parser.parse_args().threads)
    for dtype in (torch.bfloat16, torch.float32):
        for keys in (256, 768, 1536, 8192):
            print(json.dumps(measure(dtype, keys)), flush=True)


if __name__ == "__main__":
    main()
