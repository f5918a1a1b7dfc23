"""Kill trainings for real (SIGKILL, at random moments, many of them while a checkpoint is written), call them again, and compare every bit:
`python tests/kill.py --n 40`. Each kind of training of `test_resume.py` has its turn; three kills a run at most."""
import argparse, hashlib, json, os, random, signal, sys, tempfile, time
from pathlib import Path

ROOT = Path(__file__).resolve().parent; sys.path.insert(0, str(ROOT))
import test_resume as T
import torcheval.metrics, torchmetrics      # once, not in each process
from miniai.checkpoint import CheckpointCB

def child(f):
    "Run `f` in a process of its own, quietly; returns the process's number"
    if (pid := os.fork()): return pid
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    try: f(); code = 0
    except BaseException as e: print(f'{type(e).__name__}: {e}', file=sys.stderr); code = 1
    os._exit(code)

def train(kind, path, out):
    "Train to the end, and write down all that must be the same bits"
    learn = T.learner(kind); learn.fit(T.EPOCHS, cbs=CheckpointCB(path, every=2) if path else None)
    bits, hist, rand = T.everything(learn)
    out.write_text(json.dumps([hashlib.sha256(bits.numpy().tobytes()).hexdigest(), hist, rand]))

def wait(pid): return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def kill(pid, path, secs, writing):
    "Kill a process after so many seconds, or later, in the middle of a write"
    time.sleep(secs)
    while writing and not list(path.parent.glob('.*')) and not os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT): pass
    os.kill(pid, signal.SIGKILL); return wait(pid)

def trial(kind, i, want, secs, tmp, rng):
    "One run, killed one to three times; returns what was killed, and whether the end is the same"
    path, out, seen = tmp/f'{i}'/'c', tmp/f'{i}.json', []; path.parent.mkdir()
    for _ in range(rng.randint(1, 3)):
        writing = rng.random() < 0.5
        code = kill(child(lambda: train(kind, path, out)), path, rng.uniform(0.02, secs), writing)
        if code == 0: break
        seen.append('writing' if list(path.parent.glob('.*')) else 'training')
    if not out.exists() and (code := wait(child(lambda: train(kind, path, out)))): return seen, f'exit code {code}'
    left = [p.name for p in path.parent.glob('.*')]
    return seen, 'DIFFERENT' if json.loads(out.read_text()) != want else f'same, but {left} is left' if left else 'same'

def main(n=40, seed=0):
    rng, tally = random.Random(seed), []; T.torch.set_num_threads(1)
    T.EPOCHS = 6
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp); wants = {}
        for i in range(n):
            kind = T.KINDS[i % len(T.KINDS)]
            if kind not in wants:
                out = tmp/'whole.json'; assert wait(child(lambda: train(kind, None, out))) == 0
                t = time.monotonic(); assert wait(child(lambda: train(kind, tmp/'timed', tmp/'timed.json'))) == 0
                wants[kind] = json.loads(out.read_text()), time.monotonic()-t; (tmp/'timed.safetensors').unlink()
            seen, said = trial(kind, i, *wants[kind], tmp, rng); tally.append((seen, said)); print(f'{i:3} {kind:24} killed while {", ".join(seen) or "(too late)"}: {said}', flush=True)
    kills = [o for seen,_ in tally for o in seen]; good = sum(said == 'same' for _,said in tally)
    print(f'{good} of {n} runs end with the same bits, after {len(kills)} kills, {kills.count("writing")} of them in the middle of a write')
    return good == n

if __name__ == '__main__':
    p = argparse.ArgumentParser(); p.add_argument('--n', type=int, default=40); p.add_argument('--seed', type=int, default=0)
    sys.exit(not main(**vars(p.parse_args())))
