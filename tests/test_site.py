"The site as a reader's browser sees it: built from the notebooks, opened in Chromium from the folder itself"
import re, shutil, subprocess, sys, warnings
import pytest
from common import ROOT

sys.path.insert(0, str(ROOT/'site'))
CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
FLAGS = ('--headless --no-sandbox --disable-gpu --disable-background-networking --disable-quic --no-first-run '
         '--disable-component-update --disable-sync --blink-settings=imagesEnabled=false').split()       # images keep their place; links are checked below
WIDE, PHONE = dict(width=1440, height=900), dict(width=390, height=844)
LESSON = '15_DDPM.html'

def skip(why):
    warnings.warn(f'THE SITE IS NOT TESTED: {why}')
    pytest.skip(why)

@pytest.fixture(scope='module')
def site(tmp_path_factory):
    pytest.importorskip('markdown_it', reason='the site needs markdown-it-py: `make test` installs it')
    if not (ROOT/'site/node_modules/katex').exists(): skip('KaTeX is missing: `make site` installs it')
    out = tmp_path_factory.mktemp('site')/'_site'
    run = subprocess.run([sys.executable, ROOT/'site/build.py', '--pages-only', '--out', out], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr + run.stdout
    return out

@pytest.fixture(scope='module')
def browser(tmp_path_factory):
    if not CHROMIUM: skip('no Chromium: on Debian, apt-get install chromium')
    api = pytest.importorskip('playwright.sync_api', reason='the site is tested with playwright: `make test` installs it')
    with api.sync_playwright() as p:
        made = p.chromium.launch_persistent_context(tmp_path_factory.mktemp('profile'), executable_path=CHROMIUM, args=FLAGS, viewport=WIDE)
        yield made
        made.close()

@pytest.fixture
def page(browser, site):
    "A tab that notes what goes wrong: console errors, exceptions, requests that leave the folder"
    tab = browser.new_page(); tab.bad = []
    tab.set_default_timeout(300_000)                                              # a machine may be busy
    tab.on('console', lambda m: m.type in ('error', 'warning') and tab.bad.append(m.text))
    tab.on('pageerror', lambda e: tab.bad.append(str(e)))
    tab.on('requestfailed', lambda r: tab.bad.append(f'{r.url} failed'))
    tab.on('request', lambda r: r.url.startswith((site.as_uri(), 'data:', 'blob:')) or tab.bad.append(f'{r.url} leaves the folder'))
    yield tab
    tab.close()

WIDER = '''() => document.documentElement.scrollWidth > innerWidth
  ? [...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest('.scroll, pre, .eq, .katex-display'))
    .slice(0, 3).map(e => e.outerHTML.slice(0, 80)) : []'''

def test_every_page_opens(page, site):
    "No error, no request that leaves the folder, nothing wider than the window: phone and desk, dark or light in turn"
    wide = {}
    for i,path in enumerate(sorted(site.glob('*.html'))):
        page.emulate_media(color_scheme=('light', 'dark')[i % 2]); page.set_viewport_size(PHONE)
        page.goto(path.as_uri())
        over = page.evaluate(WIDER)
        page.set_viewport_size(WIDE)
        if over := over + page.evaluate(WIDER): wide[path.name] = over
    assert not page.bad
    assert not wide

def test_links_lead_somewhere(site):
    "Every link and image within the folder: the file is there, and the anchor"
    texts = {p.name: p.read_text(encoding='utf-8') for p in site.glob('*.html')}
    ids = {name: set(re.findall(r'\bid="([^"]+)"', t)) for name,t in texts.items()}
    lost = set()
    for name,t in texts.items():
        for link in re.findall(r'\b(?:href|src|srcset)="([^"]*)"', t):
            if re.match(r'https://|data:', link): continue                           # where a reader may go; what a page loads: next line
            file,_,anchor = link.partition('#')
            if not (site/(file or name)).exists() or (anchor and file.endswith('.html') and anchor not in ids[file]): lost.add((name, link))
            if not file and anchor not in ids[name]: lost.add((name, link))
        assert not re.findall(r'<(?:link|script|img|source|image|use)\b[^>]*(?:href|src|srcset)="(?:https?:)?//', t), f'{name} loads something from elsewhere'
        assert t.count('<h1') == 1, name
    assert not lost

def test_pages_are_small(site):
    "A page and the images it shows stay below 3 MB, the folder below 40"
    for p in site.glob('*.html'):
        shown = set(re.findall(r'src="(img/[^"]+)"', p.read_text(encoding='utf-8')))
        assert p.stat().st_size + sum((site/s).stat().st_size for s in shown) < 3e6, p.name
    assert sum(p.stat().st_size for p in site.rglob('*') if p.is_file()) < 40e6

def test_images_have_alternatives(site):
    for p in site.glob('*.html'):
        t = p.read_text(encoding='utf-8')
        assert all('alt="' in i for i in re.findall(r'<img [^>]*>', t)), p.name
        levels = [int(n) for n in re.findall(r'<h([1-6])[ >]', t.partition('<main')[2])]
        assert levels[0] == 1 and not [1 for a,b in zip(levels, levels[1:]) if b > a+1], f'{p.name}: a level of heading is left out'

def test_equations_and_formulas_are_drawn(page, site):
    page.goto((site/LESSON).as_uri())
    sizes = page.evaluate("[...document.querySelectorAll('.eq > svg')].map(e => [e.getBoundingClientRect().width, e.getBoundingClientRect().height])")
    assert len(sizes) >= 5 and all(w > 150 and h > 40 for w,h in sizes)
    assert page.locator('.katex').count() > 20 and page.locator('.katex-error, merror').count() == 0
    assert page.evaluate("document.fonts.check('16px KaTeX_Main')")

def lit(page): return page.evaluate("[...document.querySelectorAll('.lit')].map(e => [e.closest('.eq') ? 'equation' : 'code', e.dataset.v])")

def test_hover_lights_both_sides(page, site):
    "From a term to its variable and back; leaving puts out the light"
    page.goto((site/LESSON).as_uri())
    page.locator('.eq g[data-v="x0_hat"] > .box').first.hover()
    assert {side for side,_ in lit(page)} == {'equation', 'code'} and {v for _,v in lit(page)} == {'x0_hat'}
    page.locator('h1').hover()
    assert lit(page) == []
    page.locator('.src [data-v="x0_hat"]').first.hover()
    assert {side for side,_ in lit(page)} == {'equation', 'code'}

def test_keyboard_walks_through_an_equation(page, site):
    page.goto((site/LESSON).as_uri())
    page.locator('.eq[tabindex]').first.focus()
    page.keyboard.press('ArrowRight')
    assert {side for side,_ in lit(page)} == {'equation', 'code'}
    page.keyboard.press('Escape')
    assert lit(page) == []

@pytest.mark.parametrize('word,found', [('sample', 'api_solvers.html#sample'), ('Heun', '23_karras.html'), ('KID', '18c_scores.html')])
def test_search_finds(page, site, word, found):
    page.goto((site/'index.html').as_uri())
    page.keyboard.press('/')
    page.keyboard.type(word)
    page.wait_for_selector('dialog li a')
    hits = page.evaluate("[...document.querySelectorAll('dialog li a')].slice(0, 8).map(e => e.getAttribute('href'))")
    assert any(h.startswith(found) for h in hits), hits
    assert word.lower() in page.locator('dialog li').first.inner_text().lower()
    page.keyboard.press('Enter')
    page.wait_for_url('**/'+hits[0])
    assert not page.bad

def test_code_is_copied_whole(page, site, browser):
    page.goto((site/LESSON).as_uri())
    block = page.locator('.src', has=page.locator('.copy')).nth(3)
    block.hover(); block.locator('.copy').click()
    assert block.locator('.copy').inner_text() == 'Copied'

def luminance(rgb):
    lin = [c/12.92 if c <= .03928 else ((c+.055)/1.055)**2.4 for c in (int(o)/255 for o in rgb)]
    return .2126*lin[0] + .7152*lin[1] + .0722*lin[2]

@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_contrast(page, site, scheme):
    "WCAG AA: 4.5 to 1 for text on its ground (the colours are the style sheet's own)"
    page.emulate_media(color_scheme=scheme); page.goto((site/'papers.html').as_uri())
    def colour(name):
        rgb = page.evaluate(f"(() => {{ const e = document.createElement('i'); e.style.color = 'var(--{name})'; document.body.append(e); return getComputedStyle(e).color }})()")
        return luminance(re.findall(r'\d+', rgb)[:3])
    low = {}
    for ground in ('bg', 'code-bg', 'card'):
        for text in 'fg muted accent kw str num com def eq-x eq-x0 eq-noise eq-abar eq-beta eq-mean'.split():
            a,b = sorted((colour(text), colour(ground)))
            if (b+.05)/(a+.05) < 4.5: low[text, ground] = round((b+.05)/(a+.05), 2)
    assert not low
    a,b = sorted((colour('lit-fg'), colour('lit')))
    assert (b+.05)/(a+.05) >= 4.5

# --- the builder's own promises

def test_a_name_that_leads_nowhere_stops_the_build():
    pytest.importorskip('markdown_it')
    from api import Api
    from build import Plain
    from prose import Prose
    prose = Prose(Api(ROOT/'miniai'), ['15_DDPM'], {'miniai_train'}, lambda h, p: h)
    page = Plain('x.html', 'X'); page.words = {'my_local'}
    out = prose.render('`sample` `Learner.fit` `karras.sample` `NoiseCB(edm())` `my_local` `torch.no_grad()` `x` `results/a_b.jsonl` `miniai_train`', page)
    assert not prose.wrong
    for link in ('api_solvers.html#sample', 'api_learner.html#Learner.fit', 'api_karras.html#sample', 'api_diffusion.html#NoiseCB'): assert f'href="{link}"' in out
    for bad in ('sampel_loop', 'NoizeCB', 'karras.sampel', 'miniai.nothing', 'no_such_thing(x)'):
        prose.wrong.clear(); prose.render(f'`{bad}`', page)
        assert len(prose.wrong) == 1 and bad.split('(')[0] in prose.wrong[0]

def test_terms_of_an_equation():
    "The picture of DDPM's eq. (15) and the names of its code"
    from terms import mark
    svg = (ROOT/'nbs/images/ddpm_15.svg').read_text(encoding='utf-8')
    assert mark(svg, {'x', 'x0_hat', 'ε', 'abar', 'unrelated'})[1] == {'x', 'x0_hat', 'ε', 'abar'}
    assert mark(svg, {'ᾱ'})[1] == {'ᾱ'}
    assert mark(svg, set())[1] == set()

def test_a_notebook_without_outputs_says_so(tmp_path):
    pytest.importorskip('markdown_it')
    import json
    from build import Site
    from page import Page
    site = Site(tmp_path)
    cell = dict(cell_type='code', id='b', source='1+1', outputs=[], metadata={})
    (tmp_path/'99_new.ipynb').write_text(json.dumps(dict(cells=[dict(cell_type='markdown', id='a', source='# New\n\n> A claim.', metadata={}), cell])))
    assert 'make nbs NB=99_new' in Page(tmp_path/'99_new.ipynb', site).render()
    assert len(site.warnings) == 1
