"""Services that track runs, Weights & Biases and MLflow, and what is asked of one."""

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

NAME = "shoal"  # of the project, or experiment, unless the environment names one
PACKAGES = {"wandb": "wandb", "mlflow": "mlflow-skinny"}  # by the name of the library
# Of the libraries' environment variables. MLflow's failures are told, and tried again, here: alone it would try for
# minutes. W&B's Weave takes agents/ for another library of that name, which it would like to watch.
DEFAULTS = {
    "WANDB_DISABLE_WEAVE": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}


class Row(NamedTuple):
    """A row of a role's CSV."""

    role: str  # its file, without .csv: evaluator, or of a population member_3/evaluator
    number: int  # which of the file's rows it is, from 1
    values: dict[str, float]  # by column

    @property
    def finite(self) -> dict[str, float]:
        """The values that are numbers, by the names that they have where they are tracked: evaluator/return_mean."""
        there = {column: value for column, value in self.values.items() if column != "env_steps"}
        return {f"{self.role}/{column}": value for column, value in there.items() if abs(value) < float("inf")}


class Service(Protocol):
    """A tracked run. Each method raises what its library does."""

    state: dict[str, Any]  # as JSON, what is kept of it: `rows`, how many it has of each file, and what it needs itself
    place: str  # where a person finds it

    def log(self, rows: list[Row]) -> None:
        """Adds rows, with env_steps as their x axis."""

    def end(self, failed: bool) -> None:
        """Nothing is added any more: the sitting has ended."""


Start = Callable[[pathlib.Path, dict[str, Any], dict[str, Any]], Service]  # LOGDIR, its settings, its state


def _library(name: str) -> Any:
    """The library of a service.

    Raises:
      Exception: of whatever kind; most often it is not installed.
    """
    for variable, value in DEFAULTS.items():
        os.environ.setdefault(variable, value)
    library = importlib.import_module(name)
    if library.__file__ is None:  # a folder of that name, such as W&B makes
        raise ModuleNotFoundError(f"No module named {name!r}")
    return library


class WandB:
    """A run in Weights & Biases, whose environment variables say where, and whether it is online.

    With each row goes its number, as rows/ROLE: so it can be asked which it has, online by the run's summary, and after
    a sitting that was killed by what is on disk."""

    def __init__(self, logdir: pathlib.Path, settings: dict[str, Any], state: dict[str, Any]):
        wandb = _library("wandb")
        asked = wandb.setup().settings
        self._run = run = wandb.init(
            id=state.get("run") or asked.run_id or secrets.token_hex(4),
            resume=None if asked.mode in ("offline", "dryrun") else "allow",  # else it warns that it cannot know
            project=asked.project or NAME,
            name=asked.run_name or logdir.name,
            tags=sorted({settings["agent"][:64], settings["env"][:64]}),  # the longest that it takes
            dir=None if "WANDB_DIR" in os.environ else str(logdir),
            reinit="create_new",  # one that broke is never taken up again
            settings=wandb.Settings(console="off", silent=True),  # the terminal is the run's own
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
        # Steps go on over sittings, for of a run it takes none that is not beyond the last.
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
    """The numbers of rows, by role, among values by the names that W&B has for them."""
    return {name.removeprefix("rows/"): int(value) for name, value in values.items() if name.startswith("rows/")}


def _on_disk(state: dict[str, Any]) -> dict[str, int]:
    """How many rows of each file W&B has on disk, of a run that is offline."""
    sitting = state.get("open", {})  # that did not end in order
    files = list(pathlib.Path(sitting["folder"]).glob("*.wandb")) if sitting else []
    if not files:
        return dict(state.get("rows", {}))
    rows = dict(sitting["rows"])  # that there were before it
    for record in wandb_files.records(files[0]):
        rows |= _numbers(wandb_files.logged(record))
    return rows


class MLflow:
    """A run in MLflow, wherever its environment variables say, else where MLflow itself has it by default.

    Each row has a time of its own, which is the same whenever it is sent: of metrics that are sent twice, as after a
    time-out, MLflow's databases keep one."""

    MOST = 1000  # metrics that it takes at a time
    MOST_PARAMS = 100

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
        """The tracked run, if there is one still."""
        try:
            found = self._client.get_run(run) if run else None
        except Exception as error:
            if getattr(error, "error_code", None) != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None  # it was tracked elsewhere
        return found if found and found.info.lifecycle_stage == "active" else None

    def _experiment(self) -> str:
        if known := os.environ.get("MLFLOW_EXPERIMENT_ID"):
            return known
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", NAME)
        found = self._client.get_experiment_by_name(name)
        return found.experiment_id if found else self._client.create_experiment(name)

    def _tell(self, settings: dict[str, Any], known: dict[str, str]) -> None:
        """The settings as params; those that a resumed run has otherwise are tags, for a param stays as it is."""
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
    """Raises UsageError if the library of a service is not installed here, or if it knows of no account; in a terminal
    W&B asks for that."""
    if service not in SERVICES:
        return
    try:
        library = _library(service)
    except Exception as error:
        raise UsageError(
            f"--track={service}: {type(error).__name__}: {error}; this installs it, and leaves all else as it is: "
            f"{sys.executable} -m pip install -c {_lock()} {PACKAGES[service]}"
        ) from error
    if service == "wandb":
        _check_account(library)


def _check_account(wandb: Any) -> None:
    import requests.utils  # which W&B brings

    try:
        asked = wandb.setup().settings
        if asked.mode == "disabled":
            raise ValueError("WANDB_MODE=disabled sends nothing: leave --track out")
        known = asked.api_key or asked.identity_token_file or requests.utils.get_netrc_auth(asked.base_url)
        if asked.mode in ("online", "run", "shared") and not known:
            wandb.login()
    except Exception as error:  # an environment variable that it does not take, or no account
        mend = f"{sys.executable} -m wandb login, WANDB_API_KEY or WANDB_MODE=offline"
        raise UsageError(f"--track=wandb: {error} ({mend})") from error


def _lock() -> pathlib.Path:
    """The file that this environment was made from, as scripts/environment chooses it."""
    stamp = pathlib.Path(sys.prefix, "shoal.stamp")
    platform = stamp.read_text().split()[0] if stamp.exists() else "cpu"
    stack = "" if sys.version_info < (3, 12) else "next-"
    return pathlib.Path(__file__).parents[1] / "requirements" / f"{stack}{platform}.lock"
