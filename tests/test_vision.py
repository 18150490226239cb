"""torchvision imports in a fresh process, whatever builds of torch and torchvision are installed."""

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


def fresh(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_torchvision_imports_and_its_networks_run() -> None:
    code = """
import torch
from tune_mm._vision import torchvision
vision = torchvision()
assert torchvision() is vision
from torchvision import models, transforms
print(tuple(models.resnet18(num_classes=6).eval()(torch.zeros(1, 3, 32, 32)).shape))
"""
    assert fresh(code) == "(1, 6)"


def test_nothing_is_declared_where_the_operators_load() -> None:
    code = """
import torch
torch.library.define("torchvision::nms", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
torch.library.define("torchvision::qnms", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
from tune_mm import _vision
_vision.torchvision()
print(_vision._define_operators.cache_info().currsize)
"""
    assert fresh(code) == "0"
