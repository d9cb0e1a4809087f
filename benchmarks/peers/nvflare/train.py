"""Adds one to each number, round after round."""

import numpy as np
import nvflare.client as flare

flare.init()
while flare.is_running():
    model = flare.receive()
    if model is None:
        break
    update = {name: array + np.float32(1) for name, array in model.params.items()}
    flare.send(flare.FLModel(params=update, meta={"NUM_STEPS_CURRENT_ROUND": 10}))
