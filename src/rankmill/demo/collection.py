"""The demo's documents: the running interpreter's standard library, read by inspection.

A document is a function, class, method or module with a docstring of its own. What is read
depends on the interpreter alone, so the same Python gives the same table on any machine.
"""

from __future__ import annotations

import builtins
import importlib
import inspect
import re
import sys
import types
import warnings
from collections.abc import Iterator

import pyarrow as pa

SCHEMA = pa.schema([("doc_id", pa.string()), ("title", pa.string()), ("text", pa.string())])

# Modules that only define things when imported: nothing that opens a window, a browser, a socket
# or a file, nothing deprecated in 3.11 to 3.13. A build may lack some (sqlite3, lzma, termios).
_MODULE_NAMES = """
builtins abc argparse array ast asyncio atexit base64 bdb binascii bisect bz2 calendar cmath cmd
code codecs codeop collections collections.abc colorsys compileall concurrent.futures configparser
contextlib contextvars copy copyreg csv ctypes dataclasses datetime decimal difflib dis doctest
email email.charset email.encoders email.header email.headerregistry email.message
email.mime.multipart email.mime.text email.parser email.policy email.utils enum errno fcntl
filecmp fileinput fnmatch fractions ftplib functools gc getopt getpass gettext glob grp gzip
hashlib heapq hmac html html.entities html.parser http http.client http.cookiejar http.cookies
http.server imaplib importlib importlib.abc importlib.machinery importlib.metadata
importlib.resources importlib.util inspect io ipaddress itertools json json.decoder json.encoder
keyword linecache locale logging logging.config logging.handlers lzma mailbox marshal math
mimetypes mmap modulefinder multiprocessing multiprocessing.connection multiprocessing.managers
multiprocessing.pool multiprocessing.shared_memory netrc numbers operator optparse os os.path
pathlib pdb pickle pickletools pkgutil platform plistlib poplib pprint profile pstats pty pwd
py_compile pyclbr pydoc queue quopri random re reprlib resource runpy sched secrets select
selectors shelve shlex shutil signal smtplib socket socketserver sqlite3 ssl stat statistics
string stringprep struct subprocess symtable sys sysconfig syslog tabnanny tarfile tempfile
termios textwrap threading time timeit token tokenize tomllib trace traceback tracemalloc tty
types typing unicodedata unittest unittest.mock urllib.error urllib.parse urllib.request
urllib.response urllib.robotparser uuid venv warnings wave weakref webbrowser wsgiref.handlers
wsgiref.headers wsgiref.simple_server wsgiref.util wsgiref.validate xml.dom xml.dom.minidom
xml.dom.pulldom xml.etree.ElementTree xml.sax xml.sax.handler xml.sax.saxutils xml.sax.xmlreader
xmlrpc.client xmlrpc.server zipapp zipfile zipimport zlib zoneinfo
"""
MODULES = tuple(_MODULE_NAMES.split())

MIN_TEXT_CHARS = 20  # shorter docstrings ("Closed?") say nothing that a query could match
MAX_TEXT_CHARS = 4000  # beyond any model's window; only a few module docstrings are longer

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_FUNCTIONS = (
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodDescriptorType,
    types.ClassMethodDescriptorType,
    types.MethodType,
    property,
    types.GetSetDescriptorType,
)


def build_collection() -> pa.Table:
    """Build the demo's documents from the standard library of this interpreter.

    Returns a table with `SCHEMA` (`doc_id`, `title`, `text`, all non-null strings): several
    thousand rows, `doc_id` unique (`itertools.chain`, `str.join`, `os.path.join`), in the order of
    `MODULES` and by name within a module. Texts are unique: a docstring that a class inherits or
    that several names share appears once, under the first name.

    Raises RuntimeError where docstrings are stripped (`python -OO`).
    """
    if sys.flags.optimize >= 2:
        raise RuntimeError(
            "the demo reads docstrings, and this interpreter strips them (-OO or PYTHONOPTIMIZE=2);"
            " expected an optimisation level of 0 or 1, found "
            f"{sys.flags.optimize}; run without it"
        )
    rows: dict[str, tuple[str, str]] = {}
    seen: set[str] = set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # some names warn when looked up
        for doc_id, found in _documented_objects():
            text = _text(found)
            if len(text) < MIN_TEXT_CHARS or text in seen or doc_id in rows:
                continue
            seen.add(text)
            rows[doc_id] = (_title(doc_id, found), text)
    titles, texts = zip(*rows.values(), strict=True)
    return pa.table([list(rows), list(titles), list(texts)], schema=SCHEMA)


def _import(name: str) -> types.ModuleType | None:
    """Import `name`, or None where this build lacks it (an optional C library, Windows)."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def _documented_objects() -> Iterator[tuple[str, object]]:
    """Yield (doc_id, object): each module, its public functions, then its classes and methods."""
    modules = {name: module for name in MODULES if (module := _import(name)) is not None}
    offered = {name: _public_objects(module) for name, module in modules.items()}
    found_all = [found for objects in offered.values() for found in objects.values()]
    classes = {id(found) for found in found_all if isinstance(found, type)}
    for name, module in modules.items():
        yield name, module
        prefix = "" if module is builtins else f"{name}."
        for attribute, found in offered[name].items():
            if isinstance(found, _FUNCTIONS) or hasattr(found, "__wrapped__"):
                yield prefix + attribute, found
        for attribute, found in offered[name].items():
            if isinstance(found, type):
                yield prefix + attribute, found
                yield from _methods(prefix + attribute, found, classes)


def _public_objects(module: types.ModuleType) -> dict[str, object]:
    """What a module offers, by name: its `__all__`, or what it defines without an underscore."""
    declared: list[str] | None = getattr(module, "__all__", None)
    if declared is None:
        own = {module.__name__, f"_{module.__name__}", "builtins", "posix", "nt", None}
        declared = [n for n, f in vars(module).items() if getattr(f, "__module__", None) in own]
    names = sorted(name for name in set(declared) if not name.startswith("_"))
    return {name: getattr(module, name, None) for name in names}


def _methods(prefix: str, cls: type, offered: set[int]) -> Iterator[tuple[str, object]]:
    """Yield the public methods and properties of `cls` that no other document's class defines.

    What a base defines that no module offers (`argparse._ActionsContainer.add_argument`) counts
    as the class's own; `offered` holds the `id` of every class that is a document.
    """
    own: dict[str, object] = {}
    for base in reversed([cls, *(base for base in cls.__mro__[1:] if id(base) not in offered)]):
        own.update(vars(base))
    for name, found in sorted(own.items()):
        if isinstance(found, staticmethod | classmethod):
            found = found.__func__
        if not name.startswith("_") and isinstance(found, _FUNCTIONS):
            yield f"{prefix}.{name}", found


def _text(found: object) -> str:
    """The docstring of an object, cleaned, or an empty string."""
    text = getattr(found, "__doc__", None)
    if not isinstance(text, str):
        return ""
    return _ADDRESS.sub("", inspect.cleandoc(text)).strip()[:MAX_TEXT_CHARS]


def _title(doc_id: str, found: object) -> str:
    """The qualified name, with the signature where the interpreter knows one."""
    if isinstance(found, types.ModuleType | property | types.GetSetDescriptorType):
        return doc_id
    if isinstance(found, type) and issubclass(found, BaseException):
        return doc_id
    try:
        return _ADDRESS.sub("", f"{doc_id}{inspect.signature(found)}")  # type: ignore[arg-type]
    except (TypeError, ValueError, AttributeError):  # some C signatures do not evaluate
        return doc_id
