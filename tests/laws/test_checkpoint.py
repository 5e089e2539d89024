"""Files are whole or absent, and what does not fit is refused by name."""

import json
from pathlib import Path

import huggingface_hub
import pytest
import torch
from torch import Tensor, nn

from genvis.checkpoint import (
    atomic_folder,
    atomic_write,
    check_target,
    from_pretrained,
    load_state,
    load_tensors,
    open_run,
    push_to_hub,
    read_folder,
    save_folder,
    save_pretrained,
    save_tensors,
)
from genvis.config import ConfigError, Table, config

NETS = Table("net", {"tiny": f"{__name__}:TinyConfig", "deep": f"{__name__}:DeepConfig"})


@config
class TinyConfig:
    width: int = 3

    def build(self) -> "Tiny":
        return Tiny(self)


@config
class DeepConfig:
    width: int = 3

    def build(self) -> "Deep":
        return Deep(self)


class Tiny(nn.Module):
    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.config = config
        self.lin = nn.Linear(config.width, 2)
        self.register_buffer("count", torch.tensor(7))


class Deep(nn.Module):
    def __init__(self, config: DeepConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.Sequential(*[nn.Linear(config.width, config.width) for _ in range(4)])


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a
    )


def test_tensors_round_trip_with_views_and_shared_memory(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {
        "base": base,
        "transposed": base.T,
        "row": base[1],
        "same": base,
        "half": base.bfloat16(),
        "flag": torch.tensor(True),
        "none": torch.zeros(0, 3),
        "weight": nn.Parameter(torch.ones(2)),
    }
    path = tmp_path / "new" / "x.safetensors"
    save_tensors(path, tensors, {"made": "here"})
    assert equal(load_tensors(path), {k: v.detach().contiguous() for k, v in tensors.items()})
    assert names(path.parent) == ["x.safetensors"]


def test_damaged_files_are_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with pytest.raises(ValueError, match=r"x\.safetensors: no such file"):
        load_tensors(path)
    save_tensors(path, {"a": torch.ones(1000)})
    whole = path.read_bytes()
    for damaged in (whole[:-100], whole[:20], b"", b"not tensors at all"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"x\.safetensors: truncated or not a safetensors"):
            load_tensors(path)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    atomic_write(path, "old")
    with pytest.raises(UnicodeEncodeError):
        atomic_write(path, "new \ud800")
    assert path.read_text() == "old"
    atomic_write(path, b"new")
    assert path.read_bytes() == b"new"
    save_tensors(tmp_path / "t", {"a": torch.ones(1)})
    with pytest.raises(Exception, match="str"):
        save_tensors(tmp_path / "t", {"a": torch.zeros(1)}, {"a": 1})  # type: ignore[dict-item]
    assert load_tensors(tmp_path / "t")["a"].item() == 1
    assert names(tmp_path) == ["a.txt", "t"]


def crash_while_writing(target: Path) -> None:
    with atomic_folder(target) as new:
        (new / "a").write_text("half")
        raise RuntimeError("crash")


def test_a_crash_in_atomic_folder_leaves_the_old_one_whole(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with pytest.raises(RuntimeError, match="crash"):
        crash_while_writing(target)
    assert names(tmp_path) == []
    with atomic_folder(target) as new:
        (new / "a").write_text("1")
        (new / "sub").mkdir()
        assert not target.exists()
    with pytest.raises(RuntimeError, match="crash"):
        crash_while_writing(target)
    assert names(tmp_path) == ["model"]
    assert (target / "a").read_text() == "1"
    with atomic_folder(target) as new:
        (new / "b").write_text("3")
    assert names(target) == ["b"]
    assert names(tmp_path) == ["model"]


def test_load_state_names_what_does_not_fit() -> None:
    deep = DeepConfig().build()
    state = deep.state_dict()
    wrong = {f"old.{name}": value for name, value in state.items() if "weight" in name}
    wrong |= {name: value for name, value in state.items() if "bias" in name}
    wrong["layers.0.bias"] = torch.zeros(5)
    wrong["layers.1.bias"] = torch.zeros(3, dtype=torch.int64)
    before = {name: value.clone() for name, value in state.items()}
    with pytest.raises(ValueError, match="does not fit") as caught:
        load_state(deep, wrong, "file.pt")
    assert str(caught.value) == (
        "file.pt: does not fit Deep: "
        "4 missing (layers.0.weight, layers.1.weight, layers.2.weight, ...); "
        "4 extra (old.layers.0.weight, old.layers.1.weight, old.layers.2.weight, ...); "
        "1 of another shape (layers.0.bias (5,) instead of (3,)); "
        "1 of another type (layers.1.bias int64 instead of float32)"
    )
    assert equal(deep.state_dict(), before)


def test_load_state_loses_no_digits() -> None:
    net = TinyConfig().build()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    low = {k: v.bfloat16() if v.is_floating_point() else v for k, v in state.items()}
    load_state(net, low, "low")
    assert torch.equal(net.lin.weight, low["lin.weight"].float())
    with pytest.raises(ValueError, match=r"lin\.weight float32 instead of bfloat16"):
        load_state(net.bfloat16(), state, "high")


def test_pretrained_round_trip(tmp_path: Path) -> None:
    net = TinyConfig(width=5).build()
    save_pretrained(net, tmp_path / "m", NETS)
    assert names(tmp_path / "m") == ["config.json", "model.safetensors"]
    saved = json.loads((tmp_path / "m" / "config.json").read_text())
    assert saved == {"name": "tiny", "width": 5}
    again = from_pretrained(tmp_path / "m", NETS)
    assert again.config == net.config
    assert equal(again.state_dict(), net.state_dict())
    assert not again.training
    save_pretrained(TinyConfig(width=4).build(), tmp_path / "m", NETS)  # a model may be replaced
    assert from_pretrained(str(tmp_path / "m"), NETS).config == TinyConfig(width=4)


def test_other_content_is_not_replaced(tmp_path: Path) -> None:
    net = TinyConfig().build()
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"no model folder: holds thesis\.tex"):
        save_pretrained(net, tmp_path, NETS)
    (tmp_path / "m").mkdir()
    save_pretrained(net, tmp_path / "m", NETS)  # empty: fine
    (tmp_path / "m" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"no model folder: holds notes\.txt"):
        save_pretrained(net, tmp_path / "m", NETS)
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"no model folder: holds only config\.json"):
        save_folder(tmp_path / "half", {}, {})
    with pytest.raises(ValueError, match="is a file"):
        save_pretrained(net, tmp_path / "thesis.tex", NETS)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    save_pretrained(TinyConfig().build(), tmp_path / "m", NETS)
    path = tmp_path / "m" / "config.json"
    path.write_text('{"name": "deep", "width": 3}')
    with pytest.raises(ValueError, match=r"m: does not fit Deep: 8 missing .*; 3 extra"):
        from_pretrained(tmp_path / "m", NETS)
    path.write_text('{"name": "tiny", "width": 4}')
    with pytest.raises(ValueError, match=r"lin\.weight \(2, 3\) instead of \(2, 4\)"):
        from_pretrained(tmp_path / "m", NETS)
    path.write_text('{"name": "tiny", "widht": 4}')
    with pytest.raises(ConfigError, match=r"config\.json: TinyConfig has no field 'widht'"):
        from_pretrained(tmp_path / "m", NETS)
    path.write_text('{"name": "tin')
    with pytest.raises(ValueError, match=r"config\.json: not readable as JSON"):
        from_pretrained(tmp_path / "m", NETS)
    path.write_text("[]")
    with pytest.raises(ValueError, match=r"config\.json: expected a mapping, got list"):
        from_pretrained(tmp_path / "m", NETS)
    path.unlink()
    with pytest.raises(ValueError, match=r"config\.json: no such file"):
        from_pretrained(tmp_path / "m", NETS)


def test_untrusted_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "from test_checkpoint import *\n@config\nclass Mine(TinyConfig):\n    pass\n"
    mark = f"open({str(tmp_path / 'ran')!r}, 'w').close()\n"
    (tmp_path / "lab_of_nets.py").write_text(mark + source)
    monkeypatch.syspath_prepend(tmp_path)
    state = TinyConfig().build().state_dict()
    save_folder(tmp_path / "m", {"name": "lab_of_nets:Mine"}, state)
    with pytest.raises(ConfigError, match="would import code that is not part of genvis"):
        from_pretrained(tmp_path / "m", NETS)
    assert not (tmp_path / "ran").exists()
    net = from_pretrained(tmp_path / "m", NETS, trust_code=True)
    assert (tmp_path / "ran").exists()
    assert equal(net.state_dict(), state)


@pytest.fixture
def offline_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None]]:
    """A hub that knows lab/tiny and records what it was asked for."""
    asked: list[tuple[str, str | None]] = []
    save_pretrained(TinyConfig().build(), tmp_path / "hub", NETS)

    def download(repo_id: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((repo_id, revision))
        assert allow_patterns == ["config.json", "model.safetensors"]
        if repo_id != "lab/tiny":
            raise OSError("404: no such\nrepository")
        return str(tmp_path / "hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    return asked


def test_the_hub_is_asked_only_for_ids(
    tmp_path: Path, offline_hub: list[tuple[str, str | None]]
) -> None:
    (tmp_path / "runs").mkdir()
    local = [tmp_path / "none", "none", "./lab/tiny", "runs/tiny", "a/b/c", "~/x", Path("lab/tiny")]
    for source in local:
        with pytest.raises(ValueError, match="no such folder"):
            read_folder(source)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file: not a folder"):
        read_folder("file")
    with pytest.raises(ValueError, match="hub is a local folder"):
        read_folder("hub", revision="main")
    assert offline_hub == []
    assert from_pretrained("lab/tiny", NETS, revision="v1").config == TinyConfig()
    with pytest.raises(ValueError, match=r"lab/other: .* nor on the hub: 404: no such repository"):
        read_folder("lab/other")
    assert offline_hub == [("lab/tiny", "v1"), ("lab/other", None)]


def test_runs_are_never_on_the_hub(offline_hub: list[tuple[str, str | None]]) -> None:
    """Also in a fresh clone, which has no `runs/` yet."""
    assert not Path("runs").exists()
    with pytest.raises(ValueError, match="runs/tiny: no such folder"):
        read_folder("runs/tiny")
    assert offline_hub == []


def test_a_target_is_checked_without_touching_it(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    save_pretrained(TinyConfig().build(), tmp_path / "m", NETS)
    for fine in (tmp_path / "m", tmp_path / "new" / "deep"):
        check_target(fine)
    for target, message in {
        tmp_path: r"no model folder: holds m, notes\.txt",
        tmp_path / "notes.txt": "is a file",
        tmp_path / "notes.txt" / "m": r"cannot be made, since .*notes\.txt is a file",
    }.items():
        with pytest.raises(ValueError, match=message):
            check_target(target)
    assert names(tmp_path) == ["m", "notes.txt"]


def test_only_whole_models_are_pushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, object]] = []

    class Api:
        def create_repo(self, repo_id: str, private: bool, exist_ok: bool) -> str:
            calls.append((repo_id, private))
            return f"https://hub.invalid/{repo_id}"

        def upload_folder(self, repo_id: str, folder_path: Path, allow_patterns: object) -> None:
            calls.append((repo_id, allow_patterns))

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    save_pretrained(TinyConfig().build(), tmp_path / "m", NETS)
    assert push_to_hub(tmp_path / "m", "lab/tiny") == "https://hub.invalid/lab/tiny"
    assert calls == [("lab/tiny", True), ("lab/tiny", ["config.json", "model.safetensors"])]
    (tmp_path / "m" / "model.safetensors").write_bytes(b"half")
    with pytest.raises(ValueError, match="truncated"):
        push_to_hub(tmp_path / "m", "lab/tiny")
    assert len(calls) == 2


def test_open_run_starts_and_resumes(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "a"
    plan = {"steps": 3, "shape": {"sides": (1, 2)}}
    assert open_run(folder, plan) == folder
    record = json.loads((folder / "run.json").read_text())
    assert record.keys() == {"genvis", "config"}
    assert record["config"] == {"steps": 3, "shape": {"sides": [1, 2]}}
    (folder / "log.txt").write_text("step 1")
    assert open_run(folder, plan) == folder
    assert (folder / "log.txt").read_text() == "step 1"
    with pytest.raises(ValueError, match=r"another config: shape\.sides: \[1, 3\] here, \[1, 2\]"):
        open_run(folder, {"steps": 3, "shape": {"sides": (1, 3)}})
    with pytest.raises(ValueError, match="another config: steps: 3 only there"):
        open_run(folder, {"shape": {"sides": (1, 2)}})


def test_open_run_refuses_what_is_not_a_run(tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_text("mine")
    with pytest.raises(ValueError, match=r"not empty and not a run folder \(it has no run\.json\)"):
        open_run(tmp_path, {})
    with pytest.raises(ValueError, match="is a file"):
        open_run(tmp_path / "photo.png", {})
    (tmp_path / "empty").mkdir()
    assert open_run(tmp_path / "empty", {}) == tmp_path / "empty"
    for text, part in (("{", "not readable as JSON"), ("{}", "not the record of a run")):
        (tmp_path / "empty" / "run.json").write_text(text)
        with pytest.raises(ValueError, match=part):
            open_run(tmp_path / "empty", {})
    assert names(tmp_path) == ["empty", "photo.png"]
