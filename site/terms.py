"Which part of a typeset equation is which variable of the code near it. The pictures of nbs/equations.py know their symbols."
import re, unicodedata
import xml.etree.ElementTree as ET

SVG = '{http://www.w3.org/2000/svg}'
ET.register_namespace('', SVG[1:-1])
GREEK = dict(zip('αβγδεζηθκλμνξπρστφχψωΔΣϵϕ', ('alpha beta gamma delta eps zeta eta theta kappa lam mu nu xi pi rho sigma tau phi chi psi omega '
                                              'delta Σ eps phi').split()))
INDEX = set('tijklmnT') | {'t-1', 't+1', 'i+1', 'i-1', 'θ', 'n-1'}       # a subscript that code leaves out
NETWORK = {'ε': ['ε', 'model', 'net', 'den'], 'F': ['model', 'net', 'F'], 'D': ['x0_hat', 'den', 'denoise', 'D'], 'v': ['v', 'model', 'net']}
ACCENT = {'^': ('_hat', '\u0302'), 'ˆ': ('_hat', '\u0302'), '\u0302': ('_hat', '\u0302'), '¯': ('bar', '\u0304'), '\u0304': ('bar', '\u0304'), ' \u0304': ('bar', '\u0304'),
          '~': ('_tilde', '\u0303'), '\u0303': ('_tilde', '\u0303')}

def text(e):
    "The characters of a node in reading order, italic and bold made plain"
    own = chr(int(e.get('data-c'), 16)) if e.get('data-c') else (e.text or '' if e.tag == SVG+'text' else '')
    s = unicodedata.normalize('NFKC', own + ''.join(text(c) for c in e)).replace('ϵ', 'ε').replace('ϕ', 'φ').replace('−', '-').strip()
    return ''.join(c for c in s if not '\ue000' <= c <= '\uf8ff')

def kids(e): return [c for c in e if c.get('data-mml-node')]

def core(e):
    "Through wrappers that hold one thing"
    while e.get('data-mml-node') in ('mstyle', 'TeXAtom', 'mrow') and len(kids(e)) == 1: e = kids(e)[0]
    return e

ALSO = {'η': ['lr'], 'ε': ['noise']}

def plain(s): return [s] + ([GREEK[s]] if s in GREEK else []) + ALSO.get(s, [])

def accented(base, mark):
    tail,comb = ACCENT.get(mark, ('', ''))
    if not tail: return plain(base)
    word = {'α': 'abar'}.get(base) if tail == 'bar' else None
    return [unicodedata.normalize('NFC', base+comb), *([word] if word else []), *(b+tail for b in plain(base)), *plain(base)]

def names(e):
    "What code might call this symbol, the likeliest first"
    e = core(e); kind = e.get('data-mml-node')
    if kind == 'mi': return plain(text(e))
    if kind == 'mover' and len(kids(e)) == 2: return accented(text(kids(e)[0]), text(kids(e)[1]) or '~')
    if kind == 'msup': return names(kids(e)[0])
    if kind not in ('msub', 'msubsup') or len(kids(e)) < 2: return []
    base,sub = core(kids(e)[0]), text(kids(e)[-1])                            # MathJax draws a superscript before the subscript
    if sub == 'θ' and text(base) in NETWORK: return NETWORK[text(base)]
    if re.match(r'i?<', sub): sub = 'i'
    bs = names(base); letter = plain(text(base)[:1])
    out = [b+j+sub for b in bs for j in ('_', '')]
    out += [f'{l}{sub}_hat' for l in letter if '_hat' in ''.join(bs)] + ([f'{l}{sub}' for l in letter] if '_hat' in ''.join(bs) else [])
    out += {'t-1': [b+'_prev' for b in bs], 'i+1': [b+'_next' for b in bs]}.get(sub, [])
    return out + (bs if sub in INDEX else [])

def label(e):
    "The name written beneath a brace, and whether it is code"
    if e.get('data-mml-node') != 'munder' or len(kids(e)) != 2: return '', False
    below = core(kids(e)[1])
    if below.get('data-mml-node') != 'mtext': return '', False
    mono = all(0x1D670 <= int(p.get('data-c'), 16) <= 0x1D7FF for p in below.iter() if p.get('data-c') and int(p.get('data-c'), 16) > 0x1D000) and \
           any(0x1D670 <= int(p.get('data-c'), 16) <= 0x1D6A3 or int(p.get('data-c'), 16) >= 0x1D7F6 for p in below.iter() if p.get('data-c'))
    return text(below), mono or any(c.tag == SVG+'text' for c in below.iter())

def mark(svg, code):
    "The picture with each term's variable in data-v, and the variables found, given the identifiers of the code near it"
    root = ET.fromstring(svg); found = set()
    def walk(e):
        lab,mono = label(e)
        vs = [w for w in re.findall(r'[^\W\d]\w*', lab) if w in code and (mono or len(w) > 3)]
        if not lab and (c := next((n for n in names(e) if n in code), None)): vs = [c]
        if vs: e.set('data-v', ' '.join(dict.fromkeys(vs))); found.update(vs)
        if vs and not lab: return
        for c in e: walk(c)
    walk(root)
    return root, found
