"""``runnel package key``, ``sign`` and ``verify``: who vouches for a package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from runnel.cli.desk import Desk, command, group

Archive = Annotated[Path, typer.Argument(metavar="ARCHIVE", help="An archive of `runnel package build`.")]


def add_signing(packages: typer.Typer) -> None:
    """Add the commands to the group of packages."""
    keys = group("Keys that sign packages.")
    packages.add_typer(keys, name="key")
    command(keys, "new", local=True)(new)
    command(packages, "sign", local=True)(sign)
    command(packages, "verify", local=True)(verify)


def new(
    desk: Desk, file: Annotated[Path, typer.Argument(metavar="FILE", help="New file, for the private key.")]
) -> None:
    """Make a key: the private one in FILE, which nobody else may have, the public one in FILE.pub, for the sites."""
    from runnel.compute_package import key_id, new_key, public_key_text

    public = new_key(file)
    if desk.as_json:
        desk.write_json({"key_id": key_id(public), "public_key": public_key_text(public), "path": str(file)})
        return
    desk.say(f"Wrote {file}, which nobody else may have, and {file}.pub, for the policies of sites.")
    desk.say(f"key {key_id(public)}  {public_key_text(public)}")


def sign(
    desk: Desk,
    archive: Archive,
    key: Annotated[Path, typer.Option("--key", metavar="FILE", help="Private key of `runnel package key new`.")],
) -> None:
    """Sign an archive: ARCHIVE.sig beside it goes with it when it is pushed. Signatures by other keys stay in it."""
    from runnel.common.blobs import digest_file
    from runnel.common.errors import NotFound
    from runnel.compute_package import key_id, read_signatures, sign, write_signatures

    if not archive.is_file():
        raise NotFound(f"There is no archive {archive}.", hint="Make one with: runnel package build FOLDER.")
    digest = digest_file(archive).sha256
    signature = sign(digest, key)
    written = write_signatures(archive, digest, (*read_signatures(archive, digest), signature))
    signer = key_id(signature.public_key)
    if desk.as_json:
        desk.write_json({"digest": digest, "key_id": signer, "path": str(written)})
        return
    desk.say(f"Wrote {written}: the key {signer} vouches for {digest}.")


def verify(
    desk: Desk,
    archive: Archive,
    signer: Annotated[
        str, typer.Option("--signer", metavar="PUBKEY", help="The public key, as ed25519:… or the file that has it.")
    ],
) -> None:
    """Verify that a signer vouches for an archive; exit status 1 if not."""
    from runnel.common.blobs import digest_file
    from runnel.common.errors import InvalidInput, NotFound
    from runnel.compute_package import key_id, read_public_key, read_signatures

    if not archive.is_file():
        raise NotFound(f"There is no archive {archive}.", path=str(archive))
    wanted = read_public_key(signer)
    digest = digest_file(archive).sha256
    found = read_signatures(archive, digest)
    if wanted not in {each.public_key for each in found}:
        signers = ", ".join(key_id(each.public_key) for each in found) or "nobody"
        raise InvalidInput(
            f"{archive} is not signed by the key {key_id(wanted)}; it is signed by {signers}.",
            hint=f"The signatures are looked for in {archive}.sig.",
            digest=digest,
        )
    desk.answer(
        {"digest": digest, "key_id": key_id(wanted), "ok": True},
        lambda: f"The key {key_id(wanted)} vouches for {digest}.",
    )
