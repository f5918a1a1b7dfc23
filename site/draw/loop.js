// miniai's one loop and three of its steps. x = x0 + σ·ε as Float32Array; a denoiser is async (x, σ) → [x̂0, ε̂].

export const mix = (a, x, b, y) => x.map((v, i) => a*v + b*y[i])

export function sigmas(n, min = 0.01, max = 80, rho = 7) {          // Karras et al. 2022, eq. (5), then 0
  const at = i => (max**(1/rho) + i*(min**(1/rho) - max**(1/rho)))**rho
  return [...Array.from({length: n}, (_, i) => at(n > 1 ? i/(n-1) : 0)), 0]
}

// A step takes x from noise level s to t. `run(x, s)` calls the denoiser; `run.saw(line, …)` shows who watches what a line made.
export const STEPS = {
  async ddim(run, x, s, t, {eta = 0} = {}) {                        // Song et al. 2020, eq. (12) and (16)
    const [x0, eps] = await run(x, s)
    const up = t && Math.min(eta*t*Math.sqrt(Math.max(1-(t/s)**2, 0)), t)
    x = mix(1, x0, Math.sqrt(t*t-up*up), eps)
    return run.saw('move', t, up ? mix(1, x, up, run.randn()) : x)
  },
  async heun(run, x, s, t) {                                        // Karras et al. 2022, Algorithm 1
    const [x0, eps] = await run(x, s), y = mix(1, x0, t, eps)
    run.saw(t ? 'euler' : 'move', t, y)
    if (!t) return y
    const [, there] = await run(y, t, 'again')
    return run.saw('move', t, mix(1, y, (t-s)/2, mix(1, there, -1, eps)))
  },
  async dpmpp_2m(run, x, s, t) {                                    // Lu et al. 2022, Algorithm 2
    const past = run.past
    let [x0] = await run(x, s)
    if (past && t) {
      const r = Math.log(past.s/s)/Math.log(s/t)                    // last step over this
      x0 = mix(1+1/(2*r), x0, -1/(2*r), past.x0)
      run.saw('line', s, x, x0)
    }
    return run.saw('move', t, mix(t/s, x, 1-t/s, x0), x0)
  },
}

export async function* sample(den, x, levels, step, {randn, watch = () => {}, ...kw} = {}) {
  let i = 0, calls = 0
  const run = async (x, s, line = 'call') => {
    const [x0, eps] = await den(x, s)
    run.past = {s, x0}
    watch({line, i, calls: ++calls, s, x, x0})
    return [x0, eps]
  }
  run.randn = randn
  run.saw = (line, s, x, x0 = run.past.x0) => { watch({line, i, calls, s, x, x0}); return x }
  for (; i+1 < levels.length; i++) {
    x = await STEPS[step](run, x, levels[i], levels[i+1], kw)
    yield {i, calls, s: levels[i+1], x, x0: run.past.x0}
  }
}

// Denoisers round a denoiser.
export const guided = (den, free, w) => w == 1 ? den : async (x, s) => {     // Ho and Salimans 2022, eq. (6)
  const a = await free(x, s), b = await den(x, s)
  return a.map((o, k) => mix(1-w, o, w, b[k]))
}
export const inpainted = (den, known, mask) => async (x, s) => {             // mask: 1 where the image is known
  const [guess] = await den(x, s), x0 = guess.map((v, i) => mask[i] ? known[i] : v)
  return [x0, mix(1/s, x, -1/s, x0)]
}
