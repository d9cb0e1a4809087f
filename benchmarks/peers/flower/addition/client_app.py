"""Adds one to each number."""

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Answer with the model, each number one larger."""
    update = [array + np.float32(1) for array in message.content["arrays"].to_numpy_ndarrays()]
    content = RecordDict({"arrays": ArrayRecord(update), "metrics": MetricRecord({"num-examples": 10})})
    return Message(content=content, reply_to=message)
