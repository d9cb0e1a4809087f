"""The numbers of a round: running sums, server optimizers, robust rules, reduction and metrics.

Everything here is synchronous: call it in a thread.
"""

from runnel.common.aggregation.buffered import FedBuff
from runnel.common.aggregation.coordinate_rules import Median, TrimmedMean
from runnel.common.aggregation.distance_rules import Bulyan, Krum, MultiKrum
from runnel.common.aggregation.float64_file import Float64File
from runnel.common.aggregation.gathering import GatheredFile, Gathering
from runnel.common.aggregation.mean import SumMemory, WeightedSum, sum_magnitude
from runnel.common.aggregation.metrics import weighted_mean_metrics
from runnel.common.aggregation.norm_rules import GeometricMedian, NormClipping
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
from runnel.common.aggregation.robust import RobustRule, reduce_updates
from runnel.common.aggregation.strategies import STRATEGIES, Strategy, StrategyKind, make_strategy
from runnel.common.aggregation.update_stack import Update, UpdateStack

__all__ = [
    "OPTIMIZERS",
    "STRATEGIES",
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
    "Part",
    "Reduced",
    "RobustRule",
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
]
