"Files that are whole or absent, weights with their card, records line by line, locks"
import json, os, platform, random, stat, subprocess, sys
import numpy as np
import pytest
import torch
from torch import nn
from common import run_python
from miniai import core
from miniai.core import (Table, at_scale, load, locked, log_record, map_tensors, read_records, run_scale, save, set_seed,
                         to_cpu, to_device, unwrap, weights_path, write_atomic)

# --- files

def broken(p): p.write_text('half'); raise OSError(28, 'No space left on device')

def test_a_failed_write_leaves_the_old_file(tmp_path):
    (tmp_path/'x').write_text('whole')
    with pytest.raises(OSError, match='No space'): write_atomic(tmp_path/'x', broken)
    assert (tmp_path/'x').read_text() == 'whole' and [p.name for p in tmp_path.iterdir()] == ['x']

def test_temporary_files_of_the_dead_are_cleaned(tmp_path):
    dead = subprocess.Popen([sys.executable, '-c', '']); dead.wait(); host = platform.node()
    ours = [f'.x.{host}.{dead.pid}', f'.x.{host}.{os.getppid()}', f'.x.elsewhere.{dead.pid}', f'.xy.{host}.{dead.pid}', '.x', f'.x.{host}.notes']
    for nm in ours: (tmp_path/nm).write_text('half')
    write_atomic(tmp_path/'x', lambda p: p.write_text('whole'))
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*ours[1:], 'x'])      # only the first: the others are alive, of another machine, of other files

@pytest.mark.skipif(os.name != 'posix', reason='modes')
def test_the_mode_is_that_of_other_files(tmp_path):
    was = os.umask(0o027)
    try: (tmp_path/'plain').write_text(''); p = save(nn.Linear(1,1), tmp_path/'w')
    finally: os.umask(was)
    mode = lambda p: stat.S_IMODE(p.stat().st_mode)
    assert mode(p) == mode(p.with_suffix('.json')) == mode(tmp_path/'plain') == 0o640
    p.chmod(0o600); save(nn.Linear(1,1), p); assert mode(p) == 0o600                   # a file that was private remains so

def test_what_is_written_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    seen = []; monkeypatch.setattr(core, '_sync', lambda p: seen.append((p.name, (tmp_path/'x').exists())))
    write_atomic(tmp_path/'x', lambda p: p.write_text('.'))
    assert [e for _,e in seen] == [False, True] and seen[1][0] == tmp_path.name

# --- weights and card

def test_round_trip(tmp_path):
    net = nn.Linear(3, 2); p = save(net, tmp_path/'net', note='a test', sizes=(1,2))
    other,card = load(p, nn.Linear(3, 2))
    assert torch.equal(other.weight, net.weight) and card == {'note': 'a test', 'sizes': [1,2]} == json.loads(p.with_suffix('.json').read_text())
    half,_ = load(save(net, tmp_path/'half', dtype=torch.float16)); assert half['weight'].dtype == torch.float16
    assert [weights_path(o).name for o in ('a', 'a_0.5', 'a.safetensors', 'a.json')] == ['a.safetensors', 'a_0.5.safetensors', 'a.safetensors', 'a.safetensors']

def test_a_kill_between_weights_and_card_pairs_nothing_wrong(tmp_path, monkeypatch):
    p = save(nn.Linear(1,1), tmp_path/'w', run='old'); write = core.write_atomic
    def killed(path, f):
        if path.suffix == '.json': raise KeyboardInterrupt
        return write(path, f)
    monkeypatch.setattr(core, 'write_atomic', killed)
    with pytest.raises(KeyboardInterrupt): save(nn.Linear(1,1), p, run='new')
    with pytest.warns(UserWarning, match='w.json is not the card that w.safetensors was saved with'): assert load(p)[1] == {'run': 'new'}
    p.with_suffix('.json').unlink(); assert load(p)[1] == {'run': 'new'}

def test_weights_without_a_card_inside_have_the_one_beside(tmp_path):
    import safetensors.torch as st
    st.save_file({'a': torch.ones(1)}, tmp_path/'w.safetensors'); assert load(tmp_path/'w')[1] == {}
    (tmp_path/'w.json').write_text('{"a": 1}'); assert load(tmp_path/'w')[1] == {'a': 1}
    (tmp_path/'w.json').write_text('{"a": ')
    with pytest.raises(ValueError, match='w.json is not JSON'): load(tmp_path/'w')

def test_a_number_that_json_has_not(tmp_path):
    p = save({'a': torch.ones(1)}, tmp_path/'w', history=[dict(loss=float('nan')), dict(loss=1.)])
    assert load(p)[1]['history'] == [dict(loss=None), dict(loss=1.)] and 'NaN' not in p.with_suffix('.json').read_text()

def test_a_compiled_model_has_the_names_of_the_model(tmp_path):
    net = nn.Sequential(nn.Linear(2,2), nn.Linear(2,1)); whole = torch.compile(net); p = save(whole, tmp_path/'w')
    assert sorted(load(p)[0]) == sorted(net.state_dict()) and unwrap(whole) is net
    inner = nn.Sequential(torch.compile(nn.Linear(2,2)), nn.Linear(2,1)); load(p, inner); save(inner, tmp_path/'v')
    assert sorted(load(tmp_path/'v')[0]) == sorted(net.state_dict()) and torch.equal(inner(torch.ones(1,2)), net(torch.ones(1,2)))
    assert unwrap(nn.DataParallel(net)) is net

@pytest.mark.parametrize('make,words', [
    (lambda p: None, 'does not exist'),
    (lambda p: p.write_bytes(b'PK\x03\x04 a pickle, perhaps'), 'not a complete safetensors file'),
    (lambda p: p.write_bytes(b''), 'not a complete safetensors file'),
    (lambda p: save(nn.Linear(4, 2), p), r'weight \(2, 4\) for \(2, 3\)'),
    (lambda p: save(nn.Sequential(nn.Linear(3, 2)), p), 'missing: bias, weight; not in the model: 0.bias, 0.weight')], ids=lambda o: '')
def test_what_cannot_be_loaded(tmp_path, make, words):
    make(tmp_path/'w.safetensors')
    with pytest.raises((ValueError, FileNotFoundError), match=words): load(tmp_path/'w', nn.Linear(3, 2))

# --- locks

def test_two_runs_of_one_output(tmp_path):
    with locked(tmp_path/'out'):
        with pytest.raises(ValueError, match=f'another run .process {os.getpid()}. is writing .*out'):
            with locked(tmp_path/'out'): pass
        with locked(tmp_path/'other'): pass
    with locked(tmp_path/'out'): pass
    assert not list(tmp_path.iterdir())

def test_a_killed_run_leaves_no_lock(tmp_path):
    p = run_python(f'import os\nfrom miniai.core import locked\nwith locked({str(tmp_path/"out")!r}): os.kill(os.getpid(), 9)')
    assert p.returncode == -9 and list(tmp_path.iterdir())
    with locked(tmp_path/'out'): pass

def test_without_fcntl(tmp_path):
    "As on Windows"
    p = run_python(f'''
import sys; sys.modules['fcntl'] = None
from miniai.core import fcntl, locked, log_record, read_records
assert fcntl is None
import miniai.imports, miniai.cli
log_record({str(tmp_path/"r.jsonl")!r}, a=1)
with locked({str(tmp_path/"out")!r}): assert read_records({str(tmp_path/"r.jsonl")!r})[0]['a'] == 1''')
    assert p.returncode == 0, p.stderr

# --- records

def test_records(tmp_path):
    p = tmp_path/'r.jsonl'; log_record(p, what='a', loss=0.5); log_record(p, what='b', loss=0.25)
    assert [r['loss'] for r in read_records(p)] == [0.5, 0.25] and read_records(p, what='b')[0]['versions'] and read_records(tmp_path/'no') == []
    with pytest.raises(ValueError, match='not JSON compliant'): log_record(p, loss=float('nan'))
    assert len(read_records(p)) == 2

@pytest.mark.parametrize('bad', [b'{"half": ', b'\x00\x00', b'\xff\xfe', b'3', b'['*100_000, b'nonsense'], ids=lambda b: repr(b[:8]))
def test_a_bad_line_is_named_and_left_out(tmp_path, bad):
    p = tmp_path/'r.jsonl'; log_record(p, n=1); p.open('ab').write(bad); log_record(p, n=2)     # the next record begins a line of its own
    with pytest.warns(UserWarning, match='no record in line 2; left out'): assert [r['n'] for r in read_records(p)] == [1, 2]

def test_only_newlines_end_a_line(tmp_path):
    p = tmp_path/'r.jsonl'; odd = 'a\u2028b\u0085c\x0bd\re'; log_record(p, text=odd); p.open('ab').write(b'\n\r\n  \n'); log_record(p, text=odd)
    assert [r['text'] for r in read_records(p)] == [odd, odd]

def test_a_table():
    assert str(Table([dict(a=0.12345, b=None), dict(a=1, b='x')], dict(a='first', b='b'))).splitlines() == ['| first | b |', '|-------|---|', '| 0.123 |   |', '| 1     | x |']

# --- seeds, devices, scale

def test_set_seed():
    three = lambda: (random.random(), np.random.rand(), torch.rand(1).item())
    set_seed(42); a = three(); set_seed(42); assert three() == a != three()

def test_walking_a_batch():
    b = (torch.ones(2, dtype=torch.bfloat16), torch.tensor([3])), {'y': torch.zeros(1)}, 'a name'
    (x,t),d,s = to_cpu(to_device(b)); assert x.dtype == torch.float32 and t.tolist() == [3] and d['y'].device.type == 'cpu' and s == 'a name'
    assert map_tensors(lambda o: o+1, [torch.zeros(1)])[0].item() == 1

def test_scale(monkeypatch):
    for s,want in dict(smoke=1, cpu=2, gpu=3).items(): monkeypatch.setenv('MINIAI_SCALE', s); assert at_scale(1, 2, 3) == want
    monkeypatch.setenv('MINIAI_SCALE', 'huge')
    with pytest.raises(ValueError, match="'huge'; it must be one of smoke, cpu, gpu"): run_scale()
