"The one reader and the one writer of images, what is held out, lazy loading, pictures on the page"
import io, os, shutil
from pathlib import Path
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image
from miniai import datasets as D, files, images

quiet = dict(say=lambda s: None)

def batch(n=6, c=3, h=8, w=12, seed=0): return torch.randint(0, 256, (n,c,h,w), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))

def says(words, f, *args, **kw):
    with pytest.raises((ValueError, OSError)) as e: f(*args, **kw)
    assert words in str(e.value) and '\n' not in str(e.value), str(e.value)

@pytest.fixture
def classes(tmp_path):
    "40 grey pictures, 6×10, in two classes; the colour of each is its number"
    for i in range(40):
        p = tmp_path/'own'/('cat' if i < 20 else 'dog')/f'{i:02}.png'; p.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((6,10), i, np.uint8)).save(p)
    return tmp_path/'own'

def numbers(x): return [int(o[0,0,0]) for o in x]

# --- bytes and ±1

def test_to_unit_leaves_its_argument_alone_and_refuses_floats():
    x = torch.rand(2,1,4,4); before = x.clone()
    says('to_unit makes bytes', D.to_unit, x); assert torch.equal(x, before)
    b = batch(); before = b.clone(); D.to_unit(b); assert torch.equal(b, before)
    says('to_uint8 makes ±1 into bytes', D.to_uint8, b)

def test_loader_takes_floats_in_pm1_rightly():
    x = torch.rand(4,1,8,8)*2-1
    assert torch.equal(next(iter(D.TensorLoader(x, bs=4, device='cpu')))[0], x)
    assert next(iter(D.TensorLoader(x, bs=4, device='cpu', pad=2)))[0][0,0,0,0] == -1

@pytest.mark.parametrize('x, words', [(torch.rand(4,1,8,8), '±1 was expected'), (torch.rand(4,1,8,8)*255, '±1 was expected'),
    (torch.randn(4,8,8,3), 'x.permute(0,3,1,2)'), (batch().permute(0,2,3,1), 'N×C×H×W was expected'), (torch.zeros(4,1,8,8, dtype=torch.int64), 'torch.int64'),
    (torch.full((4,1,8,8), float('nan')), '±1 was expected'), (batch()[0], 'N×C×H×W was expected')])
def test_loader_refuses_other_ranges_and_orders(x, words): says(words, D.TensorLoader, x)

def test_labels_are_as_many_as_images(): says('6 images but 5 labels', D.TensorLoader, batch(), torch.zeros(5))

# --- one file

def saved(p, a, **kw): (a if isinstance(a, Image.Image) else Image.fromarray(a)).save(p, **kw); return p

def test_sixteen_bits(tmp_path):
    a = np.arange(256, dtype=np.uint16).reshape(16,16)*257
    assert (D.decode_image(saved(tmp_path/'a.png', a)) == np.arange(256).reshape(16,16)).all()

def test_hidden_colours_stay_hidden(tmp_path):
    a = np.zeros((2,2,4), np.uint8); a[...,0] = 200; a[0,0,3] = 255
    x = D.decode_image(saved(tmp_path/'a.png', a)); assert x[0,0].tolist() == [200,0,0] and x[1,1].tolist() == [255]*3
    assert D.decode_image(saved(tmp_path/'b.png', a[...,::3])).tolist() == [[200,255],[255,255]]        # grey and alpha stay grey
    im = Image.fromarray(a[...,0]).convert('P'); assert (D.decode_image(saved(tmp_path/'c.png', im, transparency=200)) == 255).all()

@pytest.mark.parametrize('mode, shape', [('1', (4,6)), ('L', (4,6)), ('P', (4,6,3)), ('RGB', (4,6,3)), ('CMYK', (4,6,3)), ('I;16', (4,6))])
def test_modes(tmp_path, mode, shape): assert D.decode_image(saved(tmp_path/f"a.{'jpg' if mode == 'CMYK' else 'png'}", Image.new(mode, (6,4)))).shape == shape

def test_a_photo_is_turned_as_its_camera_said(tmp_path):
    exif = Image.Exif(); exif[274] = 6
    p = saved(tmp_path/'a.jpg', np.zeros((4,6,3), np.uint8), exif=exif)
    assert D.decode_image(p).shape == (6,4,3) == files._header(p)

# --- reading

@pytest.mark.parametrize('c', [1, 3])
@pytest.mark.parametrize('out', ['a.npz', 'folder'])
def test_there_and_back(tmp_path, c, out):
    x = batch(c=c); assert torch.equal(D.read_images(D.write_images(x, tmp_path/out)), x)

def test_sizes_and_channels(tmp_path):
    said = []; D.write_images(batch(3), tmp_path/'a'/'rgb'); D.write_images(batch(2, 1, 20, 20), tmp_path/'a'/'grey')
    says('2 sizes (height × width): 3 of 8×12, 2 of 20×20', D.read_images, tmp_path/'a')
    assert D.read_images(tmp_path/'a', size=(6,4), say=said.append).shape == (5,3,6,4) and D.read_images(tmp_path/'a', size=16, channels=1, **quiet).shape == (5,1,16,16)
    assert 'cropped and resized to 6×4' in said[0] and '3 of RGB, 2 of grey: all taken as RGB' in said[1]
    for bad in (0, (4,), 'big', (4,0)): says('a side in pixels', D.read_images, tmp_path/'a', size=bad)
    says('1 (grey) or 3 (RGB)', D.read_images, tmp_path/'a', size=8, channels=2)

def test_npz_orders(tmp_path):
    x = batch(5, 1, 8, 12)
    for a in (x.permute(0,2,3,1), x, x[:,0]):
        np.savez(tmp_path/'a.npz', images=a.numpy()); assert torch.equal(D.read_images(tmp_path/'a.npz'), x)

def test_names_of_any_bytes(tmp_path):
    d = os.fsencode(tmp_path)+b'/\xff\x1b[2J'; os.mkdir(d)
    with open(d+b'/\xe9.png', 'wb') as f: Image.new('L', (4,4)).save(f, 'PNG')
    assert D.read_images(Path(os.fsdecode(d))).shape == (1,1,4,4)
    with open(d+b'/\xe8.png', 'wb') as f: f.write(b'?')
    with pytest.raises(ValueError) as e: D.read_images(Path(os.fsdecode(d)))
    str(e.value).encode(); assert '\x1b' not in str(e.value) and '\\xe8.png' in str(e.value).replace('\\udce8', '\\xe8')

# --- writing

@pytest.mark.parametrize('name', ['2024-07-14 beach.png', '00002.png', 'notes.txt', '.hidden', '123.png'])
def test_force_never_deletes_what_is_yours(tmp_path, name):
    out = D.write_images(batch(2), tmp_path/'out'); Image.new('L', (4,4)).save(out/'x.png'); (out/'x.png').rename(out/name); was = (out/name).read_bytes()
    says('never deleted', D.write_images, batch(4), out, force=True)
    assert (out/name).read_bytes() == was and len(list(out.iterdir())) == 3

def test_force_with_globs_in_the_name(tmp_path):
    for nm in ('a1', 'a[1]', 'ab'): D.write_images(batch(2), tmp_path/nm)
    D.write_images(batch(1), tmp_path/'a[1]', force=True)
    assert [len(list((tmp_path/nm).iterdir())) for nm in ('a1', 'a[1]', 'ab')] == [2, 1, 2]

@pytest.mark.parametrize('out', ['a.png', 'a.npz', 'folder'])
def test_a_failing_write_leaves_what_was_there(tmp_path, monkeypatch, out):
    p = D.write_images(batch(3), tmp_path/out); every = lambda: {q.name: q.read_bytes() for q in sorted(tmp_path.rglob('*')) if q.is_file()}; was = every()
    def full(*a, **k): raise OSError('disk full')
    monkeypatch.setattr(Image.Image, 'save', full); monkeypatch.setattr(np, 'savez_compressed', full)
    with pytest.raises(OSError, match='disk full'): D.write_images(batch(5, seed=1), p, force=True)
    with pytest.raises(OSError, match='disk full'): D.write_images(batch(5), tmp_path/f'new{out}')
    assert every() == was and len(list(tmp_path.iterdir())) == 1

def test_what_cannot_be_written_is_said_before(tmp_path):
    (tmp_path/'file').write_text('')
    says('ends in .png or .npz', D.check_out, tmp_path/'a.jpg'); says('is no folder', D.check_out, tmp_path/'file'/'a.png'); says('is a file', D.check_out, tmp_path/'file')
    (tmp_path/'a.png').mkdir(); says('is a folder', D.check_out, tmp_path/'a.png')
    for x in (batch().float(), batch()[:0], batch().permute(0,2,3,1)): says('was expected', D.write_images, x, tmp_path/'b.npz')

# --- sources

def test_classes_are_folders(classes):
    data = D.image_data(classes, **quiet)
    assert data.classes == ['cat', 'dog'] and data.name == 'own' and data.size == (1,6,10)
    for x,y in data.values(): assert [int(n >= 20) for n in numbers(x)] == y.tolist()

def test_every_source_holds_out_the_same(classes, tmp_path, monkeypatch):
    x = np.stack([np.full((6,10,1), i, np.uint8) for i in range(40)]); y = np.arange(40)//20
    np.savez(tmp_path/'own.npz', images=x, labels=y)
    D.to_dd({'train': (x.transpose(0,3,1,2), y)}, ['cat', 'dog'])['train'].to_parquet(tmp_path/'own.parquet')
    D.to_dd({'train': (x.transpose(0,3,1,2), y)}, ['cat', 'dog']).save_to_disk(tmp_path/'saved')
    want = {k: (numbers(x), y.tolist()) for k,(x,y) in D.image_data(classes, **quiet).items()}
    for src in ('own.npz', 'own.parquet', 'saved'): assert {k: (numbers(x), y.tolist()) for k,(x,y) in D.image_data(tmp_path/src, **quiet).items()} == want
    monkeypatch.setenv('MINIAI_DATA', str(classes))
    assert {k: (numbers(x), y.tolist()) for k,(x,y) in D.image_data(**quiet).items()} == want
    assert D.image_data(tmp_path/'own.parquet', **quiet).classes == ['cat', 'dog']
    dls = D.fashion_dls(4, device='cpu', **quiet); assert numbers(dls.valid.x) == want['test'][0] and dls.classes == ['cat', 'dog'] and dls.name == 'own'

def test_a_note_beside_the_pictures_changes_nothing(classes):
    was = {k: numbers(x) for k,(x,_) in D.image_data(classes, **quiet).items()}
    for nm in ('info.json', 'state.json', 'dataset_info.json', 'README.md', '.DS_Store'): (classes/nm).write_text('{}')
    (classes/'__MACOSX').mkdir(); (classes/'__MACOSX'/'._0.png').write_bytes(b'x'); (classes/'cat'/'.0.png').write_bytes(b'x')
    assert {k: numbers(x) for k,(x,_) in D.image_data(classes, **quiet).items()} == was

def test_what_data_says_of_itself(classes):
    assert str(D.image_data(classes, **quiet)) == 'own: train 36, test 4; 1×6×10; classes: cat, dog'

@pytest.mark.parametrize('lazy', [False, True])
def test_grey_and_coloured_splits_become_coloured(tmp_path, lazy):
    grey,rgb = batch(4, 1), batch(3)
    D.write_images(grey, tmp_path/'s'/'train'); D.write_images(rgb, tmp_path/'s'/'test')
    data = D.image_data(tmp_path/'s', lazy=lazy, **quiet); first = {k: np.stack([np.asarray(o) for o in x[torch.arange(len(x))]]) for k,(x,_) in data.items()}
    assert sorted(map(bytes, first['train'])) == sorted(map(bytes, grey.expand(-1,3,-1,-1).contiguous().numpy())) and sorted(map(bytes, first['test'])) == sorted(map(bytes, rgb.numpy()))

def test_splits_of_two_sizes(tmp_path):
    D.write_images(batch(4), tmp_path/'s'/'train'); D.write_images(batch(3, h=6), tmp_path/'s'/'test')
    says('holds images of 2 sizes (C, H, W)', D.image_data, tmp_path/'s'); assert D.image_data(tmp_path/'s', size=6, **quiet).size == (3,6,6)

@pytest.fixture
def on_hub(monkeypatch):
    "A hub that has 40 numbered pictures in one split, and CIFAR-10 and Fashion-MNIST of ten"
    import datasets
    x,y = np.stack([np.full((1,6,10), i, np.uint8) for i in range(40)]), np.arange(40)//20; asked = []
    def load(name):
        asked.append(name)
        return D.to_dd({'train': (x, y)} if '/' in name and name.startswith('me/') else {'test': (x[:3], y[:3]), 'train': (x[:10], y[:10])}, ['cat', 'dog'])
    monkeypatch.setattr(datasets, 'load_dataset', load)
    return asked

def test_data_of_the_hub_is_as_a_folder_s(on_hub, classes):
    "Of one's own: mixed, a tenth held out. Published: as it was published"
    want,got = D.image_data(classes, **quiet), D.image_data('hub:me/own', **quiet)
    assert {k: (numbers(x), y.tolist()) for k,(x,y) in got.items()} == {k: (numbers(x), y.tolist()) for k,(x,y) in want.items()} and got.classes == want.classes and got.name == 'me/own'
    for data,name in ((D.image_data('hub', **quiet), 'Fashion-MNIST'), (D.cifar10_arrays('hub', **quiet), 'CIFAR-10')):
        assert data.name == name and list(data) == ['train', 'test'] and [numbers(x) for x,_ in data.values()] == [list(range(10)), [0,1,2]]
    assert on_hub == ['me/own', D.HUB_ID, 'uoft-cs/cifar10']

def test_cifar_archive(tmp_path, monkeypatch):
    "Two files of records, label and pixels, in an archive: from it, and from the folder it lies in"
    import hashlib, tarfile
    from miniai import formats
    g = np.random.default_rng(0); recs = {'data_batch_1.bin': g.integers(0, 10, (5,3073), np.uint8), 'test_batch.bin': g.integers(0, 10, (2,3073), np.uint8)}
    p = tmp_path/'cifar-10-binary.tar.gz'
    with tarfile.open(p, 'w:gz') as t:
        for k,a in recs.items():
            info = tarfile.TarInfo(f'cifar-10-batches-bin/{k}'); info.size = a.size; t.addfile(info, io.BytesIO(a.tobytes()))
    says('it is damaged or another file', D.image_data, p)
    monkeypatch.setitem(formats._CIFAR_MD5, p.name, hashlib.md5(p.read_bytes()).hexdigest())
    for data in (D.image_data(p, **quiet), D.image_data(tmp_path, **quiet), D.cifar10_arrays(p, **quiet)):
        for (x,y),a in zip(data.values(), recs.values()): assert x.shape == (len(a),3,32,32) and np.array_equal(np.asarray(x).reshape(len(a), -1), a[:,1:]) and y.tolist() == a[:,0].tolist()
        assert data.name == 'CIFAR-10' and len(data.classes) == 10
    assert D.cifar10_arrays(tmp_path/'nothing', **quiet) is None

@pytest.mark.parametrize('saved', [False, True])
def test_two_splits_held_out_and_none_to_train_on(tmp_path, saved):
    "One of them is not silently trained on"
    x = np.zeros((4,1,6,6), np.uint8); src = tmp_path/'s'
    if saved: D.to_dd({k: (x, np.arange(4)) for k in ('validation', 'test')}, list('abcd')).save_to_disk(src)
    else:
        for k in ('val', 'test'): D.write_images(torch.from_numpy(x), src/k)
    says('images to validate and to test, and none to train on', D.image_data, src)

@pytest.mark.parametrize('test', ['test', 'Testing', 'val', 'validation'])
def test_splits_are_folders(classes, tmp_path, test):
    shutil.copytree(classes/'cat', tmp_path/'s'/'train'/'cat'); shutil.copytree(classes/'dog', tmp_path/'s'/'train'/'dog'); shutil.copytree(classes/'dog', tmp_path/'s'/test/'dog')
    Image.new('L', (10,6)).save(tmp_path/'s'/'stray.png'); said = []
    data = D.image_data(tmp_path/'s', say=said.append); (x,y),(xv,yv) = data.values()
    assert sorted(numbers(x)) == list(range(40)) and sorted(numbers(xv)) == list(range(20, 40)) and set(yv) == {1} and data.classes == ['cat', 'dog']
    assert any('1 images outside' in s for s in said)

def test_the_first_images_are_of_all_classes(classes): assert set(D.image_data(classes, **quiet)['train'][1][:8]) == {0, 1}

def test_medmnist_s_keys(tmp_path):
    x = np.zeros((6,8,8), np.uint8); y = np.arange(6).reshape(6,1)
    np.savez(tmp_path/'m.npz', **{f'{k}_{w}': a for k in ('train', 'val', 'test') for w,a in (('images', x), ('labels', y))})
    data = D.image_data(tmp_path/'m.npz', **quiet); assert list(data) == ['train', 'validation', 'test'] and data.size == (1,8,8) and sorted(data['train'][1]) == list(range(6))

def test_both_kinds_at_once(classes, tmp_path):
    D.to_dd({'train': (np.zeros((2,1,8,8), np.uint8), [0, 1])})['train'].to_parquet(classes/'a.parquet')
    says('both image files and parquet', D.image_data, classes, **quiet)

def test_one_image_is_too_few(tmp_path): says('at least 2 are needed', D.image_data, D.write_images(batch(1), tmp_path/'one'), **quiet)

def test_neither_one_nor_the_other(tmp_path):
    (tmp_path/'a.txt').write_text('a'); (tmp_path/'empty').mkdir()
    for nm in ('a.txt', 'empty'): says('a folder of image files, a .npz, parquet', D.image_data, tmp_path/nm, **quiet)

# --- lazily

def test_lazy_is_the_same(classes):
    kw = dict(n_train=30, device='cpu', bs=7, **quiet)
    order = lambda lazy: [(x, y) for x,y in D.image_dls(classes, lazy=lazy, generator=torch.Generator().manual_seed(3), **kw).train]
    for (x,y),(xl,yl) in zip(order(False), order(True), strict=True): assert torch.equal(x, xl) and torch.equal(y, yl)
    x = D.image_data(classes, lazy=True, **quiet)['train'][0]
    assert x.shape == (36,1,6,10) and isinstance(x[:5], D.ImageFiles) and len(x[:5]) == 5 and x[3].shape == (1,6,10) and x[[1,2]].shape == (2,1,6,10)

def test_lazy_where_memory_is_short(classes, monkeypatch):
    from miniai import sources
    monkeypatch.setattr(sources, 'memory', lambda: 100)
    assert isinstance(D.image_data(classes, **quiet)['train'][0], D.ImageFiles)

def test_lazy_decodes_only_what_is_used(classes):
    dls = D.image_dls(classes, lazy=True, bs=4, device='cpu', size=(12,8), channels=3, pad=1, **quiet)
    assert next(iter(dls.train))[0].shape == (4,3,14,10)
    p = classes/'cat'/'00.png'; p.write_bytes(p.read_bytes()[:45])
    with pytest.raises(ValueError, match='00.png cannot be read as an image'): [b for dl in (dls.train, dls.valid) for b in dl]

# --- on the page

@pytest.mark.parametrize('n', [1, 3, 16, 64])
@pytest.mark.parametrize('titled', [False, True])
def test_nothing_is_cut_or_overprinted(n, titled):
    long = 'A rather long title that goes on and on, t=990 of 1000'
    fig = D.show_images(batch(n, 1, 8, 8), titles=[long]*n if titled else None, imsize=0.5 if n > 16 else 1.2, suptitle=long, return_fig=True)
    fig.canvas.draw(); r = fig.canvas.get_renderer(); page = fig.bbox
    boxes = [t.get_window_extent(r) for ax in fig.axes for t in (ax.title,) if t.get_text()] + [fig._suptitle.get_window_extent(r)]
    ims = [ax.get_window_extent(r) for ax in fig.axes[:n]]
    assert all(b.width >= 64 for b in ims)
    assert all(b.x0 >= page.x0-1 and b.x1 <= page.x1+1 and b.y0 >= page.y0-1 and b.y1 <= page.y1+1 for b in boxes+ims)
    shrunk = [b.shrunk_to_aspect(1).padded(-2) if False else b.padded(-2) for b in boxes+ims]
    assert not [1 for i,a in enumerate(shrunk) for b in shrunk[:i] if a.overlaps(b)]
    plt.close(fig)

def test_an_animation(tmp_path):
    gen = torch.Generator().manual_seed(0); x = [torch.randn(16,1,28,28, generator=gen)*s for s in np.linspace(1, .1, 60)]
    gif = D.animate(x, tmp_path/'a.gif'); im = Image.open(io.BytesIO(gif.data))
    assert len(gif.data) <= 300_000 and im.n_frames > 9 and im.size[0] > 250 and (tmp_path/'a.gif').read_bytes() == gif.data
    assert gif._repr_mimebundle_()[0].keys() == {'image/gif'}
    says('two or more', D.animate, x[:1]); says('fewer frames', D.animate, x, max_kb=1)

def test_a_sheet():
    g = D.image_grid(-torch.ones(3,1,4,4)); assert g.shape == (9,9,3) and g[0,0].tolist() == [0]*3 and g[4,4].tolist() == [255]*3 == g[-1,-1].tolist()
    assert (D.image_grid(batch()) == D.image_grid(D.to_unit(batch()))).all()

def test_lines_are_no_wider_than_asked():
    text,size = images.wrap_text('a few words of any length\nand a second line', 1, 10)
    assert size == 10 and all(images._wide(l, size) <= 1 for l in text.split('\n')) and text.replace('\n', ' ') == 'a few words of any length and a second line'
    assert images.wrap_text('incomprehensibilities', .8, 10)[1] < 10 and images._points(r'$\sigma_t=3$') == images._points('xt=3')

@pytest.mark.parametrize('there', [True, False])
def test_a_killed_writer_leaves_nothing_in_the_way(tmp_path, there):
    "Its temporary folder goes at the next write; that of a process which still runs stays"
    from common import run_python
    out = tmp_path/'fold'
    if there: images.write_images(batch(2), out)
    p = run_python(f'''
import os, torch
from PIL import Image
from miniai.images import write_images
save = Image.Image.save
def third(im, p, *a, **kw): save(im, p, *a, **kw); "00002" in str(p) and os.kill(os.getpid(), 9)
Image.Image.save = third
write_images(torch.zeros(5,1,8,8, dtype=torch.uint8), {str(out)!r}, True)'''); assert p.returncode == -9, p.stderr
    assert len([q for q in tmp_path.rglob('.fold*')]) == 1
    images.write_images(batch(4), out, there); assert len(list(out.iterdir())) == 4 and not [*tmp_path.rglob('.fold*')]
    (out/f'{images._temporary(out)}{os.getppid()}').mkdir(); says('did not write', images.write_images, batch(1), out, True)
