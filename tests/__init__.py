"""The environment of all tests, and of the processes that they start."""

import atexit
import os
import shutil
import sys
import tempfile
from pathlib import Path

if "FASHION_TESTS" not in os.environ:
    # What is put into the temporary folder, by MLflow and Ray too, goes with the tests. Its name is
    # short, as Ray's sockets are in it; and PostgreSQL, which is another user where the tests run
    # as root, has its own folder there.
    folder = tempfile.mkdtemp(prefix="fashion-")
    Path(folder).chmod(0o711)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ |= {"FASHION_TESTS": "1", "TMPDIR": folder}
    tempfile.tempdir = folder

# Some machines forbid Python to keep bytecode: each of hundreds of processes would compile MLflow.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# What the tests start runs in other folders.
os.environ["PYTHONPATH"] = str(Path(__file__).parent.parent)
# Each worker of pytest-xdist has its share of the cores. Threads that wait for others do so asleep.
workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# Before MLflow is imported: it reports usage to its makers unless told not to.
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
# Before Ray is imported, as entrypoints/sweep.py says.
os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
