"""A network of real processes with tokens, and with TLS when it is given certificates."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runnel.common.endpoints import read_endpoints
from runnel.sdk import Network
from tests.doubles.said import Said
from tests.lasting_port import lasting_port
from tests.process.forked_process import run_runnel
from tests.process.process_network import ProcessNetwork


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificates:
    """PEM files: of the authority, and of a server for 127.0.0.1 and localhost."""

    authority: Path
    chain: Path
    key: Path


class SecureNetwork(ProcessNetwork):
    """As its base, but nobody is let in without a token. Tokens reach processes by their environment.

    Args:
        folder: of all state.
        certificates: for reducer and combiners; None: plain text on the loopback.
    """

    def __init__(self, folder: Path, certificates: Certificates | None = None, **environ: str) -> None:
        super().__init__(folder, **environ)
        self._certificates = certificates
        self.secrets: list[str] = []

    def _server(self) -> list[str]:
        files = self._certificates
        return [] if files is None else ["--tls-cert", str(files.chain), "--tls-key", str(files.key)]

    def _caller(self) -> list[str]:
        return [] if self._certificates is None else ["--tls-ca", str(self._certificates.authority)]

    def start_reducer(self, *more: str, **environ: str) -> None:
        rpc, http = (f"127.0.0.1:{lasting_port()}" for _ in range(2))
        self._add("reducer", ["reducer", "--rpc", rpc, "--http", http, *self._server(), *more], **environ)
        endpoints = read_endpoints(self.folder / "reducer")
        self.rpc, self.http = str(endpoints.rpc), str(endpoints.http)
        self.operator = (self.folder / "reducer" / "operator.token").read_text().strip()
        self.secrets.append(self.operator)
        self._sdk = self.network(self.operator)

    @property
    def url(self) -> str:
        return f"{'http' if self._certificates is None else 'https'}://{self.http}"

    def network(self, token: str | None) -> Network:
        """Return the network as seen by who has this token; the caller closes it."""
        return Network(self.url, token, None if self._certificates is None else self._certificates.authority)

    def token(self, role: str, **wanted: Any) -> str:
        made = self.sdk.tokens.create(role, **wanted).token
        assert made is not None
        self.secrets.append(made)
        return made

    def start_combiner(self, name: str, *more: str, token: str | None = None, **environ: str) -> None:
        arguments = ["combiner", "--network", self.rpc, "--listen", "127.0.0.1:0", "--name", name]
        given = {"RUNNEL_COMBINER_TOKEN": token or self.token("combiner")}
        self._add(name, [*arguments, *self._server(), *self._caller(), *more], **given | environ)

    def start_client(self, name: str, data: Path, *more: str, token: str | None = None, **environ: str) -> None:
        arguments = ["client", "--network", self.rpc, "--name", name, "--data", f"default={data}"]
        given = {"RUNNEL_CLIENT_TOKEN": token or self.token("client")}
        self._add(name, [*arguments, *self._caller(), *more], **given | environ)

    def runnel(self, *arguments: str, timeout_s: float = 60.0, cwd: Path | None = None, **environ: str) -> Said:
        """Run a command to its end, with nothing but ``environ`` to tell it where the network is."""
        done = run_runnel(arguments, env=self._environ | environ, cwd=cwd or self.folder, timeout_s=timeout_s)
        return Said(status=done.returncode, out=done.stdout, err=done.stderr)

    def person(self, *arguments: str, token: str | None = None, **more: Any) -> Said:
        """Run a people's command against this network."""
        environ = {"RUNNEL_URL": self.url, "RUNNEL_TOKEN": self.operator if token is None else token}
        if self._certificates is not None:
            environ["RUNNEL_CA_FILE"] = str(self._certificates.authority)
        return self.runnel(*arguments, **environ | more)
