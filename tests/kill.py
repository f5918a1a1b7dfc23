"""Kill trainings for real (SIGKILL, at random moments, many of them while a checkpoint is written), call them again, and compare every bit:
`python tests/kill.py --n 40`. Each kind of training of `test_resume.py` has its turn; three kills a run at most.
`--two`: each training in two processes, one of which is killed; the other has to stop by itself."""
import argparse, hashlib, json, os, random, signal, socket, sys, tempfile, time
from pathlib import Path

ROOT = Path(__file__).resolve().parent; sys.path.insert(0, str(ROOT))
import test_resume as T
import torcheval.metrics, torchmetrics      # once, not in each process
from miniai.checkpoint import CheckpointCB
from miniai.dist import DistCB, join, rank

TWO = False         # two processes for each training?

def child(f, **env):
    "Run `f` in a process of its own, quietly; returns the process's number"
    if (pid := os.fork()): return pid
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1); os.environ |= env
    try: f(); code = 0
    except BaseException as e: print(f'{type(e).__name__}: {str(e)[:80]}', file=sys.stderr); code = 1
    os._exit(code)

def start(f):
    "The process, or the two processes, that run `f`"
    if not TWO: return [child(f)]
    with socket.socket() as s: s.bind(('localhost', 0)); port = str(s.getsockname()[1])
    return [child(f, RANK=str(r), WORLD_SIZE='2', MASTER_ADDR='localhost', MASTER_PORT=port) for r in (0, 1)]

def train(kind, path, out):
    "Train to the end, and write down all that must be the same bits"
    join(20)
    learn = T.learner(kind); learn.fit(T.EPOCHS, cbs=[*([CheckpointCB(path, every=2)] if path else []), *([DistCB()] if TWO else [])])
    bits, hist, rand = T.everything(learn)
    (out.with_suffix(f'.{rank()}')).write_text(json.dumps([hashlib.sha256(bits.numpy().tobytes()).hexdigest(), hist, rand]))

def read(out):
    "What the processes wrote, one after the other"
    return [json.loads(out.with_suffix(f'.{r}').read_text()) for r in range(1+TWO)]

def wait(pids): return max(os.waitstatus_to_exitcode(os.waitpid(p, 0)[1]) for p in pids)

def gone(pid): return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)

def kill(pids, path, secs, writing, rng):
    "Kill one process after so many seconds, or later, in the middle of a write; returns 0 if all had ended well before"
    time.sleep(secs)
    while writing and not list(path.parent.glob('.*')) and not gone(pids[0]): pass
    os.kill(rng.choice(pids), signal.SIGKILL)
    return max(map(abs, [os.waitstatus_to_exitcode(os.waitpid(p, 0)[1]) for p in pids]))

def trial(kind, i, want, secs, tmp, rng):
    "One run, killed one to three times; returns what was killed, and whether the end is the same"
    path, out, seen = tmp/f'{i}'/'c', tmp/f'{i}.json', []; path.parent.mkdir()
    for _ in range(rng.randint(1, 3)):
        writing = rng.random() < 0.5
        if not kill(start(lambda: train(kind, path, out)), path, rng.uniform(0.02, secs), writing, rng): break
        seen.append('writing' if list(path.parent.glob('.*')) else 'training')
    if not all(out.with_suffix(f'.{r}').exists() for r in range(1+TWO)) and (code := wait(start(lambda: train(kind, path, out)))): return seen, f'exit code {code}'
    left = [p.name for p in path.parent.glob('.*')]
    return seen, 'DIFFERENT' if read(out) != want else f'same, but {left} is left' if left else 'same'

def main(n=40, seed=0, two=False):
    global TWO
    rng, tally, TWO = random.Random(seed), [], two; T.torch.set_num_threads(1)
    T.EPOCHS = 6
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp); wants = {}
        for i in range(n):
            kind = T.KINDS[i % len(T.KINDS)]
            if kind not in wants:
                out = tmp/'whole.json'; assert wait(start(lambda: train(kind, None, out))) == 0
                t = time.monotonic(); assert wait(start(lambda: train(kind, tmp/'timed', tmp/'timed.json'))) == 0
                wants[kind] = read(out), time.monotonic()-t; (tmp/'timed.safetensors').unlink()
            seen, said = trial(kind, i, *wants[kind], tmp, rng); tally.append((seen, said)); print(f'{i:3} {kind:24} killed while {", ".join(seen) or "(too late)"}: {said}', flush=True)
    kills = [o for seen,_ in tally for o in seen]; good = sum(said == 'same' for _,said in tally)
    print(f'{good} of {n} runs end with the same bits, after {len(kills)} kills, {kills.count("writing")} of them in the middle of a write')
    return good == n

if __name__ == '__main__':
    p = argparse.ArgumentParser(); p.add_argument('--n', type=int, default=40); p.add_argument('--seed', type=int, default=0); p.add_argument('--two', action='store_true')
    sys.exit(not main(**vars(p.parse_args())))
