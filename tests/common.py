"What several tests need: where things are, and small data that needs no download"
import ast, json, os, subprocess, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted((ROOT/'miniai').glob('[!_]*.py'))
NOTEBOOKS = sorted((ROOT/'nbs').glob('[!_]*.ipynb'))

def source(path): return path.read_text(encoding='utf-8')
def tree(path): return ast.parse(source(path))
def cells(path, kind='code'): return [c for c in json.loads(source(path))['cells'] if c['cell_type'] == kind and ''.join(c['source']).strip()]

def run_python(code, timeout=300, **env):
    "Run `code` in a fresh interpreter, from the repository's root; returns the finished process"
    return subprocess.run([sys.executable, '-c', code], cwd=ROOT, env=os.environ | env, capture_output=True, text=True, timeout=timeout)

CALLS = '''
import sys
from miniai import cli
for line in sys.argv[1:]:
    name,*sys.argv[1:] = line.split()
    try: getattr(cli, name)()
    except SystemExit as e: print('@', repr(e.code))
'''

def refusals(folder, *lines):
    "The sentence with which each of these commands ends; they are called as their scripts call them, but all by one process"
    (folder/'calls.py').write_text(CALLS)
    p = subprocess.run([sys.executable, 'calls.py', *lines], cwd=folder, capture_output=True, text=True, timeout=600)
    said = [ast.literal_eval(l[2:]) for l in p.stdout.splitlines() if l.startswith('@ ')]
    assert p.returncode == 0 and len(said) == len(lines) and 'Traceback' not in p.stderr, p.stdout + p.stderr
    assert all(isinstance(o, str) and '\n' not in o for o in said), said
    return said

def killed_training(monkeypatch, train):
    "Call `train` with a learner that dies after three batches"
    import pytest
    from miniai import cli
    from miniai.learner import Callback
    class Stop(Callback):
        order = 200
        def after_batch(self, learn):
            if learn.training and learn.iter == 2: raise RuntimeError('killed')
    make = cli.diffusion_learner
    with monkeypatch.context() as m:
        m.setattr(cli, 'diffusion_learner', lambda *args, cbs, **kw: make(*args, cbs=[*cbs, Stop()], **kw))
        with pytest.raises(RuntimeError, match='killed'): train()
