"""What the embedded model is taught from: open texts, and a query drawn from each.

Nothing here is the demo's: docstrings come from installed packages' source, never from the
standard library, and any text that begins as one of the demo's documents does is left out.
Used by `jobs/train_demo_model.py` alone.
"""

from __future__ import annotations

import ast
import gzip
import html
import random
import re
from collections import defaultdict
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path

import pyarrow as pa

from rankmill.demo.collection import build_collection

SCHEMA = pa.schema(
    [
        ("source", pa.string()),  # a package or manual
        ("title", pa.string()),  # a qualified name with its signature, or a heading
        ("text", pa.string()),
        ("code", pa.bool_()),  # a docstring; otherwise prose
    ]
)
MAX_CHARS = 900  # about 200 word pieces, the longest that is trained on
PER_SOURCE = 900  # texts from one package or manual, so that none dominates
# Copies of standard library modules, and packages that vendor them.
_LEFT_OUT = """
multiprocess dill cloudpickle importlib_metadata importlib_resources zipp typing_extensions
setuptools pkg_resources pip debugpy regex simplejson mypy mypyc configobj backports
"""
LEFT_OUT = frozenset(_LEFT_OUT.split())
NOT_TEXT = re.compile(r"tests?|_?vendor(ed)?|_?third_?party|extern(al|s)?|typeshed|node_modules")


def gather_texts(packages: list[Path], prose: list[Path], seed: int) -> pa.Table:
    """Gather the training texts, shuffled: a table with `SCHEMA`.

    `packages` are folders of Python packages, read as source and never imported; `prose` are
    folders of documentation. At most `PER_SOURCE` texts of a package or manual are drawn.
    """
    demo = build_collection()
    taken = {_key(text) for text in demo["text"].to_pylist()}
    by_source: dict[str, list[tuple[str, str, bool]]] = defaultdict(list)
    found = [_docstrings(packages), _descriptions(), *map(_manuals, prose)]
    for source, title, text, code in (item for items in found for item in items):
        text = re.sub(r"[ \t]+", " ", re.sub(r"\n{3,}", "\n\n", text)).strip()[:MAX_CHARS]
        if len(text) < 100 or _key(text) in taken or (not code and not _is_english(text)):
            continue
        taken.add(_key(text))
        by_source[source].append((title.strip()[:100], text, code))
    rng = random.Random(seed)
    rows: list[dict[str, str | bool]] = []
    for source, texts in sorted(by_source.items()):
        chosen = rng.sample(texts, PER_SOURCE) if len(texts) > PER_SOURCE else texts
        rows += [{"source": source, "title": t, "text": x, "code": c} for t, x, c in chosen]
    rng.shuffle(rows)
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def _key(text: str) -> str:
    """What two texts share that are told apart only by details: the first sentence's letters."""
    return re.sub(r"\W+", "", _sentences(text)[0].lower()) if text.strip() else ""


def _is_english(text: str) -> bool:
    words = re.findall(r"[a-z]+", text.lower())
    common = sum(word in {"the", "a", "of", "to", "is", "and", "in", "or", "for"} for word in words)
    return common >= 0.08 * len(words) and len(words) >= 15


def _docstrings(packages: list[Path]) -> Iterator[tuple[str, str, str, bool]]:
    """Read docstrings from source, without importing anything."""
    for root in packages:
        for path in sorted(root.rglob("*.py")):
            parts = path.relative_to(root).parts
            if parts[0] in LEFT_OUT or any(NOT_TEXT.fullmatch(part) for part in parts):
                continue
            try:
                tree = ast.parse(path.read_text(encoding="utf-8"))
            except (SyntaxError, ValueError, OSError):
                continue
            package = parts[0].removesuffix(".py")
            yield from ((package, *found, True) for found in _defined(tree, package))


def _defined(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            qualified = f"{name}.{child.name}"
            text = ast.get_docstring(child)
            if text:
                takes = "" if isinstance(child, ast.ClassDef) else f"({ast.unparse(child.args)})"
                yield qualified + takes, text
            yield from _defined(child, qualified)


def _descriptions() -> Iterator[tuple[str, str, str, bool]]:
    """Sections of the installed packages' long descriptions."""
    for package in distributions():
        name = package.metadata["Name"]
        body = package.metadata.get_payload() if hasattr(package.metadata, "get_payload") else ""
        sections = re.split(r"^#+ +(.*)$|^(.+)\n[=\-~]{4,}$", str(body), flags=re.MULTILINE)
        for title, other, text in zip(sections[1::3], sections[2::3], sections[3::3], strict=True):
            text = re.sub(r"```.*?```|<[^>]+>|\[!\[.*|^\.\. .*$", " ", text, flags=re.S | re.M)
            yield f"description:{name}", f"{name}: {title or other}", text, False


def _manuals(root: Path) -> Iterator[tuple[str, str, str, bool]]:
    """Sections of HTML pages, POD, man pages, WordNet's glosses and dictionary entries."""
    for path in sorted(root.rglob("*")):
        if path.is_file() and not path.is_symlink():
            for title, body in _sections(path):
                yield root.name, title, body, False


def _sections(path: Path) -> Iterator[tuple[str, str]]:
    data = path.read_bytes()
    if path.suffix in {".gz", ".dz"}:
        data = gzip.decompress(data)
    text = data.decode("utf-8", errors="ignore")
    if path.suffix == ".html":
        yield from _html_sections(text)
    elif path.suffix == ".pod":
        plain = re.sub(r"[A-Z]<([^<>]*)>", r"\1", text)
        yield from _split_sections(r"^=(?:head\d|item) +(.*)$", plain)
    elif "man" in path.parts and path.parent.name.startswith("man"):
        yield from _man_sections(text)
    elif path.name.startswith("data.") and "wordnet" in path.parts:
        yield from _glosses(text)
    elif path.name.endswith(".dict.dz"):
        yield from _split_sections(r"^(\S.*)$", text)


def _split_sections(heading: str, text: str) -> Iterator[tuple[str, str]]:
    parts = re.split(heading, text, flags=re.MULTILINE)
    yield from zip(parts[1::2], parts[2::2], strict=True)


def _html_sections(text: str) -> Iterator[tuple[str, str]]:
    text = re.sub(r"<(script|style|pre|table|nav)\b.*?</\1>", " ", text, flags=re.S | re.I)
    parts = re.split(r"<(?:h[1-5]|dt)\b[^>]*>(.*?)</(?:h[1-5]|dt)>", text, flags=re.S | re.I)
    for title, body in zip(parts[1::2], parts[2::2], strict=True):
        clean = [html.unescape(re.sub(r"<[^>]+>", " ", part)) for part in (title, body)]
        yield re.sub(r"\s+", " ", clean[0]).strip(" ¶#"), re.sub(r"\s*\n\s*", "\n", clean[1])


def _man_sections(text: str) -> Iterator[tuple[str, str]]:
    """The page's own line on what it is, then each paragraph of its description."""
    text = re.sub(r"^\.\\\".*$|\\f.|\\&|\\\|", "", text, flags=re.MULTILINE)
    text = re.sub(r"\\\(?-|\\-", "-", text)
    summary = re.search(r"^\.SH \"?NAME\"?\n(.*?)^\.SH", text, flags=re.S | re.MULTILINE)
    body = re.search(r"^\.SH \"?DESCRIPTION\"?\n(.*?)(?=^\.SH)", text, flags=re.S | re.MULTILINE)
    if summary is None or body is None:
        return
    for paragraph in re.split(r"^\.(?:PP|P|LP|TP|IP|HP|SS|Pp)\b.*$", body[1], flags=re.MULTILINE):
        yield _without_macros(summary[1]), _without_macros(paragraph)


def _without_macros(roff: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"^[.']\w+ ?|[\"\\]", "", roff, flags=re.MULTILINE))


def _glosses(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        fields, _, gloss = line.partition(" | ")
        words = fields.split()
        if gloss and not line.startswith(" "):
            count = int(words[3], 16)
            yield ", ".join(words[4 : 4 + 2 * count : 2]).replace("_", " "), gloss


def _sentences(text: str) -> list[str]:
    parts = re.split(r"(?<=[.!?;:])\s+|\n\s*\n|\n(?=[-*\w]+ ?:)|\n[-=~^]{3,}\n", text.strip())
    return [re.sub(r"\s+", " ", part).strip() for part in parts if part.strip()]


SAY = {
    "return": "get", "compute": "calculate", "calculate": "work out", "create": "make",
    "construct": "build", "remove": "delete", "delete": "get rid of", "convert": "turn",
    "determine": "find out", "retrieve": "fetch", "display": "show", "perform": "do",
    "check": "find out", "generate": "make", "obtain": "get", "specify": "say", "set": "change",
    "directory": "folder", "function": "method", "element": "item", "elements": "items",
    "string": "text", "iterable": "sequence", "array": "list of numbers", "parameter": "argument",
    "maximum": "largest", "minimum": "smallest", "initialize": "set up", "terminate": "stop",
    "whether": "if", "execute": "run", "invoke": "call", "modify": "change", "verify": "check",
    "average": "mean", "integer": "whole number", "boolean": "yes or no", "image": "picture",
}  # fmt: skip
ASK = ("how to {}", "how do I {}", "how can I {}", "I want to {}", "function to {}", "{}", "{}")


def draw_query(title: str, text: str, code: bool, rng: random.Random) -> tuple[str, str]:
    """Make a (query, document) pair of one text; the query is not a plain copy of the document.

    Either a sentence or heading that is then taken out of the document, or a sentence that stays
    in it and is asked with words dropped, reordered and replaced.
    """
    sentences = _sentences(text)
    kind = rng.random()
    name = title.split("(")[0]
    if kind < 0.35 and len(sentences) > 1:  # the summary, or the heading, against the rest
        heading = not code and len(title.split()) > 2 and rng.random() < 0.6
        query = title if heading else sentences[0]
        rest = text if heading else text[len(text.split(sentences[1][:20], 1)[0]) :]
        document = rest if heading or rng.random() < 0.3 else f"{title} {rest}"
        return _ask(query, code, rng, noise=0.0), document
    if kind < 0.6 and len(sentences) > 3:  # one sentence against the others
        place = rng.randrange(1, len(sentences))
        others = " ".join(sentences[:place] + sentences[place + 1 :])
        return _ask(sentences[place], False, rng, noise=0.1), f"{title} {others}"
    if kind < 0.68 and code:  # the words of the name against the text
        words = re.sub(r"(?<=[a-z])(?=[A-Z])|[._]", " ", ".".join(name.split(".")[-2:])).lower()
        return words.strip() or name, text
    source = sentences[0] if rng.random() < 0.7 else rng.choice(sentences)
    return _ask(source, code, rng, noise=0.35), f"{title} {text}"


def _ask(sentence: str, code: bool, rng: random.Random, noise: float) -> str:
    """Say a sentence as a user would: imperative, perhaps as a question, words lost or replaced."""
    words = sentence.rstrip(" .:;").split()[:32]
    verb = words[0].lower() if words else ""
    if code and verb.endswith("s") and not verb.endswith("ss"):
        verb = verb[:-1]
    if words and code:
        words[0] = verb
    words = [w for w in words if rng.random() >= noise] or words
    words = [SAY[w] if w in SAY and rng.random() < 0.5 else w for w in words]
    if noise > 0.2 and rng.random() < 0.2:
        rng.shuffle(words)
    said = " ".join(words).replace("`", "")
    if code and verb in SAY:
        said = rng.choice(ASK).format(said)
    return said + rng.choice(("", "", "", "?"))
