"""A sweep over one prompt pays for it once: the first point writes the provider's cache, the later ones read it."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from decimal import Decimal
from pathlib import Path

import pytest

from swe_infer.types import Usage
from tests.support import commands
from tests.support.api_server import ApiServer, Exchange
from tests.support.instances import write_instances

ROOT = Path(__file__).resolve().parent.parent.parent
INSTANCES, POINTS = 5, 2
KEYS = {"OPENAI_API_KEY": "sk-loopback", "ANTHROPIC_API_KEY": "sk-loopback"}


def sweep(server: ApiServer, model: str, samples: int, directory: Path) -> list[dict[str, str]]:
    """Two points of a sweep over five long prompts; the records of all."""
    data = write_instances(directory / "instances.jsonl", INSTANCES, lines=300)
    url = server.openai_url if model.startswith("gpt") else server.anthropic_url
    arguments = [
        *(f"model={model}", f"provider.base_url={url}", "dataset=jsonl", f"dataset.path={data}", "tracker=none"),
        *("runner.prompt_caching=always", "decoding=sample", "decoding.top_p=null", "decoding.temperature=0.5,1"),
        *(f"decoding.n={samples}", "decoding.max_new_tokens=128", f"output_dir={directory / 'sweep'}"),
        "model.parameters=[temperature,top_p,stop]",  # not `n`, which would ask for both samples in one request
    ]
    environment = {**os.environ, **KEYS, "PYTHONPATH": str(ROOT)}
    commands.run("swe_infer", "-m", *arguments, cwd=directory, env=environment).check_returncode()
    files = (directory / "sweep").glob("*/records.jsonl")
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


@pytest.mark.parametrize(
    ("model", "samples"), [pytest.param("claude-sonnet-4-5", 1, marks=pytest.mark.full), ("gpt-4o", 2)]
)
def test_the_first_request_of_a_prompt_goes_ahead_and_later_points_read_the_cache(
    model: str, samples: int, tmp_path: Path
) -> None:
    with ApiServer(latency_s=0.05) as server:
        records = sweep(server, model, samples, tmp_path)
        by_prompt: dict[str, list[Exchange]] = defaultdict(list)
        for exchange in server.log.answers():
            by_prompt[exchange.prompt or ""].append(exchange)
        assert len(by_prompt) == INSTANCES
        for first, *others in by_prompt.values():
            assert len(others) == POINTS * samples - 1
            assert first.usage is not None
            assert first.answered_at is not None
            assert first.usage.cached_input_tokens == 0
            if model.startswith("claude"):  # OpenAI writes its cache at no charge
                assert first.usage.cache_write_tokens > 1024
            assert all(other.received_at >= first.answered_at for other in others)
            assert all(other.usage and other.usage.cached_input_tokens > 1024 for other in others)
            assert all(other.usage and other.usage.cache_write_tokens == 0 for other in others)
        assert len(records) == INSTANCES * POINTS * samples
        counted = sum((Usage(**record["usage"]) for record in records), Usage())  # type: ignore[arg-type]
        assert counted == server.log.usage()
        assert sum(Decimal(str(record["cost_usd"])) for record in records) == server.log.cost_usd()
