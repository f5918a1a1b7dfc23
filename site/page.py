"A notebook as a page: rows of prose (left) and the code that follows it (right), outputs as they were kept"
import base64, html, io, json, re, struct
from pathlib import Path
import terms
from prose import CITES
from source import clean, directives, highlight, identifiers, kind, local_names

ANSI = re.compile(r'\x1b\[[0-9;]*[A-Za-z]')
join = lambda o: ''.join(o) if isinstance(o, list) else o or ''

def slug(text): return re.sub(r'[^\w]+', '-', text.lower()).strip('-') or 'section'

def strip(markup): return html.unescape(re.sub(r'\s+', ' ', re.sub(r'<[^>]+>', ' ', markup))).strip()

FOLDED = dict(imports='Imports', checks='A check', hidden='Also in the module')

def shown(c):
    "A code cell is on the page unless it is empty or hidden; what is hidden and exported is folded away"
    do = directives(c['source'])
    return bool(clean(c['source'])) and ('hide' not in do or 'export' in do)

def size(data):
    "Width and height of a PNG, a GIF or a JPEG"
    if data[:4] == b'\x89PNG': return struct.unpack('>II', data[16:24])
    if data[:3] == b'GIF': return struct.unpack('<HH', data[6:10])
    from PIL import Image
    return Image.open(io.BytesIO(data)).size

def joined(cells):
    "Cells one after the other; folded ones that follow each other are one fold"
    out,begin,end = [], re.compile(r'<div class="cell" id="([^"]*)">(<details class="fold"><summary>[^<]*</summary>)'), '</details></div>'
    for c in filter(None, cells):
        a,b = begin.match(out[-1]) if out else None, begin.match(c)
        if a and b and a[2] == b[2] and out[-1].endswith(end): out[-1] = f'{out[-1].removesuffix(end)}<span id="{b[1]}"></span>{c[b.end():]}'
        else: out.append(c)
    return ''.join(out)

class Page:
    def __init__(self, path, site):
        self.path,self.site,self.stem = Path(path), site, Path(path).stem
        self.source,self.url = self.path.name, f'{self.stem}.html'
        self.cells = json.loads(self.path.read_text(encoding='utf-8'))['cells']
        for c in self.cells: c['source'] = join(c['source'])
        first = self.cells[0]['source']
        self.title = re.search(r'^# (.+)', first, re.M)[1].strip()
        self.claim = (re.search(r'^> (.+)', first, re.M) or ['', ''])[1]
        code = '\n'.join(c['source'] for c in self.cells if c['cell_type'] == 'code')
        self.code,self.words = code, set(re.findall(r'\w+', code))
        self.module = (re.search(r'^#\|\s*default_exp\s+(\S+)', code, re.M) or ['', ''])[1]
        self.imports = self.imported()
        self.prefer = [m for m in [self.module, *self.imports.values()] if m]
        self.taken,self.records,self.n_eq,self.made = set(), [], 0, 0

    def imported(self):
        "Names that this notebook takes from miniai → the module they come from"
        out = {}
        for m in re.finditer(r'^\s*from miniai\.(\w+) import (\([^)]*\)|.+)', self.code, re.M):
            for n in re.findall(r'\w+', m[2]): out[n] = m[1]
            if m[2].strip() == '*': out |= {n: m[1] for n in self.site.api.modules[m[1]].alias}
        return out

    def name_link(self, local):
        "For code: names that this notebook exports or imports from ours, except those the cell makes itself"
        mine = {o.name for o in self.site.api.modules[self.module].items} if self.module in self.site.api.modules else set()
        def link(name):
            if name in local or not (name in mine or name in self.imports): return None
            return self.site.api.url(name, [self.imports.get(name), self.module])
        return link

    # --- images

    def write(self, name, data):
        (self.site.out/'img').mkdir(exist_ok=True)
        (self.site.out/'img'/name).write_bytes(data)
        return f'img/{name}'

    def picture(self, name, data, alt):
        w,h = size(data); src = self.write(name, data); self.made += 1
        img = f'<img src="{src}" width="{w}" height="{h}" alt="{html.escape(alt)}" loading="lazy" decoding="async">'
        if not name.endswith('.gif'): return img
        from PIL import Image                                                     # for readers who want no motion: its last frame
        im = Image.open(io.BytesIO(data)); im.seek(im.n_frames-1); still = io.BytesIO(); im.convert('RGB').save(still, 'PNG')
        return f'<picture><source media="(prefers-reduced-motion: reduce)" srcset="{self.write(name[:-4]+"_still.png", still.getvalue())}">{img}</picture>'

    def image(self, src, alt):
        "An image of the prose: an equation is put into the page, others are copied"
        path = (self.path.parent/src).resolve()
        if not path.exists(): raise SystemExit(f'{self.source}: the image {src} is not there')
        if path.suffix == '.svg': return self.equation(path, alt)
        return f'<figure class="pic">{self.picture(path.name, path.read_bytes(), alt)}</figure>'

    def equation(self, path, alt):
        self.n_eq += 1
        root,found = terms.mark(path.read_text(encoding='utf-8'), self.near)
        self.lit |= found; self.eqs.append(f'e{self.n_eq}')
        w = root.get('width')
        for k,v in dict(role='img').items(): root.set(k, v)
        root.set('class', 'panel'); root.set('aria-label', f'Equation: {alt}'); inner = root.find(terms.SVG+'svg')
        if inner is not None: inner.attrib.pop('role', None); inner.set('aria-hidden', 'true')
        cap = root.findall(terms.SVG+'text')[-1]
        if key := next((c for c in sorted(CITES, key=len, reverse=True) if (cap.text or '').startswith(c)), None):
            a = terms.ET.Element(terms.SVG+'a', href=f'https://arxiv.org/abs/{CITES[key]}', rel='noopener'); root.remove(cap); a.append(cap); root.append(a)
            a.set('aria-label', f'{cap.text}, at arXiv'); root.attrib['role'] = 'group'; self.site.prose.note(CITES[key])
        elif 'mixes' not in (cap.text or '') and not re.search(r'19\d\d|2012', cap.text or ''): self.site.warn(f'{path.name}: no arXiv number in papers.json for “{cap.text}”')
        body = re.sub(r'\s+', ' ', terms.ET.tostring(root, encoding='unicode'))
        hint = ' Arrow keys walk through its terms.' if found else ''
        return f'<div class="eq" data-eq="e{self.n_eq}" style="--w:{w}px" tabindex="0" role="group" aria-label="Equation.{hint}">{body}</div>'

    # --- outputs

    def alt(self, src, before):
        "What a plot shows, in words: its titles, else the sentence that introduces it"
        titles = re.findall(r'''(?:\btitle=|set_title\(|suptitle\(|plt\.title\()f?['"]([^'"{}]+)['"]''', src)
        said = re.split(r'(?<=[.:!?])\s+', strip(before))[-1] if before else ''
        words = '; '.join(titles) or said or 'what this cell drew'
        return f'Output: {words}'[:240]

    def output(self, o, name, src, before):
        data = o.get('data', {}); get = lambda k: join(data.get(k))
        for mime,ext in (('image/gif', 'gif'), ('image/png', 'png'), ('image/jpeg', 'jpg')):
            if mime in data: return f'<figure>{self.picture(f"{name}.{ext}", base64.b64decode(get(mime)), self.alt(src, before))}</figure>'
        if 'image/svg+xml' in data: return f'<figure>{get("image/svg+xml")}</figure>'
        if 'text/html' in data:
            body = re.sub(r'<(style|script)\b.*?</\1>|<progress.*?</progress>[^<]*|<!--.*?-->', '', get('text/html'), flags=re.S)
            body = re.sub(r'\s(?:on\w+|style|border)="[^"]*"', '', body)
            return f'<div class="scroll" tabindex="0" role="region" aria-label="Table">{body}</div>' if '<td' in body else ''
        if 'text/markdown' in data: return self.site.prose.render(get('text/markdown'), self, name)
        text = ANSI.sub('', join(o.get('text')) or get('text/plain'))
        text = '\n'.join(l.split('\r')[-1] for l in text.rstrip().split('\n'))
        if o.get('output_type') == 'display_data' and re.fullmatch(r'<[\w.]+ .*>', text): return ''
        return f'<pre tabindex="0">{html.escape(text)}</pre>' if text.strip() else ''

    def outputs(self, c, before):
        outs = [self.output(o, f'{self.stem}_{c["id"]}' + (f'_{i}' if i else ''), c['source'], before) for i,o in enumerate(c['outputs'])]
        return ''.join(f'<div class="out">{o}</div>' for o in outs if o)

    # --- cells

    def code_cell(self, c, before, eqs, lit):
        do,src = directives(c['source']), clean(c['source'])
        if not shown(c): return ''
        outs = self.outputs(c, before)
        if 'echo: false' in do or not src: return f'<div class="cell">{outs}</div>' if outs else ''
        if src.strip() == 'how_run()': return f'<div class="cell note">How this page was run: {strip(outs)}</div>' if outs else ''
        what = kind(src) or ('hidden' if 'hide' in do else ''); ours = 'export' in do
        body = highlight(src, self.name_link(local_names(src)), lit)
        tag = f'<a class="tag" href="api_{self.module}.html">miniai.{self.module}</a>' if ours and what in ('', 'hidden') else ''
        near = f' data-eq="{" ".join(eqs)}"' if eqs else ''
        box = f'<div class="src{" ours" if tag else ""}"{near}><pre tabindex="0"><code>{body}</code></pre><button type="button" class="copy">Copy</button>{tag}</div>'
        if what: box = f'<details class="fold"><summary>{FOLDED[what]}</summary>{box}</details>'
        return f'<div class="cell" id="{c["id"]}">{box}{outs}</div>'

    def rows(self):
        "Runs of (headings | prose cells, code cells), as the reader meets them"
        rows = []
        for i,c in enumerate(self.cells):
            if c['cell_type'] == 'code':
                if shown(c):
                    if not rows or rows[-1]['head']: rows.append(dict(head='', prose=[], code=[]))
                    rows[-1]['code'].append(c)
                continue
            text = c['source'] if i else re.sub(r'^(# .+\n*|> .+\n*)', '', c['source'], flags=re.M)
            for part in re.split(r'^(#{2,4} .+)$', text, flags=re.M):
                if not part.strip(): continue
                if re.match(r'#{2,4} ', part): rows.append(dict(head=part, prose=[], code=[])); continue
                if not rows or rows[-1]['head'] or rows[-1]['code']: rows.append(dict(head='', prose=[], code=[]))
                rows[-1]['prose'].append((c['id'], part))
        return rows

    def render(self, keep=lambda row: True):
        rows,out = [r for r in self.rows() if keep(r)], []
        sources = [identifiers('\n'.join(clean(c['source']) for c in r['code'])) if r['code'] else set() for r in rows]
        is_eq = [any('.svg)' in t for _,t in r['prose']) for r in rows]
        h,level_url,carry,text,deep = self.title, self.url, ([], set()), [], 1
        def flush():
            if text: self.records.append((level_url, h, self.title if h != self.title else '', ' '.join(text))); text.clear()
        for i,r in enumerate(rows):
            if r['head']:
                flush(); n = deep = min(len(re.match('#+', r['head'])[0]), 3, deep+1); h = strip(self.site.prose.inline(r['head'].lstrip('# '), self))
                anchor = slug(self.site.prose.math.plain(h)); level_url = f'{self.url}#{anchor}'; carry = ([], set())
                label = self.site.prose.inline(r['head'].lstrip('# '), self)
                out.append(f'<div class="row head"><h{n} id="{anchor}"><a href="#{anchor}">{re.sub("</?a[^>]*>", "", label)}</a></h{n}></div>'); continue
            follows = i+1 < len(rows) and not rows[i+1]['head'] and not is_eq[i+1]
            self.near = sources[i] | (sources[i+1] if follows else set()); self.lit,self.eqs = set(), []
            before = ''.join(self.site.prose.render(t, self, k) for k,t in r['prose'])
            if before: text.append(strip(self.site.prose.math.plain(re.sub(r'<svg.*?</svg>', '', before, flags=re.S))))
            eqs,lit = (self.eqs, self.lit) if is_eq[i] else carry
            code = joined(self.code_cell(c, before if j == 0 else '', eqs, lit) for j,c in enumerate(r['code']))
            text += [clean(c['source']) for c in r['code']]
            carry = (self.eqs, self.lit) if is_eq[i] else ([], set())
            side = f'<div class="prose">{before}</div>' if before else ''
            over = any(float(w) > 550 for w in re.findall(r'style="--w:([\d.]+)px', before))       # too wide to read beside code
            if code: out.append(f'<div class="row{" over" if over else ""}">{side}<div class="code">{code}</div></div>')
            elif side: out.append(f'<div class="row wide">{side}</div>')
        flush()
        if not any(c.get('outputs') for c in self.cells if c['cell_type'] == 'code'):
            out.insert(0, f'<p class="note">This notebook has not been run yet: run <code>make nbs NB={self.stem}</code> to see what it shows.</p>')
            self.site.warn(f'{self.source} has no outputs: run `make nbs NB={self.stem}` to keep some')
        return '\n'.join(out)
