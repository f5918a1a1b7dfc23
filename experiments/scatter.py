"""Two small tables on the shipped EDM network: FID against ρ of Karras's grid (lesson 23), and how FID and KID differ from
seed to seed (lesson 18). `python experiments/scatter.py` appends to results/eval.jsonl; what is there is not made again."""
from fastcore.script import call_parse

from miniai.core import log_record, read_records, results_path
from miniai.recipes import load_denoiser, reference_eval, score

@call_parse
def main(
    weights:str='fashion_edm',  # name of weights that come with the package
):
    "Score five values of ρ with 2,048 images, and ten seeds with 512"
    path,command = results_path('eval'), f'python experiments/scatter.py --weights {weights}'
    den,ie = load_denoiser(weights), reference_eval()
    rows = [dict(rho=ρ, n=2048, seed=42, what='rho') for ρ in (1., 3., 5., 7., 10.)]
    rows += [dict(rho=7., n=512, seed=s, what='seeds') for s in range(10)]
    for r in rows:
        if read_records(path, experiment='karras', model=weights, **r): continue
        rec = score(den, ie, 'dpmpp_2m', 10, r['n'], r['seed'], dict(rho=r['rho'], sigma_max=80.), experiment='karras', model=weights, command=command)
        rec = log_record(path, **rec | r)
        print(r, round(rec['fid'], 3), round(rec['kid'], 5), rec['cpu_seconds'], flush=True)
