"""One way of scoring pairs, in a process of its own, driven by `compare.py`.

    python benchmarks/way.py '{"way": "rankmill", "model": FOLDER, "pairs": FILE, ...}'

Loads the model, scores the warm-up pairs, then scores the measured pairs once for every line on
stdin and answers with a line of JSON: wall and processor seconds, peak memory in MiB. It imports
rankmill only for rankmill's own ways, so that it also runs in an environment that holds an older
sentence-transformers.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

Pairs = list[tuple[str, str]]
Score = Callable[[Pairs], object]
_BATCH_SIZES = (4, 8, 16, 32, 64)


def rankmill(asked: dict[str, Any], warm: Pairs) -> tuple[Score, dict[str, Any]]:
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
    return scorer.score, {"profile": scorer.profile.to_json()}


def sentence_transformers(asked: dict[str, Any], warm: Pairs) -> tuple[Score, dict[str, Any]]:
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
    if not asked["best_batch"]:
        return model.predict, {"batch_size": 32}
    seconds = {}
    for size in _BATCH_SIZES:
        model.predict(warm[:size], batch_size=size)
        started = time.perf_counter()
        model.predict(warm, batch_size=size)
        seconds[size] = time.perf_counter() - started
    best = min(seconds, key=lambda size: seconds[size])
    return lambda pairs: model.predict(pairs, batch_size=best), {"batch_size": best}


WAYS = {"rankmill": rankmill, "sentence-transformers": sentence_transformers}


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _peak_mib() -> float:
    """Of this process alone: what getrusage gives begins with the parent's."""
    with open("/proc/self/status", encoding="ascii") as lines:
        return next(float(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def main() -> None:
    """Load, warm up, then measure on demand."""
    asked = json.loads(sys.argv[1])
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries print, too
    with open(asked["pairs"], encoding="utf-8") as file:
        pairs = json.load(file)
    warm, measured = ([(q, d) for q, d in pairs[name]] for name in ("warm", "measured"))
    score, facts = WAYS[asked["way"]](asked, warm)
    score(warm)
    print(json.dumps(facts), file=answers, flush=True)
    for _ in sys.stdin:
        used, started = _processor_seconds(), time.perf_counter()
        score(measured)
        found = {
            "seconds": time.perf_counter() - started,
            "processor_seconds": _processor_seconds() - used,
            "peak_mib": _peak_mib(),
        }
        print(json.dumps(found), file=answers, flush=True)


if __name__ == "__main__":
    main()
