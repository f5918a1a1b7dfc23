"Libraries that ours is measured against, and tested against, where they do not come in by a plain import"
import importlib, importlib.metadata, sys, types

def k_sampling():
    "`k_diffusion.sampling` alone: the package's own import wants wandb, clip, kornia and more. What stands in for torchsde and torchdiffeq serves functions that are not called here"
    pkg = types.ModuleType('k_diffusion'); pkg.__path__ = [str(importlib.metadata.distribution('k-diffusion').locate_file('k_diffusion'))]
    stubs = {nm: types.ModuleType(nm) for nm in ('torchsde', 'torchdiffeq')} | {'k_diffusion': pkg}; stubs['torchdiffeq'].odeint = None
    were = {nm: sys.modules.get(nm) for nm in stubs}; sys.modules |= stubs
    try: return importlib.import_module('k_diffusion.sampling')
    finally:
        for nm,m in were.items(): sys.modules.pop(nm) if m is None else sys.modules.update({nm: m})
