"Typeset equations.yml into images/*.svg with MathJax (needs node and npm; fetched once into a cache): python nbs/equations.py"
import hashlib, json, re, shutil, subprocess, tempfile
from pathlib import Path
import yaml

HERE = Path(__file__).parent
COLOURS = dict(x='#1f5fbf', x0='#1a7f37', noise='#c0392b', abar='#b35900', beta='#7b3fa0', mean='#0e7c86')
MACROS = {
    'xo': r'\textcolor{%(x0)s}{\mathbf{x}_0}', 'xh': r'\textcolor{%(x0)s}{\hat{\mathbf{x}}_0}', 'xt': r'\textcolor{%(x)s}{\mathbf{x}_t}', 'xp': r'\textcolor{%(x)s}{\mathbf{x}_{t-1}}',
    'ab': r'\textcolor{%(abar)s}{\bar\alpha_t}', 'abp': r'\textcolor{%(abar)s}{\bar\alpha_{t-1}}', 'al': r'\textcolor{%(abar)s}{\alpha_t}',
    'abd': r'\textcolor{%(abar)s}{\alpha_t}', 'abdp': r'\textcolor{%(abar)s}{\alpha_{t-1}}',
    'be': r'\textcolor{%(beta)s}{\beta_t}', 'sg': r'\textcolor{%(beta)s}{\sigma_t}', 'ep': r'\textcolor{%(noise)s}{\boldsymbol\epsilon}',
    'net': r'\textcolor{%(noise)s}{\boldsymbol\epsilon_\theta(\mathbf{x}_t,t)}', 'm': r'\textcolor{%(mean)s}{\tilde{\boldsymbol\mu}_t}'}
NODE = r"""
const {mathjax} = require('mathjax-full/js/mathjax.js'), {TeX} = require('mathjax-full/js/input/tex.js'), {SVG} = require('mathjax-full/js/output/svg.js');
const {liteAdaptor} = require('mathjax-full/js/adaptors/liteAdaptor.js'), {RegisterHTMLHandler} = require('mathjax-full/js/handlers/html.js');
const {AllPackages} = require('mathjax-full/js/input/tex/AllPackages.js');
const {eqs, macros} = JSON.parse(require('fs').readFileSync(0)), adaptor = liteAdaptor(); RegisterHTMLHandler(adaptor);
const doc = mathjax.document('', {InputJax: new TeX({packages: AllPackages, macros}), OutputJax: new SVG({fontCache: 'none'})});
const out = {}; for (const [k, tex] of Object.entries(eqs)) out[k] = adaptor.innerHTML(doc.convert(tex, {display: true, em: 16, ex: 8}));
console.log(JSON.stringify(out));
"""

PLAIN = {k: re.sub(r'\\textcolor\{[^}]*\}\{(.*)\}$', r'\1', v) for k,v in MACROS.items()}

def alt_text(eq):
    "The equation as plain LaTeX: what stands in a notebook as the picture's alternative text (no square brackets: Markdown ends it there)"
    tex = eq['tex']
    while r'\code' in tex: tex = re.sub(r'\\code\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}\{[^{}]*\}', r'\1', tex)
    tex = re.sub(r'\\([a-z]+)(?![a-zA-Z])', lambda m: PLAIN.get(m[1], m[0]), tex)
    return tex.replace('[', r'\lbrack ').replace(']', r'\rbrack ') + f" \\tag{{{eq['number']}}}"

def where(eq):
    "What stands beneath the picture: the paper, and the equation's number or, where it has none, the name of the place"
    return f"{eq['paper']}, " + (f"eq. ({eq['number']})" if isinstance(eq['number'], int) else eq['number'])

def source_hash(eq): return hashlib.sha256(json.dumps([eq, COLOURS, MACROS], sort_keys=True).encode()).hexdigest()[:16]

def typeset(eqs):
    "`{name: svg}` of `{name: tex}`, by MathJax in node"
    if not shutil.which('npm'): raise SystemExit('typesetting needs node and npm: on Debian, apt-get install npm')
    cache = Path(tempfile.gettempdir())/'miniai-mathjax'; cache.mkdir(exist_ok=True)
    if not (cache/'node_modules/mathjax-full').exists(): subprocess.run(['npm', 'install', '--silent', '--prefix', cache, 'mathjax-full@3.2.2'], check=True)
    macros = {k: v % COLOURS for k,v in MACROS.items()} | {'code': [r'\underbrace{#1}_{\texttt{#2}}', 2]}
    res = subprocess.run(['node', '-e', NODE], input=json.dumps(dict(eqs=eqs, macros=macros)), capture_output=True, text=True, check=True, cwd=cache)
    return json.loads(res.stdout)

def panel(svg, eq):
    "The equation on a light panel (so that it can be read on a dark page), its paper and number beneath"
    w,h = (float(re.search(rf'{a}="([\d.]+)ex"', svg)[1])*9 for a in ('width', 'height'))
    inner = re.sub(r'width="[\d.]+ex" height="[\d.]+ex"', f'x="24" y="14" width="{w:.1f}" height="{h:.1f}"', svg, count=1)
    caption = where(eq); W,H = max(w, 7*len(caption))+48, h+48
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{W:.0f}" height="{H:.0f}" viewBox="0 0 {W:.0f} {H:.0f}"><!-- source {source_hash(eq)} -->'
            f'<rect width="100%" height="100%" rx="8" fill="#fbfbf8"/>{inner}'
            f'<text x="{W-16:.0f}" y="{H-12:.0f}" text-anchor="end" font-family="sans-serif" font-size="12" fill="#666">{caption}</text></svg>\n')

def main():
    eqs = yaml.safe_load((HERE/'equations.yml').read_text(encoding='utf-8'))
    out = HERE/'images'; out.mkdir(exist_ok=True)
    for k,svg in typeset({k: e['tex'] for k,e in eqs.items()}).items(): (out/f'{k}.svg').write_text(panel(svg, eqs[k]), encoding='utf-8')
    print(f'{len(eqs)} equations in {out.name}/')

if __name__ == '__main__': main()
