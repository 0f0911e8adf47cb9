"""The published benchmarks: which harness evaluates their predictions, and what it reads."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from swe_infer.text import quoted

BenchmarkName = Literal[
    "swebench", "swebench_pro", "swebench_live", "swe_rebench", "swe_rebench_v2", "swe_gym", "swe_smith",
    "multi_swe_bench", "swe_polybench",
]  # fmt: skip
"""The benchmarks by the columns of their rows and by their harness."""

Prediction = Mapping[str, Any]
"""A line of a predictions file."""


@dataclass(frozen=True, slots=True)
class PredictionsForm:
    """The form in which a harness reads predictions, if it does not read SWE-bench's.

    Args:
        suffix: of the file.
        write: the text of the file, piece by piece. Every prediction has ``instance_id``, ``model_patch`` and
            ``model_name_or_path``.
    """

    suffix: str
    write: Callable[[Iterable[Prediction]], Iterator[str]]


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A benchmark and its harness.

    Args:
        harness: the repository of the harness on GitHub.
        command: starts it in a clone of that repository. ``{predictions}`` is the file, ``{name}`` and ``{split}``
            are those of the dataset; words in capitals are the user's.
        form: None: the harness reads SWE-bench's JSON lines.
        caution: what its user must know.
    """

    title: str
    harness: str
    command: str
    form: PredictionsForm | None = None
    caution: str = ""

    def instructions(self, predictions: str, dataset: Mapping[str, Any]) -> str:
        """One line: how to evaluate a predictions file.

        Args:
            dataset: the ``dataset`` group of the run's configuration.
        """
        values = {"predictions": predictions, "name": dataset.get("name"), "split": dataset.get("split")}
        command = re.sub(r"\{(\w+)\}", lambda match: quoted(str(values[match[1]])), self.command)
        caution = f" ({self.caution})" if self.caution else ""
        return f"in a clone of https://github.com/{self.harness}: {command}{caution}"


def _by_id(predictions: Iterable[Prediction]) -> Iterator[str]:
    """SWE-bench-Live: an object of predictions by instance."""
    yield "{"
    for number, one in enumerate(predictions):
        value = {"model_patch": one["model_patch"], "model_name_or_path": one["model_name_or_path"]}
        yield f"{',' if number else ''}\n{json.dumps(one['instance_id'])}: {json.dumps(value)}"
    yield "\n}\n"


def _list(predictions: Iterable[Prediction], entry: Callable[[Prediction], Mapping[str, Any]]) -> Iterator[str]:
    yield "["
    for number, one in enumerate(predictions):
        yield f"{',' if number else ''}\n{json.dumps(entry(one))}"
    yield "\n]\n"


def _pro_entry(one: Prediction) -> Mapping[str, Any]:
    """SWE-bench Pro: ``prefix`` names the result files of an instance, which the harness does not replace. So it
    differs for each patch."""
    digest = hashlib.sha256(one["model_patch"].encode(errors="surrogatepass")).hexdigest()[:8]
    label = re.sub(r"[^\w.-]+", "-", one["model_name_or_path"], flags=re.ASCII).strip(".-")[:80]
    return {"instance_id": one["instance_id"], "patch": one["model_patch"], "prefix": f"{label}-{digest}"}


_PULL_REQUEST = re.compile(
    r"(?P<org>[A-Za-z0-9-]+(?:_[A-Za-z0-9-]+)*)__(?P<repo>[A-Za-z0-9_.-]+)-(?P<number>[0-9]{1,18})"
)


def pull_request_of(instance_id: str) -> tuple[str, str, int] | None:
    """Organization, repository and number of a pull request in Multi-SWE-bench; None for another id."""
    match = _PULL_REQUEST.fullmatch(instance_id)
    return None if match is None else (match["org"], match["repo"], int(match["number"]))


def _pull_requests(predictions: Iterable[Prediction]) -> Iterator[str]:
    """Multi-SWE-bench: its reader refuses other keys. An id of another form is left out: the row was invalid, and has
    no answer."""
    for one in predictions:
        if (found := pull_request_of(one["instance_id"])) is not None:
            entry = dict(zip(("org", "repo", "number"), found, strict=True))
            yield json.dumps({**entry, "fix_patch": one["model_patch"]}) + "\n"


_SWEBENCH_RUN = "python -m swebench.harness.run_evaluation --dataset_name {name} --split {split}"
_SWEBENCH_REST = "--predictions_path {predictions} --run_id RUN_ID"

BENCHMARKS: Mapping[BenchmarkName, Benchmark] = {
    "swebench": Benchmark("SWE-bench", "SWE-bench/SWE-bench", f"{_SWEBENCH_RUN} {_SWEBENCH_REST}"),
    "swebench_pro": Benchmark(
        "SWE-bench Pro",
        "scaleapi/SWE-bench_Pro-os",
        "python swe_bench_pro_eval.py --raw_sample_path=ROWS.jsonl --patch_path={predictions} --output_dir=OUT "
        "--scripts_dir=run_scripts --dockerhub_username=jefzda --use_local_docker",
        PredictionsForm(".json", lambda predictions: _list(predictions, _pro_entry)),
    ),
    "swebench_live": Benchmark(
        "SWE-bench-Live",
        "microsoft/SWE-bench-Live",
        "python -m evaluation.evaluation --dataset {name} --split {split} --platform linux --patch_dir {predictions} "
        "--output_dir OUT --workers 4 --overwrite 0",
        PredictionsForm(".json", _by_id),
    ),
    "swe_rebench": Benchmark(
        "SWE-rebench",
        "SWE-rebench/SWE-bench-fork",
        f"{_SWEBENCH_RUN} {_SWEBENCH_REST} --cache_level instance --namespace NAMESPACE",
        caution="NAMESPACE: swerebench for the leaderboard's images, or '' to build them",
    ),
    "swe_rebench_v2": Benchmark(
        "SWE-rebench-V2",
        "SWE-rebench/SWE-rebench-V2",
        "python scripts/eval.py --hf-dataset {name} --hf-split {split} --patches {predictions} --instance-ids IDS",
        PredictionsForm(
            ".json",
            lambda predictions: _list(
                predictions, lambda one: {"instance_id": one["instance_id"], "patch": one["model_patch"]}
            ),
        ),
        caution="name the instances: it runs the gold patch of an instance without a prediction",
    ),
    "swe_gym": Benchmark("SWE-Gym", "SWE-Gym/SWE-Bench-Fork", f"{_SWEBENCH_RUN} {_SWEBENCH_REST}"),
    "swe_smith": Benchmark(
        "SWE-smith",
        "SWE-bench/SWE-smith",
        "python -m swesmith.harness.eval --dataset_path ROWS.jsonl --predictions_path {predictions} --run_id RUN_ID",
    ),
    "multi_swe_bench": Benchmark(
        "Multi-SWE-bench",
        "multi-swe-bench/multi-swe-bench",
        "python -m multi_swe_bench.harness.run_evaluation --patch_files {predictions} --dataset_files ROWS.jsonl "
        "--workdir WORK --output_dir OUT --repo_dir REPOS --log_dir LOGS",
        PredictionsForm(".jsonl", _pull_requests),
    ),
    "swe_polybench": Benchmark(
        "SWE-PolyBench",
        "amazon-science/SWE-PolyBench",
        "python src/poly_bench_evaluation/run_evaluation.py --dataset-path {name} --predictions-path {predictions} "
        "--result-path OUT --repo-path REPOS",
    ),
}


def benchmark_of(dataset: object) -> Benchmark | None:
    """The benchmark that the ``dataset`` group of a run's configuration names, which may be untrusted; None
    if it names none."""
    name = dataset.get("benchmark") if isinstance(dataset, Mapping) else None
    return BENCHMARKS[name] if isinstance(name, str) and name in get_args(BenchmarkName) else None  # type: ignore[index]
