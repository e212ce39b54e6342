"""What `MODE --help` and `describe --list` say: flags, keys of the config with their comments, recipes, networks, experiments.

All is read where it is defined, so nothing is told twice: keys and comments in the source of configs/base.py, what a recipe or an
experiment is in its docstring. Nothing is imported for it but the registry of networks, which imports JAX.
"""

import ast
import inspect
import io
import re
import textwrap
import tokenize
from pathlib import Path

import plain56
from plain56.cli import flags
from plain56.configs import base
from plain56.runs import flatten

WIDTH, INDENT = 80, 32
PACKAGE = Path(plain56.__file__).parent
WITHOUT_CONFIG = ("report", "export", "predict")
OVERRIDES = "Keys of the config, with their defaults; --config.train.steps=1000 sets one:"


def text(mode, function, usage):
    """What --help says of a mode, or of an experiment (its `usage`).

    Args:
        function: the mode's, whose docstring says what it does.
        usage: for a mode, the overview of all modes; its lines about this mode are shown.
    """
    if mode not in flags.EXPERIMENTS:
        usage = f"{mode}: {function.__doc__}\n\n{_examples(usage, mode)}"
    parts = [wrapped(usage), "Flags:\n" + _flags(mode)]
    if mode in flags.EXPERIMENTS:
        parts.append("The mode train's --help lists the keys of the config.")
    elif mode not in WITHOUT_CONFIG:
        found = described()
        recipes = found["sweeps" if mode == "sweep" else "recipes"]
        parts += [f"{OVERRIDES}\n\n{config_keys()}", "Recipes, FILE.py or FILE.py:ARGUMENT:\n" + _entries(recipes)]
        parts.append("Networks, by layers:\n" + networks_by_layers(found["networks"]))
    return "\n\n".join(parts)


def _examples(usage, mode):
    """The commands of the overview that show a mode."""
    return "\n".join(line for line in usage.splitlines() if re.match(rf"\s+\S.* {mode} ", line))


def wrapped(usage):
    """A docstring, whose commands are indented paragraphs, in lines that fit the terminal."""
    parts = [
        "\n".join(map(_command, part.split("\n"))) if part.startswith(" ") else textwrap.fill(part, WIDTH)
        for part in usage.strip().split("\n\n")
    ]
    return "\n\n".join(parts)


def _command(line):
    """A command in several lines if it is long, and then without what is said of it in brackets."""
    words = " ".join((line if len(line) <= WIDTH else re.sub(r" +\(.*", "", line)).split())
    lines = textwrap.wrap(words, WIDTH - 6, subsequent_indent="    ", break_on_hyphens=False, break_long_words=False)
    return "    " + " \\\n    ".join(lines)


def described():
    """The networks with their layers, and what the recipes, sweeps and experiments are: `{kind: [{name: …, …}]}`."""
    from plain56.models import list_models, parse_name

    files = {"recipes": "configs", "sweeps": "configs/sweeps", "experiments": "experiments"}
    found = {"networks": [{"network": name, "layers": parse_name(name)[1]} for name in list_models()]}
    return found | {kind: [_told(path, folder) for path in _modules(PACKAGE / folder)] for kind, folder in files.items()}


def networks_by_layers(networks):
    """The networks' names, a line for each number of layers."""
    by_layers = {}
    for row in sorted(networks, key=lambda row: row["layers"]):
        by_layers.setdefault(row["layers"], []).append(row["network"])
    lines = [_entry(f"  {layers}", ", ".join(names), 8) for layers, names in by_layers.items()]
    return "\n".join([*lines, "  and plainN and resnetN of any depth N = 6n + 2"])


def print_described(found):
    """Prints what `described` returned."""
    print("networks, by layers\n" + networks_by_layers(found["networks"]))
    for kind in ("recipes", "sweeps", "experiments"):
        print(f"\n{kind}\n{_entries(found[kind])}")


def _modules(folder):
    return sorted(path for path in folder.glob("*.py") if path.name not in ("__init__.py", "base.py"))


def _told(path, folder):
    """What the docstrings of a module and of its `get_config` say, in a sentence or two."""
    module = ast.parse(path.read_text(encoding="utf-8"))
    arguments = [ast.get_docstring(node) for node in module.body if getattr(node, "name", "") == "get_config"]
    name = f"{folder}/{path.name}" if folder.startswith("configs") else f"python -m plain56.{folder}.{path.stem}"
    first = (ast.get_docstring(module) or "").split("\n\n")[0].split("\n")[0]
    return {"name": name, "about": " ".join([first, *filter(None, arguments)])}


def _entries(rows):
    return "\n".join(_entry(f"  {row['name']}", row["about"]) for row in rows)


def _entry(left, text, indent=INDENT):
    """A term and what it means, beside it or, if it is long, below."""
    lines = textwrap.wrap(text, WIDTH - indent, break_on_hyphens=False)
    if len(left) > indent - 2:
        return "\n".join([left, *(" " * indent + line for line in lines)])
    return "\n".join([left.ljust(indent) + (lines or [""])[0], *(" " * indent + line for line in lines[1:])]).rstrip()


def _flags(mode):
    defined, lines = flags.all_flags(), []
    for modes, own in flags.FLAGS.items():
        if not modes or mode in modes:
            lines += [_flag(defined[name], text) for name, (_, text) in own.items()]
    if mode not in WITHOUT_CONFIG:
        lines.append(_entry("  --config=FILE", defined["config"].help))
    return "\n".join(lines)


def _flag(flag, text):
    kind, values = flag.flag_type(), getattr(flag.parser, "enum_values", ())
    value = {"bool": ""}.get(kind, "=" + ("|".join(values) or ("N" if "int" in kind else "TEXT")))
    bounds = flag.parser.syntactic_help if "int" in kind else ""
    default = f"default: {flag.default}" if flag.default not in (None, False) else ""
    about = "; ".join(filter(None, (bounds, default)))
    return _entry(f"  --{flag.name}{value}", text + (f" ({about})" if about else ""))


def config_keys():
    """The keys of configs/base.py in its order, by section, with their defaults and comments."""
    defaults = flatten(base.get_config().to_dict())
    above, beside = key_comments(inspect.getsource(base))
    places = {key: place for place, key in enumerate(beside)}
    blocks, section = [], None
    for key in sorted([*defaults, *beside.keys() - defaults.keys()], key=lambda key: places.get(key, len(places))):
        if key in defaults and key.rpartition(".")[0] != section:
            section = key.rpartition(".")[0]
            blocks += [""] * bool(blocks)
        if comment := above.get(key):
            blocks.append(textwrap.fill(comment, WIDTH, initial_indent="  # ", subsequent_indent="  # ", break_on_hyphens=False))
        if key in defaults:
            blocks.append(_entry(f"  {key}={defaults[key]}", beside.get(key, "")))
        elif comment := beside[key]:  # a section's
            blocks.append(f"\n  # {key}: {comment}")
            section = key
    return "\n".join(blocks)


def key_comments(source):
    """The comments on assignments to keys of a config, `{key: text}` in the order of the source: above them, and beside them."""
    lines, own, inline = source.splitlines(), {}, {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            is_own_line = not lines[token.start[0] - 1][: token.start[1]].strip()
            (own if is_own_line else inline)[token.start[0]] = token.string.lstrip("# ")
    above, beside = {}, {}
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Assign | ast.AnnAssign)]
    for node in sorted(nodes, key=lambda node: node.lineno):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        first = node.lineno
        while first - 1 in own:
            first -= 1
        for key in (ast.unparse(target).partition("config.")[2] for target in targets):
            if key:  # the last place is that of its default: the first one may be a helper of the recipes
                above.pop(key, None), beside.pop(key, None)
                above[key] = " ".join(own[line] for line in range(first, node.lineno))
                beside[key] = " ".join(inline[line] for line in range(node.lineno, node.end_lineno + 1) if line in inline)
    return above, beside
