"""The mesh with both mappers, on one device and on eight: updates give the numbers of plain ones, and what is put on
the devices comes back."""

import jax
import numpy as np
import pytest

from tests.runtime import several_devices

pytestmark = pytest.mark.timeout(900)  # the first test waits for the program

AGENTS = ("impala", "vmpo", "actor_critic", "ddpg")
B = 16  # the batch size of tests/runtime/meshes.py
PMAP_IS_SHARD_MAP = jax.__version_info__ >= (0, 8)


@pytest.fixture(scope="module", params=[1, 8])
def reports(request):
    reports = several_devices.run("tests.runtime.meshes", request.param)
    assert reports.keys() == {"shard_map", "pmap"}
    assert [report["size"] for report in reports.values()] == [request.param] * 2
    return reports


@pytest.fixture(params=["shard_map", "pmap"])
def report(reports, request):
    return reports[request.param] | {"mapper": request.param}


@pytest.mark.parametrize("agent", AGENTS)
def test_an_update_is_the_plain_one_on_any_number_of_devices(report, agent):
    found = report["updates"][agent]
    assert found["moved"] > 1e-3, "else there would be nothing to compare"
    assert len(found["states"]) == 4 and max(found["states"]) < 1e-6
    assert len(found["priorities"]) == (4 if agent == "ddpg" else 0)
    assert max(found["priorities"], default=0.0) < 1e-6
    for name, mine, expected in found["metrics"]:
        if name == "trace_norm":  # it is of a device's own environments
            continue
        # These are means over live rows: each device's own, of which it may have more than another.
        tolerance = 0.05 if name in ("entropy", "rho") else 1e-4
        assert mine == pytest.approx(expected, rel=tolerance, abs=1e-5), name


@pytest.mark.parametrize("agent", AGENTS)
def test_both_mappers_give_the_same_state(reports, agent):
    one, other = (report["updates"][agent]["leaves"] for report in reports.values())
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)


@pytest.mark.parametrize("agent", AGENTS)
def test_a_state_goes_on_elsewhere_as_if_it_had_been_there_all_the_time(report, agent):
    """DDPG's state includes the statistics of its normaliser, and their weight."""
    assert report["updates"][agent]["resumed"] < 1e-6


@pytest.mark.parametrize("agent", AGENTS)
def test_the_state_is_donated_and_published_parameters_outlive_it(report, agent):
    found = report["updates"][agent]
    assert found["donated"] and found["outlives"] == 0.0


@pytest.mark.parametrize("agent", AGENTS)
def test_the_update_is_traced_once_and_counts(report, agent):
    found = report["updates"][agent]
    assert found["step"] == 6
    if report["mapper"] == "pmap" and PMAP_IS_SHARD_MAP:
        # JAX's own wrapper traces again until the placement of its arguments settles: the first calls, not every one.
        assert found["traces"] <= 3
    else:
        assert found["traces"] == 1


def test_each_device_update_and_seed_has_a_key_of_its_own(report):
    found, expected = report["keys"]["found"], report["keys"]["expected"]
    *different, again = found
    assert len({number for numbers in different for number in numbers}) == 3 * report["size"]
    assert again == different[0] and found == expected
    assert report["keys"]["host sees the first device's"]


def test_there_is_a_gradient_for_each_device(report):
    assert report["gradients"] < 1e-6


@pytest.mark.parametrize("size", ["small", "large"])
def test_what_is_put_on_the_devices_comes_back(report, size):
    assert report["round trips"][size] == [True] * 5
    assert report["round trips"]["numbers"] == [7, 2, 0.5, True]


def test_each_device_has_its_part(report):
    n = report["size"]
    assert report["round trips"]["parts"] == [[B, 2 * B], [B // n, 2 * B], [B, 2 * B // n]]


def test_what_was_put_is_kept_when_the_devices_donate_it(report):
    assert report["round trips"]["kept 16"] and report["round trips"][f"kept {1 << 20}"]


def test_what_does_not_divide_is_refused(report):
    message = "a batch of 17 is not a multiple of 8, the number of devices" if report["size"] == 8 else None
    assert report["round trips"]["refused"] == [message, message, None], "what is whole on each need not divide"


def test_sequences_from_a_replay_are_split_into_minibatches(report):
    """Each device has a share of 16 sequences. Half of it goes to each of two updates, with memory and likelihood."""
    found, share = report["minibatches"], B // report["size"]
    update = lambda i: i % share // (share // 2)
    assert found["priorities"] == [1000.0 * update(i) + i + i / B for i in range(B)], "in the order of the sample"
    assert found["state"] == found["step"] == 2 and found["agree"] == 1.0
    assert found["smallest"] == min(i for i in range(B) if update(i) == 1), "metrics are the last update's"
