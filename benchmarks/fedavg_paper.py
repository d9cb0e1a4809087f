"""Table 1 of McMahan et al. 2017 through the real network: rounds until MNIST's 2NN has 97 % test accuracy.

The paper is "Communication-Efficient Learning of Deep Networks from Decentralized Data". Its row is that of 100
clients of 600 images, of which each round asks ten (C=0.1) for one pass (E=1) in batches of ten (B=10). Reducer and
combiner are real processes; the 100 clients are real agents, hosted by two processes (see ``client_host.py``), each
with its own connection and data; what they run is ``examples/mnist-2nn``, each run a process. Splits are the paper's:
evenly (IID), and two shards of images sorted by label for each client (non-IID).

Each round's model is fetched as anybody would and measured here, by the example's code, on the 10,000 test images. As
in the paper the curve is made monotonic by taking the best accuracy so far, and the rounds are where its straight
pieces cross the level. The session is stopped then, or ends after ``--rounds``.

The paper chose the learning rate of each row from a grid and does not state it. Here it is, with seed 0, the best of
0.05, 0.1, 0.2 and 0.3 for the IID split and the better of 0.1 and 0.2 for the other; ``--lr`` tries others. A seed
decides the split, the seed model, which clients are asked, and the order of their images. MNIST's files are taken from
``--mnist``, $RUNNEL_TEST_MNIST or ../shared/data/mnist.

    python -m benchmarks.fedavg_paper [--quick] [--json] [--mnist FOLDER] [--splits iid non-iid] [--seeds 0] [--lr 0.1]
"""

from __future__ import annotations

import asyncio
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from pathlib import Path

from benchmarks.figures import Figure, Mark, Result, Series, figure, parser_of, quieten, tell
from benchmarks.local_network import LocalNetwork, local_network
from benchmarks.mnist import EXAMPLE, example_network, required_mnist_folder, run_script
from runnel.common.errors import RunnelError
from runnel.common.lifetime import report
from runnel.compute_package import pack
from runnel.sdk import Network

CLIENTS = 100
ASKED = 10
LEVEL = 0.97
EARLIER_LEVELS = (0.80, 0.90, 0.95)
HOSTS = 2
PATIENCE_S = 10.0
TOLD_EACH = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """A column of the paper's table.

    ``in_paper``: rounds to 97 % there; ``learning_rate``: the best of those tried; ``rounds``: after which a session
    ends at the latest; ``seeds``: of the full run.
    """

    name: str
    in_paper: int
    learning_rate: float
    rounds: int
    seeds: tuple[int, ...]

    @property
    def shards(self) -> bool:
        """Whether each client has two shards only."""
        return self.name == "non-IID"


SPLITS = {
    "iid": Split(name="IID", in_paper=87, learning_rate=0.2, rounds=300, seeds=(0, 1, 2)),
    "non-iid": Split(name="non-IID", in_paper=664, learning_rate=0.2, rounds=1000, seeds=(0,)),
}
QUICK_SPLITS = ("iid",)
QUICK_ROUNDS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What is trained; ``several``: whether with other learning rates too, so that a figure has to name its own."""

    split: Split
    learning_rate: float
    seed: int
    rounds: int
    several: bool

    @property
    def label(self) -> str:
        """Return what figures of this run begin with; those of all seeds are one."""
        return f"{self.split.name}, learning rate {self.learning_rate:g}" if self.several else self.split.name


@dataclass(slots=True, kw_only=True)
class Course:
    """What came of a run: test accuracies of the seed model and of each round's, in 0..1, and seconds of each round."""

    run: Run
    accuracies: list[float] = field(default_factory=list)
    rounds_s: list[float] = field(default_factory=list)


async def measure(
    quick: bool,
    *,
    mnist: Path | None = None,
    splits: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    learning_rates: Sequence[float] | None = None,
    rounds: int | None = None,
) -> Result:
    """Train and measure.

    Args:
        quick: for two rounds of one seed, IID if not said otherwise: shows that it works.
        mnist: folder of MNIST's files; None: where they usually are.
        splits: some keys of SPLITS; None: all.
        seeds: None: those of each split.
        learning_rates: None: that of each split.
        rounds: after which each session ends at the latest; None: that of each split.

    Raises:
        NoMnist: the files are not there.
        RunnelError: a session failed.
    """
    folder = await asyncio.to_thread(required_mnist_folder, mnist)
    runs = [
        Run(
            split=split,
            learning_rate=rate,
            seed=seed,
            rounds=rounds or (QUICK_ROUNDS if quick else split.rounds),
            several=learning_rates is not None and len(learning_rates) > 1,
        )
        for split in (SPLITS[name] for name in splits or (QUICK_SPLITS if quick else SPLITS))
        for rate in learning_rates or (split.learning_rate,)
        for seed in seeds or ((0,) if quick else split.seeds)
    ]
    return result_of([await _train(run, folder) for run in runs])


async def _train(run: Run, mnist: Path) -> Course:
    """Train in a network of its own and measure each model."""
    async with local_network(combiners=1) as network:
        sites = network.work / "sites"
        shards = ["--non-iid"] if run.split.shards else []
        wanted = ["--data", mnist, "--clients", CLIENTS, "--out", sites, "--seed", run.seed, *shards]
        await asyncio.to_thread(run_script, "split.py", *wanted)
        await network.start_hosted_clients(CLIENTS, sites, hosts=HOSTS)
        evaluate, seed = await asyncio.to_thread(_prepare, network.work, run.seed)
        archive = (await asyncio.to_thread(pack, EXAMPLE, network.work / "package.tar.gz")).path
        started = await network.ask(
            lambda http: http.sessions.start(
                package=archive,
                seed=seed,
                rounds=run.rounds,
                strategy="fedavg",
                sample=ASKED,
                min_clients=ASKED,
                validate_every=0,
                client_settings={"epochs": 1, "batch_size": 10, "lr": run.learning_rate, "seed": run.seed},
                random_seed=run.seed,
                keep_models=0,
            )
        )
        return await asyncio.to_thread(_follow, run, network, started.session, evaluate, seed)


Evaluate = Callable[[Path], float]


def _prepare(work: Path, seed: int) -> tuple[Evaluate, Path]:
    """Write the seed model; return what tells the test accuracy of a model's file, and that file."""
    import numpy as np

    example = example_network()
    with np.load(work / "sites" / "test.npz") as test:
        x, y = example.scaled(test["x"]), test["y"]
    file = work / "seed.npz"
    example.save_model(file, example.new_model(seed=seed))

    def evaluate(model: Path) -> float:
        return float(example.evaluate(example.load_model(model), x, y)["accuracy"])

    return evaluate, file


def _follow(run: Run, network: LocalNetwork, session: str, evaluate: Evaluate, seed: Path) -> Course:
    """Measure the seed model and each round's as it comes, until one has reached the level."""
    course = Course(run=run, accuracies=[evaluate(seed)])
    model = network.work / "model.npz"
    with Network(network.url) as http:
        for event in http.sessions.watch(session, patience_s=PATIENCE_S):
            if event.kind != "round.committed":
                continue
            http.models.get(event.data["model"], model)
            course.accuracies.append(evaluate(model))
            course.rounds_s.append(float(event.data["seconds"]))
            done, reached = len(course.rounds_s), course.accuracies[-1] >= LEVEL
            if reached or done % TOLD_EACH == 0:
                best = max(course.accuracies)
                print(f"{run.label}, seed {run.seed}: round {done}, best {best:.2%}", file=sys.stderr, flush=True)
            if reached and done < run.rounds:
                http.sessions.stop(session)
                return course
        ended = http.sessions.show(session)
    if ended.status != "finished":
        raise RunnelError(f"The session {ended.status}: {ended.reason}")
    return course


# ---- figures


def _percent(level: float) -> str:
    return f"{100 * level:.0f} %"


def rounds_to(accuracies: Sequence[float], level: float) -> float | None:
    """Return after how many rounds the best accuracy so far has reached ``level``; straight lines join the rounds.

    ``accuracies``: that of the seed model and after each round. None: it was not reached.

    >>> rounds_to([0.1, 0.9, 0.8, 0.98], 0.97)
    2.875
    >>> rounds_to([0.1, 0.9, 0.8], 0.97) is None
    True
    """
    if accuracies[0] >= level:
        return 0.0
    for before, (low, high) in enumerate(pairwise(accumulate(accuracies, max))):
        if low < level <= high:
            return before + (level - low) / (high - low)
    return None


def result_of(courses: Sequence[Course]) -> Result:
    """Return figures, notes and curves of some courses, at least one."""
    runs = [course.run for course in courses]
    return Result(
        benchmark="fedavg_paper",
        parameters={
            "clients": CLIENTS,
            "C": ASKED / CLIENTS,
            "E": 1,
            "B": 10,
            "host processes": HOSTS,
            **{f"{run.label} learning rate": run.learning_rate for run in runs if not run.several},
            "seeds": " ".join(sorted({str(run.seed) for run in runs})),
        },
        figures=[each for label in dict.fromkeys(run.label for run in runs) for each in _figures(label, courses)],
        notes=_notes(courses),
        series=[_series(course) for course in courses],
    )


def _figures(label: str, courses: Sequence[Course]) -> list[Figure]:
    """Return the figures of all courses of that label."""
    courses = [course for course in courses if course.run.label == label]
    figures = []
    for level in (*EARLIER_LEVELS, LEVEL):
        needed = [rounds_to(course.accuracies, level) for course in courses]
        # Told only when every seed got there; otherwise the median would be that of the lucky ones.
        found = [each for each in needed if each is not None]
        if len(found) == len(needed):
            figures.append(figure(f"{label}: rounds to {_percent(level)}", "rounds", found))
    return [
        *figures,
        figure(f"{label}: rounds to {_percent(LEVEL)} in the paper", "rounds", [courses[0].run.split.in_paper]),
        figure(f"{label}: rounds done", "rounds", [len(course.rounds_s) for course in courses]),
        figure(
            f"{label}: best accuracy", "%", [100 * max(course.accuracies) for course in courses], more_is_better=True
        ),
        figure(f"{label}: round", "s", [each for course in courses for each in course.rounds_s]),
    ]


def _notes(courses: Sequence[Course]) -> list[str]:
    notes = [
        f"Sessions are stopped when a model has {_percent(LEVEL)} test accuracy, measured on the 10,000 test images."
    ]
    for course in courses:
        if rounds_to(course.accuracies, LEVEL) is None:
            at = f"{course.run.label}, seed {course.run.seed}"
            notes.append(f"{at}: {_percent(LEVEL)} was not reached in {course.run.rounds} rounds, which was the limit.")
    return notes


def _series(course: Course) -> Series:
    accuracies = [100 * each for each in course.accuracies]
    needed = rounds_to(course.accuracies, LEVEL)
    marks = [Mark(axis="y", at=100 * LEVEL, label=f"{_percent(LEVEL)}")]
    if needed is not None:
        marks += [
            Mark(axis="x", at=needed, label=f"here {needed:.0f}"),
            Mark(axis="x", at=course.run.split.in_paper, label=f"paper {course.run.split.in_paper}"),
        ]
    return Series(
        name=f"{course.run.label}, seed {course.run.seed}: test accuracy",
        unit="%",
        along="round",
        x=[*range(len(accuracies))],
        y=accuracies,
        # The last points are what the curve is about; where no round got there, all of it is shown.
        bottom=80.0 if statistics.median(accuracies) > 80.0 else 0.0,
        top=100.0,
        marks=marks,
    )


async def _main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--mnist", type=Path, metavar="FOLDER", help="folder with MNIST's IDX files, gzipped or not")
    parser.add_argument("--splits", nargs="+", choices=SPLITS, help="default: both")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="N", help="a run for each")
    parser.add_argument("--lr", nargs="+", type=float, metavar="RATE", help="learning rates of the clients to try")
    parser.add_argument("--rounds", type=int, metavar="N", help="after which a session ends at the latest")
    wanted = parser.parse_args()
    quieten()
    try:
        result = await measure(
            wanted.quick,
            mnist=wanted.mnist,
            splits=wanted.splits,
            seeds=wanted.seeds,
            learning_rates=wanted.lr,
            rounds=wanted.rounds,
        )
    except RunnelError as error:
        return report(error)
    tell(result, as_json=wanted.json)
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(_main()))
