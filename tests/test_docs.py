"""Every link in the documents leads to a file that exists, and to a heading in it. So does every page that the code
names."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "BUILD.md", *sorted((ROOT / "docs").rglob("*.md"))]
ROOMS = ("agents", "environments", "replay", "runtime", "launchers", "shoal", "scripts", "requirements")
CODE = re.compile(r"^( *)(```+|~~~+).*?^\1\2[^\n]*$", re.MULTILINE | re.DOTALL)
NAMED = re.compile(r"\b(?:README|BUILD|docs/[\w/]+)\.md(?:#[\w-]+)?")  # in comments, docstrings and messages


def slug(heading: str) -> str:
    """Returns GitHub's anchor of a heading: lower case, with hyphens for spaces and only letters, digits, - and _."""
    text = re.sub(r"!?\[([^]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
    return re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-")


def anchors(text: str) -> set[str]:
    """Returns all that may follow the # of a link to a page. A heading that is repeated gets a number."""
    prose, found = CODE.sub("", text), set(re.findall(r'<a (?:id|name)="([^"]+)"', text))
    for heading in re.findall(r"^#{1,6} +(.*?)[ #]*$", prose, re.MULTILINE):
        name, again = slug(heading), 0
        while (each := f"{name}-{again}" if again else name) in found:
            again += 1
        found.add(each)
    return found


def links(text: str) -> Iterator[str]:
    """Returns the targets of all links and pictures, except those on other sites."""
    prose = re.sub(r"(`+)[^`].*?\1", "", CODE.sub("", text), flags=re.DOTALL)
    targets = re.findall(r"\]\(\s*<?([^)\s>]+)", prose) + re.findall(r"^\[[^]]+\]:\s*(\S+)", prose, re.MULTILINE)
    return (target for target in targets if not re.match(r"\w+:", target))


def wrong(target: str, page: Path, root: Path = ROOT) -> str:
    """Returns what is wrong with a link of a page: an empty string if the link leads to something below `root`."""
    path, _, anchor = target.partition("#")
    file = (page.parent / path).resolve() if path else page
    if not file.exists() or not file.is_relative_to(root):
        return f"{target}: there is no such file"
    if anchor and anchor not in anchors(file.read_text()):
        return f"{target}: {file.name} has no such heading"
    return ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_pages_links_lead_somewhere(page):
    assert not [trouble for target in links(page.read_text()) if (trouble := wrong(target, page))]


@pytest.mark.parametrize("room", ROOMS)
def test_pages_that_the_code_names_are_there(room):
    files = [path for path in (ROOT / room).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    named = {(path, name) for path in files for name in NAMED.findall(path.read_text())}
    assert not [f"{path}: {trouble}" for path, name in named if (trouble := wrong(name, ROOT / "README.md"))]


def test_the_code_names_pages():
    """The regular expression NAMED finds a page that a docstring or a comment names."""
    assert "docs/machines.md#keeping-strangers-out" in NAMED.findall((ROOT / "launchers" / "train.py").read_text())


@pytest.mark.parametrize(
    ("heading", "anchor"),
    [
        ("Who waits for whom", "who-waits-for-whom"),
        ("Flags of `scripts/train`", "flags-of-scriptstrain"),
        ("The papers' settings", "the-papers-settings"),
        ("Mix & Match, on paper", "mix--match-on-paper"),
        ("A run's `num_actors`: [how many](running.md)", "a-runs-num_actors-how-many"),
        ("GTD(λ)", "gtdλ"),
    ],
)
def test_an_anchor_is_as_github_makes_it(heading, anchor):
    assert slug(heading) == anchor


def test_headings_that_come_again_are_numbered_and_code_has_none():
    text = "# One\n\n## Two\n\n```sh\n# Three\n```\n\n## Two\n\n### Two ###\n"
    assert anchors(text) == {"one", "two", "two-1", "two-2"}


@pytest.mark.parametrize(
    ("link", "what"),
    [
        ("[a](none.md)", "file"),
        ("![a](none.png)", "file"),
        ("[`a`](none.md#one)", "file"),
        ("[a](..)", "file"),
        ("[a, [b]](other.md#two)", "heading"),
        ("[a](#two)", "heading"),
        ("[a]: other.md#two", "heading"),
        ("[a](other.md#one) [a](other.md) [a](#here) <https://a.b> [a](https://a.b/c#d) [a](mailto:a@b)", ""),
        ("`x[0](none.md)`\n\n```python\nx[0](none.md)\n```", ""),
    ],
)
def test_a_link_that_leads_nowhere_is_found(link, what, tmp_path):
    page, other = tmp_path / "page.md", tmp_path / "other.md"
    page.write_text(f"# Here\n\n{link}\n")
    other.write_text("# One\n")
    found = [trouble for target in links(page.read_text()) if (trouble := wrong(target, page, tmp_path))]
    assert (len(found) == 1 and what in found[0]) if what else not found
