"""A substitute for hloc, written for these tests: only what featkit's plug-in uses, with hloc's interface.

It allows testing the plug-in without hloc; the same tests run with the real one where it is installed.
The interface: a model is the only class of its module that derives from BaseModel; images are (1, c, h, w) from 0 to
1; keypoints are mapped back to the file by (x + 0.5) * scale - 0.5; float32 becomes float16; matches are int16.
"""

from __future__ import annotations

from pathlib import Path

FILES = {
    "__init__.py": "",
    "utils/__init__.py": "",
    "extractors/__init__.py": "",
    "matchers/__init__.py": "",
    "utils/base_model.py": """
import importlib
import inspect

from torch import nn


class BaseModel(nn.Module):
    default_conf = {}
    required_inputs = []

    def __init__(self, conf):
        super().__init__()
        self.conf = {**self.default_conf, **conf}
        self._init(self.conf)

    def forward(self, data):
        assert all(key in data for key in self.required_inputs)
        return self._forward(data)


def dynamic_load(root, model):
    module = importlib.import_module(f"{root.__name__}.{model}")
    members = [c for _, c in inspect.getmembers(module, inspect.isclass)]
    (found,) = [c for c in members if c.__module__ == module.__name__ and issubclass(c, BaseModel)]
    return found
""",
    "extract_features.py": """
import argparse
from pathlib import Path

import cv2
import h5py
import numpy as np
import torch

from hloc import extractors
from hloc.utils.base_model import dynamic_load

confs = {"theirs": {"output": "feats-theirs", "model": {"name": "theirs"}, "preprocessing": {"grayscale": True}}}


def main(conf, image_dir, export_dir=None, as_half=True, image_list=None, feature_path=None, overwrite=False):
    path = feature_path or Path(export_dir, conf["output"] + ".h5")
    path.parent.mkdir(parents=True, exist_ok=True)
    model = dynamic_load(extractors, conf["model"]["name"])(conf["model"]).eval()
    how = conf["preprocessing"]
    with h5py.File(path, "w" if overwrite else "a") as file:
        for source in sorted(Path(image_dir).rglob("*.png")):
            pixels = cv2.imread(str(source), cv2.IMREAD_GRAYSCALE if how["grayscale"] else cv2.IMREAD_COLOR_RGB)
            pixels = pixels.astype(np.float32)
            original = np.array(pixels.shape[1::-1])
            if how.get("resize_max") and max(original) > how["resize_max"]:
                size = tuple(int(round(v * how["resize_max"] / max(original))) for v in original)
                pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
            planes = pixels[None] if how["grayscale"] else pixels.transpose(2, 0, 1)
            found = {k: v[0].numpy() for k, v in model({"image": torch.from_numpy(planes / 255.0)[None]}).items()}
            scale = (original / pixels.shape[1::-1]).astype(np.float32)
            found["keypoints"] = (found["keypoints"] + 0.5) * scale[None] - 0.5
            if "scales" in found:
                found["scales"] *= scale.mean()
            found["image_size"] = original
            group = file.create_group(source.relative_to(image_dir).as_posix())
            for name, values in found.items():
                half = as_half and values.dtype == np.float32
                group[name] = values.astype(np.float16) if half else values
            group["keypoints"].attrs["uncertainty"] = getattr(model, "detection_noise", 1) * scale.mean()
    return path


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--conf", choices=list(confs), required=True)
    parser.add_argument("--image_dir", type=Path, required=True)
    parser.add_argument("--export_dir", type=Path, required=True)
    args = parser.parse_args()
    main(confs[args.conf], args.image_dir, args.export_dir, False)
""",
    "match_features.py": """
from pathlib import Path

import h5py
import torch

from hloc import matchers
from hloc.utils.base_model import dynamic_load

confs = {"their-matcher": {"output": "matches-theirs", "model": {"name": "theirs"}}}


def main(conf, pairs, features, export_dir=None, matches=None, features_ref=None, overwrite=False):
    model = dynamic_load(matchers, conf["model"]["name"])(conf["model"]).eval()
    with h5py.File(matches, "w") as out, h5py.File(features) as f0, h5py.File(features_ref or features) as f1:
        for line in Path(pairs).read_text().split("\\n"):
            if not line:
                continue
            data = {}
            for side, file, name in zip((0, 1), (f0, f1), line.split()):
                for key, values in file[name].items():
                    data[f"{key}{side}"] = torch.from_numpy(values[()]).float()[None]
                width, height = file[name]["image_size"][()]
                data[f"image{side}"] = torch.empty(1, 1, height, width)
            found = model(data)
            group = out.create_group("/".join(name.replace("/", "-") for name in line.split()))
            group["matches0"] = found["matches0"][0].short().numpy()
            group["matching_scores0"] = found["matching_scores0"][0].half().numpy()
    return matches
""",
}


def write_stand_in(folder: Path) -> Path:
    """Write the package `hloc` into `folder`, which must then be added to sys.path."""
    for name, text in FILES.items():
        path = folder / "hloc" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder
