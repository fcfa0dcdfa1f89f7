"""Every Python block of the README runs, one after the other, only shorter."""

import re
from pathlib import Path

import pytest

from rl_lightning import PPO

README = Path(__file__).resolve().parents[1] / "README.md"
SHORTER = {
    "300_000": "1_500",
    "100_000": "2_000",
    "10_000": "1_000",
    "20_000": "300",
    "2_000, outdir": "100, outdir",
    "=100,": "=3,",
}


@pytest.mark.timeout(240)
def test_python_blocks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) >= 4
    names = {"my_agent": PPO()}
    for block in blocks:
        for long, short in SHORTER.items():
            block = block.replace(long, short)
        exec(block, names)
    assert len(names["result"].returns) == 3
    assert (tmp_path / "results/best/agent.ckpt").exists()


def test_configs_examples_and_benchmarks_that_are_named_exist():
    text = README.read_text()
    for path in re.findall(r"(?:configs|examples)/\w+\.\w+", text):
        assert (README.parent / path).exists(), path
    for module in re.findall(r"python -m tests\.benchmarks\.(\w+)", text):
        assert (README.parent / f"tests/benchmarks/{module}.py").exists(), module
