"The benchmarks run (what it measures depends on the machine; its records are in results/bench.jsonl)"
import subprocess, sys
import pytest
from common import ROOT

@pytest.mark.parametrize('name,says', [('learner', 'loader speed'), ('sampling', 'images a second'), ('unet', 'seconds of training'), ('tracking', 'WandBCB'), ('dist', 'images a second, two')])
def test_bench_quick(name, says):
    kept = ROOT/'results'/'bench.jsonl'; before = kept.read_bytes()
    p = subprocess.run([sys.executable, f'bench/{name}.py', '--quick'], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert p.returncode == 0, p.stderr
    assert says in p.stdout and before == kept.read_bytes(), 'a quick run leaves no record'
