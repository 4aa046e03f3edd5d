"""One way of scoring pairs, in a process of its own, driven by `compare.py`.

    python benchmarks/way.py '{"way": "rankmill", "model": FOLDER, "pairs": FILE, ...}'

Loads the model, scores the warm-up pairs, then scores the measured pairs once for every line on
stdin and answers with a line of JSON: wall and processor seconds of this process and of all below
it, and the peak memory of the largest in MiB. When stdin ends it says what share of the tokens was
padding and how long tokenizing took (not of rankmill's ways, whose batches and tokens `compare.py`
knows). It imports rankmill only for rankmill's own ways and those on Ray, so that it also runs in
an environment that holds an older sentence-transformers.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from processor_time import ProcessorTime

Pairs = list[tuple[str, str]]
_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)
_TIMES_A_SIZE = 2
_LOOK_SECONDS = 1.0  # a look takes some 10 ms of a core


@dataclass(frozen=True)
class Ready:
    """A way that can begin.

    turn: what has to be there while it scores, and not while others do. look: scores pairs and
    tells the share of the tokens that is `padding`, and the seconds of `tokenizing`.
    """

    score: Callable[[Pairs], object]
    facts: dict[str, Any]
    turn: Callable[[], AbstractContextManager[object]] = nullcontext
    look: Callable[[Pairs], dict[str, float]] = lambda pairs: {}


def rankmill(asked: dict[str, Any], warm: Pairs) -> Ready:
    """rankmill's Scorer."""
    from rankmill import Scorer

    scorer = Scorer(
        asked["model"],
        device="cpu",
        precision=asked["precision"],
        backend=asked["backend"],
        threads=asked["threads"],
        max_length=asked["max_length"],
    )
    return Ready(scorer.score, {"profile": scorer.profile.to_json()})


def sentence_transformers(asked: dict[str, Any], warm: Pairs) -> Ready:
    """CrossEncoder.predict: its default, another precision or backend, its best batch size."""
    import torch
    from sentence_transformers import CrossEncoder

    torch.set_num_threads(asked["threads"])
    options: dict[str, Any] = {"device": "cpu", "max_length": asked["max_length"]}
    if asked["backend"] == "openvino":
        hint = {"fp32": "f32", "bf16": "bf16"}[asked["precision"]]
        settings = {
            "INFERENCE_PRECISION_HINT": hint,
            "INFERENCE_NUM_THREADS": str(asked["threads"]),
        }
        options |= {"backend": "openvino", "model_kwargs": {"ov_config": settings, "export": True}}
    elif asked["backend"] == "onnx":
        options |= {"backend": "onnx", "model_kwargs": {"export": True}}
    elif asked["precision"] == "bf16":
        options["model_kwargs"] = {"dtype": torch.bfloat16}
    model = CrossEncoder(asked["model"], **options)
    size = _best_batch(model, warm) if asked["best_batch"] else 32
    return Ready(
        lambda pairs: model.predict(pairs, batch_size=size),
        {"batch_size": size},
        look=lambda pairs: _look(model, pairs, size),
    )


def ray_data(asked: dict[str, Any], warm: Pairs) -> Ready:
    """Ray Data around CrossEncoder.predict, Parquet to Parquet; every call starts its actor."""
    return _on_ray(asked, _naive)


def rankmill_job(asked: dict[str, Any], warm: Pairs) -> Ready:
    """The job, Parquet to Parquet; every call starts its actors."""
    return _on_ray(asked, _rerank)


def _on_ray(asked: dict[str, Any], run: Callable[[dict[str, Any], Path, Path], object]) -> Ready:
    """A pipeline, on a cluster that is up before its turn is measured."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from rankmill import cluster
    from rankmill.config import ComputeConfig

    def score(pairs: Pairs) -> None:
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "pairs.parquet")
            query, document = zip(*pairs, strict=True)
            columns = {"query": query, "document": document, "doc_id": range(len(pairs))}
            pq.write_table(pa.table(columns), source)
            run(asked, source, Path(folder, "output"))

    return Ready(score, {"batch_size": None}, lambda: cluster.connected(ComputeConfig()))


def _naive(asked: dict[str, Any], source: Path, output: Path) -> None:
    import naive

    naive.run(source, output, asked["model"], asked["max_length"], asked["threads"])


def _rerank(asked: dict[str, Any], source: Path, output: Path) -> None:
    from rankmill import job
    from rankmill.config import load_config

    overrides = {
        "input.path": str(source),
        "output.path": str(output),
        "model.name": asked["model"],
        "model.max_length": asked["max_length"],
    }
    job.rerank(load_config(overrides=overrides))


def _best_batch(model: Any, warm: Pairs) -> int:  # noqa: ANN401 - of either environment
    seconds: dict[int, float] = {}
    for size in _BATCH_SIZES:
        model.predict(warm[:size], batch_size=size)
        for _ in range(_TIMES_A_SIZE):
            started = time.perf_counter()
            model.predict(warm, batch_size=size)
            spent = time.perf_counter() - started
            seconds[size] = min(seconds.get(size, spent), spent)
    return min(seconds, key=lambda size: seconds[size])


def _look(model: Any, pairs: Pairs, size: int) -> dict[str, float]:  # noqa: ANN401
    """Watch the tokenizer while it makes the batches, and their masks."""
    kind: Any = type(model.tokenizer)
    masks, seconds = [], []

    class Watched(kind):  # type: ignore[misc]  # known at run time
        def __call__(self, *texts: object, **options: object) -> Any:  # noqa: ANN401
            started = time.perf_counter()
            made = super().__call__(*texts, **options)
            seconds.append(time.perf_counter() - started)
            masks.append(made["attention_mask"])
            return made

    model.tokenizer.__class__ = Watched
    model.predict(pairs, batch_size=size)
    model.tokenizer.__class__ = kind
    real = sum(float(mask.sum()) for mask in masks)
    return {
        "padding": 1 - real / sum(mask.numel() for mask in masks),
        "tokenizing": sum(seconds),
    }


WAYS = {
    "rankmill": rankmill,
    "rankmill-job": rankmill_job,
    "sentence-transformers": sentence_transformers,
    "ray-data": ray_data,
}


def main() -> None:
    """Load, warm up, then measure on demand."""
    asked = json.loads(sys.argv[1])
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries print, too
    with open(asked["pairs"], encoding="utf-8") as file:
        pairs = json.load(file)
    warm, measured = ([(q, d) for q, d in pairs[name]] for name in ("warm", "measured"))
    ready = WAYS[asked["way"]](asked, warm)
    with ready.turn():
        ready.score(warm)
    print(json.dumps(ready.facts), file=answers, flush=True)
    for _ in sys.stdin:
        with ready.turn():
            started = time.perf_counter()
            with ProcessorTime(_LOOK_SECONDS) as spent:
                ready.score(measured)
            seconds = time.perf_counter() - started
        found = {
            "seconds": seconds,
            "processor_seconds": spent.seconds,
            "peak_mib": spent.peak_mib,
        }
        print(json.dumps(found), file=answers, flush=True)
    print(json.dumps(ready.look(measured)), file=answers, flush=True)


if __name__ == "__main__":
    main()
