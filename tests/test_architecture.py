"""Architecture rules: allowed imports, side effects of imports, and length of functions."""

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
    "checkpoints": {"models", "preprocessing", "trained"},
    "evaluation": {"bounds", "distributions", "leaves", "models", "training"},
    "preprocessing": {"cpu"},
    "trained": {
        *("bounds", "distributions", "evaluation", "leaves", "models", "preprocessing"),
        "training",
    },
    "fitting": {
        *("bounds", "checkpoints", "cpu", "evaluation", "models", "preprocessing"),
        *("trained", "training"),
    },
    "testing": {"distributions", "divergences"},
}
"""File or folder of jaxvae -> the others that it may import."""
FLOORS = [
    {"flags"},
    {"record", "machine"},
    {"data"},
    {"show"},
    {"run"},
    {"train", "evaluate", "sample", "encode", "score", "replay"},
    {"benchmark", "torture", "examples"},
]
"""Folders and commands of experiments, lowest floor first; imports go down or stay in a folder."""
OUTSIDE = {
    "cpu": {"flax"},
    "networks": {"flax"},
    "models": {"flax"},
    "regularizers": {"optax"},
    "training": {"optax"},
    "checkpoints": {"orbax", "tempfile"},
    "fitting": {"optax", "sys", "time"},
}
"""File or folder -> packages it may import besides jax, numpy and harmless standard modules."""
SIDE_EFFECTS = {"argparse", "logging", "os", "random", "subprocess", "sys", "tempfile", "time"}
VAGUE = {"util", "utils", "helper", "helpers", "common", "core", "misc", "base", "shared"}
MAX_LINES_OF_FUNCTION = 60
"""Most lines of a function, without its docstring."""


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
    """Return the modules that import statements name; `from package import module` names both."""
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
    """Return a module's file or folder in its package: "bounds" for "jaxvae.bounds.elbo"."""
    return name.split(".")[1]


def names_used(name):
    """Return every identifier in the code of a file, not in docstrings or comments."""
    used = set()
    for node in ast.walk(tree(name)):
        used |= {getattr(node, field, None) for field in ("id", "attr", "name", "module")}
    return {part for text in used if isinstance(text, str) for part in text.split(".")}


def run_python(code):
    """Run code in a fresh interpreter, where jax has not started; return its standard output."""
    command = [sys.executable, "-W", "error", "-c", code]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def loaded(candidates, *parts):
    """Return the candidate packages that are loaded after each part of a program has run."""
    report = f"import sys; print(*[name for name in {candidates} if name in sys.modules], '.')"
    lines = run_python("\n".join(f"{part}\n{report}" for part in parts)).splitlines()
    return [line.split()[:-1] for line in lines]


@every_module
def test_each_layer_imports_only_those_below_it(name):
    assert layer(name) in MAY_IMPORT, "a new file: list its allowed imports in MAY_IMPORT"
    ours = {module for module in imports(ast.walk(tree(name))) if module.startswith("jaxvae")}
    assert {layer(module) for module in ours} <= MAY_IMPORT[layer(name)] | {layer(name)}


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("experiments.")])
def test_each_experiment_imports_only_floors_below_it(name):
    """Imports inside functions count, too."""
    ours = {module for module in imports(ast.walk(tree(name))) if module.startswith("experiments.")}
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    other = {layer(module) for module in ours} - {layer(name)}
    assert all(floor[room] < floor[layer(name)] for room in other)


@every_module
def test_each_module_imports_only_its_allowed_packages(name):
    """The library never imports experiments, tfds, files, flags or clocks."""
    modules = {module.split(".")[0] for module in imports(ast.walk(tree(name)))}
    outside = modules - {"jaxvae", "jax", "numpy"}
    assert outside - set(sys.stdlib_module_names) <= OUTSIDE.get(layer(name), set())
    assert not outside & SIDE_EFFECTS - OUTSIDE.get(layer(name), set())


def test_distribution_families_import_only_shared_modules_and_are_imported_as_a_package():
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
    """Only imports that run when a module is loaded count, not those inside functions."""
    graph = {
        name: (imports(tree(name).body) & FILES.keys()) - {name}
        for name in FILES
        if name.split(".")[0] == package
    }
    assert len(graph) > 10
    TopologicalSorter(graph).prepare()


@every_file
def test_only_the_devices_module_uses_pmap(name):
    assert ("pmap" in names_used(name)) == (name == "jaxvae.training.devices")


@every_file
def test_no_module_uses_private_jax_or_deprecated_flax(name):
    assert not names_used(name) & {"_src", "jax_utils", "train_state"}
    assert "flax.training" not in " ".join(imports(ast.walk(tree(name))))


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("experiments")])
def test_experiments_use_flax_and_orbax_only_through_jaxvae(name):
    modules = imports(ast.walk(tree(name)))
    beyond = {"flax", "orbax", "chex", "tests"}
    if name == "experiments.benchmark.flax_script" or name.startswith("experiments.examples."):
        beyond.remove("flax")  # these files measure or demonstrate Flax itself
    assert not {module.split(".")[0] for module in modules} & beyond
    inner = {module for module in modules if module.startswith("jaxvae.distributions.")}
    assert not inner


@every_file
def test_functions_are_short_and_files_have_a_docstring_and_a_clear_name(name):
    text = FILES[name].read_text()
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.FunctionDef):
            about = ast.get_docstring(node, clean=False)
            lines = node.end_lineno - node.lineno + 1 - (about.count("\n") + 1 if about else 0)
            assert lines <= MAX_LINES_OF_FUNCTION, node.name
    assert not VAGUE & set(name.split(".")[-1].split("_"))
    assert ast.get_docstring(tree(name)) or not text.strip()


def test_only_documented_commands_and_make_scripts_can_be_run():
    """The docstring of experiments names the commands; make_*.py scripts write the files beside."""
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
def test_every_public_name_exists_and_has_a_docstring_with_an_example(name):
    """The docstring is not the automatic one of NamedTuples and dataclasses."""
    thing = getattr(jaxvae, name)
    assert thing.__doc__
    assert not re.fullmatch(rf"{name}\(.*\)", thing.__doc__)
    assert thing.__module__.startswith("jaxvae.")
    assert ">>>" in thing.__doc__ or name == "Distribution"  # a protocol has nothing to run


def test_public_names_are_exactly_the_imports_from_jaxvae_modules():
    statements = [node for node in tree("jaxvae").body if isinstance(node, ast.ImportFrom)]
    assert {module.split(".")[0] for module in imports(statements)} == {"jaxvae"}
    assert sorted(jaxvae.__all__) == sorted(
        alias.name for node in statements for alias in node.names
    )


def test_importing_jaxvae_starts_no_backend_and_loads_nothing_heavy():
    heavy = ["orbax", "matplotlib", "tensorflow_datasets", "tensorflow", "tyro", "chex"]
    modules = "\n".join(f"import {name}" for name in LIBRARY)
    start = "import jax\njax.config.update('jax_platforms', 'cpu')\n"
    start += "jax.config.update('jax_num_cpu_devices', 3)\nassert len(jax.devices()) == 3"
    after_jaxvae, after_checkpoints, after_load, _ = loaded(
        [*heavy, "experiments"],
        "import jaxvae",
        "import jaxvae.checkpoints",
        "from jaxvae.checkpoints import load",
        f"{modules}\n{start}",
    )
    assert after_jaxvae == after_checkpoints == []
    assert "orbax" in after_load


def test_flags_are_read_before_jax_is_imported():
    """This makes --help fast, and allows the commands to choose the device first."""
    commands = ["flags.config", "flags.command", "machine.accelerators", "benchmark.__main__"]
    commands += ["train", "evaluate", "sample", "encode", "score"]
    code = "\n".join(f"import experiments.{name}" for name in commands)
    heavy = ["jax", "jaxvae", "numpy", "matplotlib", "tensorflow_datasets"]
    assert loaded(heavy, code) == [[]]
