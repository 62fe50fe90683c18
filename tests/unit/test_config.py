"""Configurations: strict keys, overrides, fingerprints, and yaml that is never a traceback."""

import contextlib
import json
from pathlib import Path
from typing import Annotated

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import Field

from featkit.core.config import Config, Runtime, differences, make, merged_values, named_config, overrides, read_yaml
from featkit.core.errors import BadInputError, FeatkitError, UsageError
from featkit.core.registry import class_of, resolve
from featkit.features.stage import ExtractConfig
from featkit.images.read import DecodeConfig

MANY = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


class Inner(Config):
    ratio: float = 0.8
    threads: Runtime[int] = Field(default=1, ge=1)


class Outer(Config):
    inner: Inner = Inner()
    size: int | None = None
    names: tuple[str, ...] = ("a",)
    workers: Runtime[int] = 0


def test_unknown_key_names_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"file\.yaml: unknown key 'ratoi'.*did you mean 'ratio'"):
        make(Inner, {"ratoi": 1}, where="file.yaml")
    with pytest.raises(UsageError, match="known keys: ratio, threads"):
        make(Inner, {"zzz": 1})
    with pytest.raises(UsageError, match=r"inner\.rato"):
        make(Outer, {"inner": {"rato": 1}})


class Third(Config):
    score: float = 0.0


class Deep(Config):
    outer: Outer = Outer()
    maybe: Inner | None = None
    many: tuple[Inner, ...] = ()
    either: Inner | Third = Inner()
    named: dict[str, Inner] = Field(default_factory=dict)


@pytest.mark.parametrize(
    ("values", "key", "nearest"),
    [
        ({"outer": {"inner": {"rato": 1}}}, "outer.inner.rato", "ratio"),
        ({"outer": {"sise": 1}}, "outer.sise", "size"),
        ({"maybe": {"thread": 1}}, "maybe.thread", "threads"),
        ({"many": [{}, {"rato": 1}]}, "many.1.rato", "ratio"),
        ({"either": {"scor": 1}}, r"either.Third.scor", "score"),
        ({"named": {"a": {"rato": 1}}}, "named.a.rato", "ratio"),
    ],
)
def test_an_unknown_inner_key_names_the_nearest_of_the_inner_config(values: dict, key: str, nearest: str) -> None:
    with pytest.raises(UsageError, match=rf"unknown key '{key}'; did you mean '{nearest}'"):
        make(Deep, values)
    with pytest.raises(UsageError, match="known keys: ratio, threads"):
        make(Deep, {"outer": {"inner": {"zzz": 1}}})


def test_changes_to_a_named_configuration_are_laid_over_its_yaml(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("pairing: retrieval\nnum_matched: 5\nvlad: {num_clusters: 8, power: 1.0}\n")
    config: Any = resolve("pairing", str(path), {"vlad": {"num_clusters": 16}}).own
    assert config.model_dump()["num_matched"] == 5
    assert (config.vlad.num_clusters, config.vlad.power) == (16, 1.0)


def test_wrong_value_says_what_it_got() -> None:
    with pytest.raises(UsageError, match=r"ratio: .*'much'"):
        make(Inner, {"ratio": "much"})
    with pytest.raises(UsageError, match="threads"):
        make(Inner, {"threads": 0})


def test_fields_that_do_not_go_together() -> None:
    """The message names the fields; neither pydantic's own words nor all values are shown."""
    with pytest.raises(UsageError) as error:
        make(DecodeConfig, {"intensity_range": [9, 1]}, "here")
    assert str(error.value) == "here: intensity_range: the first value must be below the second"
    with pytest.raises(UsageError) as error:
        make(ExtractConfig, {"decode": {"intensity_range": [9, 1]}}, "here")
    assert str(error.value) == "here: decode: intensity_range: the first value must be below the second"


def test_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Inner().ratio = 0.5  # type: ignore[misc]


def test_runtime_fields_stay_out_of_the_fingerprint() -> None:
    base = Outer()
    assert Outer(workers=8, inner=Inner(threads=4)).fingerprint() == base.fingerprint()
    assert "threads" not in base.canonical_json()
    assert "workers" not in base.canonical_json()


@pytest.mark.parametrize("other", [Outer(inner=Inner(ratio=0.9)), Outer(size=3), Outer(names=("a", "b"))])
def test_result_fields_change_the_fingerprint(other: Outer) -> None:
    assert other.fingerprint() != Outer().fingerprint()
    assert len(other.fingerprint()) == 16


def test_fingerprints_of_the_shipped_extractors_differ_in_every_field() -> None:
    config = resolve("extractor", "rootsift").own
    plain = config.result_fields()
    assert set(plain) == set(type(config).model_fields)
    changed = resolve("extractor", "rootsift", {"peak_threshold": 0.01}).own
    assert changed.fingerprint() != config.fingerprint()


def test_infinity_is_read_back_from_its_json() -> None:
    class Sampler(Config):
        strength: float = Field(1.0, allow_inf_nan=True)
        places: tuple[Annotated[float, Field(allow_inf_nan=True)], ...] = ()

    class Recipe(Config):
        sampler: Sampler = Sampler()

    given = Recipe(sampler=Sampler(strength=float("inf"), places=(2.0, float("-inf"))))
    text = json.dumps(given.result_fields(), allow_nan=False)
    assert Recipe(**json.loads(text)) == given
    assert given.fingerprint() != Recipe().fingerprint()


def test_differences_in_words() -> None:
    stored = Outer(size=3).canonical_json()
    assert differences(stored, Outer(inner=Inner(ratio=0.9))) == "inner.ratio: 0.8 -> 0.9, size: 3 -> None"
    assert differences(Outer().canonical_json(), Outer(workers=3)) == "nothing it names"
    for broken in ("", "{", "[]", "null", "3"):
        assert differences(broken, Outer()) == "its configuration cannot be read"


def test_overrides_nest() -> None:
    assert overrides(["a.b=1", "a.c=x", "d=[1, 2]", "e=", "f=a=b"]) == {
        "a": {"b": 1, "c": "x"}, "d": [1, 2], "e": None, "f": "a=b",
    }  # fmt: skip
    assert merged_values({"a": {"b": 0, "k": 1}, "z": 1}, {"a": {"b": 2}}) == {"a": {"b": 2, "k": 1}, "z": 1}


@pytest.mark.parametrize("wrong", ["a", "=1", "a=[", "a=2001-13-45", "a=!!int ''", "a=" + "[" * 1500, "a=!!bool x"])
def test_wrong_overrides(wrong: str) -> None:
    with pytest.raises(UsageError, match="--set"):
        overrides([wrong])
    with pytest.raises(UsageError, match="set to a value already"):
        overrides(["a=1", "a.b=2"])


@pytest.mark.parametrize(
    "text",
    ["a: [", "- 1", "1: 2", "{[1]: 2}", "a: 2001-13-45", "a: !!int ''", "a: !!bool x", "a: !!timestamp x", "[" * 1500,
     "a: !!python/object:os.system {}", "a: &x {b: *x}\n: :", "\t", "a: *none"],
)  # fmt: skip
def test_wrong_yaml(tmp_path: Path, text: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(BadInputError, match=r"c\.yaml"):
        read_yaml(path)


def test_yaml_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert read_yaml(tmp_path / "empty.yaml") == {}
    with pytest.raises(BadInputError, match="no such configuration"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(BadInputError, match="cannot be read"):
        read_yaml(tmp_path)
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadInputError):
        read_yaml(tmp_path / "bytes.yaml")


def test_names() -> None:
    assert named_config("rootsift")["extractor"] == "sift"
    with pytest.raises(UsageError, match="did you mean 'rootsift'"):
        named_config("rootsfit")
    with pytest.raises(UsageError, match="there are: "):
        named_config("x" * 300)
    with pytest.raises(UsageError, match="no extractor named 'mutuall'; there are: ") as asked:  # near to a matcher
        named_config("mutuall", "extractor")
    assert "mutual-nn" not in str(asked.value)
    assert "rootsift" in str(asked.value)
    with pytest.raises(UsageError, match="did you mean 'aliked-n16'"):
        resolve("extractor", "alikedn16")
    with pytest.raises(UsageError, match="not a matcher"):
        resolve("matcher", "rootsift")
    with pytest.raises(UsageError, match="did you mean 'sift'"):
        class_of("extractor", "shift")


@MANY
@given(st.text(max_size=300))
def test_any_name_is_known_or_a_usage_error(name: str) -> None:
    with contextlib.suppress(FeatkitError):
        assert isinstance(named_config(name), dict)


YAML_TEXT = st.one_of(
    st.text(max_size=60),
    st.text(alphabet="ab:=.[]{}&*!?|>-'\"%@`#,\n \t012_~x", max_size=40),
    st.sampled_from(
        ["int", "float", "bool", "null", "timestamp", "binary", "set", "omap", "pairs", "merge", "str"]
    ).flatmap(lambda tag: st.text(alphabet="ab1:. '\"[]{}-\n", max_size=8).map(lambda rest: f"!!{tag} {rest}")),
)


@MANY
@given(st.lists(st.tuples(st.text(alphabet="ab.", max_size=4), YAML_TEXT).map("=".join), max_size=3))
def test_any_override_is_read_or_a_usage_error(assignments: list[str]) -> None:
    with contextlib.suppress(UsageError):
        assert isinstance(overrides(assignments), dict)


@MANY
@given(st.one_of(YAML_TEXT.map(lambda text: text.encode("utf-8", "surrogatepass")), st.binary(max_size=60)))
def test_any_yaml_file_is_read_or_bad_input(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "any.yaml"
    path.write_bytes(data)
    try:
        values = read_yaml(path)
    except BadInputError:
        return
    assert isinstance(values, dict)
    with contextlib.suppress(UsageError):
        assert isinstance(make(Outer, values), Outer)


def test_a_configuration_may_stand_on_another(tmp_path: Path) -> None:
    own, upright, taught = (named_config(name, "task") for name in ("scfeat-s", "scfeat-s-upright", "scfeat-s-taught"))
    for stage in ("warm_up", "description", "detection"):
        views = upright[stage]["augmentation"]["views"]
        assert views.pop("rotation_deg") == 22.5
        views["rotation_deg"] = own[stage]["augmentation"]["views"]["rotation_deg"]
    assert upright == own
    assert taught["warm_up"].pop("teacher") == {}
    for name in ("steps", "batch_size", "optimiser"):
        del taught["warm_up"][name], own["warm_up"][name]
    assert taught == own
    recipe = resolve("task", "scfeat-s-taught").own
    assert recipe.warm_up.teacher is not None
    assert resolve("task", "scfeat-s").own.warm_up.teacher is None
    (tmp_path / "twice.yaml").write_text("base: scfeat-s-upright\ntask: scfeat\n")
    with pytest.raises(UsageError, match="its base 'scfeat-s-upright' has a base of its own"):
        named_config(str(tmp_path / "twice.yaml"))
