"""Plain FedAvg over all clients; when each round begins, and when the last one ends, is written down."""

import json
import time
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


class MarkedFedAvg(FedAvg):
    """FedAvg that marks when each round begins; nothing else is changed."""

    def __init__(self, marks, **options):
        super().__init__(**options)
        self._marks = marks

    def configure_train(self, server_round, arrays, config, grid):
        """Mark the round before its messages are made."""
        self.mark("begins", round=server_round)
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(self, server_round, replies):
        """Require that all clients have answered without an error."""
        replies = list(replies)
        failed = [reply for reply in replies if reply.has_error()]
        if failed or len(replies) != self.min_train_nodes:
            raise RuntimeError(f"Round {server_round}: {len(replies)} replies, {len(failed)} of them errors.")
        return super().aggregate_train(server_round, replies)

    def mark(self, event, **fields):
        """Append one line."""
        with Path(self._marks).open("a") as file:
            file.write(json.dumps({"at": time.time(), "event": event, **fields}) + "\n")


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train for the configured rounds and write the model."""
    config = context.run_config
    with np.load(config["seed"]) as seed:
        arrays = ArrayRecord([seed[name] for name in sorted(seed.files)])
    clients = config["clients"]
    strategy = MarkedFedAvg(
        config["marks"], fraction_evaluate=0.0, min_train_nodes=clients, min_available_nodes=clients
    )
    result = strategy.start(grid=grid, initial_arrays=arrays, num_rounds=config["rounds"])
    strategy.mark("ended")
    np.savez(config["model"], **{f"w{n}": each for n, each in enumerate(result.arrays.to_numpy_ndarrays())})
    strategy.mark("written")
