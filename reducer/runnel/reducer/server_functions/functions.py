"""What the reducer asks packages: whom to ask in a round, with which settings, and for the next model."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import math
import os
import shutil
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runnel.common.aggregation import Float64File, GatheredFile, Gathering, Update
from runnel.common.blobs import in_thread, require_room
from runnel.common.errors import (
    BadModel,
    InvalidInput,
    NotFound,
    ServerFunctionFailed,
    ServerFunctionsRefused,
)
from runnel.common.json_object import read_object
from runnel.common.protocol import BlobRef, PackageSignature
from runnel.common.tensors import NpzWriter, cast_block, magnitude, open_npz
from runnel.compute_package import ServerCode, key_id, shim_source, unpack
from runnel.reducer.server_functions.step import Confinement, Step, StepLimits
from runnel.reducer.server_functions.worker import Place, Say, new_place, open_up, take_step
from runnel.reducer.store.blobs import Blobs

MAX_SETTINGS_BYTES = 64 * 1024
_SCRATCH_BYTES = 64 << 20
_STATE_BYTES = 64 << 20  # beside a few models
_AT_ONCE = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Permission:
    """What the operator allows.

    Attributes:
        confinement: what functions of packages can reach; ``OFF``: none is run.
        signers: public keys, 32 bytes each; only packages that one of them signed are run. Empty: any package.
        memory_bytes: of a step.
        timeout_s: of a step.
        hidden: folders and files that no step sees, such as the reducer's state.
    """

    confinement: Confinement = Confinement.OFF
    signers: Collection[bytes] = ()
    memory_bytes: int = 4 << 30
    timeout_s: float = 600.0
    hidden: Sequence[Path] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Who is asked: a package's code. ``seed``: of its random generators; ``say``: takes what it prints."""

    package: BlobRef
    code: ServerCode
    signatures: Collection[PackageSignature] = ()
    seed: str = ""
    say: Say = lambda stream, line: None


@dataclass(frozen=True, slots=True, kw_only=True)
class Beginning:
    """How a round begins. ``clients``: whom to ask, sorted; None: not for the package to say. ``settings``: of the
    clients in this round; None: those of the session. ``state``: SHA-256 of what is remembered; None: nothing.
    """

    clients: tuple[str, ...] | None
    settings: Mapping[str, Any] | None
    state: str | None


class ServerFunctions:
    """Runs functions of packages, each step in a fresh process.

    A step depends on nothing but its inputs: the package, the model, the updates, the state that the step before left,
    and a seed. So one that was killed, with its reducer or without, is taken again, and what an answer is used for is
    committed together with the state after it.

    Args:
        blobs: packages, models and states.
        folder: of what steps read and write, on the file system of ``blobs.files``.
        permission: what the operator allows.
    """

    def __init__(self, blobs: Blobs, folder: Path, permission: Permission) -> None:
        self._blobs = blobs
        self._folder = folder
        self._permission = permission
        self._room = asyncio.Semaphore(_AT_ONCE)

    def require_allowed(self, asked: Asked) -> None:
        """Require that the operator lets this package's functions run.

        Raises:
            ServerFunctionsRefused: names the rule.
        """
        what = f"The package {asked.package.sha256[:16]} has functions for the server ({_names(asked.code)})"
        hint = "Ask the operator, or start the session with --no-server-functions: then the strategy decides."
        if self._permission.confinement is Confinement.OFF:
            raise ServerFunctionsRefused(
                f"{what}, and this reducer runs none: it is set to server_functions off.",
                hint=hint,
                package=asked.package.sha256,
            )
        keys = {signature.public_key for signature in asked.signatures}
        if self._permission.signers and keys.isdisjoint(self._permission.signers):
            signed = ", ".join(sorted(map(key_id, keys))) or "nobody"
            raise ServerFunctionsRefused(
                f"{what}, and this reducer runs those of its server_functions_signers only"
                f" ({', '.join(sorted(map(key_id, self._permission.signers)))}); it is signed by {signed}.",
                hint=hint,
                package=asked.package.sha256,
            )

    async def check(self, asked: Asked) -> None:
        """Require that the package's functions may run and can be loaded.

        Raises:
            ServerFunctionsRefused: they may not, or there are no walls.
            ServerFunctionFailed: they can't be loaded.
        """
        async with self._prepared(asked, None, None) as (place, step):
            await self._take(step, place, asked)

    async def begin(
        self, asked: Asked, *, clients: Sequence[str], least: int, model: BlobRef, state: str | None
    ) -> Beginning:
        """Ask whom a round asks, and with which settings.

        Args:
            asked: the package.
            clients: names of those that could be asked.
            least: how many have to be.
            model: the global model.
            state: SHA-256 of what the step before left; None: there is none.

        Raises:
            ServerFunctionFailed: the code failed or answered nonsense.
        """
        async with self._prepared(asked, model, state) as (place, step):
            step = dataclasses.replace(step, clients=tuple(clients), remembers=True)
            answer = await self._take(step, place, asked)
            chosen = _chosen(answer["clients"], clients, least) if asked.code.selects else None
            settings = _settings(answer["settings"]) if "client_settings" in asked.code.functions else None
            return Beginning(clients=chosen, settings=settings, state=await self._kept(place))

    async def aggregate(
        self,
        asked: Asked,
        *,
        updates: Sequence[tuple[Update, Mapping[str, Any]]],
        model: BlobRef,
        model_out: Path,
        state: str | None,
    ) -> str | None:
        """Have the next model made.

        Args:
            asked: the package.
            updates: local files, with the metadata of each, in the order in which they are handed over.
            model: the global model.
            model_out: where the next one goes, ``.npz`` of the same names, shapes and dtypes.
            state: as for :meth:`begin`.

        Returns:
            SHA-256 of what is remembered; None: nothing.

        Raises:
            ServerFunctionFailed: the code failed, or what it returned is no such model.
            StorageFull: no room for another copy of the updates.
        """
        async with self._prepared(asked, model, state) as (place, step):
            named = [(update.source, metadata) for update, metadata in updates]
            await in_thread(_gather, [update for update, _ in updates], self._blobs.files.path(model), place)
            step = dataclasses.replace(step, updates=named, remembers=True)
            await self._take(step, place, asked)
            try:
                await in_thread(_write_model, place.folder / "result", self._blobs.files.path(model), model_out)
            except BadModel as err:
                raise ServerFunctionFailed(
                    f"{_of(asked)} returned no model that can be used: {err.message}", hint=err.hint
                ) from err
            return await self._kept(place)

    @asynccontextmanager
    async def _prepared(
        self, asked: Asked, model: BlobRef | None, state: str | None
    ) -> AsyncIterator[tuple[Place, Step]]:
        """Give the folder of a step with what every step needs in it."""
        self.require_allowed(asked)
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(self._room)
            place = await stack.enter_async_context(new_place(self._folder))
            archive = await stack.enter_async_context(self._blobs.held(asked.package))
            root = await in_thread(unpack, archive, place.unpacked)
            tensors: tuple[tuple[str, tuple[int, ...], str], ...] = ()
            nbytes = 0
            if model is not None:
                file = await stack.enter_async_context(self._blobs.held(model))
                tensors = await in_thread(_write_base, file, place.inputs / "model")
                nbytes = sum(8 * math.prod(shape) for _, shape, _ in tensors)
            if state is not None:
                kept = await stack.enter_async_context(self._blobs.held(await self._state(state)))
                await in_thread(shutil.copyfile, kept, place.inputs / "state")
            yield (
                place,
                Step(
                    parent=os.getpid(),
                    file=asked.code.file,
                    functions=asked.code.functions,
                    confinement=self._permission.confinement,
                    mountpoint=str(place.mountpoint),
                    hidden=[str(path) for path in self._permission.hidden],
                    shim=str(shim_source()),
                    files=place.files(root),
                    limits=StepLimits(
                        memory_bytes=self._permission.memory_bytes,
                        cpu_s=math.ceil(self._permission.timeout_s) + 1,
                        file_bytes=4 * nbytes + _STATE_BYTES,
                        scratch_bytes=_SCRATCH_BYTES,
                    ),
                    seed=asked.seed,
                    state=state is not None,
                    tensors=tensors,
                ),
            )

    async def _state(self, sha256: str) -> BlobRef:
        found = await self._blobs.find(sha256)
        if found is None:
            raise NotFound(
                f"What the package's server functions remember, the file {sha256}, is gone.",
                hint="Restore the file and resume the session.",
                sha256=sha256,
            )
        return found

    async def _take(self, step: Step, place: Place, asked: Asked) -> Mapping[str, Any]:
        await in_thread(open_up, place)
        return await take_step(step, place, timeout_s=self._permission.timeout_s, what=_of(asked), say=asked.say)

    async def _kept(self, place: Place) -> str | None:
        """Store what the instance remembers, if anything."""

        def adopt() -> str | None:
            state = place.folder / "state"
            if not state.stat().st_size:
                return None
            state.chmod(0o600)
            if os.geteuid() == 0:
                os.chown(state, 0, 0)
            return self._blobs.files.adopt(state).sha256

        return await in_thread(adopt)


def _of(asked: Asked) -> str:
    return f"The server functions of package {asked.package.sha256[:16]} ({asked.code.file})"


def _names(code: ServerCode) -> str:
    return ", ".join(code.functions)


def _chosen(answer: object, clients: Sequence[str], least: int) -> tuple[str, ...]:
    if not isinstance(answer, list) or not all(isinstance(name, str) for name in answer):
        raise ServerFunctionFailed(f"client_selection should return a list of names and returned {str(answer)[:200]}.")
    unknown = sorted(set(answer) - set(clients))
    if unknown:
        raise ServerFunctionFailed(
            f"client_selection returned {unknown[0][:64]!r}, which is none of the {len(clients)} clients it was given."
        )
    if len(set(answer)) != len(answer):
        raise ServerFunctionFailed("client_selection returned a client twice.")
    if len(answer) < max(1, least):
        raise ServerFunctionFailed(
            f"client_selection returned {len(answer)} of {len(clients)} clients; the session wants at least {least}.",
            hint="Let it return more, or start the session with a lower --min-clients.",
        )
    return tuple(sorted(answer))


def _settings(answer: object) -> Mapping[str, Any]:
    if not isinstance(answer, dict):
        raise ServerFunctionFailed(f"client_settings should return a dict and returned {str(answer)[:200]}.")
    try:
        return read_object(json.dumps(answer), what="What client_settings returned", most_bytes=MAX_SETTINGS_BYTES)
    except InvalidInput as err:
        raise ServerFunctionFailed(err.message) from err


def _write_base(model: Path, out: Path) -> tuple[tuple[str, tuple[int, ...], str], ...]:
    with open_npz(model, source="the present global model") as opened:
        with Gathering(out, opened.schema) as raw:
            raw.add(opened)
        return tuple((spec.name, tuple(spec.shape), spec.dtype) for spec in opened.schema.tensors)


def _gather(updates: Sequence[Update], base: Path, place: Place) -> None:
    with open_npz(base, source="the present global model") as model:
        schema = model.schema
    require_room(place.inputs, len(updates) * schema.nbytes)
    with Gathering(place.inputs / "updates", schema) as out:
        for update in updates:
            if update.place is None:
                with open_npz(update.path, source=update.source, expect=schema) as opened:
                    out.add(opened)
            else:
                with GatheredFile(update.path, schema, update.gathered, source=update.source) as file:
                    out.copy(file, update.place)


def _write_model(result: Path, base: Path, out: Path) -> None:
    """Write what was returned as a model like ``base``; raises :class:`BadModel` if it is none."""
    source = "what was returned"
    with open_npz(base, source="the present global model") as model:
        schema = model.schema
    with Float64File(result, schema.n_params, source=source) as numbers, NpzWriter(out, schema) as writer:
        for span in schema.spans():
            block, spec = numbers.read(span.start, span.count), schema.tensors[span.tensor]
            if not np.isfinite(block).all():
                raise BadModel(f"{spec.name!r} has NaN or infinity.", source=source)
            cast = cast_block(block, spec.dtype)
            magnitude(cast, schema, span.tensor, source)
            writer.append(cast)
