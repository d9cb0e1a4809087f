"""The numbers of a round: running sums, server optimizers, reduction and metrics.

Everything here is synchronous: call it in a thread.
"""

from runnel.common.aggregation.float64_file import Float64File
from runnel.common.aggregation.mean import WeightedSum, sum_magnitude
from runnel.common.aggregation.metrics import weighted_mean_metrics
from runnel.common.aggregation.optimizers import (
    OPTIMIZERS,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedYogi,
    ServerOptimizer,
    make_optimizer,
)
from runnel.common.aggregation.parts import Part
from runnel.common.aggregation.reduce import Reduced, reduce_round

__all__ = [
    "OPTIMIZERS",
    "FedAdagrad",
    "FedAdam",
    "FedAvg",
    "FedAvgM",
    "FedYogi",
    "Float64File",
    "Part",
    "Reduced",
    "ServerOptimizer",
    "WeightedSum",
    "make_optimizer",
    "reduce_round",
    "sum_magnitude",
    "weighted_mean_metrics",
]
