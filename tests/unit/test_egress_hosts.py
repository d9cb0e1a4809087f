"""Which hosts an entry of a policy names, and what is no entry."""

from __future__ import annotations

import ipaddress
from pathlib import Path

import pytest

from runnel.client.domain.egress import egress_host, is_within, plain_host
from runnel.client.policy_file import policy_document, read_policy
from runnel.common.errors import BadSettings

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("entry", "host", "port", "allowed"),
    [
        ("api.example.org", "api.example.org", 443, True),
        ("api.example.org", "api.example.org", 80, True),
        ("api.example.org", "api.example.org", 22, False),
        ("api.example.org:22", "api.example.org", 22, True),
        ("api.example.org:22", "api.example.org", 443, False),
        ("API.Example.ORG.", "api.example.org", 443, True),
        ("example.org", "api.example.org", 443, False),
        ("example.org", "example.org.evil.net", 443, False),
        ("*.example.org", "a.b.example.org", 443, True),
        ("*.example.org", "example.org", 443, False),
        ("*.example.org", "evilexample.org", 443, False),
        ("*.0.2.7", "192.0.2.7", 443, False),
        ("192.0.2.7:8000", "192.0.2.7", 8000, True),
        ("[2001:DB8:0::7]:8000", "2001:db8::7", 8000, True),
        ("[2001:db8::7]", "2001:db8::7", 443, True),
        ("db1:5432", "db1", 5432, True),
    ],
)
def test_an_entry_names_hosts_and_ports(entry: str, host: str, port: int, allowed: bool) -> None:
    if entry == "*.0.2.7":
        with pytest.raises(ValueError, match="should be a host"):
            egress_host(entry)
        return
    assert egress_host(entry).allows(plain_host(host), port) is allowed
    assert egress_host(str(egress_host(entry))) == egress_host(entry)


@pytest.mark.parametrize(
    "text",
    [
        *("", "*", "*.", "*.*.org", "a b", "http://example.org", "example.org/path", "user@example.org", "a..b", "-a"),
        *(
            "example.org:",
            "example.org:0",
            "example.org:65536",
            "example.org:٤٤٣",
            "[::1",
            "::1",
            "a:1:2",
            "exämple.org",
        ),
        *("2130706433", "0x7f.1", "127.1", "0x7f000001", "1.2.3.4.5", "a\0b", "a\r\nb", "x" * 300),
    ],
)
def test_what_is_no_host_is_no_entry(text: str) -> None:
    with pytest.raises(ValueError, match="should be a"):
        egress_host(text)


@pytest.mark.parametrize(
    ("address", "within"),
    [
        *(("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("0.0.0.0", True), ("::", True)),
        *(("169.254.169.254", True), ("fe80::1", True), ("::ffff:127.0.0.1", True), ("224.0.0.1", True)),
        *(("10.0.0.7", False), ("192.168.1.1", False), ("93.184.216.34", False), ("2001:db8::7", False)),
    ],
)
def test_addresses_of_this_machine_are_told_from_others(address: str, within: bool) -> None:
    assert is_within(ipaddress.ip_address(address)) is within


def test_a_policy_names_hosts(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text('[tasks]\nimages = [".*"]\negress = ["API.example.org", "*.example.org:8443", "[2001:db8::7]"]\n')
    policy = read_policy(path).policy
    assert policy.tasks is not None
    told = ["api.example.org", "*.example.org:8443", "[2001:db8::7]"]
    assert [str(each) for each in policy.tasks.egress] == told
    assert policy_document(policy)["tasks"]["egress"] == told


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ('egress = ["https://example.org"]', "tasks.egress.0.*should be a host"),
        ('egress = ["example.org"]\nnetworks = ["bridge"]', "both egress and networks"),
    ],
)
def test_a_policy_says_what_is_wrong_with_its_hosts(rules: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(f'[tasks]\nimages = [".*"]\n{rules}\n')
    with pytest.raises(BadSettings, match=said):
        read_policy(path)
