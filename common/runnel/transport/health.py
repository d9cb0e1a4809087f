"""Whether a component of this machine is well, asked from beside it: for health checks of containers and services."""

from __future__ import annotations

import http.client
import os
import ssl

import grpc
from cryptography import x509
from grpc_health.v1 import health_pb2, health_pb2_grpc

from runnel.common.endpoints import Endpoints
from runnel.common.errors import Unreachable
from runnel.transport.addresses import Address, parse_address
from runnel.transport.status import rpc_errors

_UPLINK = "runnel.rpc.v1.Uplink"
_HEALTHZ = "/api/v1/healthz"


def require_well(endpoints: Endpoints, *, timeout_s: float) -> None:
    """Ask all that ``endpoints`` names.

    Where TLS is spoken the certificate that the component shows is taken as it is: it is the component of this machine
    that is asked, under an address that is not in the certificate, and nothing secret is said.

    Args:
        endpoints: what the component wrote into its state folder.
        timeout_s: for each question.

    Raises:
        Unreachable: the process is gone, does not answer, does not serve, or is attached to nobody; the message tells.
    """
    _require_process(endpoints.pid)
    if endpoints.rpc is not None:
        _require_rpc(parse_address(endpoints.rpc), tls=endpoints.tls, timeout_s=timeout_s)
    if endpoints.http is not None:
        _require_http(parse_address(endpoints.http), tls=endpoints.tls, timeout_s=timeout_s)
    if endpoints.attached_to == "":
        raise Unreachable(
            "It runs, and is attached to nobody.",
            hint="Its log tells why; it goes on trying by itself.",
            pid=endpoints.pid,
        )


def _require_process(pid: int) -> None:
    try:
        os.kill(pid, 0)
    except PermissionError:
        return  # it lives, as another user
    except ProcessLookupError:
        raise Unreachable(f"The process {pid}, which served, is gone.", hint="Start it again.", pid=pid) from None


def _require_rpc(address: Address, *, tls: bool, timeout_s: float) -> None:
    options: list[tuple[str, object]] = [("grpc.enable_http_proxy", 0)]
    if tls:
        shown = _certificate(address, timeout_s)
        options.append(("grpc.ssl_target_name_override", _name_in(shown)))
        channel = grpc.secure_channel(
            str(address), grpc.ssl_channel_credentials(root_certificates=shown.encode()), options=options
        )
    else:
        channel = grpc.insecure_channel(str(address), options=options)
    with channel, rpc_errors(f"the component at {address}"):
        request = health_pb2.HealthCheckRequest(service=_UPLINK)
        answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=timeout_s)
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        status = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
        raise Unreachable(
            f"The component at {address} says {status}.", hint="It starts, or ends.", address=str(address)
        )


def _require_http(address: Address, *, tls: bool, timeout_s: float) -> None:
    try:
        if tls:
            context = ssl.create_default_context(cadata=_certificate(address, timeout_s))
            context.check_hostname = False
            context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                address.host, address.port, timeout=timeout_s, context=context
            )
        else:
            connection = http.client.HTTPConnection(address.host, address.port, timeout=timeout_s)
        try:
            connection.request("GET", _HEALTHZ)
            status = connection.getresponse().status
        finally:
            connection.close()
    except (OSError, http.client.HTTPException) as error:
        raise Unreachable(f"Nothing answers at {address}: {error}.", address=str(address)) from error
    if status != http.client.OK:
        raise Unreachable(f"{_HEALTHZ} at {address} answers {status}.", hint="Its log tells why.", address=str(address))


def _certificate(address: Address, timeout_s: float) -> str:
    """Return the certificate (PEM) that is shown at ``address``."""
    try:
        return ssl.get_server_certificate((address.host, address.port), timeout=timeout_s)
    except OSError as error:
        raise Unreachable(f"Nothing answers at {address}: {error}.", address=str(address)) from error


def _name_in(certificate: str) -> str:
    """Return a name or an address that ``certificate`` is for; the empty text if it is for none."""
    try:
        names = x509.load_pem_x509_certificate(certificate.encode()).extensions.get_extension_for_class(
            x509.SubjectAlternativeName
        )
    except x509.ExtensionNotFound:
        return ""
    found: list[object] = [*names.value.get_values_for_type(x509.DNSName)]
    found += names.value.get_values_for_type(x509.IPAddress)
    return str(found[0]).replace("*", "any", 1) if found else ""
