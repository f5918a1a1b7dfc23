"Small image-diffusion models, paper by paper"
from importlib.metadata import version
__version__ = version("miniai")
