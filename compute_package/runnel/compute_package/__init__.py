"""Compute packages: the code that a model initiator sends to the data.

A package is a folder with ``train.py`` (and usually ``validate.py``) or a manifest that names other entry points.
:func:`pack` turns it into an archive that is named by its digest, :func:`unpack` turns a stranger's archive into a
folder without believing it, :func:`read_manifest` says what can be run. This package is light: user code may import it.
All functions block; on an event loop call them through ``asyncio.to_thread``.
"""

from runnel.compute_package.describe import Description, describe
from runnel.compute_package.differences import FileDifference, PackageDifference, differences
from runnel.compute_package.fedn_use import FednUse
from runnel.compute_package.fedn_wheel import shim_digest, shim_source, write_shim_wheel
from runnel.compute_package.manifest import Manifest, ManifestKind, read_manifest
from runnel.compute_package.pack import PackageFile, Packed, pack
from runnel.compute_package.server_code import SERVER_CLASS, ServerCode
from runnel.compute_package.signatures import (
    key_id,
    new_key,
    public_key_of,
    public_key_text,
    read_public_key,
    read_signatures,
    sign,
    signature_file,
    signature_of,
    verifies,
    write_signatures,
)
from runnel.compute_package.template import write_template
from runnel.compute_package.unpack import UnpackLimits, extract, unpack

__all__ = [
    "SERVER_CLASS",
    "Description",
    "FednUse",
    "FileDifference",
    "Manifest",
    "ManifestKind",
    "PackageDifference",
    "PackageFile",
    "Packed",
    "ServerCode",
    "UnpackLimits",
    "describe",
    "differences",
    "extract",
    "key_id",
    "new_key",
    "pack",
    "public_key_of",
    "public_key_text",
    "read_manifest",
    "read_public_key",
    "read_signatures",
    "shim_digest",
    "shim_source",
    "sign",
    "signature_file",
    "signature_of",
    "unpack",
    "verifies",
    "write_shim_wheel",
    "write_signatures",
    "write_template",
]
