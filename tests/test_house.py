"""The bounds that keep the house readable: a stranger sees a function whole, and a file in one sitting."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MOST_FILE_LINES, MOST_FUNCTION_LINES, MOST_ARGUMENTS = 400, 70, 8
# Not configs: a recipe is a list of keys.
FILES = [ROOT / "launch.py", *sorted((ROOT / "src/plain56").rglob("*.py")), *sorted((ROOT / "experiments").rglob("*.py"))]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_files_and_functions_stay_small(file):
    text = file.read_text()
    assert len(text.splitlines()) <= MOST_FILE_LINES
    for function in ast.walk(ast.parse(text)):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            names = [argument.arg for argument in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)]
            assert len([name for name in names if name not in ("self", "cls")]) <= MOST_ARGUMENTS, function.name
            assert function.end_lineno - function.lineno < MOST_FUNCTION_LINES, function.name
