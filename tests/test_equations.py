"Equation pictures, their source and the notebooks that show them agree"
import re, sys
from pathlib import Path
import pytest, yaml

NBS = Path(__file__).parent.parent/'nbs'
sys.path.insert(0, str(NBS))
from equations import alt_text, source_hash, where  # noqa: E402

EQS = yaml.safe_load((NBS/'equations.yml').read_text(encoding='utf-8'))
TEXTS = {p.stem: p.read_text(encoding='utf-8').replace('\\\\', '\\') for p in NBS.glob('*.ipynb')}

@pytest.mark.parametrize('name', EQS)
def test_picture_is_of_its_source(name):
    svg = (NBS/f'images/{name}.svg').read_text(encoding='utf-8')
    assert f'<!-- source {source_hash(EQS[name])} -->' in svg, f'{name}.svg is older than equations.yml: run `python nbs/equations.py`'
    assert 'merror' not in svg and where(EQS[name]) in svg

@pytest.mark.parametrize('name', EQS)
def test_shown_with_its_latex(name):
    assert any(f'![{alt_text(EQS[name])}](images/{name}.svg)' in t for t in TEXTS.values()), f'no notebook shows {name} with its LaTeX as alternative text'

def test_no_picture_without_source():
    used = {n for t in TEXTS.values() for n in re.findall(r'images/(\w+)\.svg', t)}
    assert used <= set(EQS) and {p.stem for p in (NBS/'images').glob('*.svg')} == set(EQS)
