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
