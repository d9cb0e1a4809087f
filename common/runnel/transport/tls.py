"""The files that TLS needs."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc

from runnel.common.errors import BadSettings


def _read(path: Path, what: str) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadSettings(f"The {what} {path} can't be read: {error.strerror}.", key=what) from error
    if b"-----BEGIN" not in data:
        raise BadSettings(f"The {what} {path} is not a PEM file.", hint="It has to contain -----BEGIN …", key=what)
    return data


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerTls:
    """Certificate chain and private key (PEM) of a server."""

    cert_file: Path
    key_file: Path

    def credentials(self) -> grpc.ServerCredentials:
        """Read the files.

        Raises:
            BadSettings: one can't be read or is no PEM file.
        """
        chain = _read(self.cert_file, "TLS certificate")
        key = _read(self.key_file, "TLS key")
        return grpc.ssl_server_credentials([(key, chain)])

    def context(self) -> ssl.SSLContext:
        """Read the files for what is served without gRPC.

        Raises:
            BadSettings: one can't be read, or the two don't belong together.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self.cert_file, self.key_file, password="")
        except (OSError, ssl.SSLError) as error:
            what = f"The TLS certificate {self.cert_file} with the key {self.key_file} can't be used: {error}."
            raise BadSettings(what, key="tls_cert") from error
        return context


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientTls:
    """Which authorities (PEM file) to trust; None: those that gRPC brings along."""

    ca_file: Path | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """Read the file.

        Raises:
            BadSettings: it can't be read or is no PEM file.
        """
        roots = None if self.ca_file is None else _read(self.ca_file, "TLS authority file")
        return grpc.ssl_channel_credentials(root_certificates=roots)

    def context(self) -> ssl.SSLContext:
        """Read the file for what is called without gRPC; None stands for the authorities of this system."""
        return ssl.create_default_context(cafile=self.ca_file)
