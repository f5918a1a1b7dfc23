// A small network for points in the plane, with its gradient and Adam written out: EDM's denoiser (Karras et al. 2022, Table 1).

export class Net {
  constructor(rand, hidden = 64) {
    this.sizes = [7, hidden, hidden, 2]; this.at = 0; this.step = 0
    this.layers = this.sizes.slice(1).map((no, k) => {
      const ni = this.sizes[k], W = new Float32Array(no*ni), b = new Float32Array(no)
      if (no > 2) for (let i = 0; i < W.length; i++) W[i] = (2*rand()-1)*Math.sqrt(3/ni)*1.4
      return {ni, no, W, b, ...Object.fromEntries(['gW', 'mW', 'vW'].map(o => [o, new Float32Array(no*ni)])), ...Object.fromEntries(['gb', 'mb', 'vb'].map(o => [o, new Float32Array(no)]))}
    })
  }
  give() { return this.layers.flatMap(l => [...l.W, ...l.b]).map(v => +v.toFixed(4)) }
  take(all) { let at = 0; for (const l of this.layers) for (const p of [l.W, l.b]) { p.set(all.slice(at, at+p.length)); at += p.length } }
  forward(x, n) {                                                   // features n×7 → n×2; what each layer saw is kept
    for (const [k, l] of this.layers.entries()) {
      l.x = x
      const y = l.y = new Float32Array(n*l.no), a = k < 2 ? l.a = new Float32Array(n*l.no) : null
      for (let b = 0; b < n; b++) for (let j = 0; j < l.no; j++) {
        let s = l.b[j]
        for (let i = 0, w = j*l.ni, o = b*l.ni; i < l.ni; i++) s += l.W[w+i]*x[o+i]
        y[b*l.no+j] = s
        if (a) a[b*l.no+j] = s/(1+Math.exp(-s))                     // SiLU
      }
      x = a ?? y
    }
    return x
  }
  backward(g, n) {                                                  // g: the loss's gradient at the output
    for (let k = 2; k >= 0; k--) {
      const l = this.layers[k], gx = k ? new Float32Array(n*l.ni) : null
      l.gW.fill(0); l.gb.fill(0)
      for (let b = 0; b < n; b++) for (let j = 0; j < l.no; j++) {
        let d = g[b*l.no+j]
        if (k < 2) { const y = l.y[b*l.no+j], s = 1/(1+Math.exp(-y)); d *= s*(1+y*(1-s)) }
        l.gb[j] += d
        for (let i = 0, w = j*l.ni, o = b*l.ni; i < l.ni; i++) { l.gW[w+i] += d*l.x[o+i]; if (gx) gx[o+i] += d*l.W[w+i] }
      }
      g = gx
    }
  }
  adam(lr) {                                                        // Kingma and Ba 2015, Algorithm 1
    const t = ++this.step, c = lr*Math.sqrt(1-.999**t)/(1-.9**t)
    for (const l of this.layers) for (const k of ['W', 'b']) {
      const p = l[k], g = l[`g${k}`], m = l[`m${k}`], v = l[`v${k}`]
      for (let i = 0; i < p.length; i++) { m[i] += .1*(g[i]-m[i]); v[i] += .001*(g[i]*g[i]-v[i]); p[i] -= c*m[i]/(Math.sqrt(v[i])+1e-8) }
    }
  }
}

const FREQS = [1, 2]
function features(x, s, sd) {                                       // c_in·x, and the noise level
  const n = x.length/2, f = new Float32Array(n*7)
  for (let b = 0; b < n; b++) {
    const σ = s.length ? s[b] : s, c = 1/Math.sqrt(σ*σ+sd*sd), t = Math.log(σ)/4
    f.set([c*x[2*b], c*x[2*b+1], t, ...FREQS.flatMap(k => [Math.sin(k*Math.PI*t), Math.cos(k*Math.PI*t)])], 7*b)
  }
  return f
}
export const learned = (net, sd) => (x, s) => {                     // the network as a denoiser
  const F = net.forward(features(x, s, sd), x.length/2), d = s*s+sd*sd
  const x0 = x.map((v, i) => sd*sd/d*v + s*sd/Math.sqrt(d)*F[i])
  return [x0, x0.map((v, i) => (x[i]-v)/s)]
}
export function train(net, data, sd, rand, normal, n = 256, lr = 3e-3) {   // one step; returns the loss
  const x = new Float32Array(2*n), s = new Float32Array(n), want = new Float32Array(2*n)
  for (let b = 0; b < n; b++) {
    const i = Math.floor(rand()*data.length/2), σ = s[b] = Math.exp(-.8+1.4*normal()), d = Math.sqrt(σ*σ+sd*sd)
    for (const c of [0, 1]) {
      const x0 = data[2*i+c], e = normal()
      x[2*b+c] = x0+σ*e
      want[2*b+c] = (x0*σ/sd - e*sd)/d
    }
  }
  const F = net.forward(features(x, s, sd), n), g = F.map((v, i) => (v-want[i])/n)
  net.backward(g, n); net.adam(lr)
  return F.reduce((a, v, i) => a+(v-want[i])**2, 0)/(2*n)
}
export const exact = (centres, std) => (x, s) => {                  // the best denoiser there is, for Gaussian blobs
  const v = std*std+s*s, x0 = x.map((_, i) => 0)
  for (let b = 0; b < x.length; b += 2) {
    const far = centres.map(([p, q]) => -((x[b]-p)**2+(x[b+1]-q)**2)/(2*v)), top = Math.max(...far)
    const w = far.map(o => Math.exp(o-top)), all = w.reduce((a, o) => a+o)
    centres.forEach((m, k) => { for (const c of [0, 1]) x0[b+c] += w[k]/all*(m[c]+std*std/v*(x[b+c]-m[c])) })
  }
  return [x0, x0.map((o, i) => (x[i]-o)/s)]
}

export const BLOBS = [[-1.2, -.6], [0, 1.2], [1.2, -.6]], STD = .12
export function points(kind, rand, normal, n = 1500) {              // training data of that name
  const make = {
    blobs: i => BLOBS[i % 3].map(o => o+STD*normal()),
    moons: i => { const a = Math.PI*rand(), up = i % 2; return [Math.cos(a)*1.1+(up ? -.5 : .5), (up ? 1 : -1)*(Math.sin(a)*1.2-.35)].map(o => o+.06*normal()) },
    spiral: () => { const t = Math.sqrt(rand()), a = 3.6*Math.PI*t; return [Math.cos(a), Math.sin(a)].map(o => 1.6*t*o+.04*normal()) },
  }[kind]
  return Float32Array.from(Array.from({length: n}, (_, i) => make(i)).flat())
}
export const spread = data => Math.max(.1, Math.sqrt(data.reduce((a, v) => a+v*v, 0)/data.length))
