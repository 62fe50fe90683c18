"""The peer in `scenes.py`: pycolmap's own SIFT, matching and incremental mapper with its defaults, nothing of featkit.

    python benchmarks/plain_pycolmap.py IMAGES OUTPUT [MODEL PARAMS]

MODEL PARAMS: a known camera of all images (parameters comma-separated); without them one camera per image from EXIF.
Prints one json object with the seconds of each stage.
"""

import json
import sys
import time
from pathlib import Path

import pycolmap


def main(images: str, output: str, model: str = "", params: str = "") -> None:
    Path(output).mkdir(parents=True, exist_ok=True)
    database = str(Path(output) / "database.db")
    reader = pycolmap.ImageReaderOptions()
    mode = pycolmap.CameraMode.PER_IMAGE
    if model:
        reader.camera_model, reader.camera_params = model, params
        mode = pycolmap.CameraMode.SINGLE
    options = pycolmap.IncrementalPipelineOptions()
    if model:  # known intrinsics stay as they are, as in featkit's run
        options.ba_refine_focal_length = options.ba_refine_extra_params = False
        options.mapper.abs_pose_refine_focal_length = options.mapper.abs_pose_refine_extra_params = False
    seconds = {}
    clock = time.perf_counter()

    def lap(stage: str) -> None:
        nonlocal clock
        now = time.perf_counter()
        seconds[stage], clock = now - clock, now

    pycolmap.extract_features(database, images, camera_mode=mode, reader_options=reader)
    lap("extract")
    pycolmap.match_exhaustive(database)
    lap("match and verify")
    pycolmap.incremental_mapping(database, images, output, options)
    lap("map")
    print(json.dumps({"seconds": seconds}))


if __name__ == "__main__":
    main(*sys.argv[1:])
