"The commands called as functions: images to and from disk, training in every form, sampling, scoring, the quickstart"
import inspect, json, os
import pytest
import torch
from fastcore.script import anno_parser
from miniai import cli, recipes
from miniai.cli import draw_strip, image_dls as data_dls, evaluate, quickstart, read_images, sample_images, train, write_images
from miniai.core import load, read_records, save
from miniai.datasets import fashion_dls, to_unit
from miniai.diffusion import as_form
from miniai.recipes import ddpm_levels, load_denoiser, score, suggest_sigmas
from miniai.solvers import sample
from miniai.unet import UNet

OURS = 'ddpm', 'cosine', 'edm', 'flow'

@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    "What is written goes to a folder of its own; networks are small, and so is what scores are against"
    monkeypatch.chdir(tmp_path)
    tiny = lambda channels=1, t_scale=1., **kw: UNet(channels, **dict(widths=(16,32), n_blocks=1, attn=0, patch=2, t_scale=t_scale) | kw)
    monkeypatch.setattr(recipes, 'small_unet', tiny)
    monkeypatch.setattr(cli, 'reference_eval', few)

def few(against=None):
    "The reference features, against 200 images"
    return recipes.reference_eval(against or fashion_dls(64, 200, 200, say=lambda s: None))

def uint8(n, c=1, size=8, seed=0): return torch.randint(0, 256, (n,c,size,size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))

@pytest.fixture
def folder(tmp_path): return write_images(uint8(30), tmp_path/'mine')

def says(words, f, *args, **kw):
    "It is refused in one sentence, and nothing is written"
    with pytest.raises((ValueError, OSError)) as e: f(*args, **kw)
    assert words in str(e.value) and '\n' not in str(e.value), str(e.value)

# --- images

@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('out', ['a.npz', 'folder'])
def test_images_come_back(out, channels):
    x = uint8(5, channels); assert torch.equal(read_images(write_images(x, out)), x)

def test_a_grid_is_for_looking():
    from PIL import Image
    im = Image.open(write_images(uint8(4, 3), 'x.png')); assert im.mode == 'RGB' and im.size[0] > 16

@pytest.mark.parametrize('out', ['x.png', 'x.npz', 'folder'])
def test_nothing_is_overwritten_unasked(out):
    write_images(uint8(4), out); says('say --force', write_images, uint8(2), out)
    assert write_images(uint8(2), out, force=True).exists()
    if out != 'x.png': assert len(read_images(out)) == 2                # nothing of the longer run is left among them

def test_another_suffix(): says('.png or .npz', write_images, uint8(1), 'x.tiff')

def test_unreadable_files_are_named(folder):
    (folder/'broken.png').write_bytes(b'no image'); told = []
    says('broken.png', read_images, folder)
    assert len(read_images(folder, skip=True, say=told.append)) == 30 and 'broken.png' in told[0]

def test_no_images(tmp_path):
    (tmp_path/'empty').mkdir()
    says('holds no images', read_images, 'empty'); says('does not exist', read_images, 'nowhere')

def test_images_of_several_sizes(folder):
    write_images(uint8(1, size=12), folder/'more'); says('images of 2 sizes', read_images, folder)

# --- data

def test_one_tenth_is_held_out_by_the_rule_of_all_sources(folder):
    from miniai.datasets import image_data
    dls = data_dls(folder, bs=9); data = image_data(folder, say=lambda s: None)
    assert len(dls.train.x) == 27 and len(dls.valid.x) == 3 and dls.name == folder.name
    for x,k in ((dls.train.x, 'train'), (dls.valid.x, 'test')): assert torch.equal(x.cpu(), torch.as_tensor(data[k][0]))

def test_too_few_images(tmp_path): says('at least 2 are needed', data_dls, write_images(uint8(1), tmp_path/'few'))

# --- training

@pytest.mark.parametrize('form', OURS)
def test_train_in_every_form(form, folder):
    "Weights, a card that says what was done, a denoiser that samples"
    p = train(folder, out='w', form=form, epochs=1, bs=9, ema=.9, lr=1e-3); den = load_denoiser(p)
    card = json.loads(p.with_suffix('.json').read_text(encoding='utf-8'))
    assert card['form'] == den.form.card() and den.form == as_form(card['form']) and card['form']['name'] == form
    told = dict(epochs=1, bs=9, ema=.9, lr=1e-3, seed=42, n_train=27, size=[1,8,8], data=folder.name)
    assert {k: card[k] for k in told} == told and [h['train'] for h in card['history']] == ['train', 'eval']
    assert sample(den, 2, steps=2).isfinite().all()

def test_edm_s_spread_is_measured(folder):
    sd = json.loads(train(folder, out='w', epochs=1, bs=27).with_suffix('.json').read_text(encoding='utf-8'))['form']['sigma_data']
    assert abs(sd - to_unit(data_dls(folder).train.x).std().item()) < 1e-3

def test_training_again_is_the_same(folder):
    kw = dict(epochs=1, bs=9); a,_ = load(train(folder, out='a', **kw)); b,_ = load(train(folder, out='b', **kw)); c,_ = load(train(folder, out='c', seed=1, **kw))
    assert all(torch.equal(a[k], b[k]) for k in a) and not all(torch.equal(a[k], c[k]) for k in a)

def test_without_averaging(folder): assert json.loads(train(folder, out='w', epochs=1, ema=0.).with_suffix('.json').read_text(encoding='utf-8'))['ema'] == 0

def test_colour(tmp_path):
    den = load_denoiser(train(write_images(uint8(20, 3), tmp_path/'colour'), out='rgb', epochs=1, bs=9))
    assert den.card['config']['channels'] == 3 and sample(den, 2, steps=1).shape == (2,3,8,8)

def test_training_that_is_refused(folder):
    train(folder, out='w', epochs=1, bs=27)
    says('say --force', train, folder, out='w'); says("no form 'gan': there are ddpm", train, folder, out='new', form='gan'); says('does not exist', train, 'nowhere.npz', out='new2')
    assert train(folder, out='w', epochs=1, bs=27, force=True).exists()

# --- sampling

def test_sample_and_record(folder):
    w = train(folder, out='w', epochs=1, bs=27); r = dict(record='r.jsonl')
    a,b = (read_images(sample_images(str(w), n=5, steps=2, bs=bs, out=f'{bs}.npz', **r)) for bs in (5, 2))
    assert (a.int()-b.int()).abs().max() <= 2                         # bfloat16 rounds differently in other company
    rec = read_records('r.jsonl'); assert [o['n'] for o in rec] == [5, 5] and rec[0]['nfe'] == 2 and rec[0]['seed'] == 0 and rec[0]['solver'] == 'dpmpp_2m'

@pytest.mark.parametrize('bad,words', [(dict(weights='imagenet'), 'fashion_edm'), (dict(n=0), 'n and bs must be at least 1'), (dict(solver='rk45'), 'there are ddim'), (dict(steps=0), 'number of steps, at least 1'), (dict(out='x.tiff'), '.png or .npz')], ids=str)
def test_sampling_that_is_refused(bad, words):
    kw = dict(n=2, steps=1, out='never.png', record='r.jsonl') | bad; says(words, sample_images, **kw)
    assert not os.path.exists(kw['out'])

def test_the_way_as_a_strip():
    draw_strip(load_denoiser(), 'strip.png', n=2, steps=3)
    from PIL import Image
    assert Image.open('strip.png').size[0] > 100

def test_weights_that_are_not_numbers_are_a_sentence(folder):
    sd,c = load(train(folder, out='w', epochs=1, bs=27)); save({k: v*float('nan') for k,v in sd.items()}, 'nan', **c)
    says('returned NaN or infinity in call 1', sample_images, 'nan', n=2, steps=1, out='never.png'); assert not os.path.exists('never.png')

@pytest.mark.parametrize('record', ['mine', 'file/r.jsonl', 'file/deep/r.jsonl'])
def test_a_record_that_cannot_be_written_is_refused_before_the_work(record, folder):
    open('file', 'w').close()
    says(f'the record {record} cannot be written', sample_images, weights='no such', out='never.png', record=record)
    says(f'the record {record} cannot be written', evaluate, 'nowhere', record=record)

def test_names_that_are_not_utf8_are_written_readably(tmp_path, capsys):
    "In records, and in the card of a network that was trained on such a folder"
    odd = os.fsdecode(b'od\xffd')
    write_images(uint8(12), f'{odd}/{odd}1'); write_images(uint8(12, seed=1), f'{odd}/{odd}2')
    w = train(odd, out='w', epochs=1, bs=8, labels=True, every=1); card = json.loads(w.with_suffix('.json').read_text(encoding='utf-8'))
    assert card['data'] == 'od\\udcffd' and card['classes'] == ['od\\udcffd1', 'od\\udcffd2']
    p = sample_images(str(w), n=4, steps=1, out=odd + '.npz', record='r.jsonl'); assert read_records('r.jsonl')[0]['out'] == 'od\\udcffd.npz' and 'od\\udcffd.npz' in capsys.readouterr().out
    sample_images(n=4, steps=1, out=odd + '2.npz', record='r.jsonl'); rec = evaluate(odd + '2.npz', against=odd + '2.npz', record='r.jsonl'); assert rec['images'] == rec['against'] == read_records('r.jsonl')[2]['images'] == 'od\\udcffd2.npz'

# --- scoring

def test_scores_and_their_record():
    x = sample(load_denoiser(), 12, steps=2); p = write_images(((x.clamp(-1, 1)+1)*127.5).round().byte(), 'x.npz')
    one,two = evaluate(str(p), record='e.jsonl'), evaluate(str(p), against=str(p), record='e.jsonl')
    assert two['fid'] < one['fid'] and two['fid'] < .1 and two['floor'] is None and one['floor'] > 0           # the same images; and no training images to make a floor
    assert [o['n'] for o in read_records('e.jsonl')] == [12, 12]

def test_images_of_another_kind_are_refused(folder): says('fashion_classifier takes images', evaluate, str(folder))

def test_a_record_of_a_solver():
    r = score(load_denoiser(), few(), 'heun', 2, 10, model='m')
    assert r['nfe'] == 3 and r['n'] == 10 and r['solver'] == 'heun' and r['model'] == 'm' and r['fid'] > 0 and r['cpu_seconds'] > 0

def test_the_levels_of_the_first_lessons():
    ls = ddpm_levels(10); assert [l.t for l in ls[:-1]] == list(range(900, -1, -100)) and ls[-1].sigma == 0

def test_sigmas_for_one_s_own_images():
    x = torch.randn(300,1,8,8, generator=torch.Generator().manual_seed(0))*.4; s = suggest_sigmas(x)
    far = .4*2**.5*8              # two images of 64 pixels lie about that far apart
    assert abs(s['sigma_data']-.4) < .01 and far < s['sigma_max'] < 1.5*far

# --- all of it

def test_quickstart(capsys):
    quickstart(steps=2, n=10); out = capsys.readouterr().out
    from PIL import Image
    for f in ('samples.png', 'strip.png'): assert Image.open(f).size[0] > 100
    a,b = read_records('quickstart.jsonl'); assert a['model'] == 'reference' and b['model'] == 'trained just now' and a['n'] == b['n'] == 10 and a['fid'] < b['fid']
    assert 'FID' in out and 'reference' in out
    cli._begin(2, 10, '.', False)                          # its own pictures may be drawn again

@pytest.mark.parametrize('kw,words', [(dict(n=-3), '--n -3: 2 or more'), (dict(n=1), '--n 1: 2 or more'), (dict(steps=-1), '--steps -1: 1 or more'), (dict(out='file'), 'cannot be written'), (dict(), 'samples.png exists, and nothing is overwritten')], ids=str)
def test_a_quickstart_that_is_refused(kw, words, monkeypatch):
    "Before the work; and pictures that it did not draw stay"
    monkeypatch.setattr(cli, 'load_denoiser', None)
    write_images(uint8(4), 'samples.png'); open('file', 'w').close(); before = open('samples.png', 'rb').read()
    says(words, quickstart, **kw); assert open('samples.png', 'rb').read() == before and not os.path.exists('quickstart.jsonl')

def test_a_quickstart_makes_its_folder_and_is_forced():
    write_images(uint8(4), 'new/samples.png'); assert cli._begin(2, 10, 'new', True) == (2, 10, cli.Path('new'))
    cli._begin(2, 10, 'a/b', False); assert os.path.isdir('a/b')

@pytest.mark.parametrize('f', [train, sample_images, evaluate, quickstart], ids=lambda f: f.__name__)
def test_help_names_every_option(f):
    h = anno_parser(inspect.unwrap(f)).format_help()
    assert all(p.replace('_', '-').lower() in h for p in inspect.signature(f).parameters)

def test_a_label_and_other_levels(folder):
    with pytest.raises(ValueError, match='without labels'): sample_images('fashion_edm', n=2, steps=1, label=3, out='l.npz', record='l.jsonl')
    w = train(folder, out='lv', epochs=1, bs=27)
    a,b = (read_images(sample_images(str(w), n=2, steps=2, sigma_max=s, out=f's{s:g}.npz', record='l.jsonl')) for s in (80., 5.))
    assert not a.equal(b) and [r['sigmas'] for r in read_records('l.jsonl')] == [[80., .01], [5., .01]]

def test_guidance_needs_a_label_and_a_network_that_knows_them():
    says('guidance leads towards a class: say which with --label', sample_images, 'fashion_edm', n=2, steps=1, guidance=2., out='g.npz', record='l.jsonl')
    says('this network knows no labels', sample_images, 'fashion_edm', n=2, steps=1, guidance=2., label=3, out='g.npz', record='l.jsonl')

def test_guidance_goes_to_the_record_and_into_the_images(tmp_path):
    torch.manual_seed(0)
    net,form = UNet(1, widths=(16,32), n_blocks=1, attn=0, patch=2, n_classes=3), as_form('edm')
    for p in net.parameters(): torch.nn.init.normal_(p, std=0.1)
    w = save(net, tmp_path/'lab', config=net.config, form=form.card(), size=(1,8,8), drop=0.1)
    xs = [read_images(sample_images(str(w), n=2, steps=2, label=1, guidance=g, out=f'g{g}.npz', record='l.jsonl')) for g in (None, 1., 3.)]
    assert xs[0].equal(xs[1]) and not xs[0].equal(xs[2])
    assert [(r['guidance'], r['nfe']) for r in read_records('l.jsonl')] == [(None, 2), (1., 2), (3., 4)]

# --- an image to begin with

def test_from_an_image(tmp_path, folder):
    "A little strength keeps it; without --from there is nothing to change; all options reach the record"
    im = tmp_path/'one.png'
    from PIL import Image
    x = uint8(1, size=28); Image.fromarray(x[0,0].numpy()).save(im)
    a,b = (read_images(sample_images(n=2, steps=2, From=im, strength=s, out=f's{s}.npz', record='l.jsonl')) for s in (.05, .9))
    d = lambda y: (y.float()-x.float()).abs().mean()
    assert a.shape == (2,1,28,28) and d(a) < 12 < d(b)
    assert [(r['from'], r['strength']) for r in read_records('l.jsonl')] == [(str(im), .05), (str(im), .9)]
    says('say which with --from', sample_images, n=1, steps=1, strength=.5, out='n.npz')
    says('(0,1]', sample_images, n=1, steps=1, From=im, strength=1.5, out='n.npz')
    says('does not exist', sample_images, n=1, steps=1, From='nowhere.png', out='n.npz')

def test_a_mask_keeps_what_is_black(tmp_path):
    "To the byte; and a mask of another size is refused"
    from PIL import Image
    x = uint8(1, size=28); Image.fromarray(x[0,0].numpy()).save('one.png')
    m = torch.zeros(28, 28, dtype=torch.uint8); m[:,14:] = 255; Image.fromarray(m.numpy()).save('m.png')
    y = read_images(sample_images(n=2, steps=2, From='one.png', mask='m.png', out='f.npz', record='l.jsonl'))
    assert torch.equal(y[...,:14], x[...,:14].expand(2,-1,-1,-1)) and not torch.equal(y[0,...,14:], x[0,...,14:])
    Image.fromarray(m[:20].numpy()).save('small.png')
    says('the mask is 20×28, but the image is 28×28', sample_images, n=1, steps=1, From='one.png', mask='small.png', out='n.npz')

def test_the_option_is_called_from():
    opts = {o for a in anno_parser(sample_images)._actions for o in a.option_strings}
    assert {'--from', '--strength', '--mask'} <= opts
