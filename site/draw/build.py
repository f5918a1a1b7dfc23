"The draw page: `python site/draw/build.py [OUT]` writes OUT/draw.html, OUT/field.html and OUT/draw/: scripts, the network, onnxruntime-web (from npm)"
import argparse, gzip, hashlib, inspect, json, shutil, subprocess, sys, tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CACHE = Path(tempfile.gettempdir())/'miniai-draw'
ORT = '1.30.0'
RUNTIME = ('ort.wasm.min.mjs', 'ort-wasm-simd-threaded.mjs', 'ort-wasm-simd-threaded.wasm',
           'ort.webgpu.min.mjs', 'ort-wasm-simd-threaded.asyncify.mjs', 'ort-wasm-simd-threaded.asyncify.wasm')
NAMES = ('fashion', 'fashion_edm')         # the first of these that is shipped

# --- the lines of Python that are lit while they run, and their equations

LOOP = 'x = levels[0].sigma*randn()\nfor l,m in zip(levels, levels[1:]):\n    x = step(run, x, l, m)\n\n'
LIGHTS = dict(                             # line of the step → what the page says when it runs
    ddim={'run(x, l)': 'call', 'return m.alpha*x0 + m.sigma*ε': 'move last'},
    heun={'run(x, l)': 'call', 'y = ': 'euler', 'if m.sigma == 0': 'last', 'return y + ': 'again move'},
    dpmpp_2m={'run(x, l)': 'call', 'torch.lerp': 'line', 'if m.sigma == 0': 'last', 'return torch.add': 'move'})
X,XN = r'\textcolor{#1f5fbf}{\mathbf{x}}', r"\textcolor{#1f5fbf}{\mathbf{x}'}"
E,EN = r'\textcolor{#c0392b}{\hat{\boldsymbol\epsilon}}', r"\textcolor{#c0392b}{\hat{\boldsymbol\epsilon}'}"
EQUATIONS = dict(
    start=rf'{X} = \sigma_{{\max}}\,\ep, \qquad \ep\sim\mathcal{{N}}(0,\mathbf{{I}})',
    call=rf'\xh,\,{E} = D({X};\,\sigma), \qquad {X} = \xh + \sigma\,{E}',
    again=rf"\xh,\,{EN} = D({XN};\,\sigma')",
    ddim_move=rf"{XN} = \xh + \sigma'\,{E}",
    heun_euler=rf"{XN} = \xh + \sigma'\,{E}",
    heun_move=rf"{XN} = {X} + (\sigma'-\sigma)\,\tfrac{{1}}{{2}}\big({E} + {EN}\big)",
    dpmpp_2m_line=r"\xh \leftarrow \big(1+\tfrac{1}{2r}\big)\,\xh - \tfrac{1}{2r}\,\textcolor{#1a7f37}{\hat{\mathbf{x}}_0^\text{before}}",
    dpmpp_2m_move=rf"{XN} = \tfrac{{\sigma'}}{{\sigma}}\,{X} + \big(1-\tfrac{{\sigma'}}{{\sigma}}\big)\,\xh",
    last=rf"{XN} = \xh \qquad (\sigma'=0)",
    guided=r'\xh = \xh(\varnothing) + w\,\big(\xh(y) - \xh(\varnothing)\big)')

def code_lines(solver):
    "The loop and this solver's step as they stand in the package, checks and docstring left out: `[{text, lights}]`"
    from miniai.solvers import SOLVERS
    step = inspect.getsource(SOLVERS[solver]).splitlines()
    if 'eta=0.' in step[1]: step[:3] = ['def step_ddim(run, x, l, m, eta=0.):']
    raises = lambda l, after: 'raise ' in l or l.endswith(':') and 'raise ' in after
    step = [l.split('  #')[0].rstrip() for l,after in zip(step, [*step[1:], '']) if not raises(l, after) and not l.strip().startswith('"')]
    out = [dict(text=l, lights=[k for k,part in (('start', 'randn'), ('inside', 'step(')) if part in l]) for l in LOOP.splitlines()]
    for l in step:
        lights = next((v for k,v in LIGHTS[solver].items() if k in l), '')
        out.append(dict(text=l, lights=lights.split()))
    missing = set(' '.join(LIGHTS[solver].values()).split()) - {k for o in out for k in o['lights']}
    if missing: raise SystemExit(f'step of {solver} has changed: no line for {missing}; see LIGHTS in {Path(__file__).name}')
    return out

def equations():
    "`{name: svg}`, each symbol in the colour it has in the lessons"
    sys.path.insert(0, str(ROOT/'nbs'))
    from equations import typeset
    return typeset(EQUATIONS)

# --- what is copied, and what is made

def runtime(out):
    "onnxruntime-web's files, from npm once"
    home = CACHE/f'ort-{ORT}'; dist = home/'node_modules/onnxruntime-web/dist'
    if not dist.exists():
        if not shutil.which('npm'): raise SystemExit('the draw page needs onnxruntime-web from npm: on Debian, apt-get install npm')
        home.mkdir(parents=True, exist_ok=True)
        subprocess.run(['npm', 'install', '--silent', '--ignore-scripts', '--prefix', home, f'onnxruntime-web@{ORT}'], check=True)
    for f in RUNTIME:
        if f.endswith('.wasm'): (out/f'{f}.packed').write_bytes(gzip.compress((dist/f).read_bytes(), mtime=0))     # a quarter of the size; worker.js unpacks it
        else: shutil.copy(dist/f, out/f)

def network(out):
    "The first of NAMES that is shipped, as ONNX; returns its card. Kept in a cache, as tracing takes half a minute"
    import torch
    from miniai import export, unet
    from miniai.diffusion import Level
    name = next(n for n in NAMES if n in unet.weights_names())
    key = hashlib.sha256()
    for p in (unet.WEIGHTS/f'{name}.safetensors', unet.WEIGHTS/f'{name}.json', *(ROOT/'miniai'/f'{m}.py' for m in ('export', 'unet', 'denoiser'))): key.update(p.read_bytes())
    kept = CACHE/f'{name}-{key.hexdigest()[:16]}.onnx'
    den = export.load_denoiser(name, 'cpu', None)
    if not kept.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        export.to_onnx(den, kept.with_suffix('.part')).rename(kept)
    shutil.copy(kept, out/'clothes.onnx')
    n,c = sum(p.numel() for p in den.net.parameters()), den.size
    x = torch.arange(c[0]*c[1]*c[2]).sin().view(1, *c)
    with torch.no_grad(): x0,_ = den(x, Level(1., 1., 1.), torch.tensor([-1]) if den.n_classes else None)
    return dict(check=x0.flatten()[::49].tolist(), name=name, size=den.size, n_classes=den.n_classes or 0,
                classes=den.card.get('classes') or [],
                params=n, cpu_seconds=den.card['cpu_seconds'], form=den.card['form']['name'])

def build(out='_site'):
    "Write the pages and what they need; returns the paths of the pages"
    out = Path(out); own = out/'draw'; own.mkdir(parents=True, exist_ok=True)
    card = network(own)
    runtime(own)
    card |= dict(code={k: code_lines(k) for k in LIGHTS}, equations=equations())
    (own/'card.json').write_text(json.dumps(card, ensure_ascii=False), encoding='utf-8')
    for p in HERE.glob('*'):
        if p.suffix in ('.js', '.css') and p.name != 'learn.js' or p.name == 'field.json': shutil.copy(p, own/p.name)
    pages = sorted(HERE.glob('*.html'))
    for p in pages:
        text = p.read_text(encoding='utf-8')
        for k,v in dict(params=f"{card['params']/1e6:.1f}", minutes=f"{card['cpu_seconds']/60:.0f}").items(): text = text.replace('{'+k+'}', v)
        (out/p.name).write_text(text, encoding='utf-8')
    if not (out/'style.css').exists(): shutil.copy(HERE.parent/'style.css', out/'style.css')
    return [out/p.name for p in pages]

if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('out', nargs='?', default='_site', help='folder to write to')
    sys.path.insert(0, str(ROOT))
    for p in build(parser.parse_args().out): print(p)
