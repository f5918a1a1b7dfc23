"The house: what may import what, sizes, docstrings, notebooks and README"
import ast, io, re, sys, tokenize
from pyflakes import api, reporter
import pytest
from common import MODULES, NOTEBOOKS, ROOT, cells, source, tree

# notebook → module, what it may import from miniai ('any': all of it), DESIGN §1
TABLE = {
    '00_core': ('core', ''),
    '01_imports': ('imports', 'any'),
    '05_datasets': ('datasets', 'core files formats images sources'),
    '05a_images': ('images', 'core'),
    '05b_files': ('files', 'images'),
    '05c_formats': ('formats', 'files images'),
    '05d_sources': ('sources', 'files formats images'),
    '07_convolutions': ('conv', 'core'),
    '09_learner': ('learner', 'core'),
    '09b_checkpoint': ('checkpoint', 'core learner'),
    '10_activations': ('activations', 'core datasets learner'),
    '11_initializing': ('init', 'core conv activations learner'),
    '12_accel_sgd': ('sgd', 'learner'),
    '13_resnet': ('resnet', 'core conv init learner'),
    '14_augment': ('augment', 'core datasets learner resnet'),
    '15_DDPM': ('diffusion', 'core datasets learner'),
    '15b_denoiser': ('denoiser', 'core diffusion'),
    '17_DDPM_v2': ('accel', 'core learner'),
    '18_fid': ('fid', 'core datasets stats scores extractors features'),
    '18b_statistics': ('stats', 'core'),
    '18c_scores': ('scores', 'stats'),
    '18d_extractors': ('extractors', 'core'),
    '18e_features': ('features', 'core datasets learner extractors stats'),
    '20_DDIM': ('ddim', 'denoiser diffusion'),
    '20a_watching': ('watching', 'core images learner'),
    '21_cifar10_and_wandb': ('tracking', 'core images learner watching'),
    '22_cosine': ('schedules', 'denoiser diffusion ddim'),
    '23_karras': ('karras', 'core denoiser diffusion ddim'),
    '24_one_loop': ('solvers', 'core denoiser diffusion ddim schedules karras learned'),
    '24a_learned': ('learned', 'core diffusion karras'),
    '24b_diffusers': ('bridge', 'denoiser diffusion karras solvers'),
    '25_unet': ('unet', 'core conv'),
    '26_guidance': ('guidance', 'denoiser diffusion'),
    '26a_phema': ('phema', 'core learner'),
    '27_flow': ('flow', 'core denoiser diffusion ddim learner solvers'),
    '28_breaking_metrics': ('audit', 'fid neighbours stats'),
    '28b_neighbours': ('neighbours', 'fid stats'),
    '29_scale': ('dist', 'core learner accel fid'),
    '31_likelihood': ('likelihood', 'core denoiser diffusion images'),
    '32_inverse': ('inverse', 'denoiser diffusion ddim'),
    '32b_editing': ('editing', ''),
    '30a_recipes': ('recipes', 'any'),
    '30_cli': ('cli', 'any'),
    '30b_export': ('export', 'any')}
MAY = {mod: may.split() for mod,may in TABLE.values()}
NO_MODULE = {'index', '30c_own_images', '14b_classifier', '19_DDPM_v3', '22_noise-pred'}
HEAVY = {'datasets', 'diffusers', 'wandb', 'trackio', 'torcheval', 'torchmetrics', 'accelerate', 'scipy', 'tensorboard', 'apprise', 'onnx', 'onnxscript', 'onnxruntime'}   # imported where they are used
LINES = {'core': 300, 'checkpoint': 340, 'learner': 400, 'cli': 260, 'recipes': 260, 'watching': 260}   # modules, in lines of code, where not 250

ids = lambda p: p.stem

def imported(path, everywhere=True):
    "`(module of miniai or '', top-level package)` for each import in a file; `everywhere`: also those inside functions"
    nodes = ast.walk(tree(path)) if everywhere else tree(path).body
    for n in nodes:
        if isinstance(n, ast.Import):
            for a in n.names: yield (a.name.split('.')[1] if a.name.startswith('miniai.') else ''), a.name.split('.')[0]
        elif isinstance(n, ast.ImportFrom):
            full = ('miniai.' if n.level else '') + (n.module or ''); top,_,sub = full.partition('.')
            mods = [sub] if sub or top != 'miniai' else [a.name for a in n.names]
            for m in mods: yield (m.split('.')[0] if top == 'miniai' else ''), top

@pytest.mark.parametrize('path', MODULES, ids=ids)
def test_imports_follow_the_table(path):
    assert path.stem in MAY, f'{path.name} is in no row of the table'
    ours = {m for m,_ in imported(path) if m}
    if MAY[path.stem] != ['any']: assert ours <= set(MAY[path.stem])

def test_arrows_point_one_way():
    left = {m: set(may) - {'any'} for m,may in MAY.items()}
    while ready := [m for m,may in left.items() if not may & left.keys()]:
        for m in ready: del left[m]
    assert not left, f'these modules import each other in a circle: {sorted(left)}'

@pytest.mark.parametrize('path', MODULES, ids=ids)
def test_nothing_heavy_at_import(path):
    assert not {top for m,top in imported(path, everywhere=False) if not m} & HEAVY

@pytest.mark.parametrize('path', MODULES, ids=ids)
def test_no_stars(path):
    assert not [n for n in ast.walk(tree(path)) if isinstance(n, ast.ImportFrom) and n.names[0].name == '*']

def test_the_oldest_python_reads_it():
    oldest = tuple(map(int, re.search(r'^min_python = (\d+)\.(\d+)$', source(ROOT/'settings.ini'), re.M).groups()))
    for p in MODULES: ast.parse(source(p), feature_version=oldest)
    with pytest.raises(SyntaxError): ast.parse('try: f()\nexcept* OSError: pass', feature_version=oldest)

def test_pyflakes_is_silent():
    out = io.StringIO()
    api.checkRecursive([str(ROOT/'miniai')], reporter.Reporter(out, out))
    assert out.getvalue() == ''

def test_one_notebook_for_each_module():
    made = {}
    for nb in NOTEBOOKS:
        exps = [m for c in cells(nb) for m in re.findall(r'^#\|\s*default_exp[ \t]+(\S+)', ''.join(c['source']), re.M)]
        assert len(exps) <= 1, f'{nb.name} exports more than one module'
        if exps: made[nb.stem] = exps[0]
        else: assert nb.stem in NO_MODULE, f'{nb.name} exports nothing'
        assert not [c for c in cells(nb) if re.search(r'^#\|\s*exporti?s?[ \t]+\S', ''.join(c['source']), re.M)], f'{nb.name} exports to another module'
    assert made == {nb: TABLE[nb][0] for nb in made}
    assert set(made.values()) == {p.stem for p in MODULES}
    for nb,mod in made.items(): assert f'File to edit: ../nbs/{nb}.ipynb' in source(ROOT/'miniai'/f'{mod}.py')

# --- words

def comments(path):
    with tokenize.open(path) as f: return {t.start[0] for t in tokenize.generate_tokens(f.readline) if t.type == tokenize.COMMENT}

def all_names(path):
    "What nbdev put into `__all__`"
    return next(ast.literal_eval(n.value) for n in tree(path).body if isinstance(n, ast.Assign) and n.targets[0].id == '__all__')

def functions(path):
    "`(qualified name, node)` of the public functions of a module, and the constructors and public methods of its public classes"
    for n in tree(path).body:
        if getattr(n, 'name', '_').startswith('_'): continue
        if isinstance(n, ast.FunctionDef): yield n.name, n
        elif isinstance(n, ast.ClassDef): yield from ((f'{n.name}.{f.name}', f) for f in n.body if isinstance(f, ast.FunctionDef))

# methods whose arguments are always the same, told once: a callback's events and verbs, a metric's three, torch's and Python's own
KNOWN = re.compile(r'(before|after|cleanup)_(fit|epoch|batch|predict|loss|backward|step)|predict|get_loss|backward|step|zero_grad|_log'
                   r'|forward|update|compute|reset|state_dict|load_state_dict|for_images|T|cov|_\w*|__(?!init__)\w+__')

# a form's methods and predictions, whose arguments are always the same, told at `Form`
FORM = re.compile(r'\w+_pred$|(Form|ddpm|table|cosine|edm|edm_minus|flow|flow_logit)\.')

@pytest.mark.parametrize('path', MODULES, ids=ids)
def test_every_name_has_a_docstring(path):
    bare = [n.name for n in tree(path).body if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and not n.name.startswith('_') and not ast.get_docstring(n)]
    bare += [nm for nm,f in functions(path) if '.' in nm and not FORM.match(nm) and not KNOWN.fullmatch(f.name) and f.name != '__init__' and f.args.args[1:] and not ast.get_docstring(f)]
    assert not bare

@pytest.mark.parametrize('path', MODULES, ids=ids)
def test_docstrings_are_one_line(path):
    docs = {nm: ast.get_docstring(f) or '' for nm,f in functions(path)} | {n.name: ast.get_docstring(n) or '' for n in tree(path).body if isinstance(n, ast.ClassDef)}
    assert not [nm for nm,d in docs.items() if '\n' in d]

@pytest.mark.parametrize('path', MODULES, ids=ids)
def test_every_parameter_has_a_docment(path):
    has = comments(path); bare = []
    for nm,f in functions(path):
        if KNOWN.fullmatch(f.name): continue
        if FORM.match(nm): continue
        a = f.args; args = [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))]
        args = [o for o in args if o.arg not in ('self', 'cls')][4 if f.name.startswith('step_') else 0:]   # (run, x, l, m): told at `sample_loop`
        bare += [f'{nm}({o.arg})' for o in args if o.lineno not in has]
        lines = [o.lineno for o in args]
        bare += [f'{nm}: one line, several parameters' for _ in [0] if len(set(lines)) < len(lines)]
    assert not bare

# --- sizes

@pytest.mark.parametrize('path', MODULES, ids=ids)
def test_sizes(path):
    fs = [n for n in ast.walk(tree(path)) if isinstance(n, ast.FunctionDef)]
    signatures = {i for f in fs for i in range(f.lineno+1, f.body[0].lineno)}     # a line for each parameter and its docment
    code = [i for i,l in enumerate(source(path).splitlines(), 1) if l.strip() and not l.strip().startswith('#') and i not in signatures]
    assert len(code) <= LINES.get(path.stem, 250)
    long = {f.name: n for f in fs if (n := f.end_lineno - f.body[0].lineno + 1) > 25}
    assert not long

def test_one_form_one_loop_is_short():
    "The five modules of diffusion, blank lines and comments apart"
    five = [p for p in MODULES if p.stem in ('diffusion', 'ddim', 'schedules', 'karras', 'solvers')]
    assert len(five) == 5 and sum(1 for p in five for l in source(p).splitlines() if l.strip() and not l.strip().startswith('#')) < 900

def statements(body):
    "How many statements a body holds, those of nested functions and classes apart"
    n = 0
    for b in body:
        n += 1
        if isinstance(b, (ast.FunctionDef, ast.ClassDef)): continue
        for k in ('body', 'orelse', 'finalbody'): n += statements(getattr(b, k, []) or [])
        n += sum(statements(h.body) for h in getattr(b, 'handlers', []))
    return n

@pytest.mark.parametrize('path', MODULES, ids=ids)
def test_lines_and_functions_are_short(path):
    lines = source(path).splitlines(); made = next(n for n in tree(path).body if isinstance(n, ast.Assign))      # `__all__`: nbdev's own
    wide = [i for i,l in enumerate(lines, 1) if i > 1 and len(l) > 120 and not made.lineno <= i <= made.end_lineno]
    assert not wide, f'lines over 120 characters: {wide}'
    fs = [n for n in ast.walk(tree(path)) if isinstance(n, ast.FunctionDef)]
    long = {f.name: n for f in fs if (n := statements(f.body[1:] if ast.get_docstring(f) else f.body)) > 12}
    assert not long, f'functions of more than 12 statements: {long}'

def test_one_of_each():
    "One loop, one noising, one callback that noises, one reader and one writer of images"
    made = {}
    for p in MODULES:
        for n in ast.walk(tree(p)):
            if isinstance(n, (ast.FunctionDef, ast.ClassDef)): made.setdefault(n.name, []).append(p.stem)
    for name in ('sample_loop', 'noisify', 'NoiseCB', 'read_images', 'write_images', 'Denoiser'): assert len(made[name]) == 1, name
    assert not [k for k in made if 'noisify' in k and k != 'noisify']
    zips = [(p.stem, f.name) for p in MODULES for f in ast.walk(tree(p)) if isinstance(f, ast.FunctionDef)
            for n in ast.walk(f) if isinstance(n, ast.Call) and getattr(n.func, 'id', '') == 'step' and len(n.args) >= 4]
    assert zips == [('diffusion', 'sample_loop')], f'steps are called in {zips}'

# --- notebooks

@pytest.mark.parametrize('path', NOTEBOOKS, ids=ids)
def test_notebook(path):
    outs = [o for c in cells(path) for o in c['outputs']]
    text = str([{k: v for k,v in o.get('data', o).items() if not k.startswith('image/')} for o in outs])     # not chance in base64
    assert path.stat().st_size <= 1_500_000
    assert outs, 'no outputs: run it and keep them (make nbs)'
    assert not [o for o in outs if o['output_type'] == 'error']
    assert not re.findall(r'(?:/work/|/root/|/home/|/tmp/|/Users/)[\w./-]*', text), 'an output holds a path of one machine'
    assert not re.search(r'scale\W+smoke', text), 'outputs of a smoke run are not kept'
    assert max(len(c['source']) for c in cells(path)) <= 40
    assert ''.join(cells(path, 'markdown')[0]['source']).startswith('# ')

@pytest.mark.parametrize('path', [p for p in NOTEBOOKS if p.stem != 'index'], ids=ids)
def test_notebook_says_how_it_was_run(path):
    first, last = ''.join(cells(path, 'markdown')[0]['source']), cells(path)[-1]
    assert re.match(r'# .+\n+> .+', first), 'a title, and a claim in one line as a quote'
    assert 'how_run()' in ''.join(last['source'])
    assert re.search(r'scale (cpu|gpu) · ', str(last['outputs']))

@pytest.mark.parametrize('path', NOTEBOOKS, ids=ids)
def test_notebook_ran_from_top_to_bottom(path):
    ran = [c['execution_count'] for c in cells(path) if c['execution_count'] is not None]
    assert ran == sorted(ran)

@pytest.mark.parametrize('path', NOTEBOOKS, ids=ids)
def test_pictures_exist(path):
    for pic in re.findall(r'!\[[^]]*\]\(([^)]+)\)', ''.join(''.join(c['source']) for c in cells(path, 'markdown'))):
        assert (ROOT/'nbs'/pic).exists()

def test_no_smoke_records():
    for p in (ROOT/'results').glob('*.jsonl'): assert '"scale": "smoke"' not in source(p), p.name

def test_readme_is_the_index():
    sys.path.insert(0, str(ROOT/'nbs'))
    from readme import render
    assert source(ROOT/'README.md') == render(ROOT/'nbs'/'index.ipynb'), 'run `make readme`'

def test_readme_links_lead_somewhere():
    text = source(ROOT/'README.md')
    for link in re.findall(r'\]\((?!https?:|#)([^)#]+)', text): assert (ROOT/link).exists(), link

# --- the files around

def test_constraints_are_exact():
    lines = [l for l in source(ROOT/'constraints.txt').splitlines() if l and not l.startswith('#')]
    assert not [l for l in lines if not re.fullmatch(r'[\w.-]+==[\w.]+(; python_version (<|>=) "3\.11")?', l)]
    pinned = {re.split('==', l)[0].lower().replace('_', '-') for l in lines}
    cfg = dict(re.findall(r'^(\w*requirements) = (.+)$', source(ROOT/'settings.ini'), re.M))
    for r in ' '.join(cfg.values()).split(): assert re.split(r'[<>=]', r)[0].lower().replace('_', '-') in pinned, r

TEXTS = [p for pat in ('Makefile', '*.txt', '*.ini', '*.py', '*.toml', '*.md', '.ci/run', 'miniai/*.py', 'miniai/weights/*.json', 'results/*.jsonl', 'nbs/*.ipynb', 'nbs/*.py', 'bench/*.py')
         for p in sorted(ROOT.glob(pat))]

@pytest.mark.parametrize('path', TEXTS, ids=lambda p: p.name)
def test_no_paths_of_one_machine(path):
    assert not re.findall(r'(?<![\w.])/(?:work|root|home|opt)/\S*', source(path))
