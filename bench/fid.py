"""What the distance costs: ours beside pytorch-fid's and torch-fidelity's on the same statistics, and the memory of a long stream.

All three get the statistics ready-made, at d = 2048, and ours keeps the factor of the reference, as it does in use. They are paired in one
process: each round times each of them once, in an order that changes. That is done twice, each time in a process of its own: with one thread
and by processor time, where other work on the machine counts little; and with two threads and by the wall clock, which wants a quiet machine.
`python bench/fid.py` appends to results/bench.jsonl; `--images 256` only times 256 images from pixels to FID."""
import argparse, os, sys
if '--threads' in sys.argv:      # the thread pools of NumPy's and SciPy's libraries are sized when they are loaded
    for k in ('OMP', 'OPENBLAS', 'MKL'): os.environ[k+'_NUM_THREADS'] = sys.argv[sys.argv.index('--threads')+1]

import random, resource, statistics, subprocess, time, warnings
import miniai.core as core     # first: it declares the operators that a torchvision without its library asks for
import scipy.linalg
import torch
from pytorch_fid import fid_score
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

from miniai.fid import Stats, frechet

def sqrtm(a, disp=True):
    "SciPy's, taking `disp` also where SciPy no longer does: pytorch-fid asks for it"
    with warnings.catch_warnings():
        warnings.simplefilter('ignore'); root = scipy.linalg.sqrtm(a)
    return root if disp else (root, None)

class WithSqrtm:
    sqrtm = staticmethod(sqrtm)
fid_score.linalg = WithSqrtm

def features(n, d, seed):
    "n×d, float32: correlated, not Gaussian, with variances that fall as those of a network's features do"
    g = torch.Generator().manual_seed(seed)
    mix = torch.randn(d, d, generator=torch.Generator().manual_seed(0))/d**0.5 * torch.logspace(0, -1.5, d)
    return (torch.randn(n, d, generator=g) @ mix + 0.1*torch.randn(n, d, generator=g)).clamp(min=0) + 0.02*seed

def distances(stats, ref):
    "`{name: function of no arguments}`; each starts from float64 mean and covariance in the form that it wants"
    m1,c1,m2,c2 = (o.numpy() for o in (stats.mean, stats.cov, ref.mean, ref.cov))
    theirs = dict(mu=m1, sigma=c1), dict(mu=m2, sigma=c2)
    def ours():
        stats.__dict__.pop('factor', None)       # only the reference keeps its factor
        return frechet(stats, ref)
    return {'miniai': ours, 'pytorch-fid': lambda: float(fid_score.calculate_frechet_distance(m1, c1, m2, c2)),
            'torch-fidelity': lambda: fid_statistics_to_metric(*theirs, verbose=False)[KEY_METRIC_FID]}

def time_distances(n, d, n_ref, rounds, clock):
    "`(seconds of each round by name, values by name, seconds for the reference's factor)`"
    ref = Stats(features(n_ref, d, seed=1)); ref.cov; t = clock(); ref.factor; t_factor = clock()-t
    fs = distances(Stats(features(n, d, seed=2)), ref); secs = {k: [] for k in fs}; value = {}
    for i in range(rounds):
        for k in random.Random(i).sample(list(fs), len(fs)):
            t = clock(); value[k] = fs[k](); secs[k].append(clock()-t)
            print(f'  n={n}, round {i+1}: {k:15} {secs[k][-1]:6.2f} s  {value[k]:.10g}', flush=True)
    return secs, value, t_factor

def peak_mb(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024

def stream_memory(n=1_000_000, d=512, chunk=10_000):
    "Seconds, and how many MB the peak rose while n features were streamed, beyond one chunk of them"
    x = torch.randn(chunk, d); Stats(x[:600]).cov       # and the library's own buffers
    before, s, t = peak_mb(), Stats(), time.perf_counter()
    for i in range(0, n, chunk): s.add(x.normal_())
    s.cov
    assert s.n == n
    return time.perf_counter()-t, peak_mb()-before

def score_images(n=256, rounds=5):
    "Median CPU seconds to score n images of 28×28 from pixels to FID, with the package's classifier and reference"
    from miniai.recipes import reference_eval
    ie = reference_eval(); x = ie.train_images(n); ie.fid(x); secs = []       # the first has the reference and the floor to find
    for _ in range(rounds):
        t = time.process_time(); ie.fid(x); secs.append(time.process_time()-t)
    return statistics.median(secs)

def main(threads, rounds, d, n_ref, images=0):
    if images:
        torch.set_num_threads(1); secs = score_images(images)
        print(f'{images} images scored in {secs:.3f} s')
        return core.log_record(core.results_path('bench'), experiment='fid', command='python bench/fid.py', threads=1, clock='process_time', what='fid: images', n=images, d=512, cpu_seconds=secs, command=f'python bench/fid.py --images {images}')
    torch.set_num_threads(threads); clock = time.process_time if threads == 1 else time.perf_counter
    log = lambda **kw: core.log_record(core.results_path('bench'), experiment='fid', command='python bench/fid.py', threads=threads, clock=clock.__name__, **kw)
    if threads == 1:                     # first, while the peak is still low
        seconds, grown = stream_memory()
        print(f'streaming 1,000,000×512 features: {seconds:.1f} s, {grown:.0f} MB beyond their chunk')
        log(what='fid: streaming statistics', n=1_000_000, d=512, chunk=10_000, seconds=seconds, mb_beyond_chunk=grown)
    for n,k in ((n_ref, rounds), (512, 1)):
        secs,value,t_factor = time_distances(n, d, n_ref, k, clock)
        med = {k: statistics.median(v) for k,v in secs.items()}; ratio = {k: med[k]/med['miniai'] for k in med if k != 'miniai'}
        worst = max(abs(v/value['miniai']-1) for v in value.values())
        print(f'{threads} threads, {clock.__name__}, n={n}, d={d}: ' + ', '.join(f'{r:.1f}× faster than {k}' for k,r in ratio.items()) + f'; values agree to {worst:.1e}')
        log(what='fid: distance', n=n, n_ref=n_ref, d=d, rounds=k, median_seconds=med, ratio=ratio, factor_seconds=t_factor, values=value, relative_difference=worst, scipy=scipy.__version__)

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for k,v in dict(threads=0, rounds=5, d=2048, n_ref=10_000).items(): p.add_argument(f'--{k}', type=int, default=v)
    p.add_argument('--images', type=int, default=0, help='only time how long so many images take, from pixels to FID')
    a = p.parse_args()
    if a.threads or a.images: main(**vars(a))
    else: sys.exit(max(subprocess.run([sys.executable, *sys.argv, '--threads', str(k)]).returncode for k in (1, 2)))
