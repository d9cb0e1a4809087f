"""Makes the job and hands it in: plain FedAvg over all clients, training scripts within the clients' job processes.

python submit.py WORK ADMIN_STARTUP_KIT CLIENTS ROUNDS SEED MODEL
"""

import os
import sys
from pathlib import Path

from arrays_persistor import ArraysPersistor
from nvflare.app_common.workflows.fedavg import FedAvg
from nvflare.fuel.flare_api.flare_api import new_secure_session
from nvflare.job_config.api import FedJob
from nvflare.job_config.script_runner import FrameworkType, ScriptRunner


def main(work: str, kit: str, clients: int, rounds: int, seed: str, model: str) -> None:
    """Hand the job in and print its name."""
    os.chdir(Path(__file__).parent)  # where the job finds its scripts
    job = FedJob(name="addition", min_clients=clients)
    job.to_server(ArraysPersistor(seed, model), id="persistor")
    job.to_server(FedAvg(num_clients=clients, num_rounds=rounds, persistor_id="persistor"))
    job.to_clients(ScriptRunner(script="train.py", framework=FrameworkType.NUMPY))
    job.export_job(work)
    session = new_secure_session(username=Path(kit).name, startup_kit_location=kit, timeout=30.0)
    try:
        print(session.submit_job(f"{work}/addition"))
    finally:
        session.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), *sys.argv[5:7])
