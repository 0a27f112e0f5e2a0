"""Which Python scripts/environment chooses and what it makes, in a copy where each Python is a few lines of shell."""

import itertools
import pathlib
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
# All programs that the script calls. It must not see anything else that is on the PATH, such as a real Python.
TOOLS = (
    *("bash", "cat", "cut", "df", "dirname", "du", "env", "flock", "mkdir", "mktemp", "readlink", "rm"),
    *("sed", "sha256sum", "sleep", "sort", "tail", "tr"),
)
VERSIONS = ("3.11", "3.12", "3.13")
PREFERRED = ("3.11", "3.13", "3.12")

# A fake Python. It says that it can make environments, makes them with a copy of itself, and its pip notes the calls.
USABLE = """#!/usr/bin/env bash
case "$1 $2" in
    "-c "*) exit 0 ;;
    "-m venv") rm -rf "$4" && mkdir -p "$4/bin" && cat "$0" >"$4/bin/python" && chmod +x "$4/bin/python" ;;
    "-m pip") echo "$*" >>"$PIP_CALLS"; echo "pip says $PIP_STATUS"; sleep "$PIP_SECONDS"; exit "$PIP_STATUS" ;;
esac
"""
# Pythons that cannot be used: pyenv's shim of a version that is not switched on, and Debian's Python without the
# package python3-venv.
UNUSABLE = {
    "shim": '#!/usr/bin/env bash\necho "pyenv: $0: command not found" >&2\nexit 127\n',
    "without ensurepip": "#!/usr/bin/env bash\nexit 1\n",
}


class Clone:
    """A copy of the script and the locks. `run` calls the script where only TOOLS and the given Pythons exist."""

    def __init__(self, path: pathlib.Path):
        self.path, self.bin, self.home = path / "clone", path / "bin", path / "home"
        for folder in (self.path / "scripts", self.path / "requirements", self.bin, self.home):
            folder.mkdir(parents=True)
        shutil.copy(ROOT / "scripts" / "environment", self.path / "scripts")
        for lock in (ROOT / "requirements").glob("*.lock"):
            shutil.copy(lock, self.path / "requirements")
        tools = path / "tools"
        tools.mkdir()
        for tool in (*TOOLS, "chmod"):
            (tools / tool).symlink_to(shutil.which(tool) or "/bin/false")
        self.calls = path / "pip calls"
        self.environ = {
            "HOME": str(self.home),
            "PATH": f"{self.bin}:{tools}",
            "TMPDIR": str(path),
            "PIP_CALLS": str(self.calls),
            "PIP_STATUS": "0",
            "PIP_SECONDS": "0",
        }

    def add(self, name: str, text: str = USABLE, folder: pathlib.Path | None = None) -> str:
        path = (folder or self.bin) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
        return str(path)

    def start(self, *arguments: str, **variables: str) -> subprocess.Popen:
        command = [str(self.path / "scripts" / "environment"), *arguments]
        return subprocess.Popen(
            command, env=self.environ | variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def run(self, *arguments: str, **variables: str) -> tuple[int, str, str]:
        """Runs the script; returns its (exit code, stdout, stderr)."""
        process = self.start(*arguments, **variables)
        out, err = process.communicate(timeout=60)
        return process.returncode, out.strip(), err.strip()

    def would(self, **variables: str) -> str:
        code, out, err = self.run("--dry-run", **variables)
        assert (code, err) == (0, "")
        return out

    def refusal(self, *arguments: str, **variables: str) -> str:
        code, out, err = self.run(*arguments, **variables)
        assert (code, out) == (2, "") and err.startswith("environment: ") and "\n" not in err, (code, out, err)
        return err

    def made(self, folder: str) -> list[str]:
        """Returns the words in an environment's stamp: platform, checksum, Python."""
        return (self.path / folder / "shoal.stamp").read_text().split()


@pytest.fixture
def clone(tmp_path):
    return Clone(tmp_path)


def lock_of(version: str, platform: str = "cpu") -> str:
    return f"requirements/{'' if version == '3.11' else 'next-'}{platform}.lock"


@pytest.mark.parametrize("there", itertools.product(("usable", "absent", "shim"), repeat=3), ids="-".join)
def test_the_first_usable_python_is_taken(clone, there):
    state = dict(zip(VERSIONS, there))
    for version in VERSIONS:
        if state[version] != "absent":
            clone.add(f"python{version}", UNUSABLE.get(state[version], USABLE))
    usable = [version for version in PREFERRED if state[version] == "usable"]
    if usable:
        taken = usable[0]
        assert clone.would() == f".venv {lock_of(taken)} {clone.bin}/python{taken}: there is no .venv"
    else:
        assert "no usable Python 3.11, 3.12 or 3.13" in clone.refusal("--dry-run")


@pytest.mark.parametrize(("version", "there"), itertools.product(VERSIONS, ("usable", "absent", *UNUSABLE)))
def test_the_python_that_is_named_is_taken_or_none(clone, version, there):
    for other in VERSIONS:
        if other != version:
            clone.add(f"python{other}")
    if there != "absent":
        clone.add(f"python{version}", UNUSABLE.get(there, USABLE))
    if there == "usable":
        assert f" {lock_of(version)} {clone.bin}/python{version}: " in clone.would(SHOAL_PYTHON=version)
    else:
        line = clone.refusal("--dry-run", SHOAL_PYTHON=version)
        assert f"no usable Python {version} " in line and f"python{version}-venv" in line


def test_a_shim_hides_no_python_behind_it(clone, tmp_path):
    clone.add("python3.12", UNUSABLE["shim"])
    behind = clone.add("python3.12", folder=tmp_path / "behind")
    assert f" {behind}: " in clone.would(PATH=f"{clone.environ['PATH']}:{tmp_path / 'behind'}")


@pytest.mark.parametrize("pyenv", [{}, {"PYENV_ROOT": "/elsewhere"}], ids=["at home", "elsewhere"])
def test_pyenvs_newest_is_found(clone, tmp_path, pyenv):
    root = tmp_path / "elsewhere" if pyenv else clone.home / ".pyenv"
    for full in ("3.13.2", "3.13.10", "3.13.9", "3.12.1"):
        newest = clone.add("python" + full.rpartition(".")[0], folder=root / "versions" / full / "bin")
        if full == "3.13.10":
            wanted = newest
    clone.add("python3.13", UNUSABLE["shim"])
    assert f" {wanted}: " in clone.would(**{name: str(root) for name in pyenv})


def test_an_environment_is_made_once(clone):
    clone.add("python3.11")
    code, out, err = clone.run()
    first, last = err.splitlines()
    assert (code, out) == (0, "")
    for words in ("there is no .venv", "Python 3.11", "Reverb", "requirements/cpu.lock by pip", " GB"):
        assert words in first
    assert last.startswith("environment: .venv is ready after ")
    assert f"-m pip install --no-deps --disable-pip-version-check -r {clone.path}/requirements/cpu.lock" in (
        clone.calls.read_text()
    )
    assert clone.made(".venv")[::2] == ["cpu", "3.11"]
    assert clone.run() == (0, "", "")
    assert clone.run("--path") == (0, f"{clone.path}/.venv", "")
    assert clone.would() == ".venv requirements/cpu.lock: up to date"
    assert len(clone.calls.read_text().splitlines()) == 1


def test_uv_installs_where_it_runs(clone):
    clone.add("python3.13")
    clone.add("uv", '#!/usr/bin/env bash\necho "uv $*" >>"$PIP_CALLS"\n')
    assert clone.run("--path")[:2] == (0, f"{clone.path}/.venv")
    wanted = f"uv pip install --no-deps --python {clone.path}/.venv/bin/python -r {clone.path}/{lock_of('3.13')}"
    assert clone.calls.read_text().splitlines()[-1] == wanted
    clone.add("uv", UNUSABLE["shim"])
    assert " by pip: " in clone.run(SHOAL_PLATFORM="gpu")[2]


def test_the_platform_and_the_python_are_remembered(clone):
    clone.add("python3.13")
    clone.run(SHOAL_PLATFORM="tpu")
    clone.add("python3.11")
    assert clone.would() == f".venv {lock_of('3.13', 'tpu')}: up to date"
    with open(clone.path / lock_of("3.13", "tpu"), "a") as lock:
        lock.write("another==1\n")
    assert clone.would() == (f".venv {lock_of('3.13', 'tpu')} {clone.bin}/python3.13: .venv was made from another lock")
    (clone.bin / "python3.13").unlink()
    assert f".venv {lock_of('3.11', 'tpu')} {clone.bin}/python3.11: " in clone.would()


def test_another_python_has_a_folder_of_its_own(clone):
    for version in VERSIONS:
        clone.add(f"python{version}")
    assert clone.run("--path", SHOAL_PLATFORM="gpu")[1] == f"{clone.path}/.venv"
    assert clone.run("--path", SHOAL_PYTHON="3.11")[1] == f"{clone.path}/.venv"
    assert clone.run("--path", SHOAL_PYTHON="3.13")[1] == f"{clone.path}/.venv-3.13"
    assert clone.made(".venv-3.13")[::2] == ["gpu", "3.13"]
    assert clone.would(SHOAL_PYTHON="3.13") == f".venv-3.13 {lock_of('3.13', 'gpu')}: up to date"
    assert clone.would() == f".venv {lock_of('3.11', 'gpu')}: up to date"
    assert len(clone.calls.read_text().splitlines()) == 2


def test_the_first_environment_is_venv_whatever_its_python(clone):
    for version in VERSIONS:
        clone.add(f"python{version}")
    assert clone.run("--path", SHOAL_PYTHON="3.12")[1] == f"{clone.path}/.venv"
    assert clone.would() == f".venv {lock_of('3.12')}: up to date"


def test_a_stamp_of_old_is_of_python_3_11(clone):
    clone.add("python3.13")
    clone.add("python3.11")
    clone.run()
    stamp = clone.path / ".venv" / "shoal.stamp"
    stamp.write_text(" ".join(clone.made(".venv")[:2]) + "\n")
    assert clone.would() == ".venv requirements/cpu.lock: up to date"
    assert clone.would(SHOAL_PYTHON="3.13").startswith(".venv-3.13 ")


def test_a_failure_shows_the_installers_words(clone):
    clone.add("python3.11")
    clone.add("python3.12")
    code, out, err = clone.run("--path", PIP_STATUS="7", SHOAL_PLATFORM="gpu", SHOAL_PYTHON="3.12")
    assert (code, out) == (1, "")
    assert "pip says 7" in err and err.splitlines()[-1].startswith("environment: could not make .venv")
    assert clone.would() == f".venv {lock_of('3.12', 'gpu')} {clone.bin}/python3.12: .venv is unfinished"
    assert clone.run()[0] == 0
    assert clone.would() == f".venv {lock_of('3.12', 'gpu')}: up to date"


def test_two_at_once_make_one(clone):
    clone.add("python3.11")
    processes = [clone.start("--path", PIP_SECONDS="1") for _ in range(3)]
    for process in processes:
        out, _ = process.communicate(timeout=60)
        assert (process.returncode, out.strip()) == (0, f"{clone.path}/.venv")
    assert len(clone.calls.read_text().splitlines()) == 1


@pytest.mark.parametrize(("version", "platform"), itertools.product(("3.11", "3.13"), ("cpu", "gpu", "tpu")))
def test_a_disk_without_room_is_refused(clone, version, platform):
    clone.add(f"python{version}")
    clone.add("df", "#!/usr/bin/env bash\necho Avail; echo 1234MB\n")
    line = clone.refusal(SHOAL_PLATFORM=platform)
    assert ".venv takes " in line and " has 1.2 GB free" in line
    assert not (clone.path / ".venv").exists()
    clone.add("df", "#!/usr/bin/env bash\necho Avail; echo 9000MB\n")
    assert clone.would(SHOAL_PLATFORM=platform)


def test_what_is_replaced_counts_as_room(clone):
    clone.add("python3.11")
    clone.run()
    clone.add("df", "#!/usr/bin/env bash\necho Avail; echo 1234MB\n")
    clone.add("du", "#!/usr/bin/env bash\nprintf '3056MB\\t.venv3/\\n'\n")
    (clone.path / "requirements" / "cpu.lock").write_text("changed==1\n")
    assert "another lock" in clone.would()


@pytest.mark.parametrize(
    ("arguments", "variables", "words"),
    [
        ((), {"SHOAL_PLATFORM": "next-cpu"}, ["SHOAL_PLATFORM", "cpu, gpu, tpu", "next-cpu"]),
        ((), {"SHOAL_PYTHON": "3.10"}, ["SHOAL_PYTHON", "3.11, 3.12, 3.13", "3.10"]),
        (("--help-me",), {}, ["--help-me", "--path, --dry-run"]),
    ],
)
def test_mistakes_are_one_line(clone, arguments, variables, words):
    clone.add("python3.11")
    line = clone.refusal(*arguments, **variables)
    assert all(word in line for word in words), line


@pytest.mark.parametrize("path", sorted((ROOT / "requirements").glob("*.lock")), ids=lambda path: path.name)
def test_locks_pin_versions_and_name_no_place(path):
    for line in path.read_text().splitlines():
        name, _, version = line.partition("==")
        assert name and version and not set(line) & set(" ;@/:"), line
    pinned = path.read_text()
    assert ("dm-reverb==" in pinned) == ("tensorflow-cpu==" in pinned) == (not path.name.startswith("next-"))
