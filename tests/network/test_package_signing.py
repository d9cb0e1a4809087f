"""From `runnel package sign` to the network's registry, by the commands that people type."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from runnel.cli.main import main
from runnel.compute_package import pack
from tests.doubles.said import Said
from tests.network.local_network import LocalNetwork, write_package

pytestmark = pytest.mark.network


async def test_a_signed_package_is_pushed_with_its_signers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with LocalNetwork(tmp_path) as network:

        async def runnel(*arguments: str, url: bool = False) -> Said:
            capsys.readouterr()
            more = ["--url", network.reducer.url] if url else []
            status = await asyncio.to_thread(main, [*arguments, *more])
            captured = capsys.readouterr()
            return Said(status=status, out=captured.out, err=captured.err)

        archive = (await asyncio.to_thread(pack, write_package(tmp_path / "p"), tmp_path / "p.tar.gz")).path
        ada, bob = tmp_path / "ada", tmp_path / "bob"
        for key in (ada, bob):
            said = await runnel("package", "key", "new", str(key))
            assert said.status == 0, said.err
            assert "ed25519:" in said.out
        said = await runnel("package", "verify", str(archive), "--signer", f"{ada}.pub")
        assert said.status == 1
        assert "nobody" in said.err
        signed = await runnel("package", "sign", str(archive), "--key", str(ada), "--json")
        by_ada = signed.document["key_id"]
        assert (await runnel("package", "verify", str(archive), "--signer", f"{ada}.pub")).status == 0
        refused = await runnel("package", "verify", str(archive), "--signer", f"{bob}.pub")
        assert refused.status == 1
        assert by_ada in refused.err

        pushed = await runnel("package", "push", str(archive), "--json", url=True)
        document = pushed.document
        assert isinstance(document, dict)
        assert [each["key_id"] for each in document["signatures"]] == [by_ada]
        await runnel("package", "sign", str(archive), "--key", str(bob))
        again = await runnel("package", "push", str(archive), "--json", url=True)
        assert len(again.document["signatures"]) == 2
        for command in (("list",), ("show", document["digest"])):
            shown = await runnel("package", *command, url=True)
            assert by_ada in shown.out

        other = {**document["signatures"][0], "signature": "00" * 64}
        body = {name: other[name] for name in ("public_key", "signature")}
        answer = await network.http.post(f"/packages/{document['digest']}/signatures", json=body)
        assert answer.status_code == 422
        assert "is not one of package" in answer.json()["detail"]
        answer = await network.http.post(f"/packages/{document['digest']}/signatures", json=body | {"more": 1})
        assert answer.status_code == 422

        archive.write_bytes(archive.read_bytes() + b"\0")
        stale = await runnel("package", "push", str(archive), url=True)
        assert stale.status == 1
        assert "packed anew" in stale.err
