"""The example package that the demonstration runs, and its scripts for those who set it up."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from runnel.common.errors import BadOutput, BadSettings, NotFound
from runnel.demo.options import EPOCHS, DemoOptions
from runnel.demo.processes import Processes

# One module of each distribution that a whole network and its data need, beside what every installation has.
_NEEDED = ("aiosqlite", "alembic", "fastapi", "httpx", "httpx_sse", "psutil", "sklearn", "sqlalchemy")
_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracies:
    """Share of the test digits that each way to train gets right, from 0 to 1."""

    federated: float
    central: float
    alone: float


def locate_example() -> Path:
    """Return the folder of the digits example: that of an installation, else that of the repository.

    Raises:
        NotFound: there is none.
    """
    here = Path(__file__).resolve()
    places = [here.parents[1] / "examples" / "digits", here.parents[3] / "examples" / "digits"]
    for place in places:
        if (place / "runnel.yaml").is_file():
            return place
    raise NotFound(
        f"The example of the demo is neither in {places[0]} nor in {places[1]}.",
        hint="Install runnel again: pip install --force-reinstall 'runnel[demo]'.",
    )


def require_installed() -> None:
    """Check that what a whole network and the data of the example need is installed, without importing it.

    Raises:
        BadSettings: something is missing.
    """
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        names = ["scikit-learn" if name == "sklearn" else name.replace("_", "-") for name in missing]
        raise BadSettings(
            f"The demo needs {', '.join(names)}, which {'is' if len(names) == 1 else 'are'} not installed here.",
            hint="Say: pip install 'runnel[demo]'",
        )


class Example:
    """Runs the scripts of the example in processes of their own.

    Args:
        options: with the folder of the example and the number of sites.
        work: folder of what the scripts write.
        processes: in which they run.
    """

    def __init__(self, options: DemoOptions, work: Path, processes: Processes) -> None:
        self._options = options
        self._processes = processes
        self.sites = work / "data"
        self.seed = work / "seed.npz"
        self.test = self.sites / "test.npz"

    async def make_data(self) -> None:
        """Write ``site-1.npz`` and so on, one for each client, and ``test.npz``, which belongs to none.

        Raises:
            DemoFailed: the script failed; its error has the last lines.
        """
        wanted = ["--clients", str(self._options.clients), *(["--non-iid"] if self._options.non_iid else [])]
        await self._run("data.py", str(self.sites), *wanted)

    async def make_seed(self) -> None:
        """Write the seed model."""
        await self._run("build.py", str(self.seed))

    async def compare(self, model: Path) -> Accuracies:
        """Measure ``model``, the model of central training with as many passes, and that of the first site alone.

        Raises:
            BadOutput: the script did not say what it should.
        """
        passes = str(self._options.rounds * EPOCHS)
        said = await self._run("central.py", str(self.sites), "--passes", passes, "--model", str(model))
        try:
            found = json.loads(said[-1])
            return Accuracies(
                federated=float(found["accuracy"]),
                central=float(found["accuracy_central"]),
                alone=float(found["accuracy_alone"]),
            )
        except (IndexError, ValueError, TypeError, KeyError) as error:
            raise BadOutput(
                f"central.py of the example should end with a line of JSON with three accuracies; it said {said[-1:]}.",
                hint="Look at the example's README.",
            ) from error

    async def _run(self, script: str, *arguments: str) -> list[str]:
        # Without bytecode: the folder of an installation may belong to somebody else.
        argv = [sys.executable, "-B", str(self._options.example / script), *arguments]
        return await self._processes.run(Path(script).stem, argv, timeout_s=_TIMEOUT_S)
