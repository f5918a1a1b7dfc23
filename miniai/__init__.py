"Small image-diffusion models, paper by paper"
import os, signal, sys
from importlib.metadata import version
__version__ = version("miniai")

_listens = signal.getsignal(signal.SIGINT) is signal.default_int_handler
if _listens and os.path.basename(sys.argv[0] or '').startswith('miniai_'):     # a command that is still loading
    signal.signal(signal.SIGINT, lambda *_: sys.exit('interrupted, before anything was done'))
