"About a hundred broken, odd or hostile files: each is read rightly or refused in one sentence; none is executed, none hangs"
import gzip, io, os, pickle, resource, signal, struct, zipfile, zlib
from pathlib import Path
import numpy as np
import pytest
import torch
from PIL import Image
from miniai import datasets as D

quiet = dict(say=lambda s: None)

@pytest.fixture(autouse=True)
def _no_hanging():
    "20 seconds for each"
    def late(*a): raise AssertionError('it hangs')
    signal.signal(signal.SIGALRM, late); signal.alarm(20); yield; signal.alarm(0)

def refused(words, f, *args, **kw):
    "One printable sentence with those words"
    with pytest.raises((ValueError, FileNotFoundError)) as e: f(*args, **kw)
    m = str(e.value); m.encode(); assert words in m and '\n' not in m and len(m) < 700, m

class Bomb:
    "Leaves a trace where it is unpickled"
    def __reduce__(self): return os.mkdir, ('executed',)

@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path); monkeypatch.delenv('MINIAI_DATA', raising=False); yield
    assert not (tmp_path/'executed').exists(), 'code in a file was run'

# --- single images

def saved(im, fmt='PNG', **kw): b = io.BytesIO(); im.save(b, fmt, **kw); return b.getvalue()

def chunk(kind, data): return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind+data))

def png(w, h, depth=8, colour=0, data=b'', more=b''):
    "A PNG with any header and any data"
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>2I5B', w, h, depth, colour, 0, 0, 0)) + more + chunk(b'IDAT', data) + chunk(b'IEND', b'')

GOOD = saved(Image.new('RGB', (8,8), 'red'))
NOISE = np.random.default_rng(0).integers(0, 256, (32,32,3), dtype=np.uint8)
REAL = {f: saved(Image.fromarray(NOISE), f) for f in ('PNG', 'JPEG', 'BMP', 'GIF', 'WEBP')}
BROKEN = {
    'empty': b'', 'text': b'not an image', 'nul': bytes(1000), 'html': b'<html><img src="x"></html>', 'zip': b'PK\3\4'+bytes(50), 'pickle': pickle.dumps(Bomb()),
    'svg': b'<svg xmlns="http://www.w3.org/2000/svg"/>', 'magic only': b'\x89PNG\r\n\x1a\n', 'no data': png(8, 8), 'bad zlib': png(8, 8, data=b'x'*50),
    'short data': png(8, 8, data=zlib.compress(bytes(10))), 'no size': png(0, 0, data=zlib.compress(b'')), 'depth 7': png(8, 8, 7, data=zlib.compress(bytes(72))),
    'colour 9': png(8, 8, 8, 9, zlib.compress(bytes(72))), 'no palette': b'GIF89a'+bytes(7), 'jpeg start': b'\xff\xd8\xff\xe0'+bytes(20),
    'bomb 30000×30000': png(30000, 30000, data=zlib.compress(bytes(10**6))), 'bomb 10000×10000': png(10000, 10000, 1, data=zlib.compress(bytes(1251*10000))),
    'bomb 2³¹': png(2**31-1, 2**31-1, data=b''), 'text bomb': png(8, 8, data=zlib.compress(bytes(72)), more=chunk(b'zTXt', b'a\0\0'+zlib.compress(bytes(10**8)))),
    'bad crc': GOOD[:20] + b'\xff' + GOOD[21:], 'eps': b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(executed) (w) file\n'}
BROKEN |= {f'{f} cut at {k}': b[:int(len(b)*k)] for f,b in REAL.items() for k in (.05, .5, .9) if (f, k) != ('GIF', .9)}

@pytest.mark.parametrize('name', BROKEN)
@pytest.mark.parametrize('skip', [False, True])
def test_broken_image(name, skip):
    Path('d').mkdir(); Path('d/0.png').write_bytes(GOOD); Path('d/bad.png').write_bytes(BROKEN[name])
    if not skip: refused('bad.png', D.read_images, 'd')
    else: assert len(D.read_images('d', skip=True, **quiet)) == 1
    if not skip: refused('bad.png', D.image_data, 'd', **quiet)

@pytest.mark.parametrize('name', ['gif bits', 'png bits', 'jpeg bits', 'bmp bits', 'webp bits'])
def test_flipped_bits(name):
    "Any 40 bytes changed: an image, or a sentence"
    raw = REAL[name.split()[0].upper()]; rng = np.random.default_rng(1)
    for _ in range(40):
        b = bytearray(raw); at = rng.integers(0, len(b), 40)
        for i in at: b[i] = rng.integers(0, 256)
        try: x = D.decode_image(bytes(b))
        except ValueError as e: assert '\n' not in str(e) and str(e)
        else: assert x.dtype == np.uint8

def test_memory_was_never_taken():
    "The bombs above ask for up to 4 GB each"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for nm,b in BROKEN.items():
        if 'bomb' in nm: refused('', D.decode_image, b)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000

ODD = {'grey+alpha': ('LA', 'PNG', (1,8,8)), 'palette': ('P', 'GIF', (3,8,8)), 'one bit': ('1', 'PNG', (1,8,8)), 'cmyk': ('CMYK', 'JPEG', (3,8,8)), 'rgba': ('RGBA', 'WEBP', (3,8,8)),
       'sixteen': ('I;16', 'PNG', (1,8,8)), 'grey jpeg': ('L', 'JPEG', (1,8,8)), 'ycbcr': ('YCbCr', 'JPEG', (3,8,8))}

@pytest.mark.parametrize('name', ODD)
def test_odd_image(name):
    mode,fmt,shape = ODD[name]; Path('d').mkdir(); Path('d/a.png').write_bytes(saved(Image.new(mode, (8,8)), fmt))
    assert D.read_images('d').shape == (1,*shape)

# --- what is no plain file

@pytest.mark.parametrize('read', [D.read_images, lambda p: D.image_data(p, **quiet), lambda p: D.image_data(p, lazy=True, **quiet)])
def test_a_pipe_among_images(read):
    Path('d').mkdir(); Path('d/0.png').write_bytes(GOOD); Path('d/1.png').write_bytes(GOOD); os.mkfifo('d/pipe.png')
    refused('not a plain file', read, 'd')
    os.remove('d/pipe.png'); os.symlink('/dev/zero', 'd/zero.png'); refused('not a plain file', read, 'd')

@pytest.mark.parametrize('name', ['a.npz', 'a.parquet', 'cifar-10-python.tar.gz', 'd/train-images-idx3-ubyte'])
def test_a_pipe_itself(name):
    Path('d').mkdir(); os.mkfifo(name)
    refused('', D.image_data, 'd' if '/' in name else name, **quiet)
    if name == 'a.npz': refused('plain file', D.read_images, name)

def test_links_in_a_circle():
    Path('d/sub').mkdir(parents=True); Path('d/sub/0.png').write_bytes(GOOD); os.symlink('..', 'd/sub/up'); os.symlink('nowhere', 'd/gone')
    assert len(D.read_images('d')) == 1

# --- npz

def npz(**kw): b = io.BytesIO(); np.savez(b, **kw); return b.getvalue()

def forged(shape, data=b'', dtype='|u1', key='images'):
    "A .npz whose array says it is larger than it is"
    head = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape!r}, }}".encode(); head += b' '*(63-(len(head)+10)%64) + b'\n'
    b = io.BytesIO()
    with zipfile.ZipFile(b, 'w', zipfile.ZIP_DEFLATED) as z: z.writestr(f'{key}.npy', b'\x93NUMPY\1\0' + struct.pack('<H', len(head)) + head + data)
    return b.getvalue()

x = np.zeros((4,8,8,3), np.uint8); WHOLE = npz(images=x)
NPZ = {'empty': (b'', 'whole .npz'), 'text': (b'hello', 'whole .npz'), 'npy': (b'\x93NUMPY\1\0', 'whole .npz'), 'no arrays': (npz(), 'nothing'), 'other keys': (npz(a=x, b=x), 'a, b'),
    'float': (npz(images=x/255.), 'float64'), 'pm1': (npz(images=np.float32(x)/127.5-1), 'to_uint8'), 'bool': (npz(images=x > 0), 'bool'), 'complex': (npz(images=x*1j), 'complex'),
    'int64': (npz(images=x.astype(int)), 'int64'), 'uint16': (npz(images=x.astype(np.uint16)), 'uint16'), 'text array': (npz(images=np.array(['a'])), '<U1'), 'dates': (npz(images=np.zeros(4, 'M8[s]')), 'datetime'),
    'objects': (npz(images=np.array([Bomb()], dtype=object)), 'nothing is unpickled'), 'one image': (npz(images=x[0]), 'shape (8, 8, 3)'), 'flat': (npz(images=x.ravel()), 'shape (768,)'), 'five': (npz(images=x[None]), 'shape (1, 4, 8, 8, 3)'),
    'no images': (npz(images=x[:0]), 'shape (0, 8, 8, 3)'), 'four channels': (npz(images=np.zeros((4,8,8,4), np.uint8)), 'shape (4, 8, 8, 4)'), 'no width': (npz(images=x[:,:,:0]), 'shape (4, 8, 0, 3)'), 'scalar': (npz(images=np.uint8(3)), 'shape ()'),
    'forged 10¹²': (forged((10**6,1000,1000,1)), 'GiB'), 'forged 2⁷⁰': (forged((2**30,2**30,2**10,1)), 'GiB'), 'forged little': (forged((100,8,8,3), bytes(99)), 'truncated'), 'negative': (forged((-4,8,8,3), bytes(768)), 'whole .npz'),
    'code in the header': (forged('__import__("os").mkdir("executed")'), 'whole .npz'), 'object dtype': (forged((1,), bytes(8), '|O'), 'nothing is unpickled'), 'not an array': (None, 'whole .npz'), 'deep header': (forged('('*5000), 'whole .npz'),
    **{f'cut at {k}': (WHOLE[:int(len(WHOLE)*k)], 'whole .npz') for k in (.1, .5, .9, .99)}, 'flipped': (WHOLE[:150] + b'\xff'*20 + WHOLE[170:], 'whole .npz')}

@pytest.mark.parametrize('name', NPZ)
def test_broken_npz(name):
    raw,words = NPZ[name]
    if raw is None:
        with zipfile.ZipFile('a.npz', 'w') as z: z.writestr('images.npy', pickle.dumps(Bomb()))
    else: Path('a.npz').write_bytes(raw)
    for read in (D.read_images, lambda p: D.image_data(p, **quiet)): refused(words, read, 'a.npz')

@pytest.mark.parametrize('y', [np.zeros(3, int), np.zeros(4), np.array(['a']*4), np.full(4, -1), np.zeros((4,2), int), np.zeros(4, bool)], ids=lambda y: f'{y.dtype}{y.shape}')
def test_labels_of_another_kind(y): np.savez('a.npz', images=x, labels=y); refused('labels of type', D.image_data, 'a.npz', **quiet)

def test_a_right_one_is_read(): Path('a.npz').write_bytes(WHOLE); assert D.read_images('a.npz').shape == (4,3,8,8)

# --- IDX

idx = lambda shape, data=None: b'\0\0\x08' + bytes([len(shape)]) + struct.pack(f'>{len(shape)}I', *shape) + (bytes(int(np.prod(shape))) if data is None else data)
RIGHT = gzip.compress(idx((10,4,4)))
IDX = {'empty': b'', 'short': b'\0\0\x08', 'header only': b'\0\0\x08\3\0\0', 'floats': b'\0\0\x0d\1\0\0\0\1\0\0\0\0', 'no dims': b'\0\0\x08\0', 'cut': idx((10,4,4))[:-1], 'more': idx((10,4,4))+b'x', 'huge': idx((2**31,2**31,9), b''),
    '255 dims': b'\0\0\x08\xff'+b'\0\0\0\2'*255, 'text': b'text', 'gzip of text': gzip.compress(b'text'), 'gzip cut': RIGHT[:-9], 'gzip head': b'\x1f\x8b', 'gzip method': b'\x1f\x8b\x07'+RIGHT[3:],
    'deflate': RIGHT[:12] + b'\xff\xff\xff' + RIGHT[15:], 'gzip crc': RIGHT[:-8] + b'abcd' + RIGHT[-4:], 'gzip bomb': gzip.compress(idx((10,4,4)) + bytes(3*10**8), 1), 'gzip and junk': RIGHT + b'junk'*9, 'pickle': pickle.dumps(Bomb())}

@pytest.mark.parametrize('name', IDX)
def test_broken_idx(name): Path('a-idx').write_bytes(IDX[name]); refused('a-idx', D.read_idx, 'a-idx')

def test_idx_of_another_set():
    Path('d').mkdir()
    for nm in ('train-images-idx3', 't10k-images-idx3'): Path(f'd/{nm}-ubyte').write_bytes(idx((10,28,28)))
    for nm in ('train-labels-idx1', 't10k-labels-idx1'): Path(f'd/{nm}-ubyte').write_bytes(idx((10,)))
    refused('another data set', D.image_data, 'd', **quiet)

# --- CIFAR

pkl = lambda **kw: pickle.dumps(kw, protocol=2)
CIFAR = {'empty': b'', 'text': b'text', 'no labels': pkl(data='a'*3072), 'no data': pkl(labels=[1]), 'fewer': pkl(data='\xff'*3072, labels=[1,2]), 'negative': pkl(data='a'*3072, labels=[-1]), 'large label': pkl(data='a'*3072, labels=[10**9]),
    'cut': pkl(data='a'*3072, labels=[1])[:-900], 'not latin': pkl(data='\u20ac'*3072, labels=[1]), 'bomb': pkl(labels=[Bomb()], data='a'*3072), 'long length': b'\x80\x04\x8e'+b'\xff'*8, 'number data': pkl(data=3, labels=[1])}

@pytest.mark.parametrize('name', CIFAR)
def test_broken_cifar_batch(name): refused('', D.cifar_pickle, CIFAR[name])

def test_cifar_bomb_beside_pixels(): assert D.cifar_pickle(pkl(a=Bomb(), data='a'*6144, labels=[3,4]))[1].tolist() == [3,4]

@pytest.mark.parametrize('name', ['cifar-10-python.tar.gz', 'cifar-10-binary.tar.gz'])
def test_another_archive_of_that_name(name): Path(name).write_bytes(b'x'); refused('MD5', D.image_data, name, **quiet)

# --- parquet

def table(rows, name='a.parquet', meta=None, **cols):
    import pyarrow as pa, pyarrow.parquet as pq
    t = pa.table({'image': rows} | cols); pq.write_table(t.replace_schema_metadata({'huggingface': meta}) if meta else t, name)

row = lambda b=None, path=None: {'bytes': b, 'path': path}
ROWS = {'absolute path': (row(path='/etc/passwd'), 'outside its folder'), 'above': (row(path='../../secret.png'), 'outside its folder'), 'address': (row(path='http://127.0.0.1:9/x.png'), 'outside its folder'),
    'file address': (row(path='file:///etc/passwd'), 'outside its folder'), 'hub address': (row(path='hf://datasets/a/b.png'), 'outside its folder'), 'nothing': (row(), 'without an image'), 'empty': (row(b''), 'row 2'),
    'no image': (row(b'text'), 'row 2'), 'bomb': (row(BROKEN['bomb 30000×30000']), 'row 2'), 'gone': (row(path='gone.png'), 'row 2'), 'null': (None, 'without an image'), 'pickle': (row(pickle.dumps(Bomb())), 'row 2')}

@pytest.mark.parametrize('name', ROWS)
def test_hostile_row(name, monkeypatch):
    import socket
    def asked(*a, **k): raise AssertionError('something was fetched')
    monkeypatch.setattr(socket.socket, 'connect', asked); monkeypatch.setattr(socket, 'getaddrinfo', asked)
    bad,words = ROWS[name]; table([row(GOOD), row(GOOD), bad]); refused(words, D.image_data, 'a.parquet', **quiet)

def test_a_link_out_of_the_folder():
    Path('in').mkdir(); Path('out.png').write_bytes(GOOD); os.symlink('../out.png', 'in/a.png')
    table([row(path='a.png')]*3, 'in/a.parquet'); refused('outside its folder', D.image_data, 'in/a.parquet', **quiet)

def test_a_path_within_the_folder():
    Path('in').mkdir(); Path('in/a.png').write_bytes(GOOD); table([row(path='a.png')]*3, 'in/a.parquet')
    assert D.image_data('in/a.parquet', **quiet)['train'][0].shape == (2,3,8,8)

@pytest.mark.parametrize('raw', [b'', b'text', b'PAR1', b'PAR1'+bytes(40)+b'PAR1', b'PAR1'+b'\xff'*40+b'\x20\0\0\0PAR1'])
def test_broken_parquet(raw): Path('a.parquet').write_bytes(raw); refused('not a whole parquet file', D.image_data, 'a.parquet', **quiet)

@pytest.mark.parametrize('meta', ['{', '[]', '{"info": 3}', '{"info": {"features": {"image": 3, "label": {"_type": "ClassLabel", "names": 3}}}}', '{"info": {"features": []}}'])
def test_notes_in_parquet_are_only_notes(meta):
    table([row(GOOD)]*4, meta=meta, label=[0,1,0,1]); assert sorted(D.image_data('a.parquet', **quiet)['train'][1].tolist()) in ([0,0,1], [0,1,1])

def test_parquet_without_images():
    table(['a', 'b']); refused('no column of images among image', D.image_data, 'a.parquet', **quiet)
    table([row(GOOD)]*3, label=[0,None,1]); assert D.image_data('a.parquet', **quiet)['train'][1] is None

# --- what `save_to_disk` wrote

def test_a_damaged_saved_set():
    Path('s').mkdir(); Path('s/dataset_info.json').write_text('{"features": 3'); Path('s/data.arrow').write_bytes(b'x'); Path('s/state.json').write_text('{}')
    refused('not a whole saved data set', D.image_data, 's', **quiet)

def test_how_many():
    n = sum(map(len, (BROKEN, ODD, NPZ, IDX, CIFAR, ROWS))); assert n >= 100, n
