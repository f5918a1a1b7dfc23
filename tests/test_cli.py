"The commands, as one types them"
import json, subprocess, sys
from pathlib import Path
import numpy as np
import torch
from common import refusals

def command(name, *args, cwd):
    "A finished process of one of our commands"
    return subprocess.run([Path(sys.executable).parent/name, *map(str, args)], cwd=cwd, capture_output=True, text=True, timeout=300)

def test_sample_then_score(tmp_path):
    p = command('miniai_sample', '--n', 12, '--steps', 2, '--out', 'x.npz', cwd=tmp_path); assert p.returncode == 0, p.stderr
    x = np.load(tmp_path/'x.npz')['images']; assert x.shape == (12,28,28,1) and x.dtype == np.uint8
    p = command('miniai_eval', 'x.npz', cwd=tmp_path); assert p.returncode == 0, p.stderr
    rec = json.loads((tmp_path/'results'/'eval.jsonl').read_text()); assert rec['n'] == 12 and rec['floor'] > 0

BAD = {'sample_images --solver rk45': 'there are ddim', 'sample_images --n 0': 'at least 1', 'sample_images --weights imagenet': 'fashion_edm', 'evaluate nowhere': 'does not exist',
       'train --form gan': 'there are ddpm'}

def test_bad_input_is_one_sentence(tmp_path):
    said = refusals(tmp_path, *BAD)
    assert all(says in l for says,l in zip(BAD.values(), said)), said
    assert not list(tmp_path.glob('*.png'))

def test_bad_input_as_it_is_typed(tmp_path):
    p = command('miniai_eval', 'nowhere', cwd=tmp_path)
    assert p.returncode == 1 and 'nowhere does not exist' in p.stderr and len(p.stderr.splitlines()) == 1 and not list(tmp_path.iterdir())

def test_a_grid_is_one_picture(tmp_path):
    "Five images: three beside each other, each pixel 3×3, white between them"
    from PIL import Image
    from miniai.cli import write_images
    im = np.asarray(Image.open(write_images(torch.zeros(5,1,28,28, dtype=torch.uint8), tmp_path/'g.png')))
    assert im.shape == (3*(2*28+2), 3*(3*28+2*2), 3) and (im[:84,:84] == 0).all() and (im[:,84:90] == 255).all() and (im[90:,180:] == 255).all()

def test_the_package_lists_its_commands(tmp_path):
    run = lambda *a: subprocess.run([sys.executable, '-m', 'miniai', *a], cwd=tmp_path, capture_output=True, text=True, timeout=100)
    p = run(); assert p.returncode == 0, p.stderr
    for name in ('miniai_train', 'miniai_sample', 'miniai_eval', 'miniai_quickstart'): assert name in p.stdout
    assert p.stdout.split()[0] == 'miniai' and p.stdout.split()[1][0].isdigit()
    assert run('--version').stdout == p.stdout.splitlines()[0]+'\n'
