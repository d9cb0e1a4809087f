"""A compute package tried out as a client would run it, before anybody's client has to."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from runnel.client import entry_points
from runnel.client.domain.contract import Result, TrainResult, ValidateResult
from runnel.client.recognition import recognise
from runnel.client.runtimes.containers import in_containers
from runnel.client.runtimes.installs import Installs
from runnel.client.runtimes.process import ProcessRuntime
from runnel.client.runtimes.runtime import LineSink, PackageFiles, Prepared, Runtime
from runnel.client.runtimes.variables import entry_point_variables
from runnel.common.blobs import digest_file, in_thread
from runnel.common.errors import BadModel, BadOutput, InvalidInput, NotFound, RunnelError
from runnel.common.model_format import ModelFormat
from runnel.common.tensors import find_format, to_canonical
from runnel.compute_package import Manifest, pack, read_manifest, unpack

if TYPE_CHECKING:
    from runnel.client.runtimes.docker import DockerRuntime

DEFAULT_TIMEOUT_S = 3600.0
_WEIGHT_HINT = 'Write {"num_examples": N} to the path of the model with -metadata appended.'


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One thing that was tried.

    Args:
        name: stable: ``unpack``, ``manifest``, ``environment``, ``startup``, ``seed``, ``train``, ``update``,
            ``metadata``, ``validate``, ``metrics``, ``predict``.
        ok: whether it went well.
        detail: what was found, or what is wrong.
        hint: what to do about it; empty if nothing.
        elapsed_s: seconds it took.
    """

    name: str
    ok: bool
    detail: str
    hint: str = ""
    elapsed_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsal:
    """What was tried, in order; the last step is the first that failed, if one did. ``warnings`` don't make it fail.

    ``recognised`` is what :func:`runnel.client.recognition.recognise` found, empty if it did not come to that.
    """

    steps: tuple[Step, ...]
    warnings: tuple[str, ...]
    recognised: Mapping[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether every step went well."""
        return all(step.ok for step in self.steps)


async def rehearse(
    package: Path,
    *,
    seed: Path | None = None,
    data: Mapping[str, Path] | None = None,
    settings: Mapping[str, Any] | None = None,
    variables: Mapping[str, str] | None = None,
    say: LineSink,
    environ: Mapping[str, str] | None = None,
    environments: Path | None = None,
    installs: Installs | None = None,
    runtime: Literal["process", "docker"] | None = None,
    docker_image: str = "",
    timeout_s: float | None = DEFAULT_TIMEOUT_S,
) -> Rehearsal:
    """Run a package through all that a client will do with it, and tell at which step it fails and why.

    A folder is packed first, so that what its ignore file leaves out is missing here as it would be there. Everything
    happens in a temporary folder; nothing is written beside the package.

    Args:
        package: a folder, or an archive.
        seed: a model to start from; None: the package's ``build`` makes one.
        data: the site's databases by name, as ``runnel client --data`` gives them.
        settings: client settings of the session.
        variables: further variables that entry points see, as a site names them.
        say: takes the lines that the entry points print.
        environ: the client's variables; those of this process by default.
        environments: folder that keeps built environments; by default none is kept.
        installs: what a site says about environments.
        runtime: how entry points run; None: in containers if the package needs an image, otherwise as processes.
        docker_image: image for a package that names none, or is built on the site's.
        timeout_s: for each entry point.
    """
    place = await in_thread(_make_place)
    try:
        own = os.environ if environ is None else environ

        def choose(manifest: Manifest) -> ProcessRuntime | DockerRuntime:
            if runtime == "docker" or (runtime is None and manifest.needs_image):
                return in_containers(
                    client=place.name, state=place, environ=own, base_image=docker_image, installs=installs
                )
            kept = environments or place / "environments"
            return ProcessRuntime(environments=kept, environ=own, installs=installs)

        attempt = _Attempt(
            package=package,
            place=place,
            choose=choose,
            env=entry_point_variables(
                client_name="rehearsal", session_id="rehearsal", round_number=1, data=data, site=variables
            ),
            settings_json=json.dumps(dict(settings or {})),
            say=say,
            timeout_s=timeout_s,
            installs=installs or Installs(),
        )
        with suppress(_StepFailed):  # it is the last of the steps
            await attempt.go(seed)
        return attempt.result()
    finally:
        await in_thread(shutil.rmtree, place, ignore_errors=True)


_DATA_VARIABLE = re.compile(r"\bRUNNEL_DATA(?:_[A-Z0-9_]+)?\b")


def _make_place() -> Path:
    return Path(tempfile.mkdtemp(prefix="runnel-check-")).resolve()


class _StepFailed(Exception):
    """The steps after this one make no sense."""


@dataclass(slots=True, kw_only=True)
class _Attempt:
    """One rehearsal under way."""

    package: Path
    place: Path
    choose: Callable[[Manifest], ProcessRuntime | DockerRuntime]
    env: Mapping[str, str]
    settings_json: str
    say: LineSink
    timeout_s: float | None
    installs: Installs
    model_format: ModelFormat = ModelFormat.NPZ  # of the seed
    recognised: dict[str, str] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def result(self) -> Rehearsal:
        return Rehearsal(steps=tuple(self.steps), warnings=tuple(self.warnings), recognised=self.recognised)

    async def go(self, seed: Path | None) -> None:
        files = await self._unpack()
        async with AsyncExitStack() as stack:
            async with self._step("environment") as note:
                runtime: Runtime = await stack.enter_async_context(self.choose(files.manifest))
                prepared = await runtime.prepare(files, self.say)
                note(f"runs with {prepared.runs_with}")
            await self._startup(runtime, prepared)
            model = await self._seed(runtime, prepared, seed)
            trained = await self._train(runtime, prepared, model)
            await self._validate(runtime, prepared, trained.update)
            if "predict" in prepared.package.manifest.entry_points:
                async with self._step("predict") as note:
                    found = await self._look(runtime, prepared, trained.update, "predict")
                    note(_listed(found).removeprefix(", ") or "ended well")

    @asynccontextmanager
    async def _step(self, name: str) -> AsyncIterator[Callable[[str], None]]:
        """Record a step; the block calls what it is given with what it found."""
        found: list[str] = []
        started = time.perf_counter()
        try:
            yield found.append
        except RunnelError as error:
            self._failed(name, error, time.perf_counter() - started)
            raise _StepFailed from error
        elapsed_s = time.perf_counter() - started
        self.steps.append(Step(name=name, ok=True, detail="; ".join(found), elapsed_s=elapsed_s))

    def _failed(self, name: str, error: RunnelError, elapsed_s: float) -> None:
        hint = error.hint
        tail = str(error.fields.get("log_tail", ""))
        missing = [word for word in _DATA_VARIABLE.findall(tail) if word not in self.env]
        if missing:
            hint = f"{missing[0]} is not set here: give the data with --data NAME=PATH. {hint}".rstrip()
        self.steps.append(Step(name=name, ok=False, detail=error.message, hint=hint, elapsed_s=elapsed_s))

    async def _unpack(self) -> PackageFiles:
        async with self._step("unpack") as note:
            archive = self.package
            if await in_thread(self.package.is_dir):
                packed = await in_thread(pack, self.package, self.place / "package.tar.gz")
                archive = packed.path
            elif not await in_thread(self.package.is_file):
                raise NotFound(f"There is no folder or archive {self.package}.")
            # With a parent of its own, as at a client: packages of FEDn look beside their folder.
            top = self.place / "unpacked" / "package"
            root = await in_thread(unpack, archive, top)
            ref = await in_thread(digest_file, archive)
            note(f"{ref.size_bytes:,} bytes, {ref.sha256[:12]}…")
        async with self._step("manifest") as note:
            manifest: Manifest = await in_thread(read_manifest, root)
            note(f"{manifest.name}: {', '.join(manifest.entry_points)}")
            self.recognised = await in_thread(recognise, manifest, root, top=top, installs=self.installs)
            note(", ".join(f"{about.replace('_', ' ')} {what}" for about, what in self.recognised.items()))
        return PackageFiles(digest=ref.sha256, root=root, manifest=manifest)

    async def _startup(self, runtime: Runtime, prepared: Prepared) -> None:
        if "startup" not in prepared.package.manifest.entry_points:
            return
        async with self._step("startup"):
            await entry_points.startup(
                runtime, prepared, workdir=self.place, env=self.env, timeout_s=self.timeout_s, say=self.say
            )

    async def _seed(self, runtime: Runtime, prepared: Prepared, given: Path | None) -> Path:
        model = self.place / "seed.npz"
        async with self._step("seed") as note:
            if given is not None:
                if not await in_thread(given.is_file):
                    raise NotFound(f"There is no seed model {given}.")
                self.model_format = await in_thread(find_format, given)
                schema = await in_thread(to_canonical, given, model, self.model_format, source=str(given))
                note(f"{schema.n_params:,} parameters in {len(schema.tensors)} arrays, as given")
            elif "build" not in prepared.package.manifest.entry_points:
                raise InvalidInput(
                    "A seed model is needed to try the package out, and it has no entry point build that makes one.",
                    hint="Give one with --seed FILE, or add build.py, which is called as: python build.py SEED.",
                )
            else:
                await entry_points.build(
                    runtime,
                    prepared,
                    seed=model,
                    workdir=self.place,
                    env=self.env,
                    timeout_s=self.timeout_s,
                    say=self.say,
                )
                note("made by build")
        return model

    async def _train(self, runtime: Runtime, prepared: Prepared, model: Path) -> TrainResult:
        started = time.perf_counter()
        try:
            async with self._step("train") as note:
                trained = await entry_points.train(
                    runtime,
                    prepared,
                    model=model,
                    workdir=self.place,
                    settings_json=self.settings_json,
                    env=self.env,
                    timeout_s=self.timeout_s,
                    say=self.say,
                    model_format=self.model_format,
                )
                note(f"ended well after {trained.elapsed_s:.1f} s")
        except _StepFailed as failed:
            # The script itself went well: say so, and which of its outputs did not.
            if isinstance(failed.__cause__, (BadModel, BadOutput)):
                step = "metadata" if failed.__cause__.fields["output"].endswith("-metadata") else "update"
                self.steps[-1] = Step(
                    name="train", ok=True, detail="ended well", elapsed_s=time.perf_counter() - started
                )
                self._failed(step, failed.__cause__, 0.0)
            raise
        async with self._step("update") as note:
            before, after = await asyncio.gather(in_thread(digest_file, model), in_thread(digest_file, trained.update))
            note("same names, shapes and dtypes as the model that came in, all numbers finite")
            if before == after:
                self.warnings.append("The model that came out of train is the one that went in: nothing was learnt.")
        async with self._step("metadata") as note:
            if trained.notes.num_examples is None:
                self.warnings.append(
                    f"train gave no num_examples: this site will weigh 1, as any other. {_WEIGHT_HINT}"
                )
            note(f"weight {trained.weight:g}{_listed(trained)}")
        return trained

    async def _validate(self, runtime: Runtime, prepared: Prepared, model: Path) -> None:
        if "validate" not in prepared.package.manifest.entry_points:
            self.warnings.append("The package has no entry point validate: no round will have metrics.")
            return
        async with self._step("validate") as note:
            result = await self._look(runtime, prepared, model, "validate")
            note(f"ended well after {result.elapsed_s:.1f} s")
        async with self._step("metrics") as note:
            if not result.metrics:
                self.warnings.append("validate gave no finite numbers, so there is no metric to see or to stop at.")
            note(_listed(result).removeprefix(", ") or "none")

    async def _look(
        self, runtime: Runtime, prepared: Prepared, model: Path, entry_point: Literal["validate", "predict"]
    ) -> ValidateResult:
        return await entry_points.validate(
            runtime,
            prepared,
            model=model,
            workdir=self.place,
            settings_json=self.settings_json,
            env=self.env,
            timeout_s=self.timeout_s,
            say=self.say,
            model_format=self.model_format,
            entry_point=entry_point,
        )


def _listed(result: Result) -> str:
    return "".join(f", {name} {value:.4g}" for name, value in result.metrics.items())
