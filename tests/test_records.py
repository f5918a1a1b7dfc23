"The records in results/: every line is what its dataclass says"
import sys
import pytest
from common import ROOT
from miniai.core import read_records, results_path
sys.path.insert(0, str(ROOT/'experiments'))
import records

@pytest.mark.parametrize('kind', records.KINDS)
def test_records(kind):
    bad = {i: w for i,r in enumerate(read_records(results_path(kind)), 1) if (w := records.wrong(kind, r))}
    assert not bad

def test_three_files(): assert {p.stem for p in results_path('eval').parent.glob('*.jsonl')} == set(records.KINDS)

def test_what_is_wrong_is_said():
    r = dict(read_records(results_path('eval'))[0])
    assert not records.wrong('eval', r)
    assert records.wrong('eval', r | dict(fid='low')) == ["fid is 'low', not float or int"]
    assert records.wrong('eval', r | dict(weights='x')) == ['weights is called model']
    assert records.wrong('eval', {k: v for k,v in r.items() if k != 'command'}) == ['command is missing']
