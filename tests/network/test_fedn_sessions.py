"""A session whose package is FEDn's oldest form, packed as its users packed it, over a whole network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.doubles.fedn_packages import OLDEST, write_archive
from tests.network.local_network import LocalNetwork

pytestmark = [pytest.mark.network, pytest.mark.timeout(90)]


async def test_each_site_trains_on_its_own_data_beside_the_package(tmp_path: Path) -> None:
    archive = write_archive(tmp_path / "package.tgz", OLDEST)
    async with LocalNetwork(tmp_path) as net:
        await net.start_combiner("c1")
        for number in (1, 2):
            data = tmp_path / f"data {number}"
            data.mkdir()
            (data / "train.csv").write_text(f"{number},{number}\n")
            await net.start_client(f"site-{number}", data={"default": str(data)})
        answer = await net.http.post("/packages", params={"filename": "p.tgz"}, content=archive.read_bytes())
        answer.raise_for_status()
        seed = await net.push_model({"0": np.zeros((2, 2)), "1": np.zeros(3, np.float32)})
        session = await net.start_session(answer.json()["digest"], seed, rounds=2, min_clients=2)
        view = await net.until_ended(session)
        assert view["status"] == "finished", view["reason"]
        # Each round adds twice the mean of the sites' data; without metadata both weigh the same.
        assert [one["metrics"]["mean"] for one in view["rounds"]] == [3.0, 6.0]
        model = await net.model(view["model"])
        assert list(model) == ["0", "1"]
        assert all((array == 6.0).all() for array in model.values())
        clients = (await net.session(session, clients=True))["rounds"][-1]["clients"]
        (beside,) = (tmp_path / "site-1").rglob(f"unpacked/{answer.json()['digest']}/data")
        assert beside.readlink() == tmp_path / "data 1"
        assert [one["extra"] for one in clients if one["work"] == "validate"] == [{"seen": [1, 2]}] * 2
