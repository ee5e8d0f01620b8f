"""The library as scripts use it: what README and docs/library.md show runs as it stands there."""

import re
import subprocess
import sys

import pytest

import replib
from replib import files

BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize("document", ["README.md", "docs/library.md"])
def test_a_documents_examples_run_one_after_the_other(document, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = "\n".join(BLOCK.findall((files.ROOT / document).read_text(encoding="utf-8")))
    fewer, n_changed = re.subn(r"n_steps=\d+", "n_steps=4", code)
    assert n_changed == 1, "there is one training to shorten"
    exec(compile(fewer, document, "exec"), {"__name__": document})


def test_names_of_the_package_are_imported_when_asked_for():
    assert all(getattr(replib, name).__name__ == name for name in replib.__all__ if name.islower())
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        replib.nothing  # noqa: B018
    program = "import replib, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
