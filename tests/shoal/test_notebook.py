"""docs/first_run.ipynb runs from top to bottom."""

import json
import subprocess
import sys

from tests.launchers import command_line

NOTEBOOK = command_line.ROOT / "docs" / "first_run.ipynb"


def test_the_notebook_runs_and_shows_what_it_says(tmp_path):
    """Runs the cells as one program, in which a cell that ends with an expression prints it."""
    cells = [
        "".join(cell["source"]) for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"
    ]
    assert len(cells) >= 6
    parts = ['import matplotlib; matplotlib.use("Agg")']
    for cell in cells:
        lines = cell.splitlines()
        shows = not lines[-1].startswith((" ", "import ")) and "=" not in lines[-1] and not lines[-1].endswith(";")
        parts.append("\n".join([*lines[:-1], f"print('SHOWN', {lines[-1]}\n)"]) if shows else cell)
    program = tmp_path / "notebook.py"
    program.write_text("\n".join(parts))
    done = subprocess.run(
        [sys.executable, program],
        cwd=tmp_path,
        env=command_line.ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    shown = [line.removeprefix("SHOWN ") for line in done.stdout.splitlines() if line.startswith("SHOWN")]
    total, batch, _, parameters = shown
    assert float(total) >= 100, "a policy that has learnt holds the pole for longer than a random one's 22 steps"
    assert len(batch.strip("[]").split()) == 5 and int(parameters) > 100
