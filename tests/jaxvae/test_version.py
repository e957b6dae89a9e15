"""The version of the library, `jaxvae.__version__`."""

import subprocess
import sys
from importlib import metadata

import pytest

import jaxvae


def test_version_is_that_of_the_installed_package():
    assert jaxvae.__version__ == metadata.version("jaxvae")


def test_version_of_a_clone_that_is_not_installed_is_unknown(monkeypatch):
    def absent(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", absent)
    assert jaxvae.__version__ == "0+unknown"


def test_the_package_rejects_other_unknown_attributes():
    with pytest.raises(AttributeError, match="module 'jaxvae' has no attribute 'missing'"):
        _ = jaxvae.missing


def test_import_does_not_read_the_version():
    code = (
        "from importlib import metadata\n"
        "read = metadata.version\n"
        "def version(name):\n"
        "    assert name != 'jaxvae'\n"
        "    return read(name)\n"
        "metadata.version = version\n"
        "import jaxvae\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
