"""Packages and seed models that people upload: stored, checked, and only then named in the state."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from runnel.common.blobs import BlobStore
from runnel.common.errors import Conflict, InvalidInput, NotFound
from runnel.common.ids import new_id
from runnel.common.model_format import ModelFormat
from runnel.common.protocol import BlobRef, PackageSignature
from runnel.common.tensors import find_format, open_npz, to_canonical
from runnel.compute_package import Description, describe, key_id, verifies
from runnel.reducer.domain.values import ModelView, PackageView
from runnel.reducer.store import access, ledger, registry
from runnel.reducer.store.blobs import Blobs
from runnel.reducer.store.journal import Journal
from runnel.reducer.store.tables import ModelRow, RemovalRow

_SEED = "the seed model"


class Uploads:
    """Takes in what people upload; a file that is refused stays nowhere.

    Args:
        journal: the durable state.
        blobs: packages and models.
        max_package_bytes: of an archive.
        max_model_bytes: of a seed model.
    """

    def __init__(self, *, journal: Journal, blobs: Blobs, max_package_bytes: int, max_model_bytes: int) -> None:
        self._journal = journal
        self._blobs = blobs
        self._max_package_bytes = max_package_bytes
        self._max_model_bytes = max_model_bytes

    async def add_package(
        self, organisation: str, filename: str, body: AsyncIterator[bytes], *, by: str = ""
    ) -> PackageView:
        """Store and check an archive that the token ``by`` brings.

        Raises:
            BadPackage, TooLarge, StorageFull: it is refused.
            Conflict: an equal file was removed meanwhile.
        """
        ref = await self._blobs.files.put_stream(body, limit_bytes=self._max_package_bytes)
        async with self._journal.database.read() as tx:
            known = await registry.is_package(tx, organisation, ref.sha256)
        try:
            if not known:
                name = Path(filename).name.removesuffix(".gz").removesuffix(".tar") or None
                async with self._blobs.held(ref) as file:
                    described = await asyncio.to_thread(describe, file, name=name)
                manifest = _manifest_json(described)
            await self._keep(ref)
        except BaseException:
            await self._drop_unused(ref)
            raise
        async with self._journal.transaction() as tx:
            await access.ensure_organisation(tx.session, organisation)
            row, new = await registry.add_package(
                tx.session,
                organisation=organisation,
                digest=ref.sha256,
                filename=filename[:300],
                size_bytes=ref.size_bytes,
                name="" if known else described.manifest.name,
                version="" if known else described.manifest.version,
                manifest={} if known else manifest,
                uploaded_by=by,
            )
            if new:
                await self._require_blob(ref)
                await tx.record("package.added", organisation, digest=row.digest, name=row.name, by=by)
            return await registry.package_entry(tx.session, row)

    async def sign_package(self, organisation: str, digest: str, signature: PackageSignature) -> PackageView:
        """Store who vouches for a package. Whether to trust that key is for the sites to say.

        Raises:
            NotFound: there is no such package.
            InvalidInput: the signature is not one of this package.
            TooLarge: it has as many signatures as it may have.
        """
        async with self._journal.transaction() as tx:
            row = await registry.add_signature(tx.session, organisation, digest, signature)
            if not verifies(signature, row.digest):
                raise InvalidInput(
                    f"The signature by the key {key_id(signature.public_key)} is not one of package {row.digest[:16]}.",
                    hint="Sign the archive that was pushed: runnel package sign ARCHIVE --key KEY.",
                    digest=row.digest,
                )
            await tx.record("package.signed", organisation, digest=row.digest, key_id=key_id(signature.public_key))
            return await registry.package_entry(tx.session, row)

    async def add_model(self, organisation: str, body: AsyncIterator[bytes]) -> ModelView:
        """Store and check a seed model; one of another format is kept as the ``.npz`` that it is converted to.

        Raises:
            BadModel, TooLarge, StorageFull: it is refused.
            Conflict: an equal file was removed meanwhile.
        """
        ref = await self._blobs.files.put_stream(body, limit_bytes=self._max_model_bytes)
        try:
            ref, found = await self._as_npz(ref)
            async with self._blobs.held(ref) as file:
                n_params, tensors = await asyncio.to_thread(_inspect_seed, file)
            await self._keep(ref)
        except BaseException:
            await self._drop_unused(ref)
            raise
        row = ModelRow(
            id=new_id("mod"),
            organisation_id=organisation,
            digest=ref.sha256,
            size_bytes=ref.size_bytes,
            format=found.value,
            n_params=n_params,
            tensors=tensors,
            metrics={},
            created_at=datetime.now(UTC),
        )
        async with self._journal.transaction() as tx:
            await access.ensure_organisation(tx.session, organisation)
            await self._require_blob(ref)
            tx.session.add(row)
            await tx.record("model.added", organisation, model=row.id, digest=row.digest)
        return registry.model_view(row)

    async def remove_model(self, organisation: str, model: str, *, by: str = "") -> ModelView:
        """Remove a seed model for the token ``by``, and write down that its file may go.

        Raises:
            NotFound: there is no such model.
            Conflict: a session made it, or began with it.
        """
        async with self._journal.transaction() as tx:
            row = await registry.find_model(tx.session, organisation, model)
            if row.session_id is not None or await ledger.is_seed(tx.session, row.id):
                raise Conflict(f"Model {row.id} is of a session, whose trail stays whole.", model=row.id)
            await tx.session.delete(row)
            await tx.session.merge(RemovalRow(digest=row.digest))
            await tx.record("model.removed", organisation, models=[row.id], by=by)
        return registry.model_view(row)

    async def _as_npz(self, ref: BlobRef) -> tuple[BlobRef, ModelFormat]:
        """Return a model as the file in which models travel, which takes the place of ``ref``, and what it was."""
        try:
            async with self._blobs.held(ref) as file:
                found = await asyncio.to_thread(find_format, file)
                if found is ModelFormat.NPZ:
                    return ref, found
                made = await asyncio.to_thread(_adopt_as_npz, file, found, self._blobs.files)
        except NotFound as err:  # another upload of an equal file is done with it
            raise removed(ref) from err
        await self._drop_unused(ref)
        return made, found

    async def _keep(self, ref: BlobRef) -> None:
        try:
            await self._blobs.keep(ref.sha256)
        except NotFound as err:
            raise removed(ref) from err

    async def _require_blob(self, ref: BlobRef) -> None:
        """Refuse what was stored and is gone, within the write transaction that names it: nobody removes it then."""
        if not await asyncio.to_thread(self._blobs.lasts, ref.sha256):
            raise removed(ref)

    async def _drop_unused(self, ref: BlobRef) -> None:
        """Remove a file that was refused, unless it is somebody's under another name."""
        # Within a write transaction, so that no row comes meanwhile that names it.
        async with self._journal.database.write() as tx:
            if not await registry.is_used(tx, ref.sha256):
                await self._blobs.discard(ref.sha256)


def removed(ref: BlobRef) -> Conflict:
    """Make the error that tells of an equal file's end at the wrong moment."""
    return Conflict(
        "An equal file was removed in the moment in which this one was stored.",
        hint="Push it once more.",
        sha256=ref.sha256,
    )


def _manifest_json(described: Description) -> dict[str, Any]:
    manifest = described.manifest
    return {
        "recognised": described.recognised,
        "model_format": None if manifest.model_format is None else manifest.model_format.value,
        "entry_points": dict(manifest.entry_points),
        "requirements": manifest.requirements,
        "python_env": manifest.python_env,
        "server": None if manifest.server is None else manifest.server.as_json(),
        "files": [{"name": file.name, "size_bytes": file.size_bytes} for file in described.files],
    }


def _adopt_as_npz(path: Path, found: ModelFormat, files: BlobStore) -> BlobRef:
    npz = files.temporary()
    try:
        to_canonical(path, npz, found, source=_SEED)
        return files.adopt(npz)
    finally:
        npz.unlink(missing_ok=True)


def _inspect_seed(path: Path) -> tuple[int, int]:
    with open_npz(path, source=_SEED) as model:
        model.require_finite()
        return model.schema.n_params, len(model.schema.tensors)
