"torchvision works beside a CPU build of torch, and is left alone where it loads by itself"
from common import run_python

def test_transforms_after_core():
    p = run_python('''
import miniai.core, torch, numpy as np
import torchvision.transforms.functional as TF, torchvision.transforms.v2 as T2, torchvision
x = TF.to_tensor(np.full((2, 3, 1), 255, np.uint8)); assert x.shape == (1, 2, 3) and x.max() == 1
assert TF.resize(torch.zeros(1, 8, 8), [4, 4], antialias=True).shape == (1, 4, 4)
assert T2.RandomHorizontalFlip(1.)(x).shape == x.shape
assert torchvision.models.resnet18(weights=None).eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 1000)''')
    assert p.returncode == 0, p.stderr

def test_declared_only_where_needed():
    "Once torchvision is there, with operators of its own or with ours, nothing more is declared"
    p = run_python('''
import miniai.core as c
first = getattr(c.declare_torchvision_ops, 'lib', None)
assert c.declare_torchvision_ops() is False
import torchvision
assert c.declare_torchvision_ops() is False and getattr(c.declare_torchvision_ops, 'lib', None) is first''')
    assert p.returncode == 0, p.stderr

def test_core_without_torchvision():
    "miniai.core imports where torchvision is not installed"
    p = run_python('''
import sys, importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda nm, *a: None if nm == 'torchvision' else real(nm, *a)
import miniai.core''')
    assert p.returncode == 0, p.stderr
