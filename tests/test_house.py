"""What keeps the house readable: a function on a screen, a file in one sitting, and plain American English."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MOST_FILE_LINES, MOST_FUNCTION_LINES, MOST_ARGUMENTS = 400, 70, 8
ROOMS = ("src/plain56", "configs", "experiments", "tests")
FILES = [ROOT / "launch.py", *(file for room in ROOMS for file in sorted((ROOT / room).rglob("*.py")))]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "src/plain56/ops").glob("*.[ch]*"))]
# Subject first, and American. What earlier versions called their keys and protocols stays where it is told.
FOREIGN = re.compile(
    r"\b(?:needed|allowed) (?:is|are)\b|\b(?:centre|grey)s?\b|colour|behaviour|neighbour"
    r"|(?:initial|normal|material|optim|summar|serial)is(?:e[drs]?|ing|ation)\b",
    re.IGNORECASE,
)
NAMES_THAT_STAY = re.compile(r"""model\.normalise\b|["]normalise["]|augment\.colour|["`]colour["`]|`centre`""")


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_files_and_functions_stay_small(file):
    text = file.read_text()
    assert len(text.splitlines()) <= MOST_FILE_LINES
    for function in ast.walk(ast.parse(text)):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            names = [argument.arg for argument in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)]
            assert len([name for name in names if name not in ("self", "cls")]) <= MOST_ARGUMENTS, function.name
            assert function.end_lineno - function.lineno < MOST_FUNCTION_LINES, function.name


@pytest.mark.parametrize("file", [*FILES, *PAGES], ids=lambda file: str(file.relative_to(ROOT)))
def test_words(file):
    if file != Path(__file__):
        assert not FOREIGN.findall(NAMES_THAT_STAY.sub("", file.read_text()))
