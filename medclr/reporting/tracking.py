"""Measures sent to MLflow while a run goes on: the same numbers as in metrics.csv, and nothing that names anyone."""

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from medclr.errors import MedclrError, UsageError
from medclr.reporting.console import say
from medclr.reporting.run import Run, versions

EXPERIMENT = "medclr"
# Defaults of MLflow that do not suit: it counts its users, waits minutes for a server that is away, refuses folders
# unless told, and prints lines of its own.
_MLFLOW = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_ALLOW_FILE_STORE": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


@contextmanager
def tracking(uri: str | None, run: Run, settings: Mapping[str, Any]) -> Iterator[Callable[[Mapping[str, float]], None]]:
    """A function that logs the row of an epoch to MLflow; without a uri it does nothing.

    A resumed run goes on in the MLflow run that it began, by mlflow.json in the run folder. MLflow's own ways of
    starting a run add the user, the script's path and the code's commit, so that they are not used. A store that fails
    once a run has begun is told of, and left alone.

    Args:
        uri: of a server, or a folder as file:///FOLDER.
        run: the run folder.
        settings: of the command, without paths and addresses.

    Raises:
        UsageError, MedclrError: as `reach` does.
    """
    if uri is None:
        yield lambda row: None
        return
    client = reach(uri)
    from mlflow.entities import Metric, Param
    from mlflow.exceptions import MlflowException

    try:
        key = _known(client, run, MlflowException)
        if key is None:
            key = _begun(client, run)
            client.log_batch(key, params=[Param(name, str(value)) for name, value in settings.items()])
    except MlflowException as error:
        raise _no_store(error) from error
    lost = False

    def send(row: Mapping[str, float]) -> None:
        nonlocal lost
        now, step = int(time.time() * 1000), int(row["epoch"]) + 1
        metrics = [Metric(name, float(value), now, step) for name, value in row.items() if math.isfinite(value)]
        if not lost:
            try:
                client.log_batch(key, metrics=metrics)
            except MlflowException as error:
                lost = True
                say(f"warning: MLflow no longer takes measures ({type(error).__name__}); metrics.csv has them all")

    status = "FAILED"
    try:
        yield send
        status = "FINISHED"
    finally:
        with suppress(MlflowException):
            client.set_terminated(key, status)


def reach(uri: str) -> Any:
    """MLflow's client for an address, once the store there has answered.

    Raises:
        UsageError: MLflow is not installed.
        MedclrError: the store does not answer.
    """
    for name, value in _MLFLOW.items():
        os.environ.setdefault(name, value)
    try:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException
    except ImportError:
        raise UsageError("--logger mlflow: MLflow is not installed; pip install 'medclr[mlflow]'") from None
    try:
        client = MlflowClient(uri)
        client.get_experiment_by_name(EXPERIMENT)
    except MlflowException as error:
        raise _no_store(error) from error
    return client


def _no_store(error: Exception) -> MedclrError:
    # MLflow's own message repeats the address, which may hold a password.
    return MedclrError(
        f"--tracking-uri: cannot log there ({type(error).__name__}); is the address right, and the server up?"
    )


def _known(client: Any, run: Run, missing: type[Exception]) -> str | None:
    """The MLflow run that this run began earlier, if the store still has it."""
    path = run.folder / "mlflow.json"
    if not path.is_file():
        return None
    key = str(json.loads(path.read_text())["run"])
    with suppress(missing):
        client.update_run(key, status="RUNNING")
        return key
    return None


def _begun(client: Any, run: Run) -> str:
    experiment = client.get_experiment_by_name(EXPERIMENT)
    number = experiment.experiment_id if experiment else client.create_experiment(EXPERIMENT)
    key = client.create_run(
        number, tags={"mlflow.source.name": "medclr pretrain", "medclr.version": versions()["medclr"]}
    )
    run.write_json("mlflow.json", {"experiment": EXPERIMENT, "run": key.info.run_id})
    return str(key.info.run_id)
