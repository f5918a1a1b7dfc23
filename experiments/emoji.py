"""Trains a small U-Net on coloured pictures, 32×32, and keeps what it draws: `nice -n 10 python experiments/emoji.py [--quick]`.

The pictures are the people of Debian's Noto Color Emoji (package fonts-noto-color-emoji): a head, mostly with shoulders.
Writes a record to results/train.jsonl and three grids to nbs/images/. The network itself is not kept."""
import io, time
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from fastcore.script import call_parse
from PIL import Image
from torch import optim

from miniai.accel import ClipGradCB, EMACB
from miniai.checkpoint import CheckpointCB
from miniai.core import log_record, results_path, set_seed
from miniai.datasets import DataLoaders, TensorLoader, to_unit
from miniai.diffusion import NoiseCB
from miniai.images import image_grid
from miniai.karras import edm
from miniai.learner import Callback, DeviceCB, Learner, TrainCB
from miniai.recipes import OneCycleCB
from miniai.solvers import sample
from miniai.tracking import JSONLCB
from miniai.watching import SaveGridCB
from miniai.unet import UNet

FONT = Path('/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf')
IMAGES = Path(__file__).parents[1]/'nbs/images'
# code points (Unicode's emoji list): people of whom the picture shows head and shoulders
PEOPLE = {*range(0x1F466, 0x1F46A), 0x1F46E, *range(0x1F470, 0x1F479), 0x1F47C, 0x1F481, 0x1F482, 0x1F486, 0x1F487,
          0x1F575, *range(0x1F645, 0x1F648), 0x1F64B, 0x1F64D, 0x1F64E, 0x1F926, *range(0x1F934, 0x1F938), 0x1F977,
          *range(0x1F9D1, 0x1F9D6), 0x1F9D9, 0x1F9DB, 0x1F9DD, 0x1FAC5, 0x1F385, 0x1F936}
NOT_WITH = {0x2764, 0x1F91D, 0x1F9AF, 0x1F9BC, 0x1F9BD, 0x1F37C}    # hearts, handshakes, canes, wheelchairs, bottles

def sequences(font):
    "`{glyph: code points}` of all glyphs of the font that are characters or ligatures"
    cmap = font.getBestCmap(); code = {g: c for c,g in cmap.items()}; out = {g: (c,) for c,g in cmap.items()}
    for lookup in font['GSUB'].table.LookupList.Lookup:
        for st in (getattr(o, 'ExtSubTable', o) for o in lookup.SubTable):
            for first,ligs in getattr(st, 'ligatures', {}).items():
                for l in ligs: out.setdefault(l.LigGlyph, tuple(code.get(g) for g in (first, *l.Component)))
    return out

def on_white(data, size=32):
    "The PNG in these bytes in the middle of a white square: uint8, 3×size×size"
    im = Image.open(io.BytesIO(data)).convert('RGBA'); side = max(im.size)
    sq = Image.new('RGBA', (side,side), 'white'); sq.alpha_composite(im, ((side-im.width)//2, (side-im.height)//2))
    return np.asarray(sq.convert('RGB').resize((size,size), Image.Resampling.LANCZOS)).transpose(2,0,1)

def people():
    "All people of the font, each once: uint8, N×3×32×32, in an order drawn with seed 42"
    from fontTools.ttLib import TTFont
    font = TTFont(FONT); pics = font['CBDT'].strikeData[0]
    one = lambda s: sum(c in PEOPLE for c in s) == 1 and not NOT_WITH & set(s)
    x = np.stack([on_white(pics[g].imageData) for g,s in sequences(font).items() if g in pics and one(s)])
    return np.random.default_rng(42).permutation(x)

def nearest(xs, data):
    "For each of `xs` the image of `data` with the smallest mean squared difference, and that difference"
    d2 = torch.stack([(data-x).square().mean((1,2,3)) for x in xs])
    return data[d2.argmin(1)], d2.min(1).values

class CPUSecondsCB(Callback):
    "CPU seconds of the fit, those before a kill included"
    order = 80
    def before_fit(self, learn): self.secs,self.last = 0., time.process_time()
    def after_epoch(self, learn):
        now = time.process_time()
        self.secs,self.last = self.secs+now-self.last, now
    def state_dict(self): return {'secs': self.secs}
    def load_state_dict(self, state): self.secs = state['secs']

def keep(name, x, ncols):
    "A grid of images as `nbs/images/<name>.png`, each pixel as it is"
    Image.fromarray(image_grid(x, ncols)).save(IMAGES/f'{name}.png', optimize=True)

@call_parse
def main(
    quick:bool=False,   # a few steps, to see that it runs; keeps nothing
    epochs:int=120,     # times through the pictures
    bs:int=32,          # images in a batch
    lr:float=4e-3,      # the highest learning rate
    seed:int=42,        # of weights, batches and noise
):
    "Train, sample, and keep grids and a record"
    set_seed(seed); x = people(); held = len(x)//10; every = 400
    if quick: x, held, epochs, every = x[:96], 32, 1, 1
    dls = DataLoaders(TensorLoader(x[held:], None, bs, shuffle=True), TensorLoader(x[:held], None, 2*bs))
    data = to_unit(torch.as_tensor(x[held:])); sd = data.std().item(); form, runs = edm(sd), Path('runs')
    net = UNet(3, widths=(32,64), n_blocks=1, patch=2, t_scale=form.t_scale).to(memory_format=torch.channels_last); ema = EMACB(0.995)
    def draw(net, n=3):
        with ema.applied(net): return sample(net, n, steps=18, size=(3,32,32), seed=seed)
    grids = SaveGridCB(draw, runs/'emoji', every=every, by='step', scale=1, ncols=1)
    track = JSONLCB(project='emoji', name='people', folder=runs, weights=False, code=False)
    cycle,cpu = OneCycleCB(lr, pct_start=0.1, cycle_momentum=False), CPUSecondsCB()
    cbs = [DeviceCB(), NoiseCB(form), TrainCB(n_inp=2), ClipGradCB(1.), ema, cycle, track, grids, cpu]
    learn = Learner(net, dls, F.mse_loss, lr=lr, cbs=cbs, opt_func=partial(optim.Adam, betas=(0.9, 0.99), eps=1e-5))
    learn.fit(epochs, cbs=[] if quick else CheckpointCB(runs/'emoji-checkpoint'))
    xs = draw(net, 48); near,d2 = nearest(xs, data); _,floor = nearest(to_unit(torch.as_tensor(x[:held])), data)
    strips = [np.asarray(Image.open(p).convert('RGB')) for p in sorted(Path(grids.folder).glob('*.png'))]
    hist = {k: [round(d['loss'], 5) for d in track.history if d['train'] == k] for k in ('train', 'eval')}
    rec = dict(experiment='tracking', what='emoji', data='people of Noto Color Emoji', command='python experiments/emoji.py', epochs=epochs, bs=bs,
               lr=lr, ema=0.995, seed=seed, n_train=len(data), n_valid=held, parameters=sum(p.numel() for p in net.parameters()),
               config=net.config, sigma_data=sd, cpu_seconds=round(cpu.secs), loss=hist['eval'][-1], history=hist,
               solver='dpmpp_2m', nfe=18, steps=[every*(i+1) for i in range(len(strips))],
               distance=d2.median().item(), distance_held_out=floor.median().item())
    print({k: v for k,v in rec.items() if k != 'history'})
    if quick: return
    keep('emoji_real', to_unit(torch.as_tensor(x[:64])), 16); keep('emoji_samples', xs, 16)
    keep('emoji_nearest', torch.cat([xs[:16], near[:16]]), 16)
    steps = to_unit(torch.as_tensor(np.stack(strips))).permute(0,3,1,2)
    keep('emoji_steps', steps, len(steps))
    log_record(results_path('train'), **rec)
