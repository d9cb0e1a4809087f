from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runnel.common.errors import BadPackage
from runnel.common.model_format import ModelFormat
from runnel.compute_package import Manifest, ManifestKind, read_manifest

pytestmark = pytest.mark.unit


def package(folder: Path, **files: str) -> Path:
    """Make a package folder; a keyword ``train_py`` is the file ``train.py``."""
    folder.mkdir(parents=True, exist_ok=True)
    for key, content in files.items():
        stem, _, suffix = key.rpartition("_")
        (folder / f"{stem}.{suffix}").write_text(content, encoding="utf-8")
    return folder


def test_scripts_are_the_entry_points_of_a_package_without_a_manifest(tmp_path: Path) -> None:
    root = package(tmp_path / "my package", train_py="", predict_py="", startup_py="", model_py="")
    assert read_manifest(root) == Manifest(
        name="my-package",
        version="",
        entry_points={
            "train": "python train.py",
            "predict": "python predict.py",
            "startup": "python startup.py",
        },
    )


def test_requirements_txt_is_found(tmp_path: Path) -> None:
    assert read_manifest(package(tmp_path, train_py="", requirements_txt="numpy")).requirements == "requirements.txt"


def test_all_keys_of_a_manifest_count(tmp_path: Path) -> None:
    root = package(
        tmp_path,
        fit_py="",
        check_py="",
        requirements_txt="",
        cpu_txt="",
        runnel_yaml="""
            name: heart-study
            version: "2.0"
            entry_points: {train: python fit.py --fast, validate: {command: python3 check.py}, startup: make data}
            requirements: cpu.txt
            model_format: safetensors
        """,
    )
    assert read_manifest(root, default_name="other") == Manifest(
        name="heart-study",
        version="2.0",
        entry_points={"train": "python fit.py --fast", "validate": "python3 check.py", "startup": "make data"},
        requirements="cpu.txt",
        kind=ManifestKind.RUNNEL,
        model_format=ModelFormat.SAFETENSORS,
    )


def test_a_manifest_may_leave_the_scripts_to_their_names(tmp_path: Path) -> None:
    root = package(tmp_path, train_py="", validate_py="", runnel_yaml="name: x")
    assert list(read_manifest(root).entry_points) == ["train", "validate"]


def test_null_requirements_mean_the_interpreter_of_the_client(tmp_path: Path) -> None:
    root = package(tmp_path, train_py="", requirements_txt="numpy", runnel_yaml="requirements: null")
    assert read_manifest(root).requirements is None


def test_a_fedn_manifest_is_read_as_fedn_reads_it(tmp_path: Path) -> None:
    root = package(
        tmp_path,
        requirements_txt="for the Dockerfile",
        env_yaml="name: e",
        fedn_yaml="""
            python_env: env.yaml
            description: passed over
            entry_points:
              train: {command: /venv/bin/python entrypoint train $ENTRYPOINT_OPTS}
              infer: {command: python infer.py, timeout: 3}
              forward: {command: python forward.py}
        """,
    )
    manifest = read_manifest(root, default_name="cifar")
    assert manifest == Manifest(
        name="cifar",
        version="",
        entry_points={
            "train": "/venv/bin/python entrypoint train $ENTRYPOINT_OPTS",
            "infer": "python infer.py",
            "forward": "python forward.py",
            "predict": "python infer.py",
        },
        python_env="env.yaml",
        kind=ManifestKind.FEDN,
    )


def test_the_manifest_of_this_network_goes_first(tmp_path: Path) -> None:
    root = package(tmp_path, train_py="", runnel_yaml="name: mine", fedn_yaml="entry_points: {}")
    assert read_manifest(root).kind is ManifestKind.RUNNEL


BAD = {
    "unknown key": ("trian: python train.py", "runnel.yaml: trian is no key"),
    "unknown entry point": ("entry_points: {tran: x}", "runnel.yaml: entry_points.tran is no entry point"),
    "unknown inner key": (
        "entry_points: {train: {command: x, cmd: y}}",
        "entry_points.train.cmd is no key",
    ),
    "no command": ("entry_points: {train: {}}", "entry_points.train.command should be text but is empty"),
    "empty command": ("entry_points: {train: ' '}", "entry_points.train is empty"),
    "command of nothing": ("entry_points: {train: \"''\"}", "entry_points.train is empty"),
    "command is a list": (
        "entry_points: {train: [python, train.py]}",
        "entry_points.train should be text but is a list",
    ),
    "open quotation": ('entry_points: {train: "python \'train.py"}', "entry_points.train is no command line"),
    "NUL in a command": ('entry_points: {train: "python\\0train.py"}', "entry_points.train has control characters"),
    "missing train": ("entry_points: {validate: python train.py}", "entry_points.train is missing"),
    "missing script": ("entry_points: {train: python fit.py}", "names 'fit.py', which the package does not have"),
    "script outside": ("entry_points: {train: python ../train.py}", "should name a file of the package"),
    "entry points are text": ("entry_points: train.py", "entry_points should map names to commands but is text"),
    "name is a number": ("name: 7", "runnel.yaml: name should be text but is a number"),
    "name with a slash": ("name: a/b", "runnel.yaml: name should be 1 to 64"),
    "another model format": (
        "model_format: pt",
        "runnel.yaml: model_format should be one of npz, safetensors but is 'pt'",
    ),
    "model format is a number": ("model_format: 7", "runnel.yaml: model_format should be text but is a number"),
    "version is a number": ("version: 1.10", "runnel.yaml: version should be text but is a number"),
    "version with a space": ("version: 1 beta", "runnel.yaml: version should be"),
    "requirements missing": ("requirements: deps.txt", "requirements names 'deps.txt', which the package does not"),
    "requirements outside": ("requirements: /etc/passwd", "requirements should name a file of the package"),
    "requirements is a list": ("requirements: [numpy]", "requirements should be text but is a list"),
    "a list": ("- train", "runnel.yaml should hold keys and values but is a list"),
    "nothing": ("", "runnel.yaml should hold keys and values but is empty"),
    "no YAML": ("a: [", "runnel.yaml can not be read as YAML"),
    "python objects": ("name: !!python/object/apply:os.getcwd []", "runnel.yaml can not be read as YAML"),
    "a date that is none": ("version: 2020-13-45", "runnel.yaml can not be read as YAML"),
    "a key twice": ("name: a\nname: b", "the key 'name' appears twice"),
    "aliases": ("name: &x a\nversion: *x", "aliases are not accepted"),
    "deep nesting": ("[" * 5000, "nested too deeply"),
    "too large": ("# " + "x" * 70_000, "larger than 64 KiB"),
}


@pytest.mark.parametrize(("text", "message"), BAD.values(), ids=BAD)
def test_a_bad_manifest_is_refused_by_file_and_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(BadPackage) as caught:
        read_manifest(package(tmp_path, train_py="", runnel_yaml=text))
    assert message in str(caught.value)
    assert caught.value.fields["file"] == "runnel.yaml"


BAD_FEDN = {
    "no entry points": ("python_env: x", "fedn.yaml: entry_points should map names"),
    "no command": ("entry_points: {train: python train.py}", "fedn.yaml: entry_points.train.command is missing"),
    "no train": ("entry_points: {validate: {command: x}}", "fedn.yaml: entry_points.train is missing"),
    "missing environment": ("python_env: e\nentry_points: {train: {command: x}}", "fedn.yaml: python_env names 'e'"),
}


@pytest.mark.parametrize(("text", "message"), BAD_FEDN.values(), ids=BAD_FEDN)
def test_a_bad_fedn_manifest_is_refused_by_file_and_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(BadPackage) as caught:
        read_manifest(package(tmp_path, train_py="", fedn_yaml=text))
    assert message in str(caught.value)


def test_a_package_without_train_says_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(BadPackage, match=r"has a train\.py.*'study' holds notes\.txt, validate\.py") as caught:
        read_manifest(package(tmp_path / "study", validate_py="", notes_txt=""))
    assert "python train.py MODEL_IN MODEL_OUT" in caught.value.hint


def test_requirements_may_not_be_a_link_out_of_the_package(tmp_path: Path) -> None:
    root = package(tmp_path / "p", train_py="", runnel_yaml="requirements: deps.txt")
    (tmp_path / "secret").write_text("x")
    (root / "deps.txt").symlink_to("../secret")
    with pytest.raises(BadPackage, match="link out of the package"):
        read_manifest(root)


@given(st.binary(max_size=200))
def test_no_manifest_breaks_the_reader(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    root = package(tmp_path_factory.mktemp("manifest"), train_py="")
    (root / "runnel.yaml").write_bytes(raw)
    try:
        assert "train" in read_manifest(root).entry_points
    except BadPackage as error:
        named = error.fields["file"]
    else:
        named = "runnel.yaml"
    assert named == "runnel.yaml"


@pytest.mark.parametrize("word", ["python", "python3"])
def test_a_leading_python_is_the_interpreter_of_the_environment(word: str) -> None:
    manifest = Manifest(name="x", version="", entry_points={"train": f"{word} 'my script.py' -x"})
    assert manifest.argv("train", ["a b", "$c"], python="/e n/python") == [
        "/e n/python",
        "my script.py",
        "-x",
        "a b",
        "$c",
    ]


def test_other_commands_are_left_as_they_are() -> None:
    manifest = Manifest(name="x", version="", entry_points={"train": "make python"})
    assert manifest.argv("train", python="/python") == ["make", "python"]


def test_fedn_commands_go_through_a_shell_with_quoted_arguments() -> None:
    entry_points = {"train": "python train.py $OPTS", "validate": "./run validate; true"}
    manifest = Manifest(name="x", version="", entry_points=entry_points, kind=ManifestKind.FEDN)
    assert manifest.argv("train", ["a b"], python="/e n/python") == [
        "bash",
        "-c",
        "'/e n/python' train.py $OPTS \"$@\"",
        "bash",
        "a b",
    ]
    assert manifest.argv("validate", python="/p")[2] == './run validate; true "$@"'


@pytest.mark.parametrize(
    ("command", "argv"),
    [
        ("python  train.py --lr=0.1", ["/p", "train.py", "--lr=0.1", "in put"]),
        ("python3 -m src.train", ["/p", "-m", "src.train", "in put"]),
        ("./train.sh", ["./train.sh", "in put"]),
        ("/no-such-image/bin/python entrypoint train", ["/p", "entrypoint", "train", "in put"]),
        (".mnist-keras/bin/python entrypoint train", ["/p", "entrypoint", "train", "in put"]),
        ("./.env/bin/python3.8 train.py", ["/p", "train.py", "in put"]),
        ("bin/pythonic train.py", ["bin/pythonic", "train.py", "in put"]),
        ("/bin/sh train.sh", ["/bin/sh", "train.sh", "in put"]),
    ],
)
def test_a_fedn_command_that_no_shell_would_change_needs_none(command: str, argv: list[str]) -> None:
    manifest = Manifest(name="x", version="", entry_points={"train": command}, kind=ManifestKind.FEDN)
    assert manifest.argv("train", ["in put"], python="/p") == argv


def test_the_python_of_an_image_that_is_not_here_is_that_of_the_environment() -> None:
    command = "/no-such-image/bin/python3.9 entrypoint train $ENTRYPOINT_OPTS"
    manifest = Manifest(name="x", version="", entry_points={"train": command}, kind=ManifestKind.FEDN)
    assert manifest.argv("train", python="/p")[2] == '/p entrypoint train $ENTRYPOINT_OPTS "$@"'
    there = Manifest(
        name="x", version="", entry_points={"train": f"{sys.executable} train.py $A"}, kind=ManifestKind.FEDN
    )
    assert there.argv("train", python="/p")[2] == f'{sys.executable} train.py $A "$@"'


def test_the_python_that_a_project_requires_is_noted(tmp_path: Path) -> None:
    root = package(tmp_path, train_py="", pyproject_toml='[project]\nname = "x"\nrequires-python = ">=3.9"')
    assert read_manifest(root).requires_python == ">=3.9"
    assert read_manifest(package(tmp_path, pyproject_toml="[tool.x]\na = 1")).requires_python == ""
    for text, says in (("[project", "can not be read as TOML"), ("[project]\nrequires-python = 3", "should be text")):
        with pytest.raises(BadPackage, match=says):
            read_manifest(package(tmp_path, pyproject_toml=text))


@pytest.mark.parametrize(
    ("script", "imports", "helpers", "raw"),
    [
        (
            "from fedn.utils.helpers.helpers import get_helper\nh = get_helper('numpyhelper')",
            True,
            ["numpyhelper"],
            None,
        ),
        ("    import fedn\nHELPER_MODULE = 'binaryhelper'", True, ["binaryhelper"], "<f8"),
        (
            "from fedn.utils.helpers.helpers import get_helper\nget_helper('androidhelper')",
            True,
            ["androidhelper"],
            "<f4",
        ),
        ("from fedn.utils.kerashelper import KerasHelper", True, ["kerashelper"], None),
        ("import fedn; 'binaryhelper numpyhelper'", True, ["binaryhelper", "numpyhelper"], None),
        ("import fednorm\n# from fedn import x", False, [], None),
    ],
)
def test_what_a_package_uses_of_fedn_is_noted(
    tmp_path: Path, script: str, imports: bool, helpers: list[str], raw: str | None
) -> None:
    (tmp_path / "entrypoint").write_text(script)
    found = read_manifest(package(tmp_path, train_py="")).fedn
    assert (found.imports, list(found.helpers), found.raw_dtype) == (imports, helpers, raw)


def test_an_entry_point_that_is_not_there_is_named() -> None:
    with pytest.raises(BadPackage, match="no entry point 'build'; it has train"):
        Manifest(name="x", version="", entry_points={"train": "true"}).argv("build", python="python")


PINNED = f"registry.example.org:5000/team/study@sha256:{'a' * 64}"


@pytest.mark.parametrize("image", ["python:3.12-slim", "study", PINNED, f"study:1@sha256:{'0' * 64}"])
def test_an_image_is_named_in_the_manifest(tmp_path: Path, image: str) -> None:
    manifest = read_manifest(package(tmp_path, train_py="", runnel_yaml=f'image: "{image}"'))
    assert (manifest.image, manifest.dockerfile, manifest.needs_image) == (image, None, True)


@pytest.mark.parametrize(
    "image",
    [
        "''",
        "Study",
        "a b",
        "-x",
        "study@sha256:12",
        "'study:'",
        "../x",
        "a//b",
        "x:y:z",
        "12",
        "null",
        '"x\\n"',
        "x" * 600,
    ],
)
def test_what_is_no_image_is_refused(tmp_path: Path, image: str) -> None:
    with pytest.raises(BadPackage, match=r"runnel\.yaml: image should be"):
        read_manifest(package(tmp_path, train_py="", runnel_yaml=f"image: {image}"))


def test_a_dockerfile_makes_the_image_but_not_beside_another_or_in_a_package_of_fedn(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM scratch")
    plain = read_manifest(package(tmp_path, train_py=""))
    assert (plain.image, plain.dockerfile, plain.needs_image) == (None, "Dockerfile", True)
    package(tmp_path, runnel_yaml="name: p")
    assert read_manifest(tmp_path).needs_image
    package(tmp_path, runnel_yaml="image: study")
    with pytest.raises(BadPackage, match="image and a Dockerfile exclude each other"):
        read_manifest(tmp_path)
    (tmp_path / "runnel.yaml").unlink()
    package(tmp_path, fedn_yaml="entry_points: {train: {command: python train.py}}")
    assert not read_manifest(tmp_path).needs_image
