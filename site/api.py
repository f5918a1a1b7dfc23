"The public names of the package, read from its source: signatures, docments, and the notebook cell that each comes from"
import ast, io, re, tokenize
from dataclasses import dataclass, field
from pathlib import Path

@dataclass
class Item:
    name:str                                         # as one types it; a method's with its class in front
    sig:str                                          # what stands between the name and its colon
    doc:str                                          # its docstring
    params:list                                      # (name, default or '', comment)
    cell:str                                         # id of the notebook cell that makes it
    methods:list = field(default_factory=list)       # a class's public methods, Items

@dataclass
class Module:
    name:str
    doc:str
    notebook:str                                     # the stem of the notebook it comes from
    items:list                                       # Items, in the order of the notebook
    alias:dict                                       # public name → the module that makes it, for names made elsewhere

def comments(src):
    "Line number → comment"
    toks = tokenize.generate_tokens(io.StringIO(src).readline)
    return {t.start[0]: t.string.lstrip('# ').strip() for t in toks if t.type == tokenize.COMMENT}

def args_of(f):
    a = f.args
    pos = [*a.posonlyargs, *a.args]
    dflt = dict(zip([o.arg for o in pos[len(pos)-len(a.defaults):]], a.defaults))
    dflt |= {o.arg: d for o,d in zip(a.kwonlyargs, a.kw_defaults) if d is not None}
    rows = [(o, o.arg) for o in pos] + ([(a.vararg, '*'+a.vararg.arg)] if a.vararg else [])
    rows += [(o, o.arg) for o in a.kwonlyargs] + ([(a.kwarg, '**'+a.kwarg.arg)] if a.kwarg else [])
    return [(o, nm, ast.unparse(dflt[o.arg]) if o.arg in dflt else '') for o,nm in rows if o.arg not in ('self', 'cls')]

def function(f, name, com, cell, skip=0):
    rows = args_of(f)[skip:]
    ret = f' → {ast.unparse(f.returns)}' if f.returns else ''
    sig = '(' + ', '.join(nm + (f'={d}' if d else '') for _,nm,d in rows) + ')' + ret
    return Item(name, sig, ast.get_docstring(f) or '', [(nm, d, com.get(o.lineno, '')) for o,nm,d in rows], cell)

def klass(c, com, cell):
    "A class: its parameters are those of `__init__`, or the fields of a dataclass"
    item = Item(c.name, '('+', '.join(ast.unparse(b) for b in c.bases)+')' if c.bases else '', ast.get_docstring(c) or '', [], cell)
    data = any('dataclass' in ast.unparse(d) for d in c.decorator_list)
    for n in c.body:
        if isinstance(n, ast.AnnAssign) and data:
            v = ast.unparse(n.value) if n.value else ''
            v = re.sub(r'^field\((?:default=)?([^,)]*).*', r'\1', v)
            item.params.append((n.target.id, v, com.get(n.lineno, '')))
        if not isinstance(n, ast.FunctionDef): continue
        made = function(n, f'{c.name}.{n.name}', com, cell)
        if n.name == '__init__': item.sig,item.params = made.sig, made.params
        elif not n.name.startswith('_') or (n.name == '__call__' and made.doc): item.methods.append(made)
    if data: item.sig = '(' + ', '.join(nm + (f'={d}' if d else '') for nm,d,_ in item.params) + ')'
    return item

def constant(n, name, com, cell):
    src = ast.unparse(n.value)
    return Item(name, ' = ' + (src if len(src) < 90 else src[:80] + ' …'), com.get(n.lineno, ''), [], cell)

def module(path):
    src = Path(path).read_text(encoding='utf-8'); tree = ast.parse(src); com = comments(src)
    at = {i: m[1] for i,l in enumerate(src.splitlines(), 1) if (m := re.match(r'# %% \S+ #(\w+)$', l))}
    cell = lambda n: at.get(max((i for i in at if i <= n.lineno), default=0), '')
    public = next((ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == '__all__'), [])
    nb = re.search(r'File to edit: \S*/([^/]+)\.ipynb', src)
    items,alias,seen = [],{},{}
    for n in ast.walk(tree):
        if isinstance(n, ast.ImportFrom) and n.level: alias |= {a.asname or a.name: n.module or a.name for a in n.names}
    for n in tree.body:
        if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and n.name in public:
            items.append(klass(n, com, cell(n)) if isinstance(n, ast.ClassDef) else function(n, n.name, com, cell(n)))
        elif isinstance(n, ast.FunctionDef) and any('patch' in ast.unparse(d) for d in n.decorator_list) and not n.name.startswith('_'):
            owner = ast.unparse(n.args.args[0].annotation)
            made = function(n, f'{owner}.{n.name}', com, cell(n))
            made.params,seen[f'{owner}.{n.name}'] = made.params, made
            items.append(made)
        elif isinstance(n, ast.Assign):
            names = [t.id for o in n.targets for t in ast.walk(o) if isinstance(t, ast.Name)]
            items += [constant(n, nm, com, cell(n)) for nm in names if nm in public]
    made = {o.name for o in items}
    return Module(Path(path).stem, ast.get_docstring(tree) or '', nb[1] if nb else '', items, {k: m for k,m in alias.items() if k in public and k not in made})

class Api:
    "All modules, and the page and anchor of a name"
    def __init__(self, folder):
        self.modules = {m.name: m for p in sorted(Path(folder).glob('*.py')) if p.stem not in ('__init__', '__main__', '_modidx') for m in [module(p)]}
        self.where = {}                                                          # name → modules that make it
        for m in self.modules.values():
            for o in m.items:
                for i in [o, *o.methods]: self.where.setdefault(i.name, []).append(m.name)
        self.words = {w for p in Path(folder).glob('*.py') for w in re.findall(r'\w+', p.read_text(encoding='utf-8'))}

    def url(self, name, prefer=()):
        "The address of a public name (`Learner`, `Learner.fit`, `karras.sample`, `miniai.karras`), or None"
        parts = name.removeprefix('miniai.').split('.')
        if parts[0] in self.modules and (len(parts) > 1 or name.startswith('miniai.')):
            if len(parts) == 1: return f'api_{parts[0]}.html'
            prefer,parts = [parts[0]], parts[1:]
        name = '.'.join(parts)
        mods = self.where.get(name)
        if not mods: return None
        for p in prefer:
            p = self.modules[p].alias.get(name, p) if p in self.modules else p
            if p in mods: return f'api_{p}.html#{name}'
        best = self.modules['imports'].alias.get(name) if 'imports' in self.modules else None
        return f'api_{best if best in mods else mods[0]}.html#{name}'
