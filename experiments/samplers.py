"""Scores solvers on a network that comes with the package: the tables of lessons 20, 23 and 24 and of the front page.
`python experiments/samplers.py` appends to results/eval.jsonl; what is on record already is not made again.
`python experiments/samplers.py --weights fashion_ddpm --table` scores DDIM's sweep (lesson 20) there, too.
The network itself: `miniai_train --epochs 11 --ema 0.9995 --out fashion_edm` (float32 where there is no bfloat16)."""
from fastcore.script import call_parse

from miniai.core import log_record, read_records, results_path
from miniai.denoiser import clip_x0
from miniai.recipes import ddpm_levels, load_denoiser, reference_eval, score
from miniai.solvers import get_solver

# solver, noise levels, η: the best first
TABLE = [('dpmpp_2m', 10, None), ('unipc', 10, None), ('ddim', 50, 1.), ('dpmpp_2m', 20, None), ('unipc', 20, None),
         ('heun', 10, None), ('lms', 10, None), ('lms', 20, None), ('ddim', 10, None), ('ddim', 50, None),
         ('dpmpp_2m', 5, None), ('unipc', 5, None), ('dpmpp_3m', 10, None), ('ddim', 100, 1.), ('ddim', 100, None)]
DDPM = [('ddim', k, η) for k in (25, 50, 100, 200, 333) for η in (1., 0., 0.5)]

@call_parse
def main(
    weights:str='fashion_edm',  # name of weights that come with the package
    n:int=2048,                 # images
    seed:int=42,                # of the noise
    table:bool=False,           # on DDPM's own times (lesson 20) rather than on Karras's noise levels
    most:int=100,               # calls, with --table: there are rows of 25, 50, 100, 200 and 333
    record:str=None,            # a .jsonl; None: results/eval.jsonl
):
    "Score every solver of the table"
    den,ie,path = load_denoiser(weights), reference_eval(), record or results_path('eval')
    card,den = den.card, clip_x0(den) if table else den                     # diffusers' DDIM clips too
    for solver,steps,eta in [o for o in DDPM if o[1] <= most] if table else TABLE:
        get_solver(solver)
        what = dict(experiment='ddpm' if table else 'karras', model=weights, solver=solver, steps=steps, eta=eta, n=n, seed=seed, grid='ddpm' if table else 'karras')
        if table: what['trained'] = card['cpu_seconds']                     # says which training of these weights
        if read_records(path, **what): continue
        sampling = ({} if eta is None else dict(eta=eta)) | (dict(levels=ddpm_levels(steps)) if table else {})
        command = f'python experiments/samplers.py --weights {weights} --n {n} --seed {seed}' + f' --table --most {most}'*table
        r = log_record(path, **score(den, ie, solver, steps, n, seed, sampling, command=command,
                                    **{k: what[k] for k in ('experiment', 'model', 'grid', 'trained') if k in what}))
        print(solver, steps, eta, r['nfe'], round(r['fid'], 2), r['cpu_seconds'], flush=True)
