"Python code as HTML: colours by class, names of ours as links, variables that an equation lights"
import ast, html, re
from pygments.lexers import PythonLexer
from pygments.token import Comment, Keyword, Name, Number, Operator, String

LEXER = PythonLexer(stripnl=False, ensurenl=False)

def tokens(src):
    "Pygments' tokens; it takes the second half of `a@b` for a decorator, and a decorator for one word"
    for t,v in LEXER.get_tokens(src):
        if t in Name.Decorator and v[0] == '@': yield Operator, '@'; t,v = Name, v[1:]
        yield t,v

def clean(src): return re.sub(r'^#\|.*\n?', '', src, flags=re.M).strip('\n')

def directives(src): return set(re.findall(r'^#\|\s*(\w+(?:: *\w+)?)', src, re.M))

def identifiers(src): return {v for t,v in tokens(src) if t in Name or v.isidentifier() and t not in Keyword and t not in String and t not in Comment}

def local_names(src):
    "Names that the code assigns or takes as parameters: no links, whatever else they mean"
    try: tree = ast.parse(src)
    except SyntaxError: return set()
    return {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Load)} | {n.arg for n in ast.walk(tree) if isinstance(n, ast.arg)}

def kind(src):
    "'imports', 'checks' (nothing but assertions and what they need) or ''"
    try: body = ast.parse(src).body
    except SyntaxError: return ''
    check = lambda n: isinstance(n, ast.Assert) or re.match(r'(test_\w+|fc\.test_\w+)\(|with (pytest\.raises|ExceptionExpected)', ast.unparse(n))
    if body and all(isinstance(n, (ast.Import, ast.ImportFrom)) or ast.unparse(n).startswith(('_all_', '__all__')) for n in body): return 'imports'
    return 'checks' if any(map(check, body)) and all(check(n) or isinstance(n, (ast.Assign, ast.For)) for n in body) and isinstance(body[-1], ast.Assert) else ''

CLASSES = [(Keyword, 'k'), (Operator.Word, 'k'), (String, 's'), (Number, 'm'), (Comment, 'c'), (Name.Function, 'd'), (Name.Class, 'd')]

def highlight(src, link=lambda name: None, lit=()):
    "`link(name)`: where a name leads, or None; `lit`: variables of equations nearby"
    out,prev = [], ''
    for t,v in tokens(src):
        cls = next((c for k,c in CLASSES if t in k), ''); s = html.escape(v, quote=False)
        href = link(v) if t in Name and cls != 'd' and prev != '.' else None
        mark = f' data-v="{v}"' if v in lit and t not in String and t not in Comment else ''
        if href: s = f'<a href="{href}"{mark}>{s}</a>'
        elif cls or mark: s = f'<span{f" class={cls}" if cls else ""}{mark}>{s}</span>'
        out.append(s); prev = v if v.strip() else prev
    return ''.join(out)
