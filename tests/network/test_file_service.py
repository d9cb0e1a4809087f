"""Files at a site: anybody may bring them, its own containers fetch them."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr, ValidationError

from runnel.client.file_service import FileService, FileServiceSettings
from runnel.common.errors import BadSettings, Conflict
from tests.eventually import eventually

pytestmark = pytest.mark.network

ELSEWHERE = ["10.1.0.0/16", "2001:db8::/32"]


def settings(folder: Path, **more: object) -> FileServiceSettings:
    return FileServiceSettings(**({"listen": "127.0.0.1:0", "folder": folder, "keep_free_bytes": 0} | more))


async def add(service: FileService, data: bytes, *, field: str = "fileObj", **headers: str) -> httpx.Response:
    async with httpx.AsyncClient(trust_env=False, timeout=30) as http:
        return await http.post(f"http://{service.address}/addFile", files={field: ("../x", data)}, headers=headers)


async def fetch(service: FileService, path: str, **headers: str) -> httpx.Response:
    async with httpx.AsyncClient(trust_env=False, timeout=30) as http:
        return await http.get(f"http://{service.address}{path}", headers=headers)


async def test_what_was_brought_is_fetched_byte_for_byte_by_its_name_also_later(tmp_path: Path) -> None:
    data = bytes(range(256)) * 20_000
    async with FileService(settings(tmp_path)) as service:
        assert (await fetch(service, "/")).text == "Hello, World"
        answer = (await add(service, data)).json()
        assert answer["status"] == "success"
        name = answer["uuid"]
        assert str(uuid.UUID(name)) == name
        assert (await fetch(service, f"/file/{name}")).content == data
    (tmp_path / "torn.part").touch()
    async with FileService(settings(tmp_path)) as service:
        assert (await fetch(service, f"/file/{name}")).content == data
        assert (await fetch(service, f"/file/{uuid.uuid4()}")).status_code == 404
    assert [path.name for path in tmp_path.iterdir()] == [name]


async def test_others_fetch_nothing_whatever_they_say_of_themselves(tmp_path: Path) -> None:
    async with FileService(settings(tmp_path, readers=ELSEWHERE)) as service:
        name = (await add(service, b"x")).json()["uuid"]
        for headers in ({}, {"X-Forwarded-For": "10.1.0.1"}, {"Forwarded": "for=10.1.0.1"}, {"X-Real-IP": "10.1.0.1"}):
            assert (await fetch(service, f"/file/{name}", **headers)).status_code == 403
        # Nor do they learn what there is.
        assert (await fetch(service, f"/file/{uuid.uuid4()}")).status_code == 403


async def test_containers_of_the_usual_bridge_are_readers(tmp_path: Path) -> None:
    service = FileService(settings(tmp_path))
    readers = {"127.0.0.1": True, "::1": True, "::ffff:127.0.0.1": True, "172.17.0.5": True}
    for remote, may in (
        readers | {"172.18.0.1": False, "10.0.3.1": False, "::ffff:10.0.3.1": False, "": False}
    ).items():
        assert service._may_read(remote) is may, remote
    assert service._may_read(None) is False


@pytest.mark.parametrize(
    "path", ["/file/..%2f..%2fetc%2fpasswd", "/file/", "/file/x", "/file/%00", "/file/../secret", "/storage"]
)
async def test_only_names_that_were_given_lead_to_files(tmp_path: Path, path: str) -> None:
    (tmp_path / "secret").write_text("of the site")
    folder = tmp_path / "files"
    async with FileService(settings(folder)) as service:
        assert (await fetch(service, path)).status_code == 404


async def test_what_is_too_large_or_no_file_leaves_nothing(tmp_path: Path) -> None:
    async def endless() -> AsyncIterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="fileObj"; filename="x"\r\n\r\n'
        for _ in range(40):
            yield b"x" * 100_000
        yield b"\r\n--b--\r\n"

    async with FileService(settings(tmp_path, max_file_bytes=1000)) as service:
        assert (await add(service, b"x" * 1000)).status_code == 200
        refused = await add(service, b"x" * 1001)
        assert (refused.status_code, refused.json()["status"]) == (413, "error")
        async with httpx.AsyncClient(trust_env=False, timeout=30) as http:
            url = f"http://{service.address}/addFile"
            form = {"Content-Type": "multipart/form-data; boundary=b"}
            assert (await http.post(url, content=endless(), headers=form)).status_code == 413
            for kind in ("application/json", "multipart/form-data"):
                answer = await http.post(url, content=b"{}", headers={"Content-Type": kind})
                assert answer.status_code == 422, kind
        assert (await add(service, b"x", field="another")).status_code == 422
    assert len(list(tmp_path.iterdir())) == 1


async def test_an_upload_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    async with FileService(settings(tmp_path)) as service:
        host, port = service.address.split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        head = b"POST /addFile HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
        body = b'--b\r\nContent-Disposition: form-data; name="fileObj"; filename="x"\r\n\r\nbegin'
        writer.write(head + b"Content-Length: 100000\r\n\r\n" + body)
        await eventually(lambda: len(list(tmp_path.iterdir())) == 1)
        writer.close()
        await eventually(lambda: not list(tmp_path.iterdir()))
        assert await reader.read() == b""


async def test_the_disk_keeps_some_room(tmp_path: Path) -> None:
    async with FileService(settings(tmp_path, keep_free_bytes=1 << 60)) as service:
        refused = await add(service, b"x")
        assert refused.status_code == 507
        assert str(tmp_path) not in refused.text
    assert list(tmp_path.iterdir()) == []


async def test_uploads_may_need_a_token(tmp_path: Path) -> None:
    async with FileService(settings(tmp_path, token=SecretStr("secret"))) as service:
        assert (await add(service, b"x")).status_code == 401
        assert (await add(service, b"x", Authorization="Bearer wrong")).status_code == 401
        assert (await add(service, b"x", Authorization="Bearer secret")).status_code == 200


async def test_an_address_that_is_taken_or_not_ours_is_told(tmp_path: Path) -> None:
    async with FileService(settings(tmp_path)) as service:
        with pytest.raises(Conflict, match=service.address):
            await FileService(settings(tmp_path, listen=service.address)).__aenter__()
    with pytest.raises(BadSettings, match=r"192\.0\.2\.1"):
        await FileService(settings(tmp_path, listen="192.0.2.1:0")).__aenter__()
    with pytest.raises(ValidationError, match="readers"):
        settings(tmp_path, readers=["10.0.*.*"])
