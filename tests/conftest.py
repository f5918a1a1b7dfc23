import os, sys
from pathlib import Path
import pytest

os.environ.setdefault('MPLBACKEND', 'agg')
os.environ.setdefault('MINIAI_SCALE', 'smoke')
sys.path.insert(0, str(Path(__file__).parent))

@pytest.fixture(autouse=True)
def _seed():
    from miniai.core import set_seed
    set_seed(42)

@pytest.fixture(autouse=True)
def _figures():
    yield
    if 'matplotlib.pyplot' in sys.modules: sys.modules['matplotlib.pyplot'].close('all')
