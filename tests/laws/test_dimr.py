"""DiMR: what enters where, and what its config and its released layout refuse."""

import pytest
import torch
from torch import Tensor, nn

from genvis.backbones.dimr import DiMR, DiMRConfig, StageConfig, from_official
from genvis.config import ConfigError, build
from genvis.random import HashKeys
from genvis.types import Cond

COARSE = {"width": 16, "hidden": 24, "depth": 2, "heads": 2, "patch": 2}
FINE = {"width": 8, "hidden": 16, "depth": 2, "kernel": 3}
TINY = {"size": 8, "channels": 2, "stages": [COARSE, FINE], "num_classes": 3}
OFFICIAL_STAGE = {
    "block_type": "TransformerBlock",
    "dim": 16,
    "hidden_dim": 24,
    "num_attention_heads": 2,
    "num_blocks": 1,
    "max_height": 8,
    "max_width": 8,
    "image_input_ratio": 1,
    "input_feature_ratio": 1,
    "final_kernel_size": 3,
    "dropout_prob": 0,
}
OFFICIAL = {"channels": 2, "num_classes": 4, "stage_configs": [OFFICIAL_STAGE]}


def dimr(noise: float = 0.1, **fields: object) -> DiMR:
    net = build(DiMRConfig, {**TINY, **fields}).build().eval()
    torch.manual_seed(0)
    for parameter in net.parameters():
        parameter.data += noise * torch.randn(parameter.shape)
    return net


def inputs(h: int = 8, w: int = 8) -> tuple[Tensor, Tensor, Cond]:
    x = HashKeys.of(0, range(2)).normal((2, h, w))
    return x, torch.tensor([10.0, 700.0]), Cond(label=torch.tensor([0, 2]))


def test_a_fresh_network_does_not_see_time() -> None:
    net, (x, t, cond) = dimr(noise=0), inputs()
    assert torch.equal(net(x, t, cond), net(x, 1000 - t, cond))
    noisy = dimr()
    assert not torch.allclose(noisy(x, t, cond), noisy(x, 1000 - t, cond), atol=1e-3)


def test_every_stage_predicts_at_its_own_resolution_and_the_last_is_the_output() -> None:
    middle = {**FINE, "pool": 2}
    net = dimr(stages=[{**COARSE, "patch": 4}, middle, FINE])
    outputs = net.stages(*inputs())
    assert [tuple(output.shape) for output in outputs] == [(2, 2, n, n) for n in (2, 4, 8)]
    assert torch.equal(net(*inputs()), outputs[-1])


@pytest.mark.parametrize("detach", [False, True])
def test_detached_stages_learn_only_from_their_own_loss(detach: bool) -> None:
    net = dimr(detach=detach)
    net(*inputs()).square().mean().backward()
    coarse = [p.grad for p in net.get_submodule("stages.0.blocks").parameters()]
    assert all((grad is None) == detach for grad in coarse)


def test_an_even_depth_counts_as_the_next_odd_one() -> None:
    assert dimr(stages=[COARSE, FINE]).state_dict().keys() == (
        dimr(stages=[{**COARSE, "depth": 3}, FINE]).state_dict().keys()
    )


def test_a_smaller_map_takes_the_first_positions() -> None:
    net = dimr()
    x, t, cond = inputs(4, 6)
    assert net(x, t, cond).shape == x.shape
    position = net.get_submodule("stages.1.input_layer.3.position_embeddings")
    assert isinstance(position, nn.Embedding)
    before = net(x, t, cond)
    position.weight.data[8 * torch.arange(8) + 6] += 1  # column 6 of 0..7
    assert torch.equal(net(x, t, cond), before)
    position.weight.data[8 * 3 + 5] += 1  # row 3, column 5
    assert not torch.equal(net(x, t, cond), before)


def test_without_classes_there_is_no_class_token() -> None:
    net = dimr(num_classes=0)
    x, t, cond = inputs()
    assert not any("class_embeds" in name for name in net.state_dict())
    assert torch.equal(net(x, t, cond), net(x, t, Cond()))


@pytest.mark.parametrize("norm", ["time_rms", "time_layer", "rms", "token_rms"])
def test_every_norm_of_the_release(norm: str) -> None:
    assert dimr(norm=norm)(*inputs()).isfinite().all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stages": []}, "number of stages must be at least 1"),
        ({"stages": [COARSE]}, "1 in the last"),
        ({"stages": [FINE, COARSE, FINE]}, "multiple of the next"),
        ({"stages": [{**COARSE, "patch": 3}, FINE]}, "size must be divisible"),
        ({"stages": [{**FINE, "heads": 2}]}, "one of them"),
        ({"stages": [{**FINE, "kernel": None}]}, "one of them"),
        ({"stages": [{**FINE, "kernel": 4}]}, "must be odd"),
        ({"stages": [{**COARSE, "heads": 3}, FINE]}, "divisible by heads"),
        ({"norm": "layer"}, "norm"),
    ],
)
def test_configs_that_cannot_work_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(DiMRConfig, {**TINY, **fields})


@pytest.mark.parametrize(
    ("changes", "stage", "message"),
    [
        ({"chanels": 2}, {}, "no argument 'chanels'"),
        ({}, {"depth": 2}, "no argument 'depth'"),
        ({}, {"block_type": "ResBlock"}, "not one of TransformerBlock, ConvNeXtBlock"),
        ({"norm_type": "BN"}, {}, "not one of TDRMSN"),
        ({"pe_type": "Axial_RoPE"}, {}, "APE"),
        ({}, {}, "official DiMR: does not fit"),
    ],
)
def test_official_checkpoints_load_strictly(changes: dict, stage: dict, message: str) -> None:
    official = {**OFFICIAL, "stage_configs": [{**OFFICIAL_STAGE, **stage}], **changes}
    with pytest.raises(ValueError, match=message):
        from_official(official, {})


def test_stages_of_different_maps_and_missing_arguments_are_refused() -> None:
    other = {**OFFICIAL_STAGE, "max_height": 6}
    with pytest.raises(ConfigError, match="several maps"):
        from_official({**OFFICIAL, "stage_configs": [OFFICIAL_STAGE, other]}, {})
    with pytest.raises(ConfigError, match="needs the argument 'stage_configs'"):
        from_official({"channels": 2}, {})


def test_the_presets_are_the_released_sizes() -> None:
    coarse, fine = DiMRConfig().stages
    assert (coarse.reduction, fine.reduction) == (2, 1)
    assert coarse.features == 960 * 40  # 39 blocks and the entry
    assert StageConfig(width=480, hidden=960, depth=20, kernel=7) == fine
