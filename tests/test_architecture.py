"""Who may import whom, and what an import sets off."""

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import experiments
import jaxvae

ROOT = Path(jaxvae.__file__).parents[1]
MAY_IMPORT = {
    "cpu": set(),
    "leaves": set(),
    "distributions": {"cpu", "leaves"},
    "flows": {"distributions"},
    "adapters": {"distributions"},
    "divergences": {"distributions"},
    "bounds": {"distributions", "divergences", "leaves"},
    "regularizers": {"distributions", "divergences", "leaves"},
    "networks": {"cpu"},
    "models": {"distributions", "flows", "leaves", "networks"},
    "training": {"bounds", "cpu", "distributions", "leaves", "models", "regularizers"},
    "checkpoints": {"models"},
    "evaluation": {"bounds", "distributions", "models", "training"},
    "testing": {"distributions", "divergences"},
}
"""Layer by layer: what each file, or folder, of jaxvae takes from the others."""
FLOORS = [
    {"flags"},
    {"record", "machine"},
    {"data"},
    {"show"},
    {"run"},
    {"train", "evaluate", "sample", "encode", "replay"},
    {"benchmark", "torture", "examples"},
]
"""The folders and commands of experiments, lowest first: imports go down or stay in a folder."""
OUTSIDE = {
    "cpu": {"flax"},
    "networks": {"flax"},
    "models": {"flax"},
    "regularizers": {"optax"},
    "training": {"optax"},
    "checkpoints": {"orbax", "tempfile"},
}
"""What each imports besides jax, numpy and what is no side effect in the standard library."""
SIDE_EFFECTS = {"argparse", "logging", "os", "random", "subprocess", "sys", "tempfile", "time"}
VAGUE = {"util", "utils", "helper", "helpers", "common", "core", "misc", "base", "shared"}
MAX_LINES_OF_FUNCTION = 60
"""Without its docstring."""


def dotted(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {
    dotted(path): path
    for package in ("jaxvae", "experiments")
    for path in sorted((ROOT / package).rglob("*.py"))
}
LIBRARY = [name for name in FILES if name.startswith("jaxvae.")]

every_file = pytest.mark.parametrize("name", FILES)
every_module = pytest.mark.parametrize("name", LIBRARY)


def tree(name):
    return ast.parse(FILES[name].read_text())


def imports(nodes):
    """Modules that import statements name; `from package import module` is an import of both."""
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            submodules = {f"{node.module}.{alias.name}" for alias in node.names} & FILES.keys()
            found |= {node.module} | submodules
    return found


def layer(name):
    """The file or folder of a package that holds a module: "bounds" of "jaxvae.bounds.elbo"."""
    return name.split(".")[1]


def names_used(name):
    """Every identifier that the code of a file mentions; docstrings and comments do not count."""
    used = set()
    for node in ast.walk(tree(name)):
        used |= {getattr(node, field, None) for field in ("id", "attr", "name", "module")}
    return {part for text in used if isinstance(text, str) for part in text.split(".")}


def run_python(code):
    """A fresh interpreter's standard output, in which jax has not started."""
    command = [sys.executable, "-W", "error", "-c", code]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def loaded(code, candidates):
    """Those of the packages that are loaded after the code."""
    report = f"import sys; print(*[name for name in {candidates} if name in sys.modules])"
    return run_python(f"{code}\n{report}").split()


# Law


@every_module
def test_each_layer_imports_only_those_below_it(name):
    assert layer(name) in MAY_IMPORT, "a new file: say in MAY_IMPORT what it may import"
    ours = {module for module in imports(ast.walk(tree(name))) if module.startswith("jaxvae")}
    assert {layer(module) for module in ours} <= MAY_IMPORT[layer(name)] | {layer(name)}


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("experiments.")])
def test_each_experiment_imports_only_floors_below_it(name):
    """Imports inside functions too."""
    ours = {module for module in imports(ast.walk(tree(name))) if module.startswith("experiments.")}
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    other = {layer(module) for module in ours} - {layer(name)}
    assert all(floor[room] < floor[layer(name)] for room in other)


@every_module
def test_each_module_imports_only_its_own_share_of_the_outside(name):
    """So jaxvae never imports experiments, tfds, files, flags or clocks."""
    modules = {module.split(".")[0] for module in imports(ast.walk(tree(name)))}
    outside = modules - {"jaxvae", "jax", "numpy"}
    assert outside - set(sys.stdlib_module_names) <= OUTSIDE.get(layer(name), set())
    assert not outside & SIDE_EFFECTS - OUTSIDE.get(layer(name), set())


def test_families_of_distributions_know_the_protocol_only_and_are_used_as_one_package():
    inner = "jaxvae.distributions."
    for name in LIBRARY:
        found = {module for module in imports(ast.walk(tree(name))) if module.startswith(inner)}
        if name.startswith(inner):
            shared = ("distribution", "bessel", "count_draws", "rejection")
            shared += ("requirements", "scaled_difference", "stirling")
            assert found <= {inner + module for module in shared}
        elif name != "jaxvae.distributions":
            assert not found


@pytest.mark.parametrize("package", ["jaxvae", "experiments"])
def test_there_are_no_import_cycles(package):
    """Among imports that run when a module is loaded: those inside functions come later."""
    graph = {
        name: (imports(tree(name).body) & FILES.keys()) - {name}
        for name in FILES
        if name.split(".")[0] == package
    }
    assert len(graph) > 10
    TopologicalSorter(graph).prepare()


@every_file
def test_only_parallel_says_pmap(name):
    assert ("pmap" in names_used(name)) == (name == "jaxvae.training.devices")


@every_file
def test_nothing_leans_on_the_inside_of_jax_or_on_what_flax_gives_up(name):
    assert not names_used(name) & {"_src", "jax_utils", "train_state"}
    assert "flax.training" not in " ".join(imports(ast.walk(tree(name))))


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("experiments")])
def test_experiments_reach_networks_and_files_of_checkpoints_through_jaxvae(name):
    modules = imports(ast.walk(tree(name)))
    beyond = {"flax", "orbax", "chex", "tests"}
    if name == "experiments.benchmark.flax_script" or name.startswith("experiments.examples."):
        beyond.remove("flax")  # it is measured, or shown
    assert not {module.split(".")[0] for module in modules} & beyond
    inner = {module for module in modules if module.startswith("jaxvae.distributions.")}
    assert not inner


@every_file
def test_functions_are_short_and_files_say_what_they_are(name):
    text = FILES[name].read_text()
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.FunctionDef):
            about = ast.get_docstring(node, clean=False)
            lines = node.end_lineno - node.lineno + 1 - (about.count("\n") + 1 if about else 0)
            assert lines <= MAX_LINES_OF_FUNCTION, node.name
    assert not VAGUE & set(name.split(".")[-1].split("_"))
    assert ast.get_docstring(tree(name)) or not text.strip()


def test_only_commands_can_be_run():
    """Those that the package names, and the scripts make_*.py beside what they have made."""
    guarded = {
        name.removesuffix(".__main__")
        for name in FILES
        for node in tree(name).body
        if isinstance(node, ast.If) and "__name__" in ast.unparse(node.test)
    }
    commands = re.search(r"python -m experiments\.([\w| ]+\w)", experiments.__doc__)[1]
    expected = {f"experiments.{command.strip()}" for command in commands.split("|")}
    assert {name for name in guarded if not name.split(".")[-1].startswith("make_")} == expected
    assert not any(name.startswith("jaxvae") for name in guarded)


@pytest.mark.parametrize("name", jaxvae.__all__)
def test_what_the_library_offers_is_there_and_described(name):
    """By a docstring of its own: NamedTuples and dataclasses have one that repeats their fields."""
    thing = getattr(jaxvae, name)
    assert thing.__doc__
    assert not re.fullmatch(rf"{name}\(.*\)", thing.__doc__)
    assert thing.__module__.startswith("jaxvae.")
    assert ">>>" in thing.__doc__ or name == "Distribution"  # a protocol has nothing to run


def test_the_library_offers_all_that_it_imports_once_and_nothing_foreign():
    statements = [node for node in tree("jaxvae").body if isinstance(node, ast.ImportFrom)]
    assert {module.split(".")[0] for module in imports(statements)} == {"jaxvae"}
    assert sorted(jaxvae.__all__) == sorted(
        alias.name for node in statements for alias in node.names
    )


def test_importing_jaxvae_starts_no_backend_and_loads_nothing_heavy():
    heavy = ["orbax", "matplotlib", "tensorflow_datasets", "tensorflow", "tyro", "chex"]
    assert loaded("import jaxvae", [*heavy, "experiments"]) == []
    assert loaded("import jaxvae.checkpoints", ["orbax"]) == []
    assert loaded("from jaxvae.checkpoints import load", ["orbax"]) == ["orbax"]
    modules = "\n".join(f"import {name}" for name in LIBRARY)
    start = "jax.config.update('jax_platforms', 'cpu')\njax.config.update('jax_num_cpu_devices', 3)"
    assert run_python(f"{modules}\nimport jax\n{start}\nprint(len(jax.devices()))") == "3"


def test_flags_are_read_before_jax_is_imported():
    """So that --help answers at once, and that the device can still be chosen."""
    commands = ["flags.config", "flags.command", "machine.accelerators", "benchmark.__main__"]
    commands += ["train", "evaluate", "sample", "encode"]
    code = "\n".join(f"import experiments.{name}" for name in commands)
    assert loaded(code, ["jax", "jaxvae", "numpy", "matplotlib", "tensorflow_datasets"]) == []
