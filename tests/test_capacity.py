"""Capacity: hours of workers, from rates that runs have measured and from no others."""

import pytest

from rankmill import capacity
from rankmill.capacity import Wanted
from rankmill.errors import ConfigError
from rankmill.load import Estimate
from rankmill.markers import Counters, Marker, ModelCost
from rankmill.profile import Profile


def profile(precision="bf16", device="cpu", instructions="avx512_bf16", threads=2):
    return Profile("openvino", precision, device, instructions, threads, 2048)


def record(*models, tokens_a_pair=(50.0,), gpus=1):
    """What run.json tells of models, each a digest and a profile."""
    found = {
        "config": {"compute": {"gpus_per_worker": gpus}},
        "plan": {"tokens_a_pair": list(tokens_a_pair)},
        "model": {"digest": models[0][0]},
        "profile": models[0][1].to_json(),
    }
    if len(models) > 1:
        found["models"] = {str(n): {"digest": digest} for n, (digest, _) in enumerate(models)}
        found["profiles"] = {str(n): one.to_json() for n, (_, one) in enumerate(models)}
    return found


def marker(pairs=1000, seconds=100.0, degraded=False, models=()):
    counters = Counters(pairs_scored=pairs, tokens=60 * pairs)
    return Marker(0, "run", (), counters, degraded, seconds, models=models)


def wanted(digest="a", tokens=3_600_000, backend="auto", precision="auto"):
    return Wanted("", "org/model", digest, backend, precision, Estimate(36_000, tokens, 0.0))


def test_hours_are_the_plans_tokens_at_the_measured_rate_by_the_number_of_workers():
    measured = capacity.rates(record(("a", profile())), [marker(), marker()])
    [need] = capacity.needs([wanted()], measured)
    # 2,000 pairs, planned with 50 tokens each, in 200 s: 500 of the plan's tokens a second.
    assert [need.hours(workers) for workers in (1, 2, 8)] == pytest.approx([2.0, 1.0, 0.25])
    told = need.to_json([1, 4])
    assert told["hours"] == pytest.approx({"1": 2.0, "4": 0.5})
    assert (told["core_hours"], told["gpu_hours"]) == (pytest.approx(4.0), None)
    assert told["measured"]["tokens_per_second"] == pytest.approx(600.0)
    assert told["measured"]["pairs_per_second"] == pytest.approx(10.0)


def test_documents_of_twice_the_length_take_twice_as_long():
    measured = capacity.rates(record(("a", profile())), [marker()])
    short, long = capacity.needs([wanted(), wanted(tokens=7_200_000)], measured)
    assert long.hours(1) == pytest.approx(2 * short.hours(1))


def test_gpus_are_counted_by_what_a_worker_reserves():
    gpu = profile(device="cuda", instructions="a GPU")
    measured = capacity.rates(record(("a", gpu), gpus=0.5), [marker()])
    [need] = capacity.needs([wanted()], measured)
    told = need.to_json([1])
    assert (told["core_hours"], told["gpu_hours"]) == (None, pytest.approx(1.0))


def test_each_of_several_models_has_its_own_rate_and_reused_pairs_do_not_count():
    costs = (ModelCost(1000, 0, 1000, 60_000, 0, 100.0), ModelCost(300, 200, 100, 9_000, 0, 10.0))
    run = record(("a", profile()), ("b", profile("fp32")), tokens_a_pair=(50.0, 80.0))
    measured = capacity.rates(run, [marker(models=costs)])
    small, large = capacity.needs([wanted(), wanted("b")], measured)
    assert small.hours(1) == pytest.approx(2.0)
    assert large.rate.pairs == 100
    assert large.hours(1) == pytest.approx(3_600_000 / (100 * 80 / 10.0) / 3600)


def test_rates_of_one_kind_of_worker_add_up_and_others_stay_apart():
    here = capacity.rates(record(("a", profile())), [marker()])
    again = capacity.rates(record(("a", profile())), [marker(pairs=3000)])
    other = capacity.rates(record(("a", profile(instructions="avx2"))), [marker()])
    ours, theirs = capacity.needs([wanted()], here + again + other)
    assert (ours.rate.pairs, ours.rate.seconds) == (4000, 200.0)
    assert theirs.rate.worker.instructions == "avx2"


def test_a_degraded_shard_tells_no_rate():
    run = record(("a", profile()))
    sound = marker()
    assert capacity.rates(run, [sound, marker(seconds=9e9, degraded=True)]) == capacity.rates(
        run, [sound]
    )
    assert capacity.rates(run, [marker(degraded=True)]) == []


@pytest.mark.parametrize(
    "asked", [{"digest": "b"}, {"precision": "fp32"}, {"backend": "torch"}], ids=str
)
def test_a_rate_of_another_model_backend_or_precision_is_not_taken(asked):
    measured = capacity.rates(record(("a", profile())), [marker()])
    models = [wanted(**asked)]
    assert capacity.needs(models, measured) == []
    with pytest.raises(ConfigError, match="no rate of org/model") as caught:
        capacity.refuse_unmeasured(models, [])
    assert "rankmill rerank --limit" in caught.value.remedy


def test_workers_double_until_there_are_no_shards_for_more():
    assert capacity.worker_counts(0) == capacity.worker_counts(1) == [1]
    assert capacity.worker_counts(9) == [1, 2, 4, 8]
    assert capacity.worker_counts(10**6)[-1] == 256
