// The page: what is asked for goes to the worker, what the loop does comes back line by line and can be walked through.
const $ = id => document.getElementById(id), form = $('set'), N = 20, SIDE = 28, SIZE = SIDE*SIDE
const simd = () => WebAssembly.validate(new Uint8Array([0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 8, 1, 6, 0, 65, 0, 253, 15, 11]))
const state = window.miniai = {frames: [], at: 0, busy: false, job: 0, known: null, mask: null, filled: null, on: null}
let card, worker, playing = 0

function trouble(say) { $('trouble').textContent = say; $('trouble').hidden = false; state.busy = false }

// --- images on a canvas

const one = new OffscreenCanvas(SIDE, SIDE), pen = one.getContext('2d'), pixels = pen.createImageData(SIDE, SIDE)
pixels.data.fill(255)
function put(ctx, x, scale, left, top, side) {                 // an image in ±1
  for (let i = 0; i < SIZE; i++) pixels.data.fill(Math.round(Math.min(Math.max(x[i]*scale, -1), 1)*127.5+127.5), 4*i, 4*i+3)
  pen.putImageData(pixels, 0, 0)
  ctx.imageSmoothingEnabled = false
  ctx.drawImage(one, left, top, side, side)
}
function grid(canvas, x, n, cols, scale = 1, chosen = -1) {
  const cell = 4*SIDE, gap = 6, at = i => [gap+(i % cols)*(cell+gap), gap+Math.floor(i/cols)*(cell+gap)]
  canvas.width = gap+cols*(cell+gap); canvas.height = gap+Math.ceil(n/cols)*(cell+gap)
  const ctx = canvas.getContext('2d')
  ctx.fillStyle = '#000'; ctx.fillRect(0, 0, canvas.width, canvas.height)
  for (let i = 0; i < n; i++) put(ctx, x.subarray(i*SIZE, (i+1)*SIZE), scale, ...at(i), cell)
  if (chosen < 0) return
  ctx.strokeStyle = '#ffb000'; ctx.lineWidth = 4
  ctx.strokeRect(...at(chosen).map(o => o-2), cell+4, cell+4)
}
function cellAt(e, canvas, n, cols) {
  const box = canvas.getBoundingClientRect(), rows = Math.ceil(n/cols)
  return Math.min(cols-1, Math.floor((e.clientX-box.left)/box.width*cols)) + cols*Math.min(rows-1, Math.floor((e.clientY-box.top)/box.height*rows))
}

// --- the loop, and the line of it that runs

function lines() {
  $('lines').replaceChildren(...card.code[form.solver.value].map(({text, lights}) => {
    const s = document.createElement('span')
    s.textContent = text; s.dataset.lights = lights.join(' ')
    return s
  }))
}
function light(line, last) {
  const solver = form.solver.value, key = last ? 'last' : line
  for (const s of $('lines').children) {
    const on = s.dataset.lights.split(' ')
    s.classList.toggle('runs', on.includes(key))
    s.classList.toggle('inside', line != 'start' && on.includes('inside'))
  }
  const names = [last ? 'last' : `${solver}_${line}` in card.equations ? `${solver}_${line}` : line]
  if (line != 'start' && labels().some(y => y >= 0) && +form.w.value != 1) names.push('guided')
  if ($('eq').dataset.names == names) return
  $('eq').dataset.names = names
  $('eq').innerHTML = names.map(k => `<div>${card.equations[k] ?? ''}</div>`).join('')
}
const sig = s => s >= 10 ? s.toFixed(0) : s >= 1 ? s.toFixed(1) : s ? s.toPrecision(2) : '0'
const SAYS = {start: 'noise', call: 'the network looks', again: 'the network looks again', euler: 'Euler’s step', line: 'a line through the last two predictions', move: 'on to the next level'}
function show(at) {
  const f = state.frames[at]
  if (!f) return
  state.at = at
  grid($('x'), f.x, N, 5, 1/Math.sqrt(1+f.s*f.s), state.chosen)
  grid($('x0'), f.x0, N, 5)
  $('at').value = at
  $('told').textContent = f.line == 'start' ? `noise, σ = ${sig(f.s)}` : `step ${f.i+1} of ${form.steps.value}, call ${f.calls} · σ = ${sig(f.s)} · ${f.s ? SAYS[f.line] : 'the image'}`
  light(f.line, f.line == 'move' && !f.s)
}
function play(on) {
  clearInterval(playing); playing = 0
  $('play').textContent = on ? 'Stop' : 'Play'
  if (!on) return
  if (state.at >= state.frames.length-1) show(0)
  playing = setInterval(() => { show(state.at+1); if (state.at >= state.frames.length-1) play(false) }, Math.min(450, 12000/state.frames.length))
}

// --- what is asked for

function labels(n = N) {
  const v = form.what.value
  return Array.from({length: n}, (_, i) => v == 'each' ? i % 10 : v == 'any' ? -1 : +v)
}
function python() {
  const y = labels(), same = y.every(o => o == y[0])
  const lab = y[0] < 0 ? '' : same ? `, y=${y[0]}` : `, y=torch.arange(${N})%10`
  const den = `load_denoiser('${card.name}', dtype=None)`, w = +form.w.value
  return `sample(${lab && w != 1 ? `guided(${den}, ${w})` : den}, ${N}, '${form.solver.value}', ${form.steps.value}${lab}, seed=${form.seed.value})`
}
function settings() { return Object.fromEntries(['what', 'w', 'solver', 'steps', 'seed'].map(k => [k, form[k].value])) }
function told() {
  for (const k of ['w', 'steps']) form[k].parentElement.querySelector('output').textContent = form[k].value
  for (const o of document.querySelectorAll('.guide')) o.hidden = !card.n_classes
  form.w.disabled = form.what.value == 'any'
  $('same').replaceChildren('In Python, the same clothes from the same seed: ', Object.assign(document.createElement('code'), {textContent: python()}))
  history.replaceState(null, '', '#' + new URLSearchParams(settings()))
}
let soon = 0
function ask() {
  told(); lines(); play(false)
  clearTimeout(soon)
  soon = setTimeout(() => {
    state.frames = []; state.busy = true; state.kind = 'draw'
    worker.postMessage({id: ++state.job, seed: +form.seed.value % 2**32, labels: labels(), w: +form.w.value, solver: form.solver.value, steps: +form.steps.value})
  }, 60)
}
function came({data: d}) {
  if ('on' in d) { state.on = d.on; $('where').textContent = `Running on ${d.on == 'webgpu' ? 'WebGPU' : 'WebAssembly with SIMD, one thread'}.`; return }
  if (d.error) return trouble(`The network could not be run: ${d.error}. If this page was opened as a file, serve its folder instead (python -m http.server); otherwise reload it.`)
  if (d.id != state.job) return
  if (d.done) {
    state.busy = false
    if (state.kind == 'fill') return
    if (state.known == null) begun()
    return
  }
  if (state.kind == 'fill') { state.filled = d.x0; grid($('filled'), state.filled, 8, 4); return }
  state.frames.push(d)
  $('at').max = state.frames.length-1
  show(state.frames.length-1)
}

// --- rubbing out

const edit = $('edit'), ectx = edit.getContext('2d')
function paint() {
  put(ectx, state.known, 1, 0, 0, 280)
  ectx.fillStyle = '#ffb000'
  for (let i = 0; i < SIZE; i++) if (!state.mask[i]) {
    const c = i % SIDE, r = Math.floor(i/SIDE)
    ectx.globalAlpha = (c+r) % 2 ? .85 : .7
    ectx.fillRect(c*10, r*10, 10, 10)
  }
  ectx.globalAlpha = 1
  $('again').disabled = state.mask.every(o => o)
}
function choose(i) {
  state.chosen = i
  state.label = labels()[i]
  take(state.frames.at(-1).x.slice(i*SIZE, (i+1)*SIZE))
  show(state.at)
}
function take(x) { state.known = x.map(v => Math.min(Math.max(v, -1), 1)); state.mask = new Uint8Array(SIZE).fill(1); paint() }
function rub(e) {
  if (!state.known) return
  const box = edit.getBoundingClientRect(), cx = (e.clientX-box.left)/box.width*SIDE-.5, cy = (e.clientY-box.top)/box.height*SIDE-.5
  for (let i = 0; i < SIZE; i++) if ((i % SIDE-cx)**2 + (Math.floor(i/SIDE)-cy)**2 <= 5) state.mask[i] = 0
  paint()
}
function half(which) {
  if (!state.known) return
  state.mask = state.mask.map((_, i) => which == 'upper' ? +(i >= SIZE/2) : +(i % SIDE >= SIDE/2))
  paint(); fill()
}
function begun() {                                             // the first time: what rubbing out does, shown once
  choose(0)
  state.mask = state.mask.map((_, i) => +(i % SIDE < 12 || Math.floor(i/SIDE) < 3))
  paint(); fill()
}
let fills = 0
function fill() {
  const n = 8, over = new Float32Array(n*SIZE), mask = new Uint8Array(n*SIZE)
  for (let i = 0; i < n; i++) { over.set(state.known, i*SIZE); mask.set(state.mask, i*SIZE) }
  if (state.busy && state.kind == 'draw') return
  play(false)
  state.busy = true; state.kind = 'fill'
  worker.postMessage({id: ++state.job, seed: 1000 + fills++, labels: Array(n).fill(state.label), w: +form.w.value, solver: form.solver.value, steps: Math.max(10, +form.steps.value), known: over, mask})
}

// --- begin

async function begin() {
  if (!simd()) return trouble('The network needs WebAssembly with SIMD, which this browser does not have: Chrome and Edge since 91, Firefox since 89 and Safari since 16.4 do.')
  try { card = await (await fetch('draw/card.json')).json() }
  catch (e) { return trouble('The page could not load its network. If it was opened as a file, serve its folder instead: python -m http.server, then http://localhost:8000/draw.html') }
  const option = (value, text) => Object.assign(document.createElement('option'), {value, text})
  if (card.n_classes) form.what.append(option('each', 'all ten kinds'), ...card.classes.map((c, i) => option(i, c)))
  form.what.append(option('any', card.n_classes ? 'any, without a label' : 'any'))
  for (const [k, v] of new URLSearchParams(location.hash.slice(1))) if (form[k]) form[k].value = v
  if (!form.what.value) form.what.selectedIndex = 0
  worker = new Worker('draw/worker.js', {type: 'module'})
  worker.onmessage = came
  worker.onerror = e => trouble(`The network could not be run: ${e.message ?? 'its worker did not start'}. Reload the page, or try another browser.`)
  form.oninput = ask
  form.onsubmit = e => e.preventDefault()
  $('dice').onclick = () => { form.seed.value = Math.floor(Math.random()*1e6); ask() }
  $('at').oninput = e => { play(false); show(+e.target.value) }
  $('play').onclick = () => play(!playing)
  $('back').onclick = () => { play(false); show(Math.max(0, state.at-1)) }
  $('on').onclick = () => { play(false); show(Math.min(state.frames.length-1, state.at+1)) }
  for (const id of ['x', 'x0']) $(id).onclick = e => { if (!state.busy) choose(cellAt(e, $(id), N, 5)) }
  $('filled').onclick = e => { if (state.filled && !state.busy) { const i = cellAt(e, $('filled'), 8, 4); take(state.filled.slice(i*SIZE, (i+1)*SIZE)) } }
  edit.onpointerdown = e => { edit.setPointerCapture(e.pointerId); rub(e) }
  edit.onpointermove = e => { if (e.buttons) rub(e) }
  $('again').onclick = fill
  $('whole').onclick = () => { if (state.known) { state.mask.fill(1); paint() } }
  for (const b of document.querySelectorAll('[data-half]')) b.onclick = () => half(b.dataset.half)
  state.card = card
  ask()
}
begin()
