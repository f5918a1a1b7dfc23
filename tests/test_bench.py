"The benchmark runs (what it measures depends on the machine; its records are in results/bench.jsonl)"
import subprocess, sys
from common import ROOT

def test_bench_learner_quick():
    before = (ROOT/'results'/'bench.jsonl').read_bytes() if (ROOT/'results'/'bench.jsonl').exists() else None
    p = subprocess.run([sys.executable, 'bench/learner.py', '--quick'], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert p.returncode == 0, p.stderr
    assert 'learner overhead' in p.stdout and 'loader speed' in p.stdout
    assert before == ((ROOT/'results'/'bench.jsonl').read_bytes() if before is not None else None), 'a quick run leaves no record'
