"""Small compute packages in the forms that packages of FEDn have had over the years."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path
from textwrap import dedent

# FEDn 0.10 to 0.33: python_env, helpers by name, metadata in and out, build that is told no path.
NEWEST = {
    "fedn.yaml": """
        python_env: python_env.yaml
        entry_points:
          build:
            command: python model.py
          startup:
            command: python data.py
          train:
            command: python train.py
          validate:
            command: python validate.py
          predict:
            command: python predict.py
        """,
    "python_env.yaml": """
        name: own-numpy
        build_dependencies:
          - numpy
        dependencies:
          - fedn==0.33.0
        """,
    "model.py": """
        import numpy as np
        from fedn.utils.helpers.helpers import get_helper

        helper = get_helper("numpyhelper")

        def compile_model():
            return [np.zeros((2, 3), np.float32), np.zeros(4)]

        def init_seed(out_path="../seed.npz"):
            helper.save(compile_model(), out_path)

        if __name__ == "__main__":
            init_seed("../seed.npz")
        """,
    "data.py": """
        import os
        import numpy as np

        def load():
            return np.loadtxt(os.environ.get("FEDN_DATA_PATH", "nowhere.csv"), delimiter=",")

        if __name__ == "__main__":
            print("startup found", load().size, "numbers, splits", os.environ.get("FEDN_NUM_DATA_SPLITS", 2))
        """,
    "train.py": """
        import os, sys
        import numpy as np
        from data import load
        from model import helper
        from fedn.common.log_config import logger
        from fedn.utils.helpers.helpers import load_metadata, save_metadata

        def train(in_model_path, out_model_path):
            settings = load_metadata(in_model_path)
            step = settings.get("step", 1.0) * load().mean()
            parameters = [array + array.dtype.type(step) for array in helper.load(in_model_path)]
            metadata = {"num_examples": int(load().size), "step": step, "host": os.environ["HOSTNAME"]}
            save_metadata(metadata, out_model_path)
            helper.save(parameters, out_model_path)
            logger.info("trained")

        if __name__ == "__main__":
            train(sys.argv[1], sys.argv[2])
        """,
    "validate.py": """
        import sys
        import numpy as np
        from model import helper
        from fedn.utils.helpers.helpers import save_metrics

        def validate(in_model_path, out_json_path, data_path=None):
            parameters = helper.load(in_model_path)
            report = "              precision    recall\\n           0       1.00      1.00"
            save_metrics({"mean": float(np.mean(parameters[0])), "classification_report": report}, out_json_path)

        if __name__ == "__main__":
            validate(sys.argv[1], sys.argv[2])
        """,
    "predict.py": """
        import json, sys
        from model import helper

        with open(sys.argv[2], "w") as file:
            json.dump({"predictions": helper.load(sys.argv[1])[1].tolist()}, file)
        """,
}

# FEDn 0.3 to 0.6: an entrypoint without suffix, run by the Python of an image, with options from the environment.
WITH_ENTRYPOINT = {
    "fedn.yaml": """
        entry_points:
          build:
            command: /no-such-image/bin/python entrypoint init_seed
          train:
            command: /no-such-image/bin/python entrypoint train $ENTRYPOINT_OPTS
          validate:
            command: /no-such-image/bin/python entrypoint validate $ENTRYPOINT_OPTS
          infer:
            command: /no-such-image/bin/python entrypoint infer $ENTRYPOINT_OPTS
        """,
    "entrypoint": """
        #!./.venv/bin/python
        import collections, sys
        import numpy as np
        from fedn.utils.helpers import get_helper, save_metadata, save_metrics

        helper = get_helper("pytorchhelper")

        def init_seed(out_path="seed.npz"):
            state = {"fc1.weight": np.zeros((2, 2), np.float32), "fc1.bias": np.zeros(2, np.float32)}
            helper.save(collections.OrderedDict(state), out_path)

        def train(rate, in_path, out_path):
            state = helper.load(in_path)
            helper.save({name: array + np.float32(rate) for name, array in state.items()}, out_path)
            save_metadata({"num_examples": 5, "batch_size": 32}, out_path)

        def validate(rate, in_path, out_path):
            save_metrics({"bias": float(helper.load(in_path)["fc1.bias"].mean())}, out_path)

        def infer(rate, in_path, out_path):
            save_metrics({"layers": list(helper.load(in_path))}, out_path)

        if __name__ == "__main__":
            globals()[sys.argv[1]](*[word.removeprefix("--rate=") for word in sys.argv[2:]])
        """,
}

# FEDn 0.2: no manifest, no metadata, data beside the folder, classes for helpers.
OLDEST = {
    "train.py": """
        from __future__ import print_function
        import sys
        import numpy as np
        import yaml
        from fedn.utils.kerashelper import KerasHelper

        if __name__ == "__main__":
            with open("settings.yaml") as file:
                settings = yaml.safe_load(file)
            data = np.loadtxt("../data/train.csv", delimiter=",")
            helper = KerasHelper()
            weights = helper.load_model(sys.argv[1])
            weights = [w + np.asarray(settings["rate"] * data.mean(), w.dtype) for w in weights]
            helper.save_model(weights, sys.argv[2])
        """,
    "validate.py": """
        import json, sys
        import numpy as np
        from fedn.utils.kerashelper import KerasHelper

        if __name__ == "__main__":
            weights = KerasHelper().load_model(sys.argv[1])
            report = {"mean": float(weights[0].mean()), "seen": sorted(json.loads("[1, 2]"))}
            with open(sys.argv[2], "w") as fh:
                fh.write(json.dumps(report))
        """,
    "settings.yaml": "rate: 2.0\n",
}


def flat(helper: str, dtype: str) -> dict[str, str]:
    """Return a package whose models are nothing but numbers of ``dtype``."""
    return {
        "fedn.yaml": """
            entry_points:
              build: {command: python model.py}
              train: {command: python train.py}
              validate: {command: python validate.py}
            """,
        "model.py": f"""
            import numpy as np
            from fedn.utils.helpers.helpers import get_helper

            helper = get_helper("{helper}")

            if __name__ == "__main__":
                helper.save([np.arange(5.0)] if "binary" in helper.name else np.arange(5.0), "../seed.npz")
            """,
        "train.py": f"""
            import os, sys
            import numpy as np
            from model import helper
            from fedn.utils.helpers.helpers import save_metadata

            assert os.path.getsize(sys.argv[1]) == 5 * np.dtype("{dtype}").itemsize
            helper.save([part + 1.5 for part in helper.load(sys.argv[1])], sys.argv[2])
            save_metadata({{"num_examples": 2}}, sys.argv[2])
            """,
        "validate.py": """
            import sys
            import numpy as np
            from model import helper
            from fedn.utils.helpers.helpers import save_metrics

            save_metrics({"first": np.ravel(helper.load(sys.argv[1]))[0]}, sys.argv[2])
            """,
    }


def write_archive(path: Path, files: Mapping[str, str], *, folder: str = "") -> Path:
    """Write ``files`` as FEDn's users do: at the archive's root, or by ``tar -czf package.tgz client``."""
    with tarfile.open(path, "w:gz") as archive:
        for name, text in files.items():
            content = dedent(text).lstrip("\n").encode()
            member = tarfile.TarInfo(f"{folder}/{name}" if folder else name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path
