"The draw pages in Chromium: no error, no request to anyone, Python's images on the same noise, and every control does what it says"
import functools, http.server, importlib.util, shutil, threading
import pytest, torch
from common import ROOT

BROWSER = shutil.which('chromium')
FLAGS = '--headless --no-sandbox --disable-gpu --disable-background-networking --disable-quic --no-first-run --disable-component-update --disable-sync'.split()
DRAWN = 'miniai.frames.length > 1 && !miniai.busy'
WAIT = 900_000      # milliseconds: a machine may have much else to do

@pytest.fixture(scope='module')
def site(tmp_path_factory):
    if not BROWSER: pytest.skip('the draw pages are not tested without a browser: on Debian, apt-get install chromium')
    if not shutil.which('npm'): pytest.skip('the draw pages are not tested without npm, which brings onnxruntime-web')
    for p in ('onnxscript', 'onnxruntime', 'playwright'): pytest.importorskip(p, reason=f'the draw pages are not tested without {p}: pip install {p}')
    spec = importlib.util.spec_from_file_location('draw_build', ROOT/'site/draw/build.py'); build = importlib.util.module_from_spec(spec); spec.loader.exec_module(build)
    out = tmp_path_factory.mktemp('site'); build.build(out)
    (out/'fonts').mkdir(exist_ok=True); (out/'fonts/fonts.css').touch()                    # the rest of the site makes them
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args): pass
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=out))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}'
    server.shutdown()

@pytest.fixture(scope='module')
def browser(site):
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        b = p.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield b
        b.close()

def open_page(browser, url, **kw):
    "A page that keeps what it complains of in `.bad` and what it asks for in `.asked`"
    page = browser.new_page(**kw); page.set_default_timeout(WAIT); page.bad,page.asked = [], []
    page.on('console', lambda m: page.bad.append(m.text) if m.type in ('error', 'warning') else None)
    page.on('pageerror', lambda e: page.bad.append(str(e)))
    page.on('request', lambda r: page.asked.append(r.url))
    page.goto(url)
    return page

@pytest.fixture(scope='module')
def draw(site, browser):
    page = open_page(browser, f'{site}/draw.html#steps=4&seed=3&w=1', viewport=dict(width=1360, height=900))
    page.wait_for_function(DRAWN)
    yield page
    page.close()

def choose(page, **kw):
    "Set controls, and wait until it has drawn"
    before = page.evaluate('miniai.job')
    for k,v in kw.items():
        page.evaluate('([k, v]) => { const o = document.getElementById("set")[k]; o.value = v; o.dispatchEvent(new Event("input", {bubbles: true})) }', [k, str(v)])
    page.wait_for_function(f'miniai.job > {before} && {DRAWN}')

def drawn(page): return torch.tensor(page.evaluate('Array.from(miniai.frames.at(-1).x)')).view(-1,1,28,28)

def of_python(page):
    "What the line of Python on the page draws"
    from miniai.imports import load_denoiser, sample
    ns = dict(load_denoiser=functools.partial(load_denoiser, device='cpu'), sample=functools.partial(sample, device='cpu'), torch=torch)
    try: from miniai.guidance import guided; ns['guided'] = guided
    except ImportError: pass
    return eval(page.inner_text('#same code'), ns)

def test_it_draws_without_errors_and_asks_nobody(draw, site):
    assert not draw.bad and draw.is_hidden('#trouble')
    assert all(u.startswith((site, 'data:', 'blob:')) for u in draw.asked)
    assert drawn(draw).abs().mean() > 0.2 and draw.evaluate('miniai.frames.length') == 1 + 4 + 2 + 4      # noise; calls, lines, moves

@pytest.mark.parametrize('solver', ['dpmpp_2m', 'heun', 'ddim'])
def test_its_images_are_those_of_python(draw, solver):
    if draw.evaluate('document.getElementById("set").solver.value') != solver: choose(draw, solver=solver)
    assert draw.inner_text('#same code').count(f"'{solver}', 4")
    assert (drawn(draw).clamp(-1,1) - of_python(draw).clamp(-1,1)).abs().max() <= 2*2/255      # w=1: at w=2 four steps multiply rounding, to 4/255

def test_steps_are_ours_on_a_denoiser_known_exactly(draw):
    "Gaussian images of standard deviation 0.5, no network: the loop itself"
    from miniai.solvers import sample
    def den(x, level, y=None):
        x0 = 0.25*x/(0.25+level.sigma**2)
        return x0, (x-x0)/level.sigma
    got = draw.evaluate('''async () => {
        const {sample, sigmas} = await import('./draw/loop.js'), {imageNoise} = await import('./draw/noise.js')
        const out = {noise: Array.from(imageNoise(7, 2, 784))}
        const den = (x, s) => { const x0 = x.map(v => .25*v/(.25+s*s)); return [x0, x0.map((v, i) => (x[i]-v)/s)] }
        for (const k of ['ddim', 'heun', 'dpmpp_2m']) {
            let o
            for await (o of sample(den, imageNoise(7, 2, 784).map(v => 80*v), sigmas(9), k));
            out[k] = Array.from(o.x)
        }
        return out }''')
    from miniai.denoiser import image_noise
    noise = image_noise(7, 0, (2,1,28,28), 'cpu')()
    assert torch.allclose(torch.tensor(got.pop('noise')).view(2,1,28,28), noise, atol=2e-6)
    for k,x in got.items():
        assert torch.allclose(torch.tensor(x).view(2,1,28,28), sample(den, 2, k, 9, x=noise, device='cpu'), atol=1e-3), k

def test_slider_and_buttons_walk_through_the_lines(draw):
    pixels = lambda: draw.evaluate('Array.from(document.getElementById("x").getContext("2d").getImageData(60, 60, 60, 60).data)')
    lit = lambda: draw.inner_text('#lines .runs')
    last,said = pixels(), lit()
    draw.evaluate('{ const o = document.getElementById("at"); o.value = 0; o.dispatchEvent(new Event("input")) }')
    assert pixels() != last and 'noise' in draw.inner_text('#told') and 'randn()' in lit() != said
    draw.click('#on')
    assert 'call 1' in draw.inner_text('#told') and 'run(x, l)' in lit() and draw.locator('#eq svg').count() >= 1
    draw.click('#back'); assert 'randn()' in lit()
    draw.click('#play'); draw.wait_for_function('miniai.at == miniai.frames.length-1'); draw.wait_for_function('document.getElementById("play").textContent == "Play"')
    assert pixels() == last

def test_a_part_is_rubbed_out_and_drawn_anew(draw):
    draw.evaluate('document.getElementById("whole").click()')
    box = draw.locator('#edit'); box.scroll_into_view_if_needed(); b = box.bounding_box()
    assert draw.is_disabled('#again')
    draw.mouse.move(b['x']+60, b['y']+60); draw.mouse.down(); draw.mouse.move(b['x']+200, b['y']+120, steps=12); draw.mouse.up()
    draw.click('#again'); draw.wait_for_function('miniai.filled && !miniai.busy')
    known,mask,new = (torch.tensor(draw.evaluate(f'Array.from(miniai.{k})')) for k in ('known', 'mask', 'filled'))
    new,mask = new.view(8, 784), mask.bool()
    assert 30 < (~mask).sum() < 400
    assert (new[:,mask] - known[mask]).abs().max() < 1e-3
    assert (new[:,~mask] - new[:1,~mask]).abs().max() > 0.1
    assert draw.is_hidden('#trouble')

def test_labels_and_guidance(draw):
    if not draw.evaluate('miniai.card.n_classes'): pytest.skip('the network that is shipped knows no labels')
    choose(draw, solver='dpmpp_2m', what=8, w=2)                                             # bags
    assert (drawn(draw).clamp(-1,1) - of_python(draw).clamp(-1,1)).abs().max() <= 2*2/255
    from miniai.resnet import fashion_classifier
    with torch.no_grad(): assert (fashion_classifier()(drawn(draw).clamp(-1,1)).argmax(1) == 8).float().mean() > 0.7

@pytest.mark.parametrize('name', ['draw', 'field'])
def test_nothing_is_wider_than_a_phone(site, browser, name):
    page = open_page(browser, f'{site}/{name}.html', viewport=dict(width=360, height=740), is_mobile=True, has_touch=True)
    page.wait_for_function('window.miniai && (miniai.card || miniai.levels)')
    assert page.evaluate('document.documentElement.scrollWidth') <= 360 and not page.bad
    page.close()

@pytest.mark.parametrize('init,blocked,says', [('WebAssembly.validate = () => false', None, 'needs WebAssembly with SIMD, which this browser does not have'),
                                              ('', '**/clothes.onnx', 'The network could not be run'),
                                              ('', '**/card.json', 'could not load its network')])
def test_it_says_what_is_wrong(site, browser, init, blocked, says):
    page = browser.new_page(); page.set_default_timeout(WAIT)
    page.add_init_script(init)
    if blocked: page.context.route(blocked, lambda r: r.abort())
    page.goto(f'{site}/draw.html'); page.wait_for_selector('#trouble:visible')
    assert says in page.inner_text('#trouble')
    page.close()

def test_the_field_is_walked_and_learned(site, browser):
    page = open_page(browser, f'{site}/field.html'); page.wait_for_function('miniai.levels')
    errors = lambda: {r.split('\t')[0]: float(r.split('\t')[2]) for r in page.inner_text('#ends').splitlines()}
    def put(k, v):
        page.evaluate('([k, v]) => { const o = document.getElementById("set")[k]; o.value = v; o.dispatchEvent(new Event("input", {bubbles: true})) }', [k, str(v)])
        page.wait_for_timeout(100); page.wait_for_function('miniai.levels.length == +document.getElementById("set").steps.value+1')
    put('steps', 8); few = errors()
    put('steps', 40); many = errors()
    assert max(many.values()) < 0.1 and many['DDIM'] < few['DDIM'] and many['Heun'] <= few['Heun'] + 1e-3
    put('eta', 1); assert errors()['DDIM'] > 2*many['DDIM']
    off = page.evaluate('''async () => {                                      // what was learned, beside the best there is
        const {learned, exact, BLOBS, STD} = await import('./draw/net.js'), {randn, twister} = await import('./draw/noise.js')
        const e = randn(twister(9), 600), out = []
        for (const s of [.1, .5, 2]) {
            const x = e.map((v, i) => BLOBS[(i >> 1) % 3][i % 2] + Math.sqrt(STD*STD+s*s)*v)
            const a = learned(miniai.net, miniai.sd)(x, s)[0], b = exact(BLOBS, STD)(x, s)[0]
            out.push(Math.sqrt(a.reduce((z, v, i) => z+(v-b[i])**2, 0)/600))
        }
        return out }''')
    assert max(off) < 0.15
    page.click('#train'); page.wait_for_function('miniai.step > 3'); assert 'loss' in page.inner_text('#loss')
    assert not page.bad and all(u.startswith((site, 'data:')) for u in page.asked)
    page.close()
