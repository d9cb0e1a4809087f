"""What the combiner decides, free of input and output."""

from runnel.combiner.domain.membership import Membership
from runnel.combiner.domain.orders import (
    Decision,
    Finish,
    Fold,
    Order,
    OrderBook,
    SendDown,
    SendUp,
    SlotState,
)

__all__ = ["Decision", "Finish", "Fold", "Membership", "Order", "OrderBook", "SendDown", "SendUp", "SlotState"]
