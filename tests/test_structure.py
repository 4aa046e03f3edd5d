"""The shape of the code: imports go downward, heavy packages stay where they belong."""

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import rankmill

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "rankmill"
MODULES = sorted(SOURCE.rglob("*.py"))

# From the bottom up. A module imports only from rows above its own; a package is one unit.
LAYERS = [
    ["masking"],
    ["cells", "errors", "labels", "logs", "settings_yaml"],
    ["s3_session", "schema", "settings"],
    ["gate_settings", "rank_settings", "results", "storage_settings"],
    ["config", "s3"],
    ["storage"],
    ["listing", "store"],
    # Pure, without Ray and without torch.
    ["batches", "envelope", "markers", "profile", "qrels", "rank", "rows", "source", "tokens"],
    ["agreement", "exchange", "fusion", "load", "lookup", "score_files", "staging_progress"],
    ["summary"],
    ["known_scores", "text_tables", "windows"],
    # A model's tokenizer; transformers is imported late.
    ["encoding"],
    ["tokenizer_files"],
    ["template"],
    ["own_pairs"],
    ["prompt_spans", "prompts", "tokenizer"],
    ["prompt_tokenizer"],
    [
        "attempts",
        "checksum",
        "integrity",
        "lease",
        "local_cluster",
        "models",
        "plan",
        "pool",
        "records",
    ],
    ["apart", "backend", "flight", "partitions", "portions", "runs", "sample", "watchdog"],
    ["calibration", "capacity", "scorer", "scoring_process"],
    ["isolation", "output", "stages"],
    ["outcome", "reuse", "worker"],
    # On Ray.
    ["read"],
    ["commit"],
    ["cluster"],
    ["pipeline"],
    ["scan"],
    ["staging"],
    # Whole runs, and readers of committed output.
    ["prepared", "progress"],
    ["metrics", "notebook"],
    ["report"],
    ["dataset", "evaluate", "export", "quantize", "recipes", "status", "verify"],
    ["compare"],
    ["gates"],
    ["completion"],
    ["job"],
    ["demo", "folds", "forecast", "nightly"],
    ["calibrate", "evaluation_tables", "tune"],
    ["capacity_tables", "comparison_tables", "console", "tuning_tables"],
    ["model_tables", "status_tables"],
    [
        "calibrate_command",
        "compare_command",
        "evaluate_command",
        "export_command",
        "nightly_command",
        "quantize_command",
        "tune_command",
    ],
    ["__init__", "cli"],
]
LEVEL = {unit: level for level, units in enumerate(LAYERS) for unit in units}

RAY = {"read", "commit", "pipeline", "cluster", "metrics"}
TORCH = {
    "models.attention_masks",
    "models.causal_lm",
    "models.classifiers",
    "models.jina_bert",
    "models.leading",
    "models.openvino_convert",
    "models.torch_encoder",
}
TRANSFORMERS = {"models.causal_lm", "models.classifiers", "models.leading"}


def name_of(path):
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")


def unit_of(path):
    return path.relative_to(SOURCE).with_suffix("").parts[0]


@cache
def tree_of(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(node):
    """Full names of everything imported in a tree, as `package.name`."""
    for found in ast.walk(node):
        if isinstance(found, ast.Import):
            yield from (alias.name for alias in found.names)
        elif isinstance(found, ast.ImportFrom):
            yield from (f"{found.module}.{alias.name}" for alias in found.names)


def imported_at_once(path):
    """Imports that run when the module is imported: not in functions, not for type checkers."""
    for node in tree_of(path).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from imports(node)


def packages(names):
    return {name.split(".")[0] for name in names}


def modules_that(condition):
    return {name_of(path) for path in MODULES if condition(path)}


# Layers


def test_every_module_has_a_place():
    assert {unit_of(path) for path in MODULES} == set(LEVEL)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_downward(path):
    unit = unit_of(path)
    used = {name.split(".")[1] for name in imports(tree_of(path)) if name.startswith("rankmill.")}
    wrong = {other for other in used - {unit} if LEVEL[other] >= LEVEL[unit]}
    assert not wrong, f"{unit} may not import {wrong}"


def test_all_imports_are_absolute():
    relative = modules_that(
        lambda path: any(
            isinstance(node, ast.ImportFrom) and node.level for node in ast.walk(tree_of(path))
        )
    )
    assert relative == set()


# Heavy packages


def test_ray_stays_in_few_modules():
    assert modules_that(lambda path: "ray" in packages(imported_at_once(path))) == RAY
    # For type checkers only: the public signature of rerank_dataset.
    assert modules_that(lambda path: "ray" in packages(imports(tree_of(path)))) == {*RAY, "dataset"}


def test_torch_stays_with_the_models():
    assert modules_that(lambda path: "torch" in packages(imported_at_once(path))) == TORCH
    # Inside a function, and only where a GPU may be wanted.
    assert modules_that(lambda path: "torch" in packages(imports(tree_of(path)))) == {
        *TORCH,
        "profile",
    }


def test_transformers_is_imported_late_outside_the_models():
    assert modules_that(lambda path: "transformers" in packages(imported_at_once(path))) == (
        TRANSFORMERS
    )


def test_peft_which_is_an_extra_stays_in_one_module():
    assert modules_that(lambda path: "peft" in packages(imports(tree_of(path)))) == {"models.lora"}
    # Late, or nothing would work without the extra.
    assert modules_that(lambda path: "rankmill.models.lora" in imported_at_once(path)) == set()


def test_nncf_which_is_an_extra_stays_in_one_module():
    assert modules_that(lambda path: "nncf" in packages(imports(tree_of(path)))) == {
        "models.openvino_quantize"
    }
    assert modules_that(
        lambda path: "rankmill.models.openvino_quantize" in imported_at_once(path)
    ) == (set())


def test_openvino_is_imported_in_one_place_which_leaves_its_telemetry_out():
    ours = [*MODULES, *(path for at in ("benchmarks", "jobs") for path in (ROOT / at).glob("*.py"))]
    found = {path.stem for path in ours if "openvino" in packages(imports(tree_of(path)))}
    assert found == {"openvino_runtime"}


def loaded_by(statement):
    code = f"import sys; {statement}; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_package_loads_without_ray_torch_and_transformers():
    assert not loaded_by("import rankmill") & {"ray", "torch", "transformers"}


def test_planning_and_ranking_load_without_ray_and_torch():
    pure = "from rankmill import plan, tokens, rank, rows, source, batches, schema, runs, output"
    assert not loaded_by(pure) & {"ray", "torch", "transformers"}


@pytest.mark.parametrize("name", ["rerank.py", "nightly.py"])
def test_jobs_are_thin(name):
    assert "rankmill.cli" in set(imports(tree_of(ROOT / "jobs" / name)))
    assert len((ROOT / "jobs" / name).read_text().splitlines()) < 40


# Names


def test_the_public_names():
    assert set(rankmill.__all__) == {
        "Comparison",
        "Evaluation",
        "ExportResult",
        "Profile",
        "RankmillError",
        "RunConfig",
        "RunResult",
        "Scorer",
        "ScorerModel",
        "TokenBatch",
        "compare",
        "evaluate",
        "export",
        "load_config",
        "rerank",
        "rerank_dataset",
    }


@pytest.mark.parametrize("name", rankmill.__all__)
def test_a_public_name_is_there_and_documented(name):
    assert getattr(rankmill, name).__doc__


def test_other_names_are_not_there():
    with pytest.raises(AttributeError, match="no attribute 'rerank_everything'"):
        rankmill.rerank_everything  # noqa: B018


VAGUE = re.compile(r"(^|_)(utils?|helpers?|managers?|misc|common)(_|$)", re.IGNORECASE)


def test_no_module_or_definition_has_a_vague_name():
    names = [part for path in MODULES for part in name_of(path).split(".")]
    for path in MODULES:
        names += [
            node.name
            for node in ast.walk(tree_of(path))
            if isinstance(node, ast.FunctionDef | ast.ClassDef)
        ]
    assert [name for name in names if VAGUE.search(name)] == []


# Size and documentation


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_module_is_over_400_lines(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


def undocumented(node, prefix):
    if not ast.get_docstring(node):
        yield prefix
    for below in node.body:
        public = isinstance(below, ast.FunctionDef | ast.ClassDef) and below.name[0] != "_"
        if public and not isinstance(node, ast.FunctionDef):
            yield from undocumented(below, f"{prefix}.{below.name}")


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_every_public_definition_says_what_it_is(path):
    assert list(undocumented(tree_of(path), name_of(path))) == []


def test_no_tracked_file_holds_a_path_of_a_machine():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    of_a_machine = re.compile(
        "|".join(rf"(?<![\w.~}}])/{top}/" for top in ("root", "work", "home"))
    )
    found = []
    for name in filter(None, listed.stdout.decode().split("\0")):
        path = ROOT / name
        if not path.is_file():
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # not a text
        found += [f"{name}: {match.group()}" for match in of_a_machine.finditer(text)]
    assert found == []


PAGES = sorted([ROOT / "README.md", ROOT / "SECURITY.md", *ROOT.glob("docs/*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_pages_links_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_map_of_the_code_names_every_room():
    named = set(re.findall(r"`([\w*]+)/?`", (ROOT / "docs/code.md").read_text(encoding="utf-8")))
    families = tuple(name.removeprefix("*") for name in named if name.startswith("*"))
    rooms = {unit_of(path) for path in MODULES} - {"__init__"}
    assert {room for room in rooms - named if not room.endswith(families)} == set()
