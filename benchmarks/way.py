"""One way of scoring pairs, in a process of its own, driven by `compare.py`.

    python benchmarks/way.py '{"way": "rankmill", "model": FOLDER, "pairs": FILE, ...}'

Loads the model, scores the warm-up pairs, then scores the measured pairs once for every line on
stdin and answers with a line of JSON: wall and processor seconds, peak memory in MiB, and what
share of the tokens was padding (not of rankmill's ways, whose batches `compare.py` knows). It
imports rankmill only for rankmill's own ways, so that it also runs in an environment that holds an
older sentence-transformers.
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
_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)
_TIMES_A_SIZE = 2


def rankmill(asked: dict[str, Any], warm: Pairs, measured: Pairs) -> tuple[Score, dict[str, Any]]:
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


def sentence_transformers(
    asked: dict[str, Any], warm: Pairs, measured: Pairs
) -> tuple[Score, dict[str, Any]]:
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
    facts = {"batch_size": size, "padding": _padding(model, measured, size)}
    return lambda pairs: model.predict(pairs, batch_size=size), facts


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


def _padding(model: Any, pairs: Pairs, size: int) -> float:  # noqa: ANN401
    """Share of the tokens that is padding, by the masks that the tokenizer makes meanwhile."""
    kind: Any = type(model.tokenizer)
    masks = []

    class Watched(kind):  # type: ignore[misc]  # known at run time
        def __call__(self, *texts: object, **options: object) -> Any:  # noqa: ANN401
            made = super().__call__(*texts, **options)
            masks.append(made["attention_mask"])
            return made

    model.tokenizer.__class__ = Watched
    model.predict(pairs, batch_size=size)
    model.tokenizer.__class__ = kind
    return 1 - sum(float(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)


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
    score, facts = WAYS[asked["way"]](asked, warm, measured)
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
