"Fashion-MNIST from each of its sources, somebody's own data, and damaged files"
import gzip, pickle, shutil, struct
from pathlib import Path
import numpy as np
import pytest
import torch
from miniai import datasets as D, formats, sources

quiet = dict(say=lambda s: None)

@pytest.fixture
def offline(monkeypatch, tmp_path):
    "No `MINIAI_DATA`, an empty Hugging Face cache, no network, no Debian package"
    for k in ('MINIAI_DATA', 'HF_DATASETS_CACHE', 'HF_HUB_OFFLINE'): monkeypatch.delenv(k, raising=False)
    monkeypatch.setenv('HF_HOME', str(tmp_path/'hf'))
    def refuse(*args, **kwargs): raise OSError('no network')
    monkeypatch.setattr(sources.urllib.request, 'urlopen', refuse)
    monkeypatch.setattr(sources, 'DEBIAN', tmp_path/'no-debian')
    return tmp_path

@pytest.fixture
def idx(tmp_path):
    "A folder with the four files of the embedded subset, unharmed"
    return Path(shutil.copytree(D.EMBEDDED, tmp_path/'idx'))

# --- which source

def said(source=None):
    out = []; where = D.find_data(source, say=out.append)
    return where, ' '.join(out)

def test_last_resort_is_the_subset_and_it_is_loud(offline):
    where,words = said()
    assert where == D.EMBEDDED and 'only the embedded 2,000 + 1,000' in words and 'MINIAI_DATA' in words

def test_debian_before_the_subset(offline, monkeypatch, idx):
    monkeypatch.setattr(sources, 'DEBIAN', idx)
    where,words = said()
    assert where == idx and 'Debian' in words

def test_hub_before_debian(offline, monkeypatch, idx):
    class Answer:
        def close(self): pass
    monkeypatch.setattr(sources, 'DEBIAN', idx); monkeypatch.setattr(sources.urllib.request, 'urlopen', lambda *a, **k: Answer())
    assert said()[0] == 'hub'

def test_hub_cache_counts_without_a_network(offline, monkeypatch):
    (offline/'hf'/'datasets'/D.HUB_ID.replace('/', '___')).mkdir(parents=True)
    where,words = said()
    assert where == 'hub' and 'cache' in words
    monkeypatch.setenv('HF_DATASETS_CACHE', str(offline/'elsewhere')); assert said()[0] == D.EMBEDDED

def test_hub_offline_is_not_asked(offline, monkeypatch):
    def asked(*args, **kwargs): raise AssertionError('the hub was asked')
    monkeypatch.setattr(sources.urllib.request, 'urlopen', asked); monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    assert not D.on_hub()

def test_your_path_before_all(offline, monkeypatch, idx):
    monkeypatch.setenv('MINIAI_DATA', str(idx))
    assert said() == (idx, f'data: {idx}')
    assert said('embedded')[0] == D.EMBEDDED        # an argument goes before the environment

def test_a_path_that_is_not_there(offline, monkeypatch):
    monkeypatch.setenv('MINIAI_DATA', str(offline/'nowhere'))
    with pytest.raises(FileNotFoundError, match=r'nowhere does not exist: give MINIAI_DATA an existing folder or file of images, or unset it'): D.fashion_mnist()

@pytest.mark.parametrize('bs', [0, -2])
def test_batches_of_no_images_are_refused(bs):
    with pytest.raises(ValueError, match=f'batches of bs={bs} images: 1 or more was expected'): D.TensorLoader(np.zeros((4,1,8,8), np.uint8), bs=bs)

# --- damage

@pytest.mark.parametrize('name', ['train-images-idx3-ubyte', 't10k-labels-idx1-ubyte'])
def test_truncated_gzip_is_refused_by_name(idx, name):
    p = idx/f'{name}.gz'; p.write_bytes(p.read_bytes()[:-20])
    with pytest.raises(ValueError, match=rf'{name}.gz has MD5 \w+, but the published file has \w+: it is damaged'): D.fashion_arrays(idx, **quiet)
    with pytest.raises(ValueError, match=rf'{name}.gz is a damaged gzip file'): D.read_idx(p)

def test_truncated_unpacked_file_is_refused_by_name(idx):
    gz = idx/'t10k-images-idx3-ubyte.gz'; p = gz.with_suffix('')
    p.write_bytes(gzip.decompress(gz.read_bytes())[:-1]); gz.unlink()
    with pytest.raises(ValueError, match='t10k-images-idx3-ubyte is truncated or has extra bytes: 784015 bytes, but its header .* makes 784016'): D.read_idx(p)
    with pytest.raises(ValueError, match='MD5'): D.fashion_arrays(idx, **quiet)

def test_unpacked_files_are_read_too(idx):
    for gz in idx.glob('*.gz'):
        p = gz.with_suffix(''); p.write_bytes(gzip.decompress(gz.read_bytes()))
        assert (D.read_idx(p) == D.read_idx(gz)).all()

def test_right_shape_wrong_contents(idx):
    "MNIST's digits have the same names and shapes"
    p = idx/'t10k-labels-idx1-ubyte.gz'; p.write_bytes(gzip.compress(b'\0\0\x08\x01' + struct.pack('>I', 1000) + bytes(1000)))
    assert D.read_idx(p).shape == (1000,)
    with pytest.raises(ValueError, match='another data set'): D.fashion_arrays(idx, **quiet)

@pytest.mark.parametrize('junk', [b'', b'\0\0', b'\0\0\x08\x03\0\0', b'\0\0\x0d\x01\0\0\0\x01\0\0\0\0'])
def test_not_an_idx_file(tmp_path, junk):
    (tmp_path/'junk').write_bytes(junk)
    with pytest.raises(ValueError, match='junk is '): D.read_idx(tmp_path/'junk')

def test_a_missing_file_is_named(idx):
    (idx/'train-labels-idx1-ubyte.gz').unlink()
    with pytest.raises(FileNotFoundError, match='lacks train-labels-idx1-ubyte'): D.fashion_arrays(idx, **quiet)

# --- your own data

@pytest.fixture
def folder(tmp_path):
    "An image folder of 20 RGB pictures in two classes"
    from PIL import Image
    for i in range(20):
        p = tmp_path/'own'/('cat' if i%2 else 'dog')/f'{i}.png'; p.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((6,8,3), i, np.uint8)).save(p)
    return tmp_path/'own'

def test_an_image_folder(folder, monkeypatch):
    monkeypatch.setenv('MINIAI_DATA', str(folder))
    dd = D.fashion_mnist(**quiet)
    assert list(dd) == ['train', 'test'] and (len(dd['train']), len(dd['test'])) == (18, 2)
    x,y = D.fashion_arrays(**quiet)['train']
    assert x.shape == (18,3,6,8) and x.dtype == np.uint8 and set(y) <= {0, 1}
    dls = D.fashion_dls(4, **quiet); xb,yb = next(iter(dls.train))
    assert xb.shape == (4,3,6,8) and -1 <= xb.min() and xb.max() <= 1

def test_a_folder_with_its_own_splits(folder, tmp_path):
    for split in ('train', 'test'): shutil.copytree(folder, tmp_path/'split'/split)
    assert {k: len(v) for k,v in D.fashion_mnist(tmp_path/'split', **quiet).items()} == dict(train=20, test=20)

def test_parquet(tmp_path):
    dd = D.to_dd({k: (x[:30], y[:30]) for k,(x,y) in D.fashion_arrays('embedded', **quiet).items()})
    for k,v in dd.items(): v.to_parquet(tmp_path/'pq'/f'{k}-00000-of-00001.parquet') if (tmp_path/'pq').mkdir(exist_ok=True) is None else None
    both = D.fashion_arrays(tmp_path/'pq', **quiet)
    assert {k: len(x) for k,(x,y) in both.items()} == dict(train=30, test=30)
    one = D.fashion_mnist(tmp_path/'pq'/'train-00000-of-00001.parquet', **quiet)
    assert (len(one['train']), len(one['test'])) == (27, 3)

def test_one_split_on_the_hub_is_cut_as_everywhere(monkeypatch):
    "Somebody's own images there: the same are held out by both readers; Fashion-MNIST stays as it is published"
    import datasets
    x,y = (a[:40] for a in D.fashion_arrays('embedded', **quiet)['train'])
    monkeypatch.setattr(datasets, 'load_dataset', lambda hub_id: D.to_dd(dict(train=(x, y))))
    dd,arrays = D.fashion_mnist('hub:me/own', **quiet), sources.image_data('hub:me/own', **quiet)
    assert {k: len(v) for k,v in dd.items()} == dict(train=36, test=4) and list(dd['train'].features) == ['image', 'label']
    for k,(images,labels) in arrays.items():
        assert dd[k]['label'] == labels.tolist() and all(np.array_equal(np.asarray(a), b[0]) for a,b in zip(dd[k]['image'], images))
    assert all(len(D.fashion_mnist(o, **quiet)['train']) == 40 for o in ('hub', f'hub:{D.HUB_ID}'))

def test_saved_with_save_to_disk(tmp_path):
    dd = D.to_dd({'train': tuple(a[:8] for a in D.fashion_arrays('embedded', **quiet)['train'])})
    dd.save_to_disk(tmp_path/'disk'); dd['train'].save_to_disk(tmp_path/'one')
    for p in ('disk', 'one'): assert D.fashion_arrays(tmp_path/p, **quiet)['train'][0].shape == (7,1,28,28)

def test_images_of_several_sizes(folder):
    from PIL import Image
    Image.new('RGB', (5,5)).save(folder/'cat'/'odd.png')
    with pytest.raises(ValueError, match='images of 2 sizes.*Give size='): D.fashion_arrays(folder, **quiet)

# --- batches

def test_device_loader_and_hub_loader_agree():
    import torchvision.transforms.functional as TF
    arrs = {k: (x[:64], y[:64]) for k,(x,y) in D.fashion_arrays('embedded', **quiet).items()}
    @D.inplace
    def transformi(b): b['image'] = [TF.to_tensor(o)*2-1 for o in b['image']]
    hub = D.DataLoaders.from_dd(D.to_dd(arrs).with_transform(transformi), 64).valid
    (xa,ya),(xb,yb) = next(iter(hub)), next(iter(D.TensorLoader(*arrs['test'], bs=64)))
    assert torch.allclose(xa, xb.cpu(), atol=1e-6) and torch.equal(ya, yb.cpu())

def test_workers():
    dd = D.to_dd({k: (x[:16], y[:16]) for k,(x,y) in D.fashion_arrays('embedded', **quiet).items()})
    dls = D.DataLoaders.from_dd(dd.with_format('torch'), 8, num_workers=2)
    assert sum(len(y) for _,y in dls.train) == 16

@pytest.mark.parametrize('as_bytes', [True, False])
def test_cifar_pickle_as_published(as_bytes):
    "A batch as the archive has it: a dictionary with an array, protocol 2, its keys bytes when Python 2 wrote it"
    x = np.random.default_rng(0).integers(0, 256, (40,3072), dtype=np.uint8); k = str.encode if as_bytes else str
    raw = pickle.dumps({k('batch_label'): k('training batch 1 of 5'), k('labels'): list(range(10))*4, k('data'): x, k('filenames'): [k('a.png')]*40}, protocol=2)
    pix,labels = D.cifar_pickle(raw)
    assert (pix.reshape(40, -1) == x).all() and labels.tolist() == list(range(10))*4
