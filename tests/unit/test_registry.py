"""Named, configured things: what a name resolves to, that it can be sent to a worker, what identifies its results."""

import pickle
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from featkit.core.config import Config, digest
from featkit.core.errors import UsageError
from featkit.core.registry import Method, resolve, setting_of
from featkit.features import stage as extract
from featkit.features.sift import Sift
from featkit.features.stage import ExtractConfig, extraction_method, with_stage_config
from featkit.images.read import DecodeConfig
from featkit.io.features import open_features


class NothingConfig(Config):
    """Of the class below."""

    size: int = 3


class Counted:
    """How often it was built."""

    Config = NothingConfig
    weights_sha256 = "ab" * 32
    made: list["Counted"] = []  # noqa: RUF012

    def __init__(self, config: NothingConfig, device: str = "auto"):
        self.config, self.device = config, device
        Counted.made.append(self)


def counted(**changes: Any) -> Method[Counted]:
    Counted.made.clear()
    return Method("counted", Counted, NothingConfig(**changes), "cpu")


def test_it_is_built_where_it_is_first_used_and_once() -> None:
    method = counted(size=5)
    assert Counted.made == []
    assert method.built is method.built
    assert len(Counted.made) == 1
    assert (method.built.config, method.built.device) == (NothingConfig(size=5), "cpu")
    assert method.build() is not method.built


def test_another_process_gets_the_value_and_builds_for_itself() -> None:
    method = counted()
    method.ready()
    sent = pickle.loads(pickle.dumps(method))
    assert sent == method
    assert len(Counted.made) == 1, "what was built is not sent"
    assert sent.built is not method.built


def test_the_fingerprint_is_of_configuration_and_weights() -> None:
    method = counted()
    assert method.fingerprint == digest('{"size": 3}', "ab" * 32)
    assert counted(size=4).fingerprint != method.fingerprint
    assert method.described() == {
        "name": "counted", "fingerprint": method.fingerprint, "config": {"size": 3}, "weights_sha256": "ab" * 32
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "expected"),
    [("dog+hynet", "dog+hynet"), ("a/b c.yaml", "b_c"), ("hynet (mine)", "hynet_mine"), ("..", "x")],
)
def test_a_name_as_part_of_a_file_name(name: str, expected: str) -> None:
    assert Method(name, Counted, NothingConfig()).file_name == expected


def test_changes_are_laid_over_the_yaml_and_nothing_is_built() -> None:
    method = resolve("extractor", "rootsift", {"max_keypoints": 7}, "cpu")
    assert (method.name, method.cls, method.device) == ("rootsift", Sift, "cpu")
    assert (method.config.max_keypoints, method.config.normalization) == (7, "l1_root")
    assert "built" not in vars(method)


def test_a_wrong_name_is_told_of_names_of_its_kind_alone() -> None:
    with pytest.raises(UsageError, match=r"no matcher named 'mutal'; did you mean 'mutual'"):
        resolve("matcher", "mutal")
    with pytest.raises(UsageError) as wrong:
        resolve("pairing", "rootsift")
    assert "'rootsift' is not a pairing" in str(wrong.value)
    assert "sift'" not in str(wrong.value).partition(";")[2]
    with pytest.raises(UsageError, match="'mutual' is not an extractor"):
        resolve("extractor", "mutual")
    with pytest.raises(UsageError, match="did you mean 'eth'"):
        setting_of("eth", "etj", {})


# As featkit 0.1.0 first wrote them: a store of that version is gone on with.
@pytest.mark.parametrize(
    ("kind", "name", "fingerprint"),
    [
        ("extractor", "rootsift", "2acc04215313ea4e"),
        ("extractor", "scfeat", "f4fea8d95c528e90"),
        ("matcher", "mutual", "58c045bcab44d5e0"),
        ("pairing", "retrieval", "feb8030071393904"),
    ],
)
def test_fingerprints_stay(kind: str, name: str, fingerprint: str) -> None:
    assert resolve(kind, name).config.fingerprint() == fingerprint


def test_the_fingerprint_of_a_store_stays() -> None:
    changes = {"max_keypoints": 500}
    assert extraction_method(ExtractConfig(features="rootsift"), changes).config.fingerprint() == "2d97ff6f743e993a"
    other = ExtractConfig(features="rootsift", decode=DecodeConfig(resize_max=800))
    assert extraction_method(other, changes).config.fingerprint() != "2d97ff6f743e993a"


def test_a_store_names_the_class_as_the_yaml_does() -> None:
    assert extraction_method(ExtractConfig(features="rootsift")).config.extractor["extractor"] == "sift"
    by_hand = with_stage_config(Method("mine", Sift, Sift.Config()), ExtractConfig())
    assert by_hand.config.extractor["extractor"] == "featkit.features.sift:Sift"
    assert extraction_method(by_hand.config).cls is Sift


def test_a_plain_extractor_is_run_with_the_default_way_of_decoding(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (60, 80)).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), cv2.resize(pixels, (240, 180)))
    method = resolve("extractor", "rootsift", {"max_keypoints": 20}, "cpu")
    output = extract.run(method, tmp_path, tmp_path / "features.h5")
    with open_features(output) as store:
        expected = with_stage_config(method, ExtractConfig())
        assert store.attributes()["fingerprint"] == expected.config.fingerprint()
        assert 0 < store.count("a.png") <= 20
    assert expected.config.extractor["extractor"] == "sift"
    complete = extraction_method(
        expected.config, device="cpu"
    )  # as a worker of a plan, or `localize`, reads it from a file
    assert complete.own == method.own
    assert extract.images_to_extract(complete, tmp_path, output, ["a.png"], overwrite=False) == []
