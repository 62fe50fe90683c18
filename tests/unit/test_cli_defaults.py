"""What help shows as a default is the configuration's own."""

import pytest
import typer

from featkit.cli.main import app
from featkit.core.config import load_pipeline
from featkit.features.stage import ExtractConfig
from featkit.localization.stage import LocalizeConfig
from featkit.mapping.cameras import CameraConfig
from featkit.mapping.covisibility import CovisibleConfig

SFM = load_pipeline("sfm").SfmConfig()
LOCALIZE = load_pipeline("localize").LocalizationConfig()
SHOWN = {
    ("extract", "features"): ExtractConfig().features,
    ("reconstruct", "features"): SFM.extract.features,
    ("reconstruct", "pairs"): SFM.pairs,
    ("reconstruct", "matcher"): SFM.matcher,
    ("reconstruct", "mapper"): SFM.map.mapper,
    ("reconstruct", "camera_mode"): SFM.map.camera.mode,
    ("reconstruct", "camera_model"): CameraConfig().model,
    ("reconstruct", "workers"): SFM.extract.workers,
    ("reconstruct", "fix_intrinsics"): not SFM.map.camera.refine,
    ("export", "num"): str(CovisibleConfig().num_matched),
    ("localize", "matcher"): LOCALIZE.matcher,
    ("localize", "num"): str(LocalizeConfig().num_retrieved),
    ("localize", "workers"): LOCALIZE.workers,
}


@pytest.mark.parametrize(("verb", "option"), SHOWN)
def test_shown_default_is_the_configurations(verb: str, option: str) -> None:
    command = typer.main.get_command(app).commands[verb].load()  # type: ignore[attr-defined]
    parameter = next(p for p in command.params if p.name == option)
    shown = parameter.show_default if isinstance(parameter.show_default, str) else parameter.default
    assert shown == SHOWN[verb, option]
