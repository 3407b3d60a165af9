"""What the README says can be typed can be typed."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest

from splatgen import cli
from splatgen.commands import generate
from splatgen.commands.common import arguments
from splatgen.config import presets

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
LINES = [line for block in BLOCKS for line in block.splitlines() if line.strip()]
SPLATGEN = [words for line in LINES if "splatgen" in (words := shlex.split(line, comments=True))[0]]


def test_the_readme_shows_every_verb():
    assert {words[1] for words in SPLATGEN} == set(cli.VERBS)


@pytest.mark.parametrize("words", [w for w in SPLATGEN if w[1] == "generate"], ids=" ".join)
def test_generate_lines_are_read(words, tmp_path):
    (tmp_path / "my.toml").write_text("steps = 5\n")
    argv = [str(tmp_path / w) if w == "my.toml" else w for w in words[2:]]
    options, config = generate.read(cli.prepared("generate", argv))
    assert config.prompt
    assert options.preset is None or options.preset in presets()


KINDS = {
    verb: getattr(importlib.import_module(module), verb.title()) for verb, (module, _) in cli.VERBS.items()
}
PAGES = [ROOT / "README.md", ROOT / "benchmarks" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands():
    """Lines of code on all pages that begin with `splatgen`; dots and brackets stand for something else."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        code = "\n".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL))
        lines = [*code.splitlines(), *re.findall(r"^ {4}(splatgen .*)$", text, re.MULTILINE)]
        for line in lines:
            if line.startswith("splatgen ") and not re.search(r"\.\.\.|[\[\]]|VERB", line):
                yield pytest.param(shlex.split(line, comments=True)[1:], id=f"{page.name}: {line}"[:90])


@pytest.mark.parametrize("words", commands())
def test_every_line_that_can_be_typed_is_understood(words):
    """As far as a verb reads it before it looks for models and files."""
    if words[0].startswith("-"):
        assert cli.main(words) == 0
        return
    assert arguments.parse(KINDS[words[0]], words[0], cli.prepared(words[0], words[1:]))


def test_make_targets_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    shown = {line.split()[1] for line in LINES if line.startswith("make ")}
    assert shown
    assert shown <= targets


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\(([^)#]+)\)", README))))
def test_links_lead_somewhere(path):
    assert path.startswith("https://") or (ROOT / path).exists()


@pytest.mark.parametrize("name", sorted(set(re.findall(r"benchmarks/\w+\.py", README))))
def test_benchmarks_exist(name):
    assert (ROOT / name).is_file()


def test_the_python_example_runs(tmp_path, monkeypatch):
    """With less of everything, and the small prior."""
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    less = 'prior="toybox-mini", device="cpu", progress=False, output={"frames": 0, "size": 32}, steps=2'
    tiny, changed = re.subn(r"steps=\d+", less, code)
    assert changed == 2
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    runpy_code = compile(tiny, "README.md", "exec")
    exec(runpy_code, names)
    assert (tmp_path / "cone.spz").is_file()
    assert names["pictures"].rgb.shape == (3, 256, 256, 3)
