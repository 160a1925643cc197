"""The Python in README.md and docs/contract.md runs as it stands there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def blocks(page: str) -> str:
    """All Python blocks of a page, in order, as one program."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return "\n".join(re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL))


@pytest.mark.parametrize("page", ["README.md", "docs/contract.md"])
def test_the_code_of_a_page_runs(page, capsys):
    program = blocks(page)
    assert program.strip()
    exec(compile(program, page, "exec"), {"__name__": "page"})
    if page == "README.md":
        assert capsys.readouterr().out.startswith("2 1\nsuccess")
