"The site, from the notebooks as they are committed: `python site/build.py`, or `make site`. Nothing is run, nothing is fetched."
import argparse, html, json, re, shutil, subprocess, sys
from configparser import ConfigParser
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(HERE))
from api import Api          # noqa: E402
from page import Page, slug, strip          # noqa: E402
from prose import PAPERS, Prose, arxiv          # noqa: E402
from source import highlight          # noqa: E402

# the tour, by the first number of each part
PARTS = {0: 'First things', 7: 'A learner and its networks', 15: 'Diffusion, and how to judge it', 20: 'Fewer steps, better steps',
         28: 'Metrics that can be fooled', 29: 'Scale, likelihood, inverse problems', 33: 'More'}
FONTS = {'source-serif-4': ('wght.css', 'wght-italic.css'), 'inter': ('wght.css',), 'fira-code': ('wght.css',)}
SPECIAL = {'30': 'Commands and recipes'}

def number(stem): return (re.match(r'\d+[a-z]?', stem) or [''])[0]

def part(stem):
    no = number(stem)
    if no[:2] in SPECIAL: return SPECIAL[no[:2]]
    return PARTS[max((k for k in PARTS if k <= int(re.match(r'\d+', no)[0] if no else 33)), default=0)]

class Markdown:
    "A page written in Markdown alone: `# title`, `> claim`, text"
    def __init__(self, path, site):
        self.path,self.site,self.stem,self.source,self.url = path, site, path.stem, path.name, f'{path.stem}.html'
        text = path.read_text(encoding='utf-8')
        self.title,self.claim = re.match(r'# (.+)\n+> (.+)', text).groups()
        self.text = text.split('\n', 3)[3]
        self.words,self.prefer,self.taken,self.module,self.records = set(), [], set(), '', []
    def image(self, src, alt): raise SystemExit(f'{self.source}: no images in these pages yet')
    def render(self):
        out = []
        for bit in re.split(r'^(?=## )', self.text, flags=re.M):
            head = re.match(r'## (.+)', bit); anchor = slug(head[1]) if head else ''
            body = self.site.prose.render(bit[head.end():] if head else bit, self, head[1] if head else 'top')
            if head: out.append(f'<div class="row head"><h2 id="{anchor}"><a href="#{anchor}">{strip(self.site.prose.inline(head[1], self))}</a></h2></div>')
            out.append(f'<div class="row wide"><div class="prose">{body}</div></div>')
            self.records.append((f'{self.url}#{anchor}' if head else self.url, strip(self.site.prose.inline(head[1], self)) if head else self.title,
                                 self.title if head else '', strip(body)))
        return '\n'.join(out)

class Plain:
    "A page made here: reference, papers"
    def __init__(self, url, title, claim=''):
        self.url,self.title,self.claim,self.source,self.stem = url, title, claim, url, url[:-5]
        self.words,self.prefer,self.taken,self.module,self.records = set(), [], set(), '', []

class Site:
    def __init__(self, out):
        self.out,self.warnings,self.files = Path(out), [], {}
        self.api = Api(ROOT/'miniai')
        paths = sorted((ROOT/'nbs').glob('*.ipynb')); cfg = ConfigParser(); cfg.read(ROOT/'settings.ini', encoding='utf-8')
        scripts = {o.split('=')[0] for o in cfg['DEFAULT']['console_scripts'].split()}
        self.prose = Prose(self.api, [p.stem for p in paths], scripts, self.file_link)
        pages = [Page(p, self) for p in paths]
        self.index = next((p for p in pages if p.stem == 'index'), None)
        self.lessons = [p for p in pages if p.stem != 'index']
        self.extra = [Markdown(p, self) for p in sorted((ROOT/'nbs').glob('*.md'))]
        self.template = (HERE/'page.html').read_text(encoding='utf-8')
        self.draw = False
        self.records,self.rendered = [], {}

    def warn(self, text): self.warnings.append(text)

    def file_link(self, href, page):
        "A file of the repository that the prose points to: its text is put beside the pages; a folder has no page"
        path = ((ROOT/'nbs')/href.split('#')[0]).resolve()
        if not path.is_file(): return '#main' if path.exists() or page.source.startswith('api') else self.missing(href, page)
        if path.stat().st_size > 1_000_000: return '#main'
        name = str(path.relative_to(ROOT)).replace('/', '-')
        name += '' if path.suffix in ('.png', '.svg', '.txt') else '.txt'
        self.files[name] = path
        return f'files/{name}'

    def missing(self, href, page): self.prose.wrong.append(f'{page.source}: the link {href} leads nowhere'); return '#main'

    # --- around a page

    def toc(self, here):
        def item(url, title, no=''):
            cur = ' aria-current="page"' if url == here else ''
            return f'<li><a href="{url}"{cur}>' + (f'<span class="no">{no}</span>' if no else '') + f'{html.escape(title)}</a></li>'
        groups = {}
        for p in self.lessons: groups.setdefault(part(p.stem), []).append(item(p.url, p.title, number(p.stem)))
        more = [item('index.html', 'Front page')] + ([item('draw.html', 'Draw in your browser')] if self.draw else [])
        more += [item(p.url, p.title) for p in self.extra] + [item('papers.html', 'Papers'), item('reference.html', 'Reference: all modules')]
        groups['Also'] = more
        return ''.join(f'<div><h2>{k}</h2><ul>{"".join(v)}</ul></div>' for k,v in groups.items())

    def save(self, page, body, before=None, after=None, where='', head=True):
        title = f'<header><h1>{self.prose.inline(page.title, page)}</h1>' + (f'<p class="lead">{self.prose.inline(page.claim, page)}</p>' if page.claim else '') + '</header>' if head else ''
        pager = ''.join(f'<a href="{p.url}" rel="{rel}"><span>{word}</span>{html.escape(p.title)}</a>' for p,rel,word in ((before, 'prev', 'Previous'), (after, 'next', 'Next')) if p)
        go = ''.join(f'<a href="{p.url}" aria-label="{word}: {html.escape(p.title)}">{arrow}</a>' for p,word,arrow in ((before, 'Previous', '←'), (after, 'Next', '→')) if p)
        self.rendered[page.url] = self.template.format(
            title=html.escape(page.title), about=html.escape(strip(self.prose.inline(page.claim or page.title, page))), toc=self.toc(page.url), where=where,
            go=go, body=title+body, pager=f'<nav class="pager" aria-label="Previous and next">{pager}</nav>' if pager else '',
            foot='miniai: small image-diffusion models, built in notebooks. Apache 2.0.')
        self.records += page.records

    # --- the pages

    def notebooks(self):
        chain = self.lessons + self.extra
        for i,p in enumerate(chain):
            around = (chain[i-1] if i else self.index, chain[i+1] if i+1 < len(chain) else None)
            where = f'{number(p.stem)} · {html.escape(p.title)}' if number(p.stem) else html.escape(p.title)
            more = f'<p class="note">This notebook exports <a href="api_{p.module}.html"><code>miniai.{p.module}</code></a>: its reference.</p>' if p.module else ''
            body = p.render()
            self.save(p, (more if p.module else '') + body, *around, where=where)

    def front(self):
        "The notebook of the front page, its table of notebooks as cards"
        p = self.index
        groups = {}
        for l in self.lessons: groups.setdefault(part(l.stem), []).append(l)
        def card(l, short):
            img = '' if short else f'<img class="thumb" src="{self.thumbs[l.stem]}" alt="" loading="lazy" decoding="async">'
            return f'<li><a href="{l.url}">{img}<b><span class="no">{number(l.stem)}</span>{html.escape(l.title)}</b><p>{re.sub("</?a[^>]*>", "", self.prose.inline(l.claim, p))}</p></a></li>'
        is_ref = lambda l: l.claim.startswith('Reference') or l.claim.endswith('A reference page.') or l.stem not in self.thumbs    # in the short list
        def cards_of(ls):
            big = sum(not is_ref(l) for l in ls) > 1
            some = [[l for l in ls if (not big or is_ref(l)) == ref] for ref in (False, True)]
            return ''.join(f'<ul class="cards{" ref" if ref else ""}">{"".join(card(l, ref) for l in v)}</ul>' for ref,v in enumerate(some) if v)
        cards = ''.join(f'<h3 id="{slug(k)}">{k}</h3>{cards_of(v)}' for k,v in groups.items())
        draw = '<a href="draw.html">Draw clothes in your browser</a>' if self.draw else ''
        pic = ROOT/'nbs'/'images'/'samples.png'
        hero = (f'<header class="hero"><div><h1>{html.escape(p.title)}</h1><p class="lead">{self.prose.inline(p.claim, p)}</p>'
                f'<div class="buttons"><a href="15_DDPM.html">Read the first lesson on diffusion</a>{draw}<a href="reference.html">Reference</a></div></div>'
                + (p.picture('samples.png', pic.read_bytes(), 'Clothes that never existed, sampled from the network that comes with the package') if pic.exists() else '') + '</header>')
        p.cells = [c for c in p.cells if not ('samples.png' in c['source'] and c['cell_type'] == 'code') and "glob('[0-9]" not in c['source']]
        for c in p.cells: c['source'] = re.sub(r'!\[[^]]*\]\(images/samples\.png\)\s*', '', c['source'])     # the hero has it
        body = re.sub(r'<div class="row head"><h2 id="the-tour">.*?</h2></div>', '', p.render())
        lead,sep,rest = body.partition('<div class="row head">')
        body = f'{lead}<div class="row head"><h2 id="the-tour"><a href="#the-tour">The tour</a></h2></div>{cards}{sep}{rest}'
        self.save(p, hero + body, None, self.lessons[0], head=False)

    def reference(self):
        top = Plain('reference.html', 'Reference', 'Every public name: its arguments, each with its comment, and the notebook cell that it comes from.')
        mods = [m for m in self.api.modules.values() if m.items or m.alias]
        order = {p.module: i for i,p in enumerate(self.lessons) if p.module}
        mods.sort(key=lambda m: order.get(m.name, 99))
        pages = [Plain(f'api_{m.name}.html', f'miniai.{m.name}', m.doc) for m in mods]
        listing = ''.join(f'<div class="api"><h2><a href="{p.url}">{p.title}</a></h2><p>{self.prose.cites(m.doc, top)}</p><p>' +
                          ', '.join(f'<a href="{p.url}#{o.name}"><code>{o.name}</code></a>' for o in m.items) + '</p></div>' for m,p in zip(mods, pages))
        self.save(top, listing, None, pages[0], where='Reference')
        for i,(m,p) in enumerate(zip(mods, pages)):
            p.prefer = [m.name]
            body = ''.join(self.entry(o, m, p) for o in m.items) + self.others(m, p)
            self.save(p, f'<p class="note">Made in <a href="{m.notebook}.html">{m.notebook}</a>.</p>' + body, pages[i-1] if i else top, pages[i+1] if i+1 < len(pages) else None, where='Reference')

    def others(self, m, page):
        "Names that a module hands on, with the module that makes each"
        links = [f'<a href="{url}"><code>{n}</code></a>' for n,made in m.alias.items() if (url := self.api.url(n, [made]))]
        return f'<section class="api"><h2>From other modules</h2><p>{", ".join(links)}</p></section>' if links else ''

    def entry(self, o, m, page, level=2):
        short = o.name.split('.')[-1] if level == 3 else o.name
        self.record(o, m, page)
        rows = ''.join(f'<tr><td><code>{html.escape(n)}</code></td><td>{f"<code>{html.escape(d)}</code>" if d else ""}</td><td>{self.docment(c, page)}</td></tr>' for n,d,c in o.params)
        table = f'<div class="scroll" tabindex="0" role="region" aria-label="Parameters of {o.name}"><table><thead><tr><th>parameter</th><th>default</th><th>what it is</th></tr></thead><tbody>{rows}</tbody></table></div>' if rows else ''
        made = f'<p class="from">Source: <a href="{m.notebook}.html#{o.cell}">the cell of {m.notebook}</a></p>' if o.cell and level == 2 else ''
        return (f'<section class="api"><h{level} id="{o.name}"><a href="#{o.name}">{short}</a></h{level}><div class="src"><pre tabindex="0" class="sig"><code>{highlight(short+o.sig)}</code></pre></div>'
                f'<p>{self.docment(o.doc, page)}</p>{table}{made}{"".join(self.entry(k, m, page, 3) for k in o.methods)}</section>')

    def record(self, o, m, page):
        page.records.append((f'{page.url}#{o.name}', o.name, f'miniai.{m.name}', f'{o.doc} {" ".join(f"{n}: {c}" for n,_,c in o.params)}'))

    def docment(self, text, page):
        "A comment or docstring: names in backticks link, papers link"
        page.words = self.api.words
        return ''.join(self.tick(b[1:-1], page) if b[:1] == '`' else self.prose.cites(b, page) for b in re.split(r'(`[^`]+`)', text))

    def tick(self, name, page):
        m = re.match(r'[\w.]+', name); url = m and self.api.url(m[0], page.prefer)
        return f'<a href="{url}"><code>{html.escape(name)}</code></a>' if url else f'<code>{html.escape(name)}</code>'

    def papers(self):
        p = Plain('papers.html', 'Papers', 'The papers whose equations and methods these pages use, and where.')
        rows = [(k, *PAPERS.get(k, (f'arXiv:{k}', '', []))) for k in sorted(self.prose.cited)]
        body = ''.join(f'<tr><td>{html.escape(who)}</td><td>{arxiv(k, html.escape(title or k))}</td><td>' +
                       ', '.join(f'<a href="{u}">{html.escape(number(t) or self.short(u, t))}</a>' for u,t in self.prose.cited[k].items()) + '</td></tr>' for k,who,title,_ in rows)
        p.records.append((p.url, 'Papers', '', ' '.join(f'{w} {t}' for _,w,t,_ in rows)))
        self.save(p, f'<div class="scroll" tabindex="0" role="region" aria-label="Papers"><table><thead><tr><th>who</th><th>paper</th><th>used in</th></tr></thead><tbody>{body}</tbody></table></div>')

    def short(self, url, title): return number(url) or title

    # --- all of it

    def assets(self):
        for f in ('style.css', 'site.js'): shutil.copy(HERE/f, self.out/f)
        mods = HERE/'node_modules'
        if not (mods/'katex').exists(): raise SystemExit('KaTeX and the fonts are not there: `npm ci --prefix site`, or `make site`, fetches them')
        (self.out/'katex'/'fonts').mkdir(parents=True, exist_ok=True); (self.out/'fonts').mkdir(exist_ok=True)
        css = (mods/'katex/dist/katex.min.css').read_text(encoding='utf-8')
        css = re.sub(r',url\([^)]*\) format\("(?:woff|truetype)"\)', '', css)
        (self.out/'katex'/'katex.min.css').write_text(css, encoding='utf-8')
        for f in (mods/'katex/dist/fonts').glob('*.woff2'): shutil.copy(f, self.out/'katex'/'fonts'/f.name)
        faces = []
        for font,styles in FONTS.items():
            for style in styles:
                for face in re.findall(r'@font-face \{.*?\}', (mods/'@fontsource-variable'/font/style).read_text(encoding='utf-8'), re.S):
                    name = re.search(r'files/([\w-]+\.woff2)', face)[1]
                    if 'cyrillic' in name or 'vietnamese' in name: continue
                    shutil.copy(mods/'@fontsource-variable'/font/'files'/name, self.out/'fonts'/name)
                    faces.append(face.replace('./files/', './'))
        (self.out/'fonts'/'fonts.css').write_text('\n'.join(faces), encoding='utf-8')

    def drawing(self):
        "The page on which the shipped network draws; it needs torch and onnx, and without them there is a site all the same"
        script = HERE/'draw'/'build.py'
        if not script.exists(): return
        run = subprocess.run([sys.executable, script, self.out], capture_output=True, text=True, cwd=ROOT)
        self.draw = run.returncode == 0 and (self.out/'draw.html').exists()
        if not self.draw: self.warn('no page to draw on: ' + ((run.stderr or run.stdout).strip().splitlines() or ['nothing was made'])[-1])

    def build(self, pages_only=False):
        self.out.mkdir(parents=True, exist_ok=True)
        if not pages_only: self.drawing()
        self.notebooks()
        self.thumbs = self.thumbnails()
        if self.index: self.front()
        self.reference(); self.papers()
        if self.prose.wrong: raise SystemExit('\n'.join(dict.fromkeys(self.prose.wrong)))
        self.prose.math.typeset()
        for url,text in self.rendered.items(): (self.out/url).write_text(self.prose.math.fill(text), encoding='utf-8')
        seen = [r for r in self.records if r[3].strip() or r[1]]
        (self.out/'search.js').write_text('const SEARCH = ' + json.dumps([[u, n, p, t] for u,n,p,t in seen], ensure_ascii=False).replace('</', '<\\/'), encoding='utf-8')
        for name,path in self.files.items(): (self.out/'files').mkdir(exist_ok=True); shutil.copy(path, self.out/'files'/name)
        self.assets()

    def thumbnails(self):
        "The last image that each lesson made, for its card"
        made = {}
        for p in self.lessons:
            names = re.findall(r'src="(img/[^"]+\.png)" width="(\d+)" height="(\d+)"', self.rendered[p.url])
            wide = [n for n,w,h in names if 1.2 < int(w)/int(h) < 5]
            if wide: made[p.stem] = wide[-1]
        return made

def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument('--out', default=ROOT/'_site', help='the folder to build, emptied first')
    ap.add_argument('--pages-only', action='store_true', help='leave out what draw/build.py makes')
    args = ap.parse_args(); out = Path(args.out).resolve()
    if (out/'style.css').exists(): shutil.rmtree(out)                             # an earlier site, and nothing else
    if out.exists() and any(out.iterdir()): raise SystemExit(f'{out} holds something that is no site: give an empty or new folder')
    site = Site(out); site.build(args.pages_only)
    for w in dict.fromkeys(site.warnings): print('note:', w)
    mb = sum(p.stat().st_size for p in out.rglob('*') if p.is_file())/1e6
    print(f'{len(site.rendered)} pages, {mb:.1f} MB: open {out/"index.html"}')

if __name__ == '__main__': main()
