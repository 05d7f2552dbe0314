"""The documentation says what is: commands, examples, links, the map in the README, exit codes."""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import click
import pytest
from click.testing import CliRunner

from imgprep import errors
from imgprep.cli import main
from imgprep.testing.kaggle import KaggleStandIn
from imgprep.testing.toy import ToySpec, write_toy_imagenet

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
PAGES = [README, *sorted(DOCS.rglob("*.md"))]

INSTALL = "python3 -m venv .venv && .venv/bin/pip install '.[train]' && .venv/bin/imgprep demo"
GATE = "python3 -m venv .venv && .venv/bin/pip install -e '.[dev]' && .venv/bin/python tests/gate.py"

# What stands in the examples, and what the toy archive has in its place.
SUBSTITUTES = {
    "imagenet.zip": "toy.zip",
    "imagenet-object-localization-challenge.zip": "toy.zip",
    "/data/imagenet": "unpacked",
    "n01440764,n02102040": "n90000001,n90000002",
    "tench,English springer": "disc,ring",
    "n01440764_10026": "n90000001_16",
    "ILSVRC2012_val_00000001.JPEG": "ILSVRC2012_val_00000017.JPEG",
    "10": "4",
    "100": "8",
    "50": "6",
    "20": "1",
}


def load_generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GENERATE = load_generator()
COMMANDS: dict[str, click.Command] = GENERATE.commands()
EXAMPLES = list(dict.fromkeys(line for command in COMMANDS.values() for line in GENERATE.examples(command)))


def slug(heading: str) -> str:
    """The anchor that GitHub makes of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def prose(page: Path) -> str:
    """A page without its code blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def links(page: Path) -> Iterator[tuple[str, str]]:
    """Target and anchor of each relative link of a page."""
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if not re.match(r"[a-z]+:", link):
            target, _, anchor = link.partition("#")
            yield target, anchor


# Commands.


@pytest.mark.parametrize("name", COMMANDS)
def test_command_has_help_with_examples_a_line_each(name: str) -> None:
    arguments = name.split()[1:]

    lines = [line.strip() for line in CliRunner().invoke(main, [*arguments, "--help"]).stdout.splitlines()]

    assert GENERATE.examples(COMMANDS[name])
    assert [line for line in GENERATE.examples(COMMANDS[name]) if line not in lines] == []


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "imgprep"])
def test_command_has_a_how_to_page_and_a_section_in_the_reference(name: str) -> None:
    page = (DOCS / "how-to" / f"{name.removeprefix('imgprep ')}.md").read_text(encoding="utf-8")

    assert f"```sh\n{name}" in page
    assert f"(../reference/cli.md#{slug(name)})" in page
    assert f"\n## {name}\n" in (DOCS / "reference" / "cli.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", COMMANDS)
def test_options_in_how_to_pages_exist(name: str) -> None:
    page = DOCS / "how-to" / f"{name.removeprefix('imgprep ')}.md"
    known = {
        text
        for command in COMMANDS.values()
        for param in command.params
        for text in (*param.opts, *param.secondary_opts)
    }

    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", page.read_text(encoding="utf-8"))) if page.exists() else set()

    assert named <= known


@pytest.mark.parametrize("name", GENERATE.PAGES)
def test_generated_page_is_up_to_date(name: str) -> None:
    assert (DOCS / "reference" / name).read_text(encoding="utf-8") == GENERATE.PAGES[name](), (
        "run `python docs/generate.py`"
    )


def test_generator_checks_and_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GENERATE, "FOLDER", tmp_path / "reference")
    runner = CliRunner()

    codes = [runner.invoke(GENERATE.main, args).exit_code for args in (["--check"], [], ["--check"], [])]

    assert codes == [1, 0, 0, 0]
    written = {path.name: path.read_text(encoding="utf-8") for path in (tmp_path / "reference").iterdir()}
    assert written == {name: page() for name, page in GENERATE.PAGES.items()}


# Examples.


@pytest.fixture(scope="module")
def _trained(_sharded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("trained") / "imgprep-data"
    shutil.copytree(_sharded, root)
    for name in ("tiny-1", "first"):
        arguments = ["train", "--name", name, "--epochs", "1", "--workspace", str(root)]
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 0, result.output
    return root


@pytest.fixture
def _online(toy_zip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """For the length of a test, Kaggle is a server on this computer that has the toy archive."""
    monkeypatch.setenv("IMGPREP_CACHE", str(tmp_path / "cache"))
    with KaggleStandIn(toy_zip) as stand_in:
        for name, value in stand_in.environment(tmp_path / "home").items():
            if value:
                monkeypatch.setenv(name, value)
            else:
                monkeypatch.delenv(name, raising=False)
        yield


@pytest.fixture
def place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toy_zip: Path, request: pytest.FixtureRequest, example: str
) -> Path:
    """A folder where the example can run: with the archive, and with what the commands before it leave."""
    words = shlex.split(example)
    command = words[1]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.zip").symlink_to(toy_zip)
    if "/data/imagenet" in words:
        write_toy_imagenet(tmp_path / "unpacked", ToySpec(classes=2, per_class=5, val_per_class=1, odd_files=False))
    root = tmp_path / "imgprep-data"
    if command == "fetch" and "--from" not in words:
        request.getfixturevalue("_online")
    if command in {"catalog", "annotations", "subset"}:
        root.mkdir()
        assert CliRunner().invoke(main, ["fetch", "--from", str(toy_zip)]).exit_code == 0
    elif command in {"evaluate", "report", "trace"} or "--resume" in words:
        shutil.copytree(request.getfixturevalue("_trained"), root)
    elif command == "index":
        shutil.copytree(request.getfixturevalue("_sharded") / "shards" / "main", tmp_path / "their-tars")
        for path in (tmp_path / "their-tars").iterdir():
            if path.suffix != ".tar":
                _ = shutil.rmtree(path) if path.is_dir() else path.unlink()
        (tmp_path / "names.txt").write_text("one\ntwo\nthree\nfour\n")
    elif command in {"shard", "train", "stats", "grid", "doctor", "verify", "repair"}:
        shutil.copytree(request.getfixturevalue("_sharded"), root)
        if command == "shard":
            shutil.rmtree(root / "shards")
    return tmp_path


@pytest.mark.parametrize("example", [line for line in EXAMPLES if " demo" not in line])
@pytest.mark.usefixtures("place")
def test_example_runs(example: str) -> None:
    words = [SUBSTITUTES.get(word, word) for word in shlex.split(example)]
    if words[1] == "train" and not {"--epochs", "--resume"} & set(words):
        words += ["--epochs", "1"]

    result = CliRunner().invoke(main, words[1:])

    assert words[0] == "imgprep"
    # The toy archive has pictures that cannot be decoded.
    assert result.exit_code == (3 if "--fail-on" in words else 0), result.output


@pytest.mark.parametrize("example", [line for line in EXAMPLES if " demo" in line])
def test_demo_example_is_understood(example: str) -> None:
    words = shlex.split(example)

    context = main.commands["demo"].make_context("demo", words[2:])

    assert words[:2] == ["imgprep", "demo"]
    assert context.params["online_like"] == ("--online-like" in words)
    assert context.params["root"] == (Path(words[-1]) if "--workspace" in words else None)


def test_reading_a_picture_as_the_formats_page_shows(
    sharded: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (DOCS / "reference" / "formats.md").read_text(encoding="utf-8")
    code = page.split("```python\n")[1].partition("```")[0]
    monkeypatch.chdir(tmp_path)
    names: dict[str, bytes] = {}

    exec(code, names)

    assert names["jpeg"].startswith(b"\xff\xd8")
    assert names["jpeg"].endswith(b"\xff\xd9")


# Links and pages.


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_resolve(page: Path) -> None:
    broken = []
    for target, anchor in links(page):
        path = (page.parent / target).resolve() if target else page
        headings = re.findall(r"^#+ (.*)$", prose(path), flags=re.MULTILINE) if path.suffix == ".md" else []
        if not path.exists() or (anchor and anchor not in map(slug, headings)):
            broken.append(f"{target}#{anchor}")

    assert broken == []


def test_every_page_is_linked_from_another() -> None:
    linked = {(page.parent / target).resolve() for page in PAGES for target, _ in links(page) if target}

    assert [str(page.relative_to(ROOT)) for page in PAGES if page not in linked | {README}] == []


@pytest.mark.parametrize(
    "page", [*PAGES, *DOCS.rglob("*.sh"), *DOCS.rglob("*.py")], ids=lambda page: str(page.relative_to(ROOT))
)
def test_no_place_of_one_machine_is_named(page: Path) -> None:
    text = page.read_text(encoding="utf-8").replace("/tmp/imgprep-demo", "")

    assert re.findall(r"(?<![\w.:/])/(?:work|home|root|Users|tmp|mnt|opt|srv|var)/\S*|index-url\S*", text) == []


def test_pictures_are_small() -> None:
    sizes = {path.name: path.stat().st_size for path in (DOCS / "images").iterdir()}

    assert {name: size for name, size in sizes.items() if size > 200_000} == {}


# The README.


def test_readme_opens_with_the_two_commands() -> None:
    blocks = re.findall(r"^```sh\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)

    assert blocks[:2] == [f"{INSTALL}\n", f"{GATE}\n"]
    assert [line.split()[:2] for line in blocks[2].splitlines()] == [
        ["imgprep", name] for name in ("fetch", "subset", "shard", "train")
    ]


def test_integration_runs_the_line_of_the_readme() -> None:
    lines = [line for line in README.read_text(encoding="utf-8").splitlines() if "tests/gate.py" in line]
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")

    assert lines[0] == GATE
    assert "README.md" in script
    assert "pip install" not in script


def readme_map() -> dict[str, str]:
    """Path to description in the README's map."""
    block = README.read_text(encoding="utf-8").partition("## Map")[2].split("```text\n")[1].partition("```")[0]
    found: dict[str, str] = {}
    folders: list[str] = []
    for line in block.splitlines():
        name, _, description = line.strip().partition(" ")
        folders = folders[: (len(line) - len(line.lstrip())) // 2]
        found["".join([*folders, name])] = description.strip()
        folders.append(name)
    return found


def test_map_in_the_readme_is_the_tree() -> None:
    modules = [path for package in ("imgprep", "training") for path in (ROOT / package).rglob("*.py")]
    expected = {path.relative_to(ROOT).as_posix().removesuffix("__init__.py") for path in modules}

    found = readme_map()

    assert {name for name in found if name.startswith(("imgprep/", "training/"))} == expected
    assert [name for name in found if not (ROOT / name).exists()] == []
    assert [name for name, text in found.items() if not text and name not in {"tests/", "docs/"}] == []


# Exit codes.


def test_exit_code_page_lists_the_tree_of_errors() -> None:
    rows = re.findall(
        r"^\| (\d+) \|[^|]*\|([^|]*)\|$", (DOCS / "reference" / "exit-codes.md").read_text(), re.MULTILINE
    )
    classes = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    expected: dict[int, set[str]] = {0: set(), errors.INTERRUPTED: set()}
    for kind in classes:
        expected.setdefault(kind.exit_code, set()).add(kind.__name__)

    assert {int(code): set(re.findall(r"\w+", names)) for code, names in rows} == expected
