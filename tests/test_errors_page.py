"""docs/errors.md: every class of error is in it and is raised by a test, its examples are messages of the code."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import typer
from conftest import CHECKOUT

from deepcluster import errors
from stages.common import run_app

PAGE = (CHECKOUT / "docs/errors.md").read_text(encoding="utf-8")
LEFT_OUT = {"slow", "gpu", "browser", "skip", "skipif", "xfail"}  # marks of tests that do not run every time
SHARE = 0.3  # of a clause that must be the message's own text, most of the rest being paths


@cache
def parsed(folder: str, pattern: str) -> list[ast.Module]:
    return [ast.parse(path.read_text(encoding="utf-8")) for path in sorted((CHECKOUT / folder).rglob(pattern))]


@cache
def error_classes() -> frozenset[str]:
    """UserError and all classes below it, wherever in the code they are defined."""
    trees = parsed("deepcluster", "*.py") + parsed("stages", "*.py")
    bases = {
        node.name: {ast.unparse(base).rpartition(".")[2] for base in node.bases}
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }
    found = {"UserError"}
    while more := {name for name, above in bases.items() if above & found} - found:
        found |= more
    return frozenset(found)


def marks(node: ast.AST) -> set[str]:
    """Names of pytest's marks on a test or a class."""
    decorators = [ast.unparse(decorator) for decorator in getattr(node, "decorator_list", [])]
    return {name for text in decorators for name in re.findall(r"pytest\.mark\.(\w+)", text)}


def expected_errors(tree: ast.Module) -> Iterator[str]:
    """Classes in a `pytest.raises(...)` of the module's tests that always run; each fails unless just that is raised.

    Not those in helpers, which nothing might call.
    """
    assigned = [ast.unparse(node) for node in tree.body if isinstance(node, ast.Assign)]
    own = " ".join(text for text in assigned if text.startswith("pytestmark"))
    if LEFT_OUT & set(re.findall(r"pytest\.mark\.(\w+)", own)):
        return
    owners = [tree, *(node for node in tree.body if isinstance(node, ast.ClassDef) and not marks(node) & LEFT_OUT)]
    for test in (node for owner in owners for node in owner.body if isinstance(node, ast.FunctionDef)):
        if test.name.startswith("test_") and not marks(test) & LEFT_OUT:
            for node in ast.walk(test):
                if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "raises":
                    yield from re.findall(r"\w+", ast.unparse(node.args[0]))


@cache
def raised_by_tests() -> frozenset[str]:
    return frozenset(name for tree in parsed("tests", "test_*.py") for name in expected_errors(tree))


def sections() -> dict[str, str]:
    """The text below each heading of a kind."""
    parts = re.split(r"^### (.+)\n", PAGE, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def test_the_classes_are_those_that_python_sees():
    here = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    assert len(here) >= 10
    assert here <= error_classes()


def test_the_page_has_a_section_on_each_and_on_nothing_else():
    assert set(sections()) == error_classes()


@pytest.mark.parametrize("name", sorted(error_classes()))
class TestEach:
    def test_it_says_what_it_means_and_what_to_do_and_shows_one(self, name):
        assert re.search(r"^\nMeans: \S", sections()[name])
        assert re.search(r"^What to do: ", sections()[name], flags=re.MULTILINE)
        assert re.search(r"^```\n(error: .+\n)+```$", sections()[name], flags=re.MULTILINE)

    def test_a_test_raises_it(self, name):
        assert name in raised_by_tests()


class TestTheWalkItself:
    def walk(self, code: str) -> list[str]:
        return list(expected_errors(ast.parse(code)))

    def test_finds_tests_alone_or_in_classes(self):
        code = "def test_a():\n    with pytest.raises(A, match='x'):\n        f()\n"
        assert self.walk(code) == ["A"]
        assert self.walk("class TestX:\n" + re.sub("^", "    ", code, flags=re.MULTILINE).rstrip()) == ["A"]
        assert self.walk("def test_a():\n    with pytest.raises((A, B)): f()\n") == ["A", "B"]

    def test_not_what_may_never_run(self):
        raises = "    with pytest.raises(A): f()\n"
        assert self.walk(f"def helper():\n{raises}") == []
        assert self.walk(f"@pytest.mark.slow\ndef test_a():\n{raises}") == []
        assert self.walk(f"pytestmark = pytest.mark.gpu\ndef test_a():\n{raises}") == []
        assert self.walk(f"@pytest.mark.skipif(True, reason='')\nclass TestX:\n  def test_a(self):\n{raises}") == []
        assert self.walk("def test_a():\n    A\n    '''pytest.raises(A)'''\n") == []

    def test_it_does_not_find_everything(self):
        assert "NoSuchError" not in raised_by_tests()
        assert len(raised_by_tests()) < 40


@cache
def texts() -> list[list[str]]:
    """Every text of the code, without what is put in: its own parts, of four letters and more."""
    found = []
    for tree in parsed("deepcluster", "*.py") + parsed("stages", "*.py"):
        for node in ast.walk(tree):
            parts = node.values if isinstance(node, ast.JoinedStr) else [node] if isinstance(node, ast.Constant) else []
            own = [part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)]
            pieces = [piece.strip() for text in own for piece in clauses(text)]
            found.append([piece for piece in pieces if len(piece) >= 4])
    return found


def clauses(text: str) -> list[str]:
    return re.split(r"; |;$|\. (?=[A-Z])", text)


def ours(clause: str) -> float:
    """The share of a clause that is some one message's own text, not what was put in."""
    return max(sum(len(part) for part in parts if part in clause) for parts in texts()) / len(clause)


@pytest.mark.parametrize("example", re.findall(r"^error: (.+)$", PAGE, flags=re.MULTILINE))
def test_examples_are_messages_of_the_code(example):
    """Clause by clause, but for values; what the code puts together of short parts is tested elsewhere."""
    composed = re.compile(
        r"params\.yaml: \S+: must be >= 2|  \S+: empty file|\S+: damaged \(.+: checksum differs\)|got \S+"
        r"|\S+: no answer within 60 s"
    )
    for clause in clauses(example):
        assert composed.fullmatch(clause) or ours(clause) >= SHARE, clause


class TestExitCodes:
    """Of the table, in the same function that every command and stage runs in."""

    def code(self, failing: type[BaseException] | None, *arguments: str) -> int:
        app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

        @app.command()
        def command() -> None:
            if failing is not None:
                raise failing("a sentence")

        with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stop:
            patch.setattr("sys.argv", ["program", *arguments])
            run_app(app)
        return int(stop.value.code or 0)

    @pytest.mark.parametrize("name", sorted(error_classes()))
    def test_every_error_is_2_and_one_line(self, name, capsys):
        assert self.code(getattr(errors, name)) == (1 if name == "LostProcessError" else 2)
        assert capsys.readouterr() == ("", "error: a sentence\n")

    def test_the_others(self, capsys):
        assert self.code(None) == 0
        assert self.code(None, "--no-such-option") == 2
        assert self.code(KeyboardInterrupt) == 130

    def test_a_bug_has_its_traceback(self):
        """Python makes exit code 1 of it."""
        with pytest.raises(ZeroDivisionError):
            self.code(ZeroDivisionError)

    def test_the_page_lists_them(self):
        assert re.findall(r"^\| (\d+) \|", PAGE, flags=re.MULTILINE) == ["0", "1", "2", "130"]


def test_links_on_both_pages_lead_somewhere():
    for page in ("errors", "safety"):
        text = (CHECKOUT / f"docs/{page}.md").read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([\w.-]+)\)", text) + re.findall(r"`(tests/\w+\.py)`", text):
            assert (CHECKOUT / "docs" / target).exists() or (CHECKOUT / target).exists(), target
        assert all(len(line) <= 400 for line in text.splitlines())


def test_tests_named_on_the_page_about_safety_are_there():
    assert len(set(re.findall(r"`(tests/\w+\.py)`", Path(CHECKOUT / "docs/safety.md").read_text()))) >= 8
