"""What other code may rely on: the names that each package re-exports. A change here is a change for users.

After a change that is meant: ``python -m tests.unit.test_public_names`` writes the table anew; review the difference.
"""

from __future__ import annotations

import importlib
import tomllib
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]

PUBLIC: dict[str, list[str]] = {
    "runnel.cli": [],
    "runnel.client": [],
    "runnel.client.data": [
        "Constraints",
        "DatabaseConfig",
        "DatabaseKind",
        "FieldEntry",
        "FieldType",
        "Interruption",
        "SelectLimits",
        "Selected",
        "SiteSelector",
        "TableEntry",
        "catalogue_of",
        "database_of",
        "find_database",
        "open_tables",
        "read_databases",
        "select",
        "selected",
    ],
    "runnel.client.domain": [
        "Cage",
        "Notes",
        "TrainResult",
        "ValidateResult",
        "check_settings",
        "read_notes",
    ],
    "runnel.client.runtimes": [
        "Call",
        "EnvironmentCache",
        "FednSource",
        "Finished",
        "Guard",
        "Installs",
        "Limits",
        "LineSink",
        "LogCapture",
        "PackageFiles",
        "Prepared",
        "PreparedProcess",
        "ProcessRuntime",
        "Runtime",
        "describe_status",
        "entry_point_variables",
        "process_variables",
        "site_variables",
    ],
    "runnel.client.tasks": [],
    "runnel.combiner": [],
    "runnel.combiner.domain": [
        "Decision",
        "Finish",
        "Fold",
        "Membership",
        "Order",
        "OrderBook",
        "SendDown",
        "SendUp",
        "SlotState",
    ],
    "runnel.common": [],
    "runnel.common.aggregation": [
        "Bulyan",
        "FedAdagrad",
        "FedAdam",
        "FedAvg",
        "FedAvgM",
        "FedBuff",
        "FedYogi",
        "Float64File",
        "GatheredFile",
        "Gathering",
        "GeometricMedian",
        "Krum",
        "Median",
        "MultiKrum",
        "NormClipping",
        "OPTIMIZERS",
        "Part",
        "Reduced",
        "RobustRule",
        "STRATEGIES",
        "ServerOptimizer",
        "Strategy",
        "StrategyKind",
        "SumMemory",
        "TrimmedMean",
        "Update",
        "UpdateStack",
        "WeightedSum",
        "make_optimizer",
        "make_strategy",
        "reduce_round",
        "reduce_updates",
        "sum_magnitude",
        "weighted_mean_metrics",
    ],
    "runnel.common.blobs": [
        "BLOCK_BYTES",
        "BlobStore",
        "EMPTY",
        "KEPT_BACK_BYTES",
        "KEPT_HEARTBEATS",
        "LEAST_SPARE_BYTES",
        "Leftovers",
        "Readers",
        "Relay",
        "RelayedBlob",
        "SMALL_BYTES",
        "Source",
        "Spares",
        "Spool",
        "SpoolFile",
        "begins_anew",
        "by_size",
        "digest_file",
        "digest_payload",
        "in_thread",
        "is_blob",
        "is_sha256",
        "require_room",
        "storage_errors",
        "to_its_end",
    ],
    "runnel.common.compression": [
        "CODECS",
        "COMPRESSIONS",
        "Compression",
        "NO_COMPRESSION",
        "decode_in_place",
        "decode_update",
        "decoded_update",
        "decoding_bytes",
        "encode_update",
        "parse_compression",
        "residual_schema",
    ],
    "runnel.common.metrics": [
        "Distribution",
        "LoopLag",
        "Metric",
        "MetricsPage",
        "MetricsServer",
        "PROCESS_METRICS",
        "Sample",
        "Tally",
        "folder_samples",
        "process_samples",
    ],
    "runnel.common.tasks": [
        "Blob",
        "Content",
        "Contract",
        "Executor",
        "InputFile",
        "Language",
        "MAX_SPEC",
        "MAX_WITHIN",
        "Resources",
        "Selection",
        "TaskSpec",
        "site_number",
        "task_spec",
    ],
    "runnel.common.tensors": [
        "Arrange",
        "AtomicFile",
        "BFLOAT16",
        "BLOCK_PARAMS",
        "BackgroundWriter",
        "Block",
        "DEFAULT_MAX_BYTES",
        "DTYPES",
        "ModelSchema",
        "NpzModel",
        "NpzWriter",
        "SafetensorsModel",
        "SafetensorsWriter",
        "Span",
        "TensorSpec",
        "cast_block",
        "convert",
        "find_format",
        "largest_value",
        "like",
        "magnitude",
        "named",
        "normalise",
        "numbered",
        "numpy_dtype",
        "open_model",
        "open_npz",
        "open_safetensors",
        "round_to_bfloat16",
        "to_canonical",
        "write_npz",
    ],
    "runnel.compute_package": [
        "Description",
        "FednUse",
        "FileDifference",
        "Manifest",
        "ManifestKind",
        "PackageDifference",
        "PackageFile",
        "Packed",
        "SERVER_CLASS",
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
    ],
    "runnel.demo": [
        "DemoFailed",
        "DemoOptions",
        "Outcome",
        "Screen",
        "locate_example",
        "make_screen",
        "run_demo",
    ],
    "runnel.reducer": [],
    "runnel.reducer.domain": [],
    "runnel.reducer.engine": [],
    "runnel.reducer.http": [
        "HttpServer",
        "create_app",
        "round_document",
        "session_document",
    ],
    "runnel.reducer.http.fds": [],
    "runnel.reducer.rpc": [],
    "runnel.reducer.server_functions": [],
    "runnel.reducer.store": [],
    "runnel.reducer.web": [
        "mount_page",
    ],
    "runnel.sdk": [
        "ALL_SITES",
        "Attempts",
        "Contribution",
        "DEFAULT_URL",
        "Dataset",
        "Event",
        "LogLine",
        "Model",
        "Network",
        "Node",
        "Package",
        "Round",
        "Run",
        "RunFile",
        "RunLine",
        "SITES_VARIABLE",
        "SITE_COLUMN",
        "Session",
        "Signer",
        "SitePart",
        "SiteResults",
        "Status",
        "Task",
        "Token",
        "put_together",
    ],
    "runnel.transport": [
        "Address",
        "Attached",
        "BlobServer",
        "Child",
        "ClientTls",
        "Detached",
        "DirectoryHandler",
        "DirectoryServer",
        "JoinAsk",
        "LinkEvent",
        "Mailbox",
        "NodeIdentity",
        "Place",
        "Received",
        "RetryPolicy",
        "RpcServer",
        "SMALL_BYTES",
        "STATUS",
        "ServerTls",
        "TransferQueue",
        "UplinkHandler",
        "UplinkLink",
        "UplinkServer",
        "bearer",
        "bearer_metadata",
        "is_loopback",
        "join",
        "open_channel",
        "parse_address",
        "problem_of",
        "rpc_errors",
        "status_of",
    ],
}
# ---- end of the table


def packages() -> list[str]:
    """Return all packages of the distribution, generated ones excepted, by their dotted names."""
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    folders = [
        path.parent.relative_to((ROOT / each).parent)
        for each in build["targets"]["wheel"]["packages"]
        for path in (ROOT / each).rglob("__init__.py")
    ]
    return sorted(".".join(folder.parts) for folder in folders if not {"migrations", "fedn_shim"} & set(folder.parts))


def exported(package: str) -> list[str]:
    return sorted(getattr(importlib.import_module(package), "__all__", []))


def test_the_table_has_every_package() -> None:
    assert list(PUBLIC) == packages()


@pytest.mark.parametrize("package", PUBLIC)
def test_public_names_are_those_of_the_table(package: str) -> None:
    assert exported(package) == PUBLIC[package]


@pytest.mark.parametrize("package", PUBLIC)
def test_every_public_name_exists(package: str) -> None:
    module = importlib.import_module(package)
    assert [name for name in PUBLIC[package] if not hasattr(module, name)] == []
    assert [name for name in PUBLIC[package] if name.startswith("_")] == []


def _write_table() -> None:
    file = Path(__file__)
    head, rest = file.read_text().split("\nPUBLIC: ", 1)
    tail = rest[rest.index("\n# ---- end of the table") :]
    lines = []
    for package in packages():
        names = "".join(f'        "{name}",\n' for name in exported(package))
        lines.append(f'    "{package}": [\n{names}    ],\n' if names else f'    "{package}": [],\n')
    table = "".join(lines)
    file.write_text(f"{head}\nPUBLIC: dict[str, list[str]] = {{\n{table}}}{tail}")


if __name__ == "__main__":
    _write_table()
