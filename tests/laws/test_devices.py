"""That several processes are several: a law that compares them with one would hold for one."""

import re
from pathlib import Path

from tests.launch import launch

SCRIPT = """
from genvis.devices import processes

state = processes()
print(f"process {state.process_index} of {state.num_processes}", flush=True)
"""


def test_launched_processes_know_of_each_other(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    said = launch(2, tmp_path / "script.py").stdout
    assert sorted(re.findall(r"process \d of \d", said)) == ["process 0 of 2", "process 1 of 2"]
