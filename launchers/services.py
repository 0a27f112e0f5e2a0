"""The services that track runs, Weights & Biases and MLflow, behind one interface, `Service`."""

import importlib
import os
import pathlib
import re
import secrets
import sys
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from launchers import wandb_files
from launchers.settings import UsageError

NAME = "shoal"  # of the W&B project or MLflow experiment, unless an environment variable names one
PACKAGES = {"wandb": "wandb", "mlflow": "mlflow-skinny"}  # the package to install, by the name of the library
# Values of the libraries' environment variables, where none is set. Shoal itself reports MLflow's failures and tries
# again: MLflow would try for minutes. W&B's Weave takes agents/ for a library of that name, and would watch it.
DEFAULTS = {
    "WANDB_DISABLE_WEAVE": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}


class Row(NamedTuple):
    """A row of a role's CSV."""

    role: str  # the file's name without .csv: "evaluator", or in a population "member_3/evaluator"
    number: int  # the row's place in the file, from 1
    values: dict[str, float]  # by column

    @property
    def finite(self) -> dict[str, float]:
        """The finite values but env_steps, by their names in the service, such as evaluator/return_mean."""
        there = {column: value for column, value in self.values.items() if column != "env_steps"}
        return {f"{self.role}/{column}": value for column, value in there.items() if abs(value) < float("inf")}


class Service(Protocol):
    """A tracked run in a service. A method raises whatever the service's library raises."""

    # What tracking.json keeps: `rows`, how many rows of each file were sent, and what the service needs. It is JSON.
    state: dict[str, Any]
    place: str  # where a person finds the tracked run

    def log(self, rows: list[Row]) -> None:
        """Sends rows, with env_steps as their x axis."""

    def end(self, failed: bool) -> None:
        """Closes the tracked run when the sitting has ended; `failed` says whether it ended with an error."""


Start = Callable[[pathlib.Path, dict[str, Any], dict[str, Any]], Service]  # of LOGDIR, its settings, its state


def _library(name: str) -> Any:
    """Imports and returns the library of a service.

    Raises:
      Exception: of any kind; most often the library is not installed.
    """
    for variable, value in DEFAULTS.items():
        os.environ.setdefault(variable, value)
    library = importlib.import_module(name)
    if library.__file__ is None:  # a folder of that name, such as W&B makes, is imported as an empty package
        raise ModuleNotFoundError(f"No module named {name!r}")
    return library


class WandB:
    """A run in Weights & Biases. W&B's environment variables say where it is, and whether it is online.

    Each row is sent with its number, as rows/ROLE. So W&B knows which rows it has: an online run has the numbers in its
    summary, and an offline run in its file on disk, even after a sitting that was killed."""

    def __init__(self, logdir: pathlib.Path, settings: dict[str, Any], state: dict[str, Any]):
        wandb = _library("wandb")
        asked = wandb.setup().settings
        self._run = run = wandb.init(
            id=state.get("run") or asked.run_id or secrets.token_hex(4),
            resume=None if asked.mode in ("offline", "dryrun") else "allow",  # offline it would only warn
            project=asked.project or NAME,
            name=asked.run_name or logdir.name,
            tags=sorted({settings["agent"][:64], settings["env"][:64]}),  # W&B takes no longer tags
            dir=None if "WANDB_DIR" in os.environ else str(logdir),
            reinit="create_new",  # a connection that broke is never used again
            settings=wandb.Settings(console="off", silent=True),  # W&B writes nothing to the terminal
        )
        run.config.update(settings, allow_val_change=True)
        run.define_metric("env_steps", hidden=True)
        run.define_metric("*", step_metric="env_steps")
        run.define_metric("rows/*", step_metric="env_steps", hidden=True)
        folder = str(pathlib.Path(run.dir).parent)
        self.place = folder if run.offline else run.url
        rows = _on_disk(state) if run.offline else _numbers(dict(run.summary))
        self.state = {"run": run.id, "rows": rows}
        if run.offline:
            self.state["open"] = {"folder": folder, "rows": dict(rows)}
        # Steps continue over sittings, because W&B drops a step that is not beyond the run's last.
        self._step = max(run.step, sum(rows.values()))

    def log(self, rows: list[Row]) -> None:
        for row in rows:
            there = {"env_steps": row.values["env_steps"], f"rows/{row.role}": row.number}
            self._run.log(row.finite | there, step=self._step, commit=True)
            self._step += 1

    def end(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))
        self.state.pop("open", None)


def _numbers(values: dict[str, Any]) -> dict[str, int]:
    """Returns the numbers of rows by role, out of W&B's values by name: those whose names begin with rows/."""
    return {name.removeprefix("rows/"): int(value) for name, value in values.items() if name.startswith("rows/")}


def _on_disk(state: dict[str, Any]) -> dict[str, int]:
    """Returns how many rows of each file W&B has on disk, for a run that is offline."""
    sitting = state.get("open", {})  # a sitting that was killed before `end`
    files = list(pathlib.Path(sitting["folder"]).glob("*.wandb")) if sitting else []
    if not files:
        return dict(state.get("rows", {}))
    rows = dict(sitting["rows"])  # those before that sitting
    for record in wandb_files.records(files[0]):
        rows |= _numbers(wandb_files.logged(record))
    return rows


class MLflow:
    """A run in MLflow. It is where MLflow's environment variables say, else in MLflow's own default place.

    Each row has a time of its own, which is the same whenever the row is sent. So if metrics are sent twice, as after a
    time-out, MLflow's databases keep one."""

    MOST = 1000  # metrics that MLflow takes at a time
    MOST_PARAMS = 100  # params that it takes at a time

    def __init__(self, logdir: pathlib.Path, settings: dict[str, Any], state: dict[str, Any]):
        mlflow = _library("mlflow")
        self._entities: Any = importlib.import_module("mlflow.entities")
        self._client = client = mlflow.MlflowClient()
        run = self._there(state.get("run"))
        rows = dict(state["rows"]) if run else {}
        if run is None:
            tags = {"agent": settings["agent"], "env": settings["env"]}
            run = client.create_run(self._experiment(), run_name=logdir.name, tags=tags)
        self._id, self._start = run.info.run_id, run.info.start_time
        self.state = {"run": self._id, "rows": rows}
        self.place = f"run {self._id} in {mlflow.get_tracking_uri()}"
        client.update_run(self._id, status="RUNNING")
        self._tell(settings, run.data.params)

    def _there(self, run: str | None) -> Any:
        """Returns the tracked run of this id; None if there is none, or if it was deleted."""
        try:
            found = self._client.get_run(run) if run else None
        except Exception as error:
            if getattr(error, "error_code", None) != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None  # the run was tracked by another server
        return found if found and found.info.lifecycle_stage == "active" else None

    def _experiment(self) -> str:
        if known := os.environ.get("MLFLOW_EXPERIMENT_ID"):
            return known
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", NAME)
        found = self._client.get_experiment_by_name(name)
        return found.experiment_id if found else self._client.create_experiment(name)

    def _tell(self, settings: dict[str, Any], known: dict[str, str]) -> None:
        """Sends the settings as params; `known` has those that MLflow has already. A param can never change, so a
        setting that a resumed run changes is sent as a tag."""
        config = {f"config.{name}": value for name, value in settings["config"].items()}
        named = {name: value for name, value in settings.items() if name != "config"} | config
        told = {name: str(value)[:6000] for name, value in named.items()}
        new = [self._entities.Param(name, value) for name, value in told.items() if name not in known]
        for start in range(0, len(new), self.MOST_PARAMS):
            self._client.log_batch(self._id, params=new[start : start + self.MOST_PARAMS])
        for name, value in told.items():
            if known.get(name, value) != value:
                self._client.set_tag(self._id, name, value)

    def log(self, rows: list[Row]) -> None:
        found = []
        for row in rows:
            at = self._start + round(1000 * row.values["wall_seconds"]), int(row.values["env_steps"])
            names = {re.sub(r"[^\w\-. :/]", "_", name): value for name, value in row.finite.items()}
            found += [self._entities.Metric(name, value, *at) for name, value in names.items()]
        for start in range(0, len(found), self.MOST):
            self._client.log_batch(self._id, metrics=found[start : start + self.MOST])

    def end(self, failed: bool) -> None:
        self._client.set_terminated(self._id, "FAILED" if failed else "FINISHED")


SERVICES: dict[str, Start] = {"wandb": WandB, "mlflow": MLflow}


def check(service: str) -> None:
    """Raises UsageError if the service's library is not installed here, or if W&B knows no account. In a terminal W&B
    asks for the account first."""
    if service not in SERVICES:
        return
    try:
        library = _library(service)
    except Exception as error:
        raise UsageError(
            f"--track={service}: {type(error).__name__}: {error}; this command installs it and changes no other "
            f"package: {sys.executable} -m pip install -c {_lock()} {PACKAGES[service]}"
        ) from error
    if service == "wandb":
        _check_account(library)


def _check_account(wandb: Any) -> None:
    import requests.utils  # installed with W&B

    try:
        asked = wandb.setup().settings
        if asked.mode == "disabled":
            raise ValueError("WANDB_MODE=disabled sends nothing: leave --track out")
        known = asked.api_key or asked.identity_token_file or requests.utils.get_netrc_auth(asked.base_url)
        if asked.mode in ("online", "run", "shared") and not known:
            wandb.login()
    except Exception as error:  # W&B does not take an environment variable, or has no account
        mend = f"run {sys.executable} -m wandb login, or set WANDB_API_KEY or WANDB_MODE=offline"
        raise UsageError(f"--track=wandb: {error} ({mend})") from error


def _lock() -> pathlib.Path:
    """Returns the lock file that this Python environment was made from, as scripts/environment chooses it."""
    stamp = pathlib.Path(sys.prefix, "shoal.stamp")
    platform = stamp.read_text().split()[0] if stamp.exists() else "cpu"
    stack = "" if sys.version_info < (3, 12) else "next-"
    return pathlib.Path(__file__).parents[1] / "requirements" / f"{stack}{platform}.lock"
