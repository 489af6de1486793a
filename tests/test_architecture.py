"""The house rules that a machine can check."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "whet"
FILES = sorted(SOURCE.rglob("*.py"))
LAYERS = [
    {"errors", "pending", "secrets", "types", "randomness", "ranks", "storage"},
    {"config"},
    {"paths"},
    {
        "data",
        "lexicon",
        "task",
        "model",
        "peft",
        "augmentation",
        "objective",
        "averaging",
        "optimizer",
        "scheduler",
        "tracking",
    },
    {"debug", "evaluation", "sweep"},
    {"engine"},
    {"review", "runs"},
    {"cli"},
]


def name_of(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path, top_level: bool) -> set[str]:
    """whet modules that `path` imports; with `top_level` only those that run on import."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    lazy = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) or _is_type_checking(node)
        for inner in ast.walk(node)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if top_level and id(node) in lazy:
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("whet"):
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {item if module_exists(item) else node.module for item in full}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("whet")}
    return found


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def module_exists(name: str) -> bool:
    path = SOURCE.parent.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def cycles(graph: dict[str, set[str]]) -> list[str]:
    """Modules on a circle, by removing leaves until none is left."""
    left = {node: set(targets) & set(graph) for node, targets in graph.items()}
    while leaves := [node for node, targets in left.items() if not targets]:
        for leaf in leaves:
            del left[leaf]
        for targets in left.values():
            targets.difference_update(leaves)
    return sorted(left)


def test_cycles_finds_a_circle():
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == ["a", "b", "c", "d"]
    assert cycles({"a": {"b"}, "b": set()}) == []


def test_import_graph_is_acyclic():
    graph = {name_of(path): imports(path, top_level=True) for path in FILES}
    assert len(graph) > 60
    assert cycles(graph) == []


def test_imports_point_one_way():
    level = {name: number for number, names in enumerate(LAYERS) for name in names}
    wrong = []
    for path in FILES:
        own = room(name_of(path))
        for target in imports(path, top_level=True):
            if own in level and room(target) in level and level[room(target)] > level[own]:
                wrong.append(f"{name_of(path)} imports {target}")
    assert wrong == []


@pytest.mark.parametrize(("one", "other"), [("task", "model"), ("model", "task")])
def test_task_and_model_do_not_know_each_other(one, other):
    for path in (SOURCE / one).glob("*.py"):
        assert not [name for name in imports(path, top_level=True) if room(name) == other], path


def functions() -> list[tuple[str, int]]:
    found = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                start = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
                found.append((f"{path.name}:{node.name}", (node.end_lineno or 0) - start.lineno + 1))
    return found


def test_functions_are_short():
    lengths = sorted(length for _, length in functions())
    assert lengths[len(lengths) // 2] <= 12
    assert lengths[int(len(lengths) * 0.9)] <= 40
    assert sum(length > 60 for length in lengths) < 0.02 * len(lengths)


def test_no_assert_outside_the_two_invariants():
    """What a user can cause is raised; asserts state what can't happen and are few."""
    found = [
        path.name
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Assert)
    ]
    assert len(found) <= 2, found


def calls() -> list[tuple[Path, str, ast.Call]]:
    """(file, dotted name of what is called, call) for every call in the package."""
    return [
        (path, ast.unparse(node.func), node)
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
    ]


def test_no_eval_exec_or_pickle():
    assert len(calls()) > 1000
    for path, name, call in calls():
        assert name not in {"eval", "exec", "pickle.load", "pickle.loads", "yaml.load", "os.system"}, path
        if name == "torch.load":
            assert any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in call.keywords), (
                path
            )
        assert not any(k.arg == "shell" for k in call.keywords), path


HEAVY = "torch,transformers,peft,wandb,datasets,sklearn,matplotlib,tensorboard,optuna"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["train", "--help"],
        ["train", "--cfg", "job"],
        ["runs", "--help"],
        ["completion", "query", "whet train optimizer."],
    ],
)
def test_light_commands_load_nothing_heavy(arguments, tmp_path):
    code = (
        "import sys; from whet.cli.main import main; "
        f"code = main({arguments!r}); "
        f"heavy = [n for n in '{HEAVY}'.split(',') if n in sys.modules]; "
        "sys.exit(str(heavy) if heavy or code else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_every_target_module_imports_light(tmp_path):
    """Composing a config imports the modules it names: none of them may load torch."""
    code = (
        "import sys; from whet.config import conf_dir, resolve; import re\n"
        "names = {n for p in conf_dir().rglob('*.yaml') for n in re.findall(r'_target_: (whet\\.\\S+)', p.read_text())}\n"
        "names -= {n for n in names if n.startswith('whet.cli')}\n"
        "[resolve(n) for n in names]\n"
        f"heavy = [n for n in '{HEAVY}'.split(',') if n in sys.modules]\n"
        "sys.exit(str(heavy) if heavy or len(names) < 25 else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
