"""updates_per_dispatch=K is K updates one after another: the same state, keys and priorities; on 1 device and 8."""

import pytest

from tests.runtime import dispatching, several_devices

pytestmark = pytest.mark.timeout(900)  # the first test waits for the program


@pytest.fixture(scope="module", params=[1, 8])
def reports(request):
    reports = several_devices.run("tests.runtime.dispatching", request.param)
    assert [each["devices"] for report in reports.values() for each in report.values()] == [request.param] * 4
    return reports


@pytest.fixture(params=["shard_map", "pmap"])
def report(reports, request):
    return reports[request.param]


@pytest.mark.parametrize("agent", ["ordered", "ddpg"])
def test_one_dispatch_is_as_many_updates(report, agent):
    found, k = report[agent], dispatching.K
    assert found["steps"] == [[7 + k] * 2, [7 + 2 * k] * 2], "as many keys"
    assert found["updates"] == 2 * k
    assert found["moved"] > 0.01, "else there would be nothing to compare"
    assert found["states"] < 1e-5


@pytest.mark.parametrize("agent", ["ordered", "ddpg"])
def test_each_transition_of_a_dispatch_gets_the_priority_of_its_own_update(report, agent):
    found = report[agent]
    assert found["largest priority"] > 0.1
    assert found["priorities"] < 1e-5
    shape, *numbers = found["shapes"]
    assert shape == [dispatching.K * dispatching.BATCH]
    assert numbers[0] == numbers[1] and found["metrics"] < 1e-5, "metrics are the last update's"
