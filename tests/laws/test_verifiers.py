"""Verifiers: what they need, what they refuse, and that a score is a function of its image."""

from dataclasses import dataclass, field
from math import log
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from tiny_clip import tiny_net, write_clip
from torch import Tensor

from genvis.checkpoint import save_tensors
from genvis.config import ConfigError
from genvis.data.digits import DigitsConfig
from genvis.evaluation.frechet import frechet_distance
from genvis.evaluation.inception_score import whole
from genvis.evaluation.observe import Seen
from genvis.evaluation.oracle import FrechetOracle, InceptionOracle
from genvis.evaluation.reference import save_reference
from genvis.evaluation.statistics import Statistics
from genvis.features.classifier import Classifier
from genvis.images import save_npz
from genvis.integrations.reward_packages import standardised
from genvis.random import HashKeys
from genvis.samplers.generate import generate, labelled
from genvis.samplers.generator import Generator
from genvis.types import Cond, take
from genvis.verifiers import VERIFIERS
from genvis.verifiers.aesthetic import AffineHead
from genvis.verifiers.cached import Cached
from genvis.verifiers.confidence import Confidence
from genvis.verifiers.ensemble import (
    RankEnsemble,
    ZScoreEnsemble,
    best_first,
    mean_rank,
    ranks,
)
from genvis.verifiers.scoring import needs_of, require, scores_of
from genvis.verifiers.similarity import Consistency, with_previews
from genvis.verifiers.token_reward import token_reward

CPU = torch.device("cpu")
EXTRACTOR = {"name": "digits-cnn-v1"}
CLASSES = ["cat", "dog", "a", "b", "c", "d", "e", "f", "g", "h"]
PROMPTS = ("cat", "dog", "a b c", "cat") * 5
IMAGES = torch.rand(20, 3, 10, 14, generator=torch.Generator().manual_seed(0)) * 2 - 1
COND = Cond(label=torch.arange(20) % 10, prompts=PROMPTS)
NOT_HERE = {"image_classifier", "image_reward", "vqa_score", "yes_probability", "hps_v2"}
NESTED = {"rank_ensemble", "z_score_ensemble", "cached"}


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Every verifier whose files can be made here, by its name in the table."""
    folder = write_clip(tmp_path_factory.mktemp("clip"))
    torch.manual_seed(0)
    save_tensors(folder / "head.safetensors", torch.nn.Linear(32, 10).state_dict())
    torch.save(AffineHead(12).state_dict(), folder / "aesthetic.pth")
    save_npz(folder / "subject.npz", IMAGES[:3, :, :10, :10], None)
    path, score = str(folder), {"name": "clip_score", "path": str(folder), "form": "cosine"}
    return {
        "class_log_prob": {},
        "class_logit": {},
        "zero_shot": {"path": path, "classes": CLASSES},
        "linear_head": {"extractor": EXTRACTOR, "path": f"{path}/head.safetensors"},
        "confidence": {"extractor": EXTRACTOR},
        "similarity": {"extractor": EXTRACTOR, "images": f"{path}/subject.npz"},
        "consistency": {"extractor": EXTRACTOR},
        "clip_score": {"path": path},
        "pick_score": {"path": path},
        "aesthetic": {"path": f"{path}/aesthetic.pth", "clip": path},
        "inception_oracle": {"extractor": EXTRACTOR},
        "rank_ensemble": {"of": ["class_logit", score]},
        "z_score_ensemble": {"of": ["class_logit", score], "means": [1, 0], "stds": [2, 0.5]},
        "cached": {"of": score},
    }


@pytest.fixture(scope="module")
def made(configs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    built = {n: VERIFIERS.build({"name": n, **each}).build() for n, each in configs.items()}
    oracle = built["inception_oracle"].accept(IMAGES[:3])  # of a set that has begun
    return {**built, "inception_oracle": oracle}


def ask(verifier: Any, images: Tensor = IMAGES, cond: Cond = COND) -> Tensor:
    return scores_of(verifier, images, cond, images.flip(0))


def test_all_others_need_files_that_are_not_here(configs: dict[str, Any]) -> None:
    elsewhere = {"frechet_oracle", "shapes_checker"}  # below, and in test_checker.py
    assert set(VERIFIERS) - set(configs) == NOT_HERE | elsewhere


def test_a_score_is_finite_and_knows_its_weights(made: dict[str, Any]) -> None:
    names = {verifier.name for verifier in made.values()}
    assert len(names) == len(made)
    for name, verifier in made.items():
        scores = ask(verifier)
        assert scores.shape == (20,), name
        assert scores.isfinite().all(), name
        assert len(scores.unique()) > 4 or not verifier.per_image, name
        require(verifier, COND, previews=True, across_calls=verifier.per_image)


def test_a_score_does_not_depend_on_what_it_is_asked_with(made: dict[str, Any]) -> None:
    """Not in the last bit: one row, another order, more rows than a pass has."""
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    for name, verifier in made.items():
        if not verifier.per_image:
            continue
        previews = IMAGES.flip(0)
        together = scores_of(verifier, IMAGES, COND, previews)
        turned = scores_of(verifier, IMAGES[order], take(COND, order), previews[order])
        assert torch.equal(turned, together[order]), name
        for row in (0, 19):
            only = slice(row, row + 1)
            alone = scores_of(verifier, IMAGES[only], take(COND, only), previews[only])
            assert torch.equal(alone, together[only]), name


def test_needs_are_asked_for_by_name(made: dict[str, Any]) -> None:
    wanted = {
        "class_log_prob": ("label",),
        "zero_shot": ("label",),
        "linear_head": ("label",),
        "clip_score": ("prompts",),
        "consistency": ("previews",),
        "aesthetic": (),
        "rank_ensemble": ("label", "prompts"),
        "z_score_ensemble": ("label", "prompts"),
        "cached": ("prompts",),
    }
    for name, needs in wanted.items():
        assert needs_of(made[name]) == needs
        for need in needs:
            given = Cond(**{k: v for k, v in vars(COND).items() if k != need})
            here = "needs a preview" if need == "previews" else rf"needs cond\.{need}, and"
            with pytest.raises(ValueError, match=here) as caught:
                require(made[name], given, previews=need != "previews")  # needs come first
            assert "\n" not in str(caught.value)
            with pytest.raises(ValueError, match=here):
                made[name](IMAGES, given)


def test_gradients_lead_uphill_where_there_are_any(made: dict[str, Any]) -> None:
    found = {name for name, verifier in made.items() if verifier.differentiable}
    assert found >= {"class_log_prob", "zero_shot", "clip_score", "aesthetic", "z_score_ensemble"}
    for name, verifier in made.items():
        if name not in found:
            with pytest.raises(ValueError, match="has no gradients in the images"):
                require(verifier, COND, previews=True, gradients=True)  # they come second
            continue
        images = (0.5 * IMAGES).requires_grad_()
        before = verifier(images, COND)
        (slope,) = torch.autograd.grad(before.sum(), images)
        norms = slope.flatten(1).norm(dim=1)
        if name in ("clip_score",):  # its clamp ends the gradient
            assert torch.equal(norms == 0, before == 0)
            continue
        step = 1e-2 * slope / norms.view(-1, 1, 1, 1)
        assert (verifier(0.5 * IMAGES + step, COND) > before).float().mean() > 0.9, name


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (IMAGES[0], r"images must be \(N, 3, H, W\), got \(3, 10, 14\)"),
        (IMAGES[:0], r"images must be \(N, 3, H, W\), got \(0, 3, 10, 14\)"),
        (IMAGES[:, :1], r"images must be \(N, 3, H, W\)"),
        (IMAGES.to(torch.uint8), "must be floating point"),
        (IMAGES.abs() * 255, r"must be in \[-1, 1\], got 0 to 255, as if of 8 bits"),
        (torch.where(IMAGES > 0.99, torch.nan, IMAGES), "hold NaN or infinity"),
        (torch.where(IMAGES > 0.99, torch.inf, IMAGES), "hold NaN or infinity"),
        (IMAGES[:7], "7 images for 20 conditions"),
    ],
)
def test_bad_images_are_refused(images: Tensor, message: str, made: dict[str, Any]) -> None:
    for name in ("class_log_prob", "cached"):
        with pytest.raises(ValueError, match=message) as caught:
            made[name](images, COND)
        assert "\n" not in str(caught.value)


def test_overshoot_is_seen_as_a_file_would_hold_it(made: dict[str, Any]) -> None:
    for name in ("class_log_prob", "clip_score", "similarity"):
        wild = made[name](3 * IMAGES, COND)
        assert torch.equal(wild, made[name]((3 * IMAGES).clamp(-1, 1), COND))
        assert torch.equal(made[name](IMAGES.double(), COND), made[name](IMAGES, COND))


def test_unknown_labels_and_long_prompts_are_refused_before_the_search(
    made: dict[str, Any],
) -> None:
    for label in (torch.tensor([3, 10]), torch.tensor([-1, 3])):
        cond = Cond(label=label, prompts=("a", "b"))
        for name in ("class_log_prob", "zero_shot", "linear_head", "rank_ensemble"):
            with pytest.raises(ValueError, match="knows labels 0 to 9, got"):
                require(made[name], cond, across_calls=False)
    for name in ("clip_score", "cached", "z_score_ensemble"):
        with pytest.raises(ValueError, match="has 22 tokens, more than the 20"):
            require(made[name], Cond(label=torch.tensor([3]), prompts=("a " * 20,)))


def test_class_scores_are_those_of_the_logits(made: dict[str, Any]) -> None:
    """log p = logit - logsumexp: the two forms differ by what all labels of an image share."""
    labels = [Cond(label=torch.full((20,), k)) for k in range(10)]
    for a, b in (("class_log_prob", "class_logit"),):
        log_p = torch.stack([made[a](IMAGES, cond) for cond in labels], 1)
        logits = torch.stack([made[b](IMAGES, cond) for cond in labels], 1)
        torch.testing.assert_close(log_p, logits.log_softmax(1))
    for name in ("zero_shot", "linear_head"):
        log_p = torch.stack([made[name](IMAGES, cond) for cond in labels], 1)
        torch.testing.assert_close(log_p.exp().sum(1), torch.ones(20))


def test_zero_shot_is_clip_score_among_classes(configs: dict[str, Any]) -> None:
    shared = {"path": configs["zero_shot"]["path"], "template": "{}"}
    zero = {"name": "zero_shot", **shared, "classes": CLASSES, "form": "logit"}
    pick = VERIFIERS.build({"name": "pick_score", "path": shared["path"]}).build()
    cond = Cond(label=COND.label, prompts=tuple(CLASSES * 2))
    torch.testing.assert_close(VERIFIERS.build(zero).build()(IMAGES, cond), pick(IMAGES, cond))


def test_forms_of_the_clip_score(configs: dict[str, Any]) -> None:
    def scored(form: str) -> Tensor:
        return VERIFIERS.build({"name": "clip_score", "path": path, "form": form}).build()(
            IMAGES, COND
        )

    path = configs["clip_score"]["path"]
    cosine = scored("cosine")
    assert cosine.min() < 0 < cosine.max() <= 1
    torch.testing.assert_close(scored("x2.5"), 2.5 * cosine.clamp(min=0))
    torch.testing.assert_close(scored("x100"), 100 * cosine.clamp(min=0))
    torch.testing.assert_close(scored("logit"), tiny_net().logit_scale.exp() * cosine)


def test_the_aesthetic_head_is_affine_and_strict(tmp_path: Path, configs: dict[str, Any]) -> None:
    head = AffineHead(12).eval()
    a, b = torch.randn(2, 4, 12)
    torch.testing.assert_close(head((a + 3 * b) / 4), (head(a) + 3 * head(b)) / 4)
    assert standardised(torch.tensor(0.16717362830052426)) == 0
    torch.save(AffineHead(13).state_dict(), tmp_path / "other.pth")
    wrong = {"name": "aesthetic", "clip": configs["aesthetic"]["clip"]}
    message = r"does not fit AffineHead: 1 of another shape \(layers\.0\.weight \(1024, 13\) inst"
    with pytest.raises(ValueError, match=message):
        VERIFIERS.build({**wrong, "path": str(tmp_path / "other.pth")}).build()
    with pytest.raises(ValueError, match="no such weight file, and nothing is downloaded"):
        VERIFIERS.build({**wrong, "path": str(tmp_path / "none.pth")}).build()


def test_a_prompt_needs_words(tmp_path: Path) -> None:
    folder = write_clip(tmp_path)
    (folder / "merges.txt").unlink()
    for name in ("clip_score", "pick_score"):
        with pytest.raises(ValueError, match=r"no vocab\.json and merges\.txt, which prompts need"):
            VERIFIERS.build({"name": name, "path": str(folder)}).build()


@dataclass(frozen=True)
class Read:
    """An extractor that reads its features and logits off the first pixels of an image."""

    name: str = "pixels"
    sha256: str = "0" * 64
    resize: str = "none"

    def heads(self, images: Tensor) -> dict[str, Tensor]:
        flat = images.flatten(1)
        return {"features": flat[:, :4], "logits": 5 * flat[:, :3]}

    def __call__(self, images: Tensor) -> Tensor:
        return self.heads(images)["features"]


def test_confidence_is_the_share_of_one_image_in_log_is() -> None:
    verifier = Confidence(Read(), CPU)
    images = torch.zeros(6, 3, 2, 2)
    assert verifier(images, Cond()).abs().max() < 1e-6
    images.view(6, -1)[torch.arange(6), torch.arange(6) % 3] = 1  # every class twice
    logits = Read().heads(images)["logits"]
    found = verifier(images, Cond())
    assert float(found.double().mean()) == pytest.approx(log(whole(logits)), abs=1e-6)
    assert found.max() <= log(3)


def test_the_oracles_give_the_metric_of_the_grown_set() -> None:
    features = Statistics.of(torch.randn(50, 4, generator=torch.Generator().manual_seed(2)))
    real = Statistics(50, features.mean, features.rest, features.m2, Read().sha256)
    nothing = Statistics.of(torch.zeros(0, 4), Read().sha256)
    fd, inception = FrechetOracle(Read(), CPU, real, nothing), InceptionOracle(Read(), CPU, 0)
    first, second, rivals = IMAGES[:1], IMAGES[1:6], IMAGES[6:12]
    assert torch.equal(inception(rivals, Cond()), torch.zeros(6))
    lonely = fd(rivals, Cond())  # one image: no covariance, hence by the distance to the mean
    shift = (Read()(rivals).double() - real.mean).square().sum(1)
    torch.testing.assert_close(lonely, -(shift + real.covariance.trace()).float())
    for chosen, fd_now, is_now in (
        (first, fd.accept(first), inception.accept(first)),
        (
            IMAGES[:6],
            fd.accept(first).accept(second),
            inception.accept(first).accept(second),
        ),
    ):
        for row, (a, b) in enumerate(
            zip(fd_now(rivals, Cond()).tolist(), is_now(rivals, Cond()).tolist(), strict=True)
        ):
            grown = torch.cat([chosen, rivals[row : row + 1]])
            here = Statistics.of(Read()(grown), Read().sha256)
            assert -a == pytest.approx(frechet_distance(here, real), rel=1e-5)
            assert b == pytest.approx(log(whole(Read().heads(grown)["logits"])), abs=1e-6)
    assert (fd.chosen.n, inception.n) == (0, 0)  # the old ones are as they were
    assert "after 6 images" in fd.accept(IMAGES[:6]).name


def test_an_image_is_like_itself(made: dict[str, Any]) -> None:
    own = made["similarity"].extractor
    given = torch.nn.functional.normalize(own(IMAGES[:1]), dim=1)
    verifier = type(made["similarity"])(own, given, "0" * 64)
    scores = verifier(IMAGES, Cond())
    assert scores[0] == pytest.approx(1, abs=1e-5)
    assert scores[1:].max() < scores[0]


def test_a_verifier_is_known_by_the_images_it_was_given(tmp_path: Path) -> None:
    names = set()
    for seed in (0, 1, 0):
        save_npz(tmp_path / "subject.npz", IMAGES[seed : seed + 2, :, :10, :10], None)
        given = {"extractor": EXTRACTOR, "images": str(tmp_path / "subject.npz")}
        names.add(VERIFIERS.build({"name": "similarity", **given}).build().name)
    assert len(names) == 2


def test_consistency_compares_an_image_with_its_preview(generator: Generator) -> None:
    verifier = Consistency(Classifier.from_pretrained("digits-cnn-v1"), CPU)
    torch.testing.assert_close(verifier(IMAGES, COND, IMAGES), torch.ones(20))
    assert verifier(IMAGES, COND, IMAGES.flip(0)).max() < 1
    with pytest.raises(ValueError, match="7 previews for 20 images"):
        verifier(IMAGES, COND, IMAGES[:7])
    sampler, cond, keys = generator.sampler(), labelled(10, range(6)), HashKeys.of(0, range(6))
    noise = keys.normal(sampler.noise_shape)
    step = verifier.preview_step(sampler.num_steps)
    assert 0 < step < sampler.num_steps
    with torch.no_grad():
        images, previews = with_previews(sampler, noise, cond, keys, step)
    plain = generate(sampler, cond, keys, chunk=6)
    assert torch.equal(images, plain)
    assert not torch.equal(previews, images)
    assert verifier(images, cond, previews).shape == (6,)
    with pytest.raises(ValueError, match=r"step must be in 0\.\.3, got 4"):
        with_previews(sampler, noise, cond, keys, 4)
    with pytest.raises(ValueError, match="needs a sampler of at least 3 steps, got 2"):
        verifier.preview_step(2)


@pytest.mark.parametrize("at", [0.01, 0.3, 0.75, 0.999])
def test_the_preview_is_neither_first_nor_last(at: float) -> None:
    verifier = Consistency(Read(), CPU, at)
    assert all(0 < verifier.preview_step(n) < n - 1 for n in range(3, 60))


def test_ranks_share_ties_and_ignore_scales() -> None:
    scores = torch.tensor([[3.0, 1.0, 3.0, 2.0], [0.0, 0.0, 0.0, 0.0]])
    assert ranks(scores).tolist() == [[1.5, 4.0, 1.5, 3.0], [2.5] * 4]
    assert torch.equal(ranks(scores.exp() * 7), ranks(scores))
    assert ranks(torch.tensor([-torch.inf, 0.0])).tolist() == [2.0, 1.0]
    batched = torch.randn(3, 5, 6)  # (V, B, n)
    alone = torch.stack([mean_rank(batched[:, b]) for b in range(5)])
    torch.testing.assert_close(mean_rank(batched), alone)
    assert torch.allclose(mean_rank(batched).sum(1), torch.tensor(21.0).double())
    assert best_first(torch.tensor([0.0, 1.0, 1.0, 0.5])).tolist() == [1, 2, 3, 0]
    with pytest.raises(ValueError, match="hold NaN, which has no rank"):
        ranks(torch.tensor([1.0, torch.nan]))


@dataclass(frozen=True)
class Brightness:
    """A user's own: nothing but a name and a call."""

    name: str = "brightness"
    sign: float = 1.0

    def __call__(self, images: Tensor, cond: Cond) -> Tensor:
        return self.sign * images.mean((1, 2, 3))


def test_rivals_are_ranked_among_themselves_and_nowhere_else() -> None:
    plain = Brightness()
    verifier = RankEnsemble((plain, Brightness("again", 2.0), Brightness("dark", -1.0)))
    cond = Cond(label=torch.arange(20) % 2)
    scores, even = verifier(IMAGES, cond), slice(0, None, 2)
    alone = verifier(IMAGES[even], Cond(label=torch.zeros(10, dtype=torch.int64)))
    assert torch.equal(scores[even], alone)
    table = verifier.table(IMAGES, cond)
    torch.testing.assert_close(verifier.combine(table[:, even]), alone)
    assert int(alone.argmax()) == int(plain(IMAGES[even], cond).argmax())  # two against one
    weighted = RankEnsemble(verifier.of, (1, 1, 9))
    assert int(weighted(IMAGES, Cond()).argmax()) == int(plain(IMAGES, cond).argmin())
    with pytest.raises(ValueError, match="ranks the images of one call, so its scores cannot be"):
        require(verifier, cond)
    require(verifier, cond, across_calls=False)
    require(plain, Cond())


def test_z_scores_stay_on_the_scale_they_were_fitted_to(made: dict[str, Any]) -> None:
    of = (made["class_logit"], made["pick_score"])
    verifier = ZScoreEnsemble.fitted(of, IMAGES, COND)
    scores = verifier(IMAGES, COND)
    assert float(scores.mean()) == pytest.approx(0, abs=1e-6)
    one = ZScoreEnsemble.fitted(of[:1], IMAGES, COND)(IMAGES, COND)
    assert float(one.std(correction=0)) == pytest.approx(1, abs=1e-6)
    few = Cond(label=COND.label[:3], prompts=PROMPTS[:3])
    assert torch.equal(verifier(IMAGES[:3], few), scores[:3])
    require(verifier, COND)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "rank_ensemble", "of": []}, "needs at least one verifier"),
        ({"name": "z_score_ensemble", "of": [], "means": [], "stds": []}, "at least one verifier"),
        ({"name": "rank_ensemble", "of": ["class_logit"], "weights": [1, 2]}, "one entry per ver"),
        ({"name": "rank_ensemble", "of": ["class_logit"], "weights": [0]}, "one above, got"),
        (
            {"name": "z_score_ensemble", "of": ["class_logit"], "means": [1], "stds": [0]},
            r"stds must be positive, got 0\.0 for logit\[digits",
        ),
        (
            {"name": "z_score_ensemble", "of": ["class_logit"], "means": [], "stds": [1]},
            "means must have one entry per verifier, 1, got 0",
        ),
        (
            {
                "name": "z_score_ensemble",
                "of": [{"name": "rank_ensemble", "of": ["class_logit"]}],
                "means": [0],
                "stds": [1],
            },
            "has no scale to freeze: it ranks",
        ),
        (
            {"name": "cached", "of": {"name": "rank_ensemble", "of": ["class_logit"]}},
            "cannot be cached: its scores depend on the set",
        ),
        ({"name": "cached", "of": "class_logit", "limit": 0}, "limit must be at least 1"),
        ({"name": "clip_score", "path": "none"}, r"none: no config\.json there"),
        ({"name": "hps_v2", "path": "HPS.pt", "tokenizer": "none"}, "HPS.pt: no such weight file"),
        ({"name": "zero_shot", "path": "none", "classes": ["a"]}, "classes must name at least 2"),
        ({"name": "clip_score", "path": "none", "form": "2.5"}, "form: should be 'cosine', 'x100'"),
        (
            {"name": "zero_shot", "path": "none", "classes": ["a", "b"], "template": "photo"},
            "template must hold {} for the class",
        ),
        ({"name": "consistency", "extractor": EXTRACTOR, "at": 1.0}, r"at must be in \(0, 1\)"),
        ({"name": "clip_scores"}, "did you mean 'clip_score'"),
        ({"name": "yes_probability", "path": "none", "no": []}, "mode logodds needs the tokens of"),
        ({"name": "yes_probability", "path": "n", "question": "?"}, "question must hold {}"),
        ({"name": "yes_probability", "path": "none"}, "none: no such model folder, and nothing"),
        ({"name": "image_classifier", "path": "none"}, "none: no such model folder, and nothing"),
        ({"name": "image_classifier", "path": "none", "size": 0}, "size must be at least 1 pixel"),
        ({"name": "image_reward", "path": "none"}, "ImageReward.pt: not there; get THUDM/Image"),
        ({"name": "vqa_score", "path": "none"}, "not there; get zhiqiulin/clip-flant5-xxl into"),
    ],
)
def test_bad_configs_are_refused_in_one_line(fields: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, ValueError), match=message) as caught:
        VERIFIERS.build(fields).build()
    assert "\n" not in str(caught.value)


@dataclass(frozen=True)
class Counting:
    """Counts the images that it is asked about."""

    name: str = "counting"
    needs: ClassVar[tuple[str, ...]] = ("label",)
    asked: list[int] = field(default_factory=list)

    def __call__(self, images: Tensor, cond: Cond) -> Tensor:
        self.asked.append(len(images))
        assert cond.label is not None
        return images.mean((1, 2, 3)) + cond.label


def test_a_cache_answers_as_its_verifier_and_asks_once(made: dict[str, Any]) -> None:
    plain = made["class_log_prob"]
    cached = Cached(plain)
    twice = [cached(IMAGES, COND), cached(IMAGES, COND)]
    assert all(torch.equal(each, plain(IMAGES, COND)) for each in twice)
    double = ZScoreEnsemble((plain,), (0.3,), (0.7,))
    assert torch.equal(Cached(double)(IMAGES, COND), double(IMAGES, COND))
    inner = Counting()
    counted = Cached(inner)
    rows = torch.tensor([0, 1, 0, 2, 1])
    found = counted(IMAGES[rows], take(COND, rows))
    assert inner.asked == [3]  # also within one call
    torch.testing.assert_close(found, Counting()(IMAGES[rows], take(COND, rows)))
    counted(IMAGES[:4], Cond(label=COND.label[:4], prompts=("x",) * 4))  # it reads no prompts
    assert inner.asked == [3, 1]
    other = counted(IMAGES[:2], Cond(label=torch.tensor([7, 7])))
    torch.testing.assert_close(other, IMAGES[:2].mean((1, 2, 3)) + 7)
    assert inner.asked == [3, 1, 2]


def test_a_cache_forgets_the_oldest_and_lets_gradients_through(made: dict[str, Any]) -> None:
    inner = Counting()
    cached = Cached(inner, limit=3)
    for row in (0, 1, 2, 3, 0):
        cached(IMAGES[row : row + 1], Cond(label=torch.tensor([0])))
    assert len(inner.asked) == 5  # row 0 was forgotten when row 3 came
    full = cached(IMAGES, Cond(label=torch.zeros(20, dtype=torch.int64)))  # more than are kept
    torch.testing.assert_close(full, IMAGES.mean((1, 2, 3)))
    images = IMAGES.clone().requires_grad_()
    Cached(made["class_log_prob"])(images, COND).sum().backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0


def test_a_cache_keeps_previews_apart(made: dict[str, Any]) -> None:
    cached, plain = Cached(made["consistency"]), made["consistency"]
    for previews in (IMAGES, IMAGES.flip(0)):
        assert torch.equal(cached(IMAGES, COND, previews), plain(IMAGES, COND, previews))
    with pytest.raises(ValueError, match="7 previews for 20 images"):
        cached(IMAGES, COND, IMAGES[:7])


def test_a_broken_verifier_is_named() -> None:
    broken = SimpleNamespace(
        name="broken",
        sha256="",
        heads=lambda images: {"logits": torch.full((len(images), 3), torch.nan)},
    )
    with pytest.raises(ValueError, match=r"IS-confidence\[broken:\]: 20 of 20 scores are NaN"):
        Confidence(broken, CPU)(IMAGES, Cond())
    without = SimpleNamespace(name="features", sha256="", heads=lambda images: {"features": images})
    with pytest.raises(ValueError, match="features gives no logits; there are features"):
        Confidence(without, CPU)(IMAGES, Cond())


def test_token_rewards_are_of_one_mind() -> None:
    logits = torch.randn(5, 3, 30, generator=torch.Generator().manual_seed(0))
    odds = token_reward(logits, "logodds", yes=[3], no=[7])
    share = token_reward(logits, "yes_vs_no", yes=[3], no=[7])
    torch.testing.assert_close(share.logit(), odds)
    whole_share = token_reward(logits, "full_softmax", yes=range(30))
    torch.testing.assert_close(whole_share, torch.ones(5))
    both = token_reward(logits, "full_softmax", yes=[3, 4])
    p = logits[:, 0].softmax(1)
    torch.testing.assert_close(both, p[:, 3] + p[:, 4])
    labels = torch.tensor([[3, 1, -100]]).repeat(5, 1)
    found = token_reward(logits, "answer_nll", labels=labels)
    geometric = (p[:, 3] * logits[:, 1].softmax(1)[:, 1]).sqrt()
    torch.testing.assert_close(found, geometric)
    extreme = torch.zeros(1, 1, 2)
    extreme[0, 0, 0] = 1e4  # probabilities saturate, log-odds do not
    assert token_reward(extreme, "logodds", yes=[0], no=[1]) == 1e4


@pytest.mark.parametrize(
    ("mode", "given", "message"),
    [
        ("loud", {"yes": [1]}, "mode must be one of full_softmax, yes_vs_no, logodds, answer_nll"),
        ("full_softmax", {}, "mode full_softmax needs the tokens of yes"),
        ("logodds", {"yes": [1]}, "mode logodds needs the tokens of no"),
        ("answer_nll", {}, r"labels must be \(B, L\) = \(2, 3\), got None"),
        ("answer_nll", {"labels": torch.zeros(2, 2).long()}, r"got \(2, 2\)"),
        ("answer_nll", {"labels": torch.full((2, 3), -100)}, "must hold a token other than -100"),
    ],
)
def test_bad_token_rewards(mode: Any, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        token_reward(torch.zeros(2, 3, 9), mode, **given)


def test_digits_of_their_class_score_higher() -> None:
    batch = DigitsConfig().build("val")[range(60)]
    assert batch.cond.label is not None
    wrong = Cond(label=(batch.cond.label + 1) % 10)
    for name in ("class_log_prob", "class_logit"):
        verifier = VERIFIERS.build(name).build()
        assert (verifier(batch.x, batch.cond) > verifier(batch.x, wrong)).float().mean() > 0.95
    confidence = VERIFIERS.build({"name": "confidence", "extractor": EXTRACTOR}).build()
    noise = HashKeys.of(0, range(60)).normal(batch.x.shape[1:]).clamp(-1, 1)
    assert confidence(batch.x, Cond()).mean() > confidence(noise, Cond()).mean() + 0.1


def test_the_frechet_oracle_reads_a_reference_file(tmp_path: Path) -> None:
    extractor = Classifier.from_pretrained("digits-cnn-v1")
    real = DigitsConfig().build("val")[range(100)].x
    hashes = torch.arange(100).view(-1, 1).to(torch.uint8)
    save_tensors(tmp_path / "part", {"features": extractor(real), "sha256": hashes})
    seen = Seen((tmp_path / "part",), 100, extractor.name, extractor.sha256, extractor.resize)
    save_reference(tmp_path / "real.safetensors", seen)
    config = {"name": "frechet_oracle", "extractor": EXTRACTOR}
    oracle = VERIFIERS.build({**config, "reference": str(tmp_path / "real.safetensors")}).build()
    (score,) = oracle.accept(real[:20])(real[20:21], Cond()).tolist()
    sets = [Statistics.of(extractor(real[:n]), extractor.sha256) for n in (21, 100)]
    assert -score == pytest.approx(frechet_distance(*sets), rel=1e-5)
    with pytest.raises(ValueError, match="no such file"):
        VERIFIERS.build({**config, "reference": str(tmp_path / "none")}).build()
