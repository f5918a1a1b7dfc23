// Points in the plane: a network learns their score field, and three solvers walk it.
import {mix, sample, sigmas, STEPS} from './loop.js'
import {BLOBS, Net, STD, exact, learned, points, spread, train} from './net.js'
import {randn, twister} from './noise.js'

const $ = id => document.getElementById(id), form = $('set'), ctx = $('plane').getContext('2d'), W = 640, SPAN = 2.6
const MAX = 10, MIN = .01, LEARN = 2000, NAMES = {ddim: 'DDIM', heun: 'Heun', dpmpp_2m: '2M'}
const COLOURS = {ddim: '#d1495b', heun: '#3d7de0', dpmpp_2m: '#2a9d4a'}
const state = window.miniai = {step: 0, data: null, sd: 1, walks: {}, start: [.2, -1.9], at: 0, first: true, busy: false}
const bits = twister(1), rand = () => bits()/2**32
let weights = {}, spare = [], playing = 0, own = [], asked = 0
const normal = () => { if (!spare.length) spare = [...randn(bits, 64)]; return spare.pop() }

// --- data and field

function begin(fresh = true) {                                      // new data; a network that has learned them, or a fresh one
  const kind = form.data.value, known = kind == 'own' ? null : weights[kind]
  state.data = kind == 'own' ? Float32Array.from(own.length ? own : [0, 0]) : points(kind, rand, normal)
  state.sd = known?.sd ?? spread(state.data)
  state.net = new Net(rand); state.step = 0; state.loss = null
  if (known && !fresh) { state.net.take(known.weights); state.step = LEARN; $('loss').textContent = 'It has learned these data before; watch it do so from the start.' }
  const few = []
  for (let i = 0; i < Math.min(250, state.data.length/2); i++) few.push([state.data[2*i], state.data[2*i+1]])
  state.exact = form.data.value == 'blobs' ? exact(BLOBS, STD) : exact(few, .02)
  walk()
}
const field = () => form.field.value == 'exact' ? state.exact : learned(state.net, state.sd)

function learn() {                                                  // some steps between two frames
  if (state.step < LEARN && (form.data.value != 'own' || own.length > 20)) {
    for (const end = performance.now()+14; performance.now() < end && state.step < LEARN;) {
      const l = train(state.net, state.data, state.sd, rand, normal, 128, 4e-3*(1-state.step/LEARN))
      state.loss = state.loss == null ? l : .98*state.loss+.02*l
      state.step++
    }
    $('loss').textContent = `step ${state.step} of ${LEARN}, loss ${state.loss.toFixed(3)}`
    if (form.field.value == 'learned' && (state.step >= LEARN || performance.now()-asked > 400)) walk()
  }
  requestAnimationFrame(learn)
}

// --- walks

async function way(den, x, levels, solver, seed) {
  const b = twister(seed), out = [[levels[0], x]]
  let calls = 0
  for await (const o of sample(den, x, levels, solver, {eta: solver == 'ddim' ? +form.eta.value : 0, randn: () => randn(b, x.length)})) { out.push([o.s, o.x]); calls = o.calls }
  return {out, calls}
}
async function walk() {
  const mine = asked = performance.now(), den = field(), n = +form.steps.value, levels = sigmas(n, MIN, MAX, +form.rho.value)
  const at = Float32Array.from(state.start.map(o => o*Math.sqrt(1+MAX*MAX))), walks = {}
  for (const k of Object.keys(STEPS)) walks[k] = await way(den, at, levels, k, 5)
  const truth = await way(den, at, sigmas(300, MIN, MAX, 7), 'heun', 5)
  const crowd = form.crowd.value ? await way(den, randn(twister(2), 600).map(v => v*MAX), levels, form.crowd.value, 7) : null
  if (mine != asked) return
  Object.assign(state, {walks, truth, crowd, levels})
  $('at').max = n
  if (!playing) state.at = state.first ? n >> 1 : n
  state.first = false
  told(); draw()
}
const end = w => w.out.at(-1)[1]
function told() {
  $('at').value = state.at = Math.min(state.at, state.levels.length-1)
  const s = state.levels[state.at]
  $('told').textContent = `after step ${state.at} of ${state.levels.length-1}: σ = ${s ? s.toPrecision(2) : 0}`
  for (const k of ['steps', 'rho', 'eta']) form[k].parentElement.querySelector('output').textContent = form[k].value
  $('ends').innerHTML = Object.entries(state.walks).map(([k, w]) => {
    const far = Math.hypot(...mix(1, end(w), -1, end(state.truth)))
    return `<tr><td><i style="background:${COLOURS[k]}"></i>${NAMES[k]}</td><td>${w.calls}</td><td>${far.toFixed(3)}</td></tr>`
  }).join('')
}

// --- the drawing: coordinates scaled by α, so that noise and data are of one size

const px = u => [W/2+u[0]/SPAN*W/2, W/2-u[1]/SPAN*W/2], alpha = s => 1/Math.sqrt(1+s*s)
const style = v => getComputedStyle(document.documentElement).getPropertyValue(v).trim()
function dots(x, s, size) { for (let i = 0; i < x.length; i += 2) { const [p, q] = px([x[i]*alpha(s), x[i+1]*alpha(s)]); ctx.fillRect(p-size/2, q-size/2, size, size) } }
function line(out, n) {
  ctx.beginPath()
  for (const [s, x] of out.slice(0, n)) ctx.lineTo(...px([x[0]*alpha(s), x[1]*alpha(s)]))
  ctx.stroke()
}
function arrows(s) {
  const n = 23, u = new Float32Array(2*n*n), a = alpha(s)
  for (let i = 0; i < n*n; i++) { u[2*i] = (i % n-(n-1)/2)*2*SPAN/n; u[2*i+1] = (Math.floor(i/n)-(n-1)/2)*2*SPAN/n }
  const x = u.map(v => v/a), [x0] = field()(x, s)
  ctx.strokeStyle = style('--muted'); ctx.lineWidth = 1.2; ctx.globalAlpha = .75; ctx.beginPath()
  for (let i = 0; i < x.length; i += 2) {
    const d = [a*(x0[i]-x[i]), a*(x0[i+1]-x[i+1])], long = Math.hypot(...d), k = Math.min(.22*(long/(long+.6))*1.4, long)/(long || 1)
    const [p, q] = px([u[i], u[i+1]]), [r, t] = px([u[i]+k*d[0], u[i+1]+k*d[1]]), b = Math.atan2(t-q, r-p), h = Math.min(5, Math.hypot(r-p, t-q)*.4)
    ctx.moveTo(p, q); ctx.lineTo(r, t)
    for (const w of [2.6, -2.6]) { ctx.moveTo(r, t); ctx.lineTo(r+h*Math.cos(b+w), t+h*Math.sin(b+w)) }
  }
  ctx.stroke(); ctx.globalAlpha = 1
}
function draw() {
  const at = state.at, s = state.levels[at] || MIN
  ctx.clearRect(0, 0, W, W)
  ctx.fillStyle = '#e0930055'; dots(state.data.subarray(0, 1600), s, 4)
  if (form.data.value != 'own' || own.length > 20 || form.field.value == 'exact') arrows(s)
  if (state.crowd) { ctx.fillStyle = style('--fg'); ctx.globalAlpha = .8; dots(state.crowd.out[at][1], state.levels[at], 3.5); ctx.globalAlpha = 1 }
  ctx.strokeStyle = style('--fg'); ctx.lineWidth = 2; ctx.setLineDash([3, 5]); line(state.truth.out); ctx.setLineDash([])
  for (const [k, w] of Object.entries(state.walks)) {
    ctx.strokeStyle = ctx.fillStyle = COLOURS[k]; ctx.lineWidth = 3
    line(w.out, at+1)
    for (const [s, x] of w.out.slice(0, at+1)) { ctx.beginPath(); ctx.arc(...px([x[0]*alpha(s), x[1]*alpha(s)]), 4.5, 0, 7); ctx.fill() }
  }
  strip()
}
function strip() {                                                  // the noise levels on a logarithmic axis
  const c = $('levels').getContext('2d'), at = s => 20+520*Math.log(MAX/s)/Math.log(MAX/MIN)
  c.clearRect(0, 0, 560, 64)
  c.strokeStyle = c.fillStyle = style('--muted'); c.font = '15px sans-serif'; c.textAlign = 'center'
  c.beginPath(); c.moveTo(20, 24); c.lineTo(540, 24); c.stroke()
  for (const s of [10, 1, .1, .01]) c.fillText(`σ = ${s}`, Math.min(Math.max(at(s), 32), 525), 54)
  state.levels.forEach((s, i) => { if (s) { c.fillStyle = i == state.at ? style('--accent') : style('--fg'); c.beginPath(); c.arc(at(s), 24, i == state.at ? 8 : 4.5, 0, 7); c.fill() } })
}
function play(on) {
  clearInterval(playing); playing = 0
  $('play').textContent = on ? 'Stop' : 'Play'
  if (!on) return
  const go = at => { state.at = at; told(); draw() }
  if (state.at >= state.levels.length-1) go(0)
  playing = setInterval(() => { go(state.at+1); if (state.at >= state.levels.length-1) play(false) }, Math.max(120, 2400/state.levels.length))
}

// --- what is asked for

const where = e => { const b = $('plane').getBoundingClientRect(); return [((e.clientX-b.left)/b.width*2-1)*SPAN, -((e.clientY-b.top)/b.height*2-1)*SPAN] }
function put(e) { const [p, q] = where(e); for (let i = 0; i < 6; i++) own.push(p+.06*normal(), q+.06*normal()) }
form.oninput = e => {
  play(false)
  if (e.target.name != 'data') return walk()
  if (form.data.value == 'own') own = []
  $('plane').style.touchAction = form.data.value == 'own' ? 'none' : ''
  $('plane').nextElementSibling.textContent = form.data.value == 'own' ? 'Draw with the mouse or a finger; the network learns what you drew when you let go.' : 'Click to choose where a point starts.'
  begin(false)
}
form.onsubmit = e => e.preventDefault()
$('plane').onpointerdown = e => { if (form.data.value == 'own') { $('plane').setPointerCapture(e.pointerId); put(e) } else { state.start = where(e); play(false); walk().then(() => play(true)) } }
$('plane').onpointermove = e => { if (form.data.value == 'own' && e.buttons) { put(e); ctx.fillStyle = '#e0930088'; dots(Float32Array.from(own.slice(-12)), 0, 4) } }
$('plane').onpointerup = () => { if (form.data.value == 'own') begin() }
$('at').oninput = e => { play(false); state.at = +e.target.value; told(); draw() }
$('play').onclick = () => play(!playing)
$('train').onclick = () => begin()
fetch('draw/field.json').then(r => r.json()).catch(() => ({})).then(w => { weights = w; begin(false); requestAnimationFrame(learn) })
