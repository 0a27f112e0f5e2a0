"""Writes the table of docs/flags.md from the declarations of flags: `scripts/python scripts/flags_page.py`."""

import pathlib
import re

from launchers.settings import Ending, Pod, RayCluster, Setting, Settings, Share, Sitting, Tracking, declarations

PAGE = pathlib.Path(__file__).resolve().parent.parent / "docs" / "flags.md"
HEADING = "## The table"
# Agents whose pages have a section on their Config, by name.
PAGES = {
    **{"A2C": "a2c", "TRPO": "trpo", "IMPALA": "impala", "DPG": "dpg", "DDPG": "ddpg", "D4PG": "d4pg"},
    "Ape-X DPG": "apex_dpg",
    "TD3": "td3",
    "SAC": "sac",
    "MPO": "mpo",
    "V-MPO": "vmpo",
}


def table() -> str:
    """Returns the table, with a line for each flag."""
    lines = [
        "| flag | meaning | values | default, unless a preset has another | may change on resume |",
        "|---|---|---|---|---|",
    ]
    for name, declared in (
        item for of in (Settings, Sitting, Tracking, Pod, RayCluster, Ending) for item in declarations(of).items()
    ):
        meaning = f"[{declared.help}]({declared.see})" if declared.see else declared.help
        resume = "yes" if declared.free else ""
        lines.append(f"| `--{name}` | {meaning} | {_values(declared)} | {_default(declared)} | {resume} |")
    pages = ", ".join(f"[{name}'s]({page}.md#config)" for name, page in PAGES.items())
    lines.append(f"| `--config.FIELD` | any field of the agent's `Config` ({pages}) |  | the field's own |  |")
    return "\n".join(lines)


def _values(declared: Setting) -> str:
    if declared.kind is bool:
        return "`true`, `false`"
    if declared.choices:
        return ", ".join(f"`{choice}`" for choice in declared.choices)
    return "" if declared.least is None or declared.least < 0 else f"from {declared.least}"


def _default(declared: Setting) -> str:
    if declared.default_words:
        return f"`{declared.default_words}`"
    if isinstance(declared.default, Share) or declared.default == "preset":
        return str(declared.default)
    if declared.kind is bool:
        return f"`{str(declared.default).lower()}`"
    if declared.default in (None, ""):
        return ""
    return f"`{declared.default}`" if declared.kind is str else f"`{declared.default:g}`"


def written(text: str) -> str:
    """Returns the page's `text` with its table replaced by the one that the declarations make."""
    start = text.index(HEADING)
    return text[:start] + re.sub(
        r"(?:^\|.*\n)+", table().replace("\\", r"\\") + "\n", text[start:], count=1, flags=re.M
    )


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
