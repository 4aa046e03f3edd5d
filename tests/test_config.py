"""Settings: what loads, what is refused and with which words, and what names a run."""

import itertools
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from rankmill.config import InputConfig, ModelConfig, OutputConfig, RunConfig, load_config
from rankmill.errors import ConfigError
from rankmill.settings import parse_override, read_section

ROOT = Path(__file__).parents[1]
SMALL = {"input.path": "in", "output.path": "out", "model.name": "demo"}

# The example that users find in the documentation.
EXAMPLE = """
input:   {path: s3://bucket/candidates/, columns: {document: [title, text]}, depth: null}
output:  {path: s3://bucket/reranked/2026-11-21/, columns: all, top_k: 50, min_score: null, column_prefix: rerank_}
model:   {name: hotchpotch/japanese-reranker-tiny-v2, revision: null, backend: auto, precision: auto,
          max_length: 512, max_query_tokens: null, truncation: document, overflow: truncate,
          window: {stride: 128, pool: max}, instruction: null}
compute: {address: null, device: auto, workers: auto, cpus_per_worker: auto, gpus_per_worker: 1, memory: null}
reuse:   [s3://bucket/reranked/2026-11-20/]
report:  {texts: false}
"""  # noqa: E501


def test_encryption_is_asked_of_s3_alone():
    settings = SMALL | {"storage.encryption.algorithm": "AES256"}
    load_config(overrides=settings | {"output.path": "s3://bucket/out"})
    for path in ("out", "gs://bucket/out"):
        with pytest.raises(ConfigError, match="is asked of S3 alone"):
            load_config(overrides=settings | {"output.path": path})


def small(**overrides):
    return load_config(overrides=SMALL | {k.replace("__", "."): v for k, v in overrides.items()})


def refusal(**overrides):
    with pytest.raises(ConfigError) as caught:
        small(**overrides)
    return caught.value


@pytest.fixture
def write(tmp_path):
    def to_file(text):
        path = tmp_path / "run.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return to_file


# What loads


def test_the_documented_example_loads(write):
    config = load_config(write(EXAMPLE))
    assert config.input.columns.document_parts == ["title", "text"]
    assert config.output.top_k == 50
    assert config.model.window.stride == 128
    assert config.compute.gpus_per_worker == 1


# The manifests in configs/kuberay are Kubernetes' (test_kuberay).
OURS = [*ROOT.glob("configs/*.y*ml"), *ROOT.glob("configs/benchmarks/*.y*ml")]


@pytest.mark.parametrize("path", sorted(OURS), ids=lambda p: p.name)
def test_the_example_configurations_load(path):
    assert load_config(path, date="2026-11-21").input.paths


def test_three_settings_are_enough():
    config = small()
    assert (config.input.paths, config.output.path, config.model.name) == (["in"], "out", "demo")


def test_overrides_win_over_the_file(write):
    path = write("input: {path: a}\noutput: {path: b, top_k: 5}\nmodel: {name: m}\n")
    config = load_config(path, {"output.top_k": 20, "model.max_length": 128})
    assert (config.output.top_k, config.model.max_length) == (20, 128)


def test_a_section_override_can_be_refined_and_is_left_as_it_was():
    output = {"path": "out"}
    config = load_config(overrides=SMALL | {"output": output, "output.top_k": 3})
    assert config.output.top_k == 3
    assert output == {"path": "out"}


def test_settings_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        small().output.top_k = 3


def test_an_access_point_and_a_port_are_no_credentials():
    arn = "s3://arn:aws:s3:eu-west-1:123456789012:accesspoint/name/candidates"
    assert small(input__path=[arn, "hdfs://node:8020/a@b"]).input.paths[0] == arn


# Unknown keys


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("modle", "model"),
        ("output.topk", "top_k"),
        ("input.columns.documents", "document"),
        ("model.window.strid", "stride"),
        ("compute.worker", "workers"),
    ],
)
def test_an_unknown_key_suggests_the_nearest_of_its_own_level(key, near):
    error = refusal(**{key: 1})
    assert error.message.startswith(f"Unknown setting {key}.")
    assert error.remedy == f"Did you mean {near}?"


def test_an_unknown_key_that_resembles_nothing_lists_what_is_known():
    assert refusal(report__zzzz=1).remedy == "Known here: texts."


def test_the_file_is_named(write):
    path = write("input: {path: a, depht: 3}\noutput: {path: b}\nmodel: {name: m}\n")
    with pytest.raises(ConfigError, match=r"input\.depht in .*run\.yaml"):
        load_config(path)


# Values


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("input.depth", "3"),
        ("input.depth", 0),
        ("input.depth", True),
        ("input.limit", -1),
        ("input.path", []),
        ("input.path", ""),
        ("input.layout", "ids2"),
        ("input.columns.document", []),
        ("input.max_text_bytes", 0),
        ("output.top_k", 2.5),
        ("output.min_score", "high"),
        ("output.min_score", float("nan")),
        ("output.columns", "some"),
        ("output.column_prefix", ""),
        ("model.name", None),
        ("model.precision", "int8"),
        ("model.max_length", 0),
        ("compute.workers", "many"),
        ("compute.gpus_per_worker", 0),
        ("compute.gpus_per_worker", float("inf")),
        ("compute.gpus_per_worker", 1.5),
        ("report.texts", "no"),
        ("compute", None),
    ],
)
def test_a_value_of_the_wrong_type_or_range_is_refused_by_name(key, value):
    error = refusal(**{key: value})
    assert {line.split(":")[0] for line in error.message.splitlines()} == {key}


def test_a_wrong_element_of_a_list_is_named_by_its_place():
    assert "input.path.1: " in refusal(input__path=["a", 3]).message


def test_the_value_found_is_shown():
    assert "found 'many'" in refusal(compute__workers="many").message


def test_all_kinds_that_a_setting_may_have_stand_in_one_sentence():
    message = refusal(output__columns="query_id").message
    assert message == "output.columns: Input should be 'all' or a valid list, found 'query_id'."


def test_only_the_wrong_element_of_a_list_is_told_of():
    assert refusal(input__path=["a", 3]).message.count("\n") == 0


@pytest.mark.parametrize("value", ["2026-11-21", "20261121", "yes"])
def test_what_yaml_does_not_take_for_text_is_to_be_quoted(value):
    key, read = parse_override(f"output.path={value}")
    error = refusal(**{key: read})
    assert "should be a valid string" in error.message
    assert """--set 'output.path="…"'""" in error.remedy


@pytest.mark.parametrize(
    ("place", "value", "example"),
    [
        ("model", "demo", "model.name"),
        ("output", "ranked/", "output.path"),
        ("models", {"a": "demo"}, "models.a.name"),
    ],
)
def test_a_value_in_place_of_a_section_is_told_what_stands_below_it(place, value, example):
    with pytest.raises(ConfigError) as caught:
        load_config(overrides={"input.path": "in", "output.path": "out", place: value})
    assert caught.value.message.startswith(place)
    assert "should be a section of settings, found '" in caught.value.message
    assert example in caught.value.remedy


def test_paths_may_be_path_objects():
    given = {"input.path": [Path("a"), "b"], "output.path": Path("out"), "model.name": Path("m")}
    config = load_config(overrides=given)
    assert (config.input.path, config.output.path) == (["a", "b"], "out")
    assert config.one_model.name == "m"


@pytest.mark.parametrize("section", ["input.path", "output.path", "model.name"])
def test_a_missing_setting_is_named_with_the_ways_to_give_it(section):
    rest = {key: value for key, value in SMALL.items() if key != section}
    with pytest.raises(ConfigError) as caught:
        load_config(overrides=rest | {f"{section.split('.')[0]}": {}})
    assert caught.value.message == f"The setting {section} is missing."
    assert "--set" in caught.value.remedy


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.max_query_tokens", 512),
    ],
)
def test_what_this_version_cannot_do_is_refused_by_name(key, value):
    assert key.split(".")[-1] in refusal(**{key: value}).message


def test_windows_need_the_truncation_that_leaves_the_query_alone():
    asked = {"model__overflow": "windows", "model__truncation": "longest_first"}
    assert "windows needs truncation: document" in refusal(**asked).message
    assert small(model__overflow="windows").model.window.stride == 128


def test_windows_may_share_nothing_but_not_less():
    assert small(model__window__stride=0).model.window.stride == 0
    assert "model.window.stride" in refusal(model__window__stride=-1).message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("overflow", "windows"),
        ("window.stride", 64),
        ("window.pool", "mean"),
        ("max_document_tokens", 4096),
    ],
)
def test_how_long_documents_are_scored_names_a_run(key, value):
    changed = load_config(overrides=SMALL | {f"model.{key}": value})
    assert changed.result_settings() != small().result_settings()


def test_an_output_on_a_store_must_not_hold_wildcards():
    assert "output.path" in refusal(output__path="s3://bucket/run[1]").message


# Secrets


@pytest.mark.parametrize("setting", ["input.path", "output.path", "model.name"])
@pytest.mark.parametrize(
    "url",
    [
        "s3://AKIAKEY:hunter2@bucket/candidates",
        "s3://AKIAKEY:hunt/er2@bucket/candidates",
        "s3://AKIAKEY:/hunter2@bucket/candidates",
        "s3://hunter2@bucket/candidates",
        "https://user:hunter2@host:8080/a.parquet",
    ],
)
def test_credentials_in_a_path_are_refused_and_never_shown(setting, url):
    error = refusal(**{setting: url})
    assert setting in error.message
    assert "credentials" in error.message
    for secret in ("hunt", "er2", "AKIAKEY"):
        assert secret not in str(error)


def test_credentials_stay_hidden_when_something_else_is_wrong_with_the_value():
    error = refusal(input__path=["s3://k:hunter2@b/c", 3])
    assert "hunter2" not in str(error)


# Files that cannot be used


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"no configuration file .*none\.yaml"):
        load_config(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    "text", ["input: [", "input: {path: 2026-02-30}", "- a\n- b\n", "just text", "1: 2"]
)
def test_a_file_that_holds_no_settings_is_named(write, text):
    with pytest.raises(ConfigError, match=r"run\.yaml"):
        load_config(write(text))


def test_anchors_and_merges_mean_what_they_mean_in_yaml(write):
    text = "a: &a {name: one, max_length: 64}\nb: &b {<<: *a, name: two}\nmodel: {<<: *b}\n"
    with pytest.raises(ConfigError) as caught:
        load_config(write(text))
    assert "stands twice" not in str(caught.value)
    assert "Unknown setting a" in str(caught.value)
    given = "input: {path: &p x}\noutput: {path: *p}\nmodel: {name: *p}\n"
    assert load_config(write(given)).model.name == "x"


def test_a_file_that_is_not_text_is_named(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(ConfigError, match=r"run\.yaml"):
        load_config(path)


def test_an_empty_file_lacks_the_settings(write):
    with pytest.raises(ConfigError, match="The setting input is missing"):
        load_config(write("# nothing yet\n"))


# --set


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("output.top_k=20", ("output.top_k", 20)),
        ("output.top_k=null", ("output.top_k", None)),
        ("output.top_k=", ("output.top_k", None)),
        ("input.columns.document=[title, text]", ("input.columns.document", ["title", "text"])),
        ("input.path=s3://bucket/day=1/", ("input.path", "s3://bucket/day=1/")),
        (" model.name = demo ", ("model.name", "demo")),
        ("report.texts=true", ("report.texts", True)),
    ],
)
def test_an_override_is_read_as_yaml(text, expected):
    assert parse_override(text) == expected


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "1.0e-3", "+1e-3"])
def test_a_number_with_an_exponent_is_a_number(text):
    assert parse_override(f"output.min_score={text}") == ("output.min_score", 0.001)


@pytest.mark.parametrize("text", ["output.top_k", "=3", " =3", "a=[", "a=2026-02-30"])
def test_an_override_that_cannot_be_read_is_refused(text):
    with pytest.raises(ConfigError, match="--set"):
        parse_override(text)


def test_an_override_below_a_value_is_refused():
    with pytest.raises(ConfigError, match=r"model\.name is a value, not a section"):
        small(**{"model.name.x": 3})


def test_a_section_alone_can_be_read_from_plain_values():
    assert read_section(ModelConfig, {"name": "demo"}).max_length == 512


# What names a run

# Fields that change no result, or that a run's identity holds in another form.
NOT_IN_SETTINGS = {
    "input.path": "the listed files, with their versions, are in the identity",
    "input.queries": "the listed files, with their versions, are in the identity",
    "input.documents": "the listed files, with their versions, are in the identity",
    "output.path": "where the same bytes go",
    "model.name": "the model's digest is in the identity",
    "model.revision": "the model's digest is in the identity",
    "model.scorer": "the model's digest is in the identity",
    "model.backend": "the profile is in the identity",
    "model.precision": "the profile is in the identity",
}
SECTIONS_WITHOUT_RESULTS = {"compute", "storage", "reuse", "gates", "report"}


def leaves(values, prefix=""):
    for key, value in values.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def fields(section, prefix):
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from fields(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def test_every_setting_names_the_run_or_is_known_to_be_harmless():
    sections = {"input": InputConfig, "output": OutputConfig, "model": ModelConfig}
    every = set(
        itertools.chain.from_iterable(fields(s, f"{name}.") for name, s in sections.items())
    )
    named = set(leaves(small().result_settings()))
    assert every - named == set(NOT_IN_SETTINGS)
    in_place_of_model = {"stages", "models", "rank_by"}
    ranked = {"rank"}  # names a run where it is set: test_fusion.py, test_calibrate.py
    others = set(RunConfig.model_fields) - set(sections) - in_place_of_model - ranked
    assert others == SECTIONS_WITHOUT_RESULTS


def test_every_setting_of_several_models_names_the_run():
    base = {"input.path": "in", "output.path": "out"}
    two = [{"name": "a", "keep": 9}, {"name": "b"}]
    cascade = load_config(overrides=base | {"stages": two}).result_settings()["stages"]
    alone = small().result_settings()["model"]
    assert {key: set(one) - set(alone) for key, one in cascade.items()} == {
        "0": {"keep"},
        "1": {"keep"},
    }
    beside = {"models": {"x": {"name": "a"}, "y": {"name": "b"}}, "rank_by": "y"}
    found = load_config(overrides=base | beside).result_settings()
    assert found["models"] == {"x": alone, "y": alone}
    assert (found["order"], found["rank_by"]) == (["x", "y"], "y")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("input.depth", 5),
        ("input.limit", 5),
        ("input.columns.document", ["title", "text"]),
        ("output.top_k", 5),
        ("output.columns", ["doc_id"]),
        ("model.max_length", 128),
        ("model.truncation", "longest_first"),
    ],
)
def test_a_setting_that_changes_results_changes_the_name(key, value):
    assert small(**{key: value}).result_settings() != small().result_settings()


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        (
            "storage.endpoint_url",
            "store.example:9000",
            r"storage\.endpoint_url: it must begin with",
        ),
        ("storage.endpoint_url", "http://me:secret@store.example", "it carries credentials"),
        ("storage.encryption", {"algorithm": "AES256", "key_id": "k"}, "AES256 uses none"),
        ("storage.encryption", {"algorithm": "AES"}, r"storage\.encryption\.algorithm: "),
        ("storage.path_stile", True, "Unknown setting"),
    ],
)
def test_storage_takes_what_can_be_and_no_secret(setting, value, said):
    with pytest.raises(ConfigError, match=said) as refused:
        small(**{setting: value})
    assert "me:secret" not in str(refused.value)


@pytest.mark.parametrize("key", ["input.path", "output.path"])
def test_the_place_of_a_run_does_not_change_its_name(key):
    assert small(**{key: "elsewhere"}).result_settings() == small().result_settings()


def test_settings_that_name_a_run_are_plain_json_values():
    settings = small(output__min_score=1).result_settings()
    assert yaml.safe_load(yaml.safe_dump(settings)) == settings
