"""Folders that a container could write: nothing leads out of them, and no more leaves than the site lets out."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest

from runnel.client.tasks.beneath import files_beneath, open_beneath, read_beneath, write_beneath
from runnel.client.tasks.captured import PrintedFiles
from runnel.client.tasks.contract import Layout, Mounted, TaskSite
from runnel.client.tasks.output_zip import write_zip
from runnel.client.tasks.placement import places, where
from runnel.client.tasks.plain import PlainContract
from runnel.client.tasks.surroundings import Groups, add_surroundings, collect_outputs
from runnel.common.errors import BadOutput, InvalidInput
from tests.doubles.task_network import order, plain

pytestmark = pytest.mark.unit


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A folder with two files, and with all that leads out of it or blocks whoever opens it."""
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key").write_text("secret")
    root = tmp_path / "written"
    (root / "sub").mkdir(parents=True)
    (root / "a.txt").write_text("a")
    (root / "sub" / "b.txt").write_text("b")
    (root / "link").symlink_to(secret / "key")
    (root / "folder-link").symlink_to(secret)
    (root / "sub" / "up").symlink_to("../..")
    (root / "dangling").symlink_to("/nowhere")
    os.mkfifo(root / "pipe")
    return root


def test_links_and_pipes_are_not_there(hostile: Path) -> None:
    assert read_beneath(hostile, "a.txt", most=10) == b"a"
    assert read_beneath(hostile, "sub/b.txt", most=10) == b"b"
    for path in ("link", "folder-link/key", "sub/up/secret/key", "dangling", "pipe", "sub", "none", "a.txt/x"):
        assert read_beneath(hostile, path, most=10) is None, path
    for path in ("../secret/key", "/etc/passwd", "sub/../../secret/key"):
        with pytest.raises(ValueError, match="downward"), open_beneath(hostile, path):
            pass
    with pytest.raises(BadOutput):
        read_beneath(hostile, "a.txt", most=0)


def test_only_files_are_found_and_only_so_many(hostile: Path) -> None:
    assert [str(each.path) for each in files_beneath(hostile, most_files=100)] == ["a.txt", "sub/b.txt"]
    with pytest.raises(BadOutput, match="more than 3"):
        list(files_beneath(hostile, most_files=3))
    for path in ("link", "folder-link", "sub/up", "sub/up/secret", "none", "a.txt"):
        assert not list(files_beneath(hostile, path, most_files=100)), path


def test_folders_in_folders_have_an_end(tmp_path: Path) -> None:
    deep = tmp_path
    for _ in range(110):
        deep /= "d"
        deep.mkdir()
    with pytest.raises(BadOutput, match="deep"):
        list(files_beneath(tmp_path, most_files=1000))


def test_what_is_written_there_follows_no_link(hostile: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_text("new")
    assert write_beneath(hostile, "made/on/the/way.txt", source)
    assert (hostile / "made/on/the/way.txt").read_text() == "new"
    assert write_beneath(hostile, "link", source)
    assert (hostile / "link").read_text() == "new"
    assert (tmp_path / "secret" / "key").read_text() == "secret"
    for path in ("folder-link/x", "sub/up/x", "a.txt/x", "sub", ""):
        assert not write_beneath(hostile, path, source), path
    assert [each.name for each in (tmp_path / "secret").iterdir()] == ["key"]


def test_the_archive_has_the_files_and_is_the_same_each_time(hostile: Path, tmp_path: Path) -> None:
    (hostile / "sub" / "b.txt").chmod(0o755)
    made = [tmp_path / "1.zip", tmp_path / "2.zip"]
    for path in made:
        assert write_zip(path, [(hostile, "", ""), (hostile, "a.txt", "x/y.txt")], most_bytes=100, most_files=100) == (
            3,
            3,
        )
        os.utime(hostile / "a.txt", (1, 1))
    assert made[0].read_bytes() == made[1].read_bytes()
    with zipfile.ZipFile(made[0]) as archive:
        assert archive.testzip() is None
        assert {info.filename: info.external_attr >> 16 & 0o777 for info in archive.infolist()} == {
            "a.txt": 0o644,
            "sub/b.txt": 0o755,
            "x/y.txt": 0o644,
        }


def test_a_file_that_says_less_or_more_than_it_is_counts_by_what_is_read(tmp_path: Path) -> None:
    root = tmp_path / "written"
    root.mkdir()
    with (root / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(BadOutput, match="sparse"):
        write_zip(tmp_path / "a.zip", [(root, "", "")], most_bytes=1 << 20, most_files=10)


def test_a_container_finds_nothing_where_the_kernel_or_another_file_is(tmp_path: Path) -> None:
    for target in ("/", "/proc", "/proc/self", "/sys/x", "/dev/shm/..", "/dev"):
        with pytest.raises(InvalidInput):
            places([Mounted(source=tmp_path, target=target)])
    with pytest.raises(InvalidInput, match="Two"):
        places([Mounted(source=tmp_path, target="/a"), Mounted(source=tmp_path, target="/a/")])
    assert [str(each.inside) for each in places([Mounted(source=tmp_path, target=t) for t in ("/a/b", "/a")])] == [
        "/a",
        "/a/b",
    ]


def test_the_innermost_mount_has_a_path(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "file").touch()
    layout = Layout(
        mounts=(
            Mounted(source=tmp_path, target="/mnt"),
            Mounted(source=tmp_path / "in", target="/mnt/in", read_only=False),
            Mounted(source=tmp_path / "file", target="/one.txt", read_only=False),
        )
    )
    assert where(layout, "/mnt/in/a/b") == (tmp_path / "in", "a/b")
    assert where(layout, "/mnt/inside") == (tmp_path, "inside")
    assert where(layout, "/mnt/x", writable=True) is None
    assert where(layout, "/one.txt", writable=True) == (tmp_path, "file")
    assert where(layout, "/other") is None


def laid_out(folder: Path, **choices: object) -> Layout:
    spec = plain("a", **choices)
    (folder / "input").mkdir(parents=True)
    (folder / "given").mkdir()
    for number, _ in enumerate(spec.inputs):
        (folder / "given" / str(number)).write_text(str(number))
    layout = PlainContract().lay_out(order("run-1", spec), spec, folder, TaskSite(name="s"))
    return add_surroundings(spec, layout, folder)


@pytest.mark.parametrize("path", ["/mnt/input", "/mnt/input/input.json", "/mnt/input/a/b", "/mnt/output", "/mnt/logs"])
def test_an_input_takes_nobodys_place(tmp_path: Path, path: str) -> None:
    inputs = [{"path": each, "content": {"data": ""}} for each in ("/mnt/input/a", path)]
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "payload").write_text("{}")
    with pytest.raises(InvalidInput):
        laid_out(folder, inputs=inputs, payload={"data": ""})


def test_an_input_never_goes_to_a_folder_that_outlives_the_run(tmp_path: Path) -> None:
    group, folder = tmp_path / "group", tmp_path / "run"
    group.mkdir()
    (folder / "given").mkdir(parents=True)
    (folder / "given" / "0").touch()
    spec = plain("a", inputs=[{"path": "/tmp/x", "content": {"data": ""}}])
    layout = Layout(mounts=(Mounted(source=group, target="/tmp", read_only=False),))
    with pytest.raises(InvalidInput):
        add_surroundings(spec, layout, folder)
    assert not any(group.iterdir())


@pytest.mark.parametrize(
    ("profile", "given", "out", "path"),
    [
        (None, "/mnt/input", "/mnt/output", "/mnt/input"),
        ("plural", "/mnt/inputs", "/mnt/data", "/mnt/inputs/t.csv"),
        ("misspelt", "/mnt/input", "/mnt/output", "/mnt/input"),
    ],
)
def test_profiles_of_the_plain_contract(tmp_path: Path, profile: str | None, given: str, out: str, path: str) -> None:
    spec, folder, site = plain("a", profile=profile), tmp_path / "run", TaskSite(name="s", variables={"OWN": "1"})
    (folder / "input").mkdir(parents=True)
    (folder / "input" / "t.csv").touch()
    layout = PlainContract().lay_out(order("run-1", spec), spec, folder, site)
    assert layout.env == {
        "OWN": "1",
        "CA_INPUT_FOLDER": given,
        "CA_OUTPUT_FOLDER": out,
        "CA_CONFIG_FOLDER": "/app",
        "INPUT_PATH": path,
    }
    by_target = {each.target: each for each in layout.mounts}
    assert by_target[given].read_only
    assert not by_target[out].read_only
    if profile == "misspelt":
        (by_target["/mnt/ouput"].source / "result.txt").write_text("r")
    (by_target["/mnt/logs"].source / "b.log").write_text("b\n")
    (by_target["/mnt/logs"].source / "a.log").write_text("a\n")
    log, output = PlainContract().collect(spec, folder, site)
    assert log.path.read_text() == "==> a.log <==\na\n==> b.log <==\nb\n"
    with zipfile.ZipFile(output.path) as archive:
        assert archive.namelist() == (["result.txt"] if profile == "misspelt" else [])


def test_an_unknown_profile_is_refused_by_name(tmp_path: Path) -> None:
    spec = plain("a", profile="other")
    with pytest.raises(InvalidInput, match="other"):
        PlainContract().lay_out(order("run-1", spec), spec, tmp_path, TaskSite(name="s"))


def test_further_outputs_are_collected_from_wherever_they_are(tmp_path: Path) -> None:
    spec = plain("a", outputs=["/x/folder", "/x/one.csv", "/mnt/output/in"], volumes=["/v"])
    folder = tmp_path / "run"
    (folder / "input").mkdir(parents=True)
    (folder / "given").mkdir()
    own = PlainContract().lay_out(order("run-1", spec), spec, folder, TaskSite(name="s"))
    whole = add_surroundings(spec, own, folder)
    by_target = {each.target: each for each in whole.mounts}
    assert by_target.keys() - {each.target for each in own.mounts} == {"/x/folder", "/x/one.csv", "/v"}
    (by_target["/x/folder"].source / "f").write_text("f")
    by_target["/x/one.csv"].source.write_text("one")
    (made,) = collect_outputs(spec, own, whole, folder, most_bytes=100, most_files=10)
    with zipfile.ZipFile(made.path) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == {"x/folder/f": b"f", "x/one.csv": b"one"}


def test_a_flood_is_kept_to_its_limit_and_says_so(tmp_path: Path) -> None:
    with PrintedFiles(tmp_path, most_bytes=10) as files:
        for _ in range(5):
            files.write("stdout", b"abcd")
        files.write("stderr", b"0123456789")
    assert (tmp_path / "stdout").read_text().startswith("abcdabcdab\n… (what was printed beyond 10 bytes")
    assert (tmp_path / "stderr").read_bytes() == b"0123456789"


def test_groups_are_of_one_organisation_and_go_when_nobody_uses_them(tmp_path: Path) -> None:
    groups = Groups(tmp_path / "groups")
    mine = groups.folder("org", "g")
    (mine / "state").write_text("1")
    assert groups.folder("org", "g") == mine
    assert groups.folder("other", "g") != mine
    assert groups.folder("or", "gg") != groups.folder("org", "g")
    groups.sweep()
    assert (mine / "state").exists()
    later = mine.stat().st_mtime + 31 * 86_400
    groups.sweep(now=lambda: later)
    assert not any((tmp_path / "groups").iterdir())
