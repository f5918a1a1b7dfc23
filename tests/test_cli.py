"The commands, as one types them"
import json, subprocess, sys
from pathlib import Path
import numpy as np
import pytest
import torch

def command(name, *args, cwd):
    "A finished process of one of our commands"
    return subprocess.run([Path(sys.executable).parent/name, *map(str, args)], cwd=cwd, capture_output=True, text=True, timeout=300)

def test_sample_then_score(tmp_path):
    p = command('miniai_sample', '--n', 12, '--steps', 2, '--out', 'x.npz', cwd=tmp_path); assert p.returncode == 0, p.stderr
    x = np.load(tmp_path/'x.npz')['images']; assert x.shape == (12,28,28,1) and x.dtype == np.uint8
    p = command('miniai_eval', 'x.npz', cwd=tmp_path); assert p.returncode == 0, p.stderr
    rec = json.loads((tmp_path/'results'/'eval.jsonl').read_text()); assert rec['n'] == 12 and rec['floor'] > 0

@pytest.mark.parametrize('name,args,says', [('miniai_sample', ['--solver', 'rk45'], 'there are ddim'), ('miniai_sample', ['--n', 0], 'at least 1'), ('miniai_sample', ['--weights', 'imagenet'], 'fashion_edm'),
                                            ('miniai_eval', ['nowhere'], 'does not exist'), ('miniai_train', ['--form', 'gan'], 'there are ddpm')], ids=lambda o: str(o))
def test_bad_input_is_one_sentence(name, args, says, tmp_path):
    p = command(name, *args, cwd=tmp_path)
    assert p.returncode and says in p.stderr and 'Traceback' not in p.stderr and not list(tmp_path.glob('*.png'))

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
    p = run('--version'); assert p.returncode == 0 and p.stdout.split()[0] == 'miniai' and p.stdout.split()[1][0].isdigit()
