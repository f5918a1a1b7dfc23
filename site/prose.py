"Markdown as HTML: formulas by KaTeX, names that link to the reference, citations that link to the paper, pages that link to pages"
import builtins, difflib, html, json, keyword, re, subprocess
from pathlib import Path
from markdown_it import MarkdownIt
from mdit_py_plugins.dollarmath import dollarmath_plugin

HERE = Path(__file__).parent
PAPERS = json.loads((HERE/'papers.json').read_text(encoding='utf-8'))
CITES = {c: k for k,(_,_,cites) in PAPERS.items() for c in cites}
CITE = re.compile(r'arXiv:(\d{4}\.\d{4,5})|' + '|'.join(re.escape(html.escape(c)) for c in sorted(CITES, key=len, reverse=True))
                  + r'|\b((?:[Nn]otebooks?|[Ll]essons?) )(\d\d[a-e]?)\b(?: (and|or|to) (\d\d[a-e]?)\b)?')
WORDS = set((HERE/'words.txt').read_text(encoding='utf-8').split()) | set(dir(builtins)) | set(keyword.kwlist)
LIBRARIES = set('torch nn F np plt fc optim math tensor torchvision TF PIL diffusers accelerate wandb trackio scipy numpy os sys json re pickle datasets timm'.split())

def arxiv(i, text): return f'<a href="https://arxiv.org/abs/{i}" rel="noopener">{text}</a>'

class Math:
    "Formulas met while pages are written; all typeset at the end, in one call of node"
    def __init__(self): self.seen = {}
    def __call__(self, tex, display): return f'\x01{self.seen.setdefault((tex, display), len(self.seen))}\x02'
    def typeset(self):
        js = """const k = require('katex'), items = JSON.parse(require('fs').readFileSync(0)), out = []
                for (const [tex, displayMode] of items) {
                  try { out.push(k.renderToString(tex, {displayMode, strict: 'ignore'})) } catch (e) { console.error(`${tex}: ${e.message}`); process.exit(1) } }
                console.log(JSON.stringify(out))"""
        run = subprocess.run(['node', '-e', js], input=json.dumps(list(self.seen)), capture_output=True, text=True, cwd=HERE)
        if run.returncode: raise SystemExit(f'a formula that KaTeX cannot read: {run.stderr}')
        self.html = json.loads(run.stdout)
    def fill(self, page): return re.sub(r'\x01(\d+)\x02', lambda m: self.html[int(m[1])], page)
    def plain(self, page):
        tex = [t for t,_ in self.seen]
        return re.sub(r'\x01(\d+)\x02', lambda m: html.escape(tex[int(m[1])]), page)

class Prose:
    "What the pages share: `Prose(api, notebooks, …).render(markdown, page)`; `wrong` collects names that lead nowhere"
    def __init__(self, api, stems, scripts, file_link):
        self.api,self.stems,self.scripts,self.file_link = api, stems, scripts, file_link
        self.math,self.wrong,self.cited,self.page = Math(), [], {}, None
        self.md = MarkdownIt('commonmark', {'html': True}).enable('table').use(dollarmath_plugin, double_inline=True)
        rules = self.md.renderer.rules
        rules |= dict(math_inline=lambda ts,i,*a: self.math(ts[i].content, False), math_inline_double=lambda ts,i,*a: self.math(ts[i].content, True),
                      math_block=lambda ts,i,*a: self.math(ts[i].content, True), code_inline=self.code, text=self.text, link_open=self.link,
                      image=self.image, fence=self.block, code_block=self.block,
                      table_open=lambda *a: '<div class="scroll" tabindex="0" role="region" aria-label="Table"><table>', table_close=lambda *a: '</table></div>')

    def render(self, src, page, cell=''):
        self.page,self.cell = page, cell
        out = self.md.render(src)
        return re.sub(r'<p>((?:<(?:div|figure) class="(?:eq|pic)".*?</(?:div|figure)>\s*)+)</p>', r'\1', out, flags=re.S)

    def inline(self, src, page):
        self.page,self.cell = page, ''
        return self.md.renderInline(src)

    # --- the pieces

    def block(self, ts, i, *a):
        from source import highlight
        lang = ts[i].info.strip()
        src = ts[i].content.rstrip('\n')
        return f'<pre class="src" tabindex="0">{highlight(src) if lang.startswith("py") else html.escape(src)}</pre>'

    def notebook(self, no):
        stem = next((s for s in self.stems if s.startswith(no+'_')), None)
        return stem and f'{stem}.html'

    def cite(self, m):
        if m[1]: self.note(m[1]); return arxiv(m[1], m[0])
        if not m[2]: k = CITES[html.unescape(m[0])]; self.note(k); return arxiv(k, m[0])
        link = lambda no: f'<a href="{self.notebook(no)}">{no}</a>' if self.notebook(no) else no
        return m[2] + link(m[3]) + (f' {m[4]} {link(m[5])}' if m[5] else '')

    def note(self, arxiv_id): self.cited.setdefault(arxiv_id, {})[self.page.url] = self.page.title

    def text(self, ts, i, *a):
        out = html.escape(ts[i].content, quote=False)
        depth = sum(t.type == 'link_open' for t in ts[:i]) - sum(t.type == 'link_close' for t in ts[:i])
        return out if depth else CITE.sub(self.cite, out)

    def cites(self, text, page): self.page = page; return CITE.sub(self.cite, html.escape(text, quote=False))

    def code(self, ts, i, *a):
        src = ts[i].content; shown = f'<code>{html.escape(src)}</code>'
        linked = any(t.type == 'link_open' for t in ts[:i]) and not any(t.type == 'link_close' for t in ts[:i])
        if m := re.fullmatch(r'(tests/test_\w+\.py)::(\w+)', src): return self.test(shown, m)
        m = re.fullmatch(r'([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)(\(.*\))?', src)
        if not m or linked: return shown
        name = m[1]; url = self.api.url(name, self.page.prefer)
        if url and name not in self.page.taken: return f'<a href="{url}">{shown}</a>'
        if self.looks_ours(name, m[2]) and not self.known(name): self.complain(name)
        return shown

    def test(self, shown, m):
        path = HERE.parent/m[1]
        if not path.exists() or f'def {m[2]}(' not in path.read_text(encoding='utf-8'): self.wrong.append(f'{self.page.source}: there is no test {m[0]}')
        return f'<a href="{self.file_link("../"+m[1], self.page)}">{shown}</a>'

    def looks_ours(self, name, call):
        "Has an underscore inside, capitals inside (CamelCase), parentheses behind, or a module of ours in front"
        head = name.split('.')[0]
        if head in LIBRARIES: return False
        return bool(call or re.search(r'[^_]_[^_]', name) or re.search(r'[a-z0-9][A-Z]|[A-Z]{2}[a-z]', name) or (head in {'miniai', *self.api.modules} and '.' in name))

    def known(self, name):
        parts = name.split('.')
        if parts[0] == 'miniai' or (parts[0] in self.api.modules and parts[0] not in self.page.words):
            mod = parts[1] if parts[0] == 'miniai' and len(parts) > 1 else parts[0]
            return bool(self.api.url(name)) or (mod in self.api.modules and parts[-1] in self.api.words)
        return name in self.scripts or all(p in self.page.words or p in self.api.words or p in WORDS for p in parts)

    def complain(self, name):
        near = difflib.get_close_matches(name, list(self.api.where), 1)
        self.wrong.append(f'{self.page.source}, cell {self.cell}: `{name}` looks like a name of ours, and there is none' + (f'; `{near[0]}`?' if near else ''))

    def link(self, ts, i, *a):
        href = ts[i].attrGet('href') or ''
        if m := re.fullmatch(r'(?:nbs/)?([\w-]+)\.ipynb(#.*)?', href):
            if m[1] not in self.stems: self.wrong.append(f'{self.page.source}, cell {self.cell}: there is no notebook {m[1]}')
            href = f'{m[1]}.html{m[2] or ""}'
        elif m := re.fullmatch(r'([\w-]+)\.md(#.*)?', href): href = f'{m[1]}.html{m[2] or ""}'
        elif not re.match(r'https?:|#|mailto:', href) and not href.endswith('.html'): href = self.file_link(href, self.page)
        if m := re.match(r'https?://arxiv\.org/abs/([\d.]+\d)', href): self.note(m[1])
        return f'<a href="{html.escape(href)}"' + (' rel="noopener"' if href.startswith('http') else '') + '>'

    def image(self, ts, i, *a): return self.page.image(ts[i].attrGet('src'), ts[i].content)
