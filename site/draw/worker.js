// The network, in a thread of its own. Gets {id, n, seed, labels, w, solver, steps, known, mask}, sends what the loop does.
import {imageNoise} from './noise.js'
import {guided, inpainted, mix, sample, sigmas} from './loop.js'

let net, size, job = 0
const WASM = {wasm: 'ort-wasm-simd-threaded', webgpu: 'ort-wasm-simd-threaded.asyncify'}

async function unpacked(url) {
  const packed = (await fetch(url)).body
  return new Response(packed.pipeThrough(new DecompressionStream('gzip'))).arrayBuffer()
}

async function load() {
  const card = await (await fetch('card.json')).json()
  const gpu = await navigator.gpu?.requestAdapter().catch(() => null)
  const tries = gpu && !gpu.info?.isFallbackAdapter ? ['webgpu', 'wasm'] : ['wasm']
  for (const on of tries) try {
    const ort = await import(`./ort.${on}.min.mjs`)
    ort.env.wasm.numThreads = 1                                    // more would need headers that a plain file server does not send
    ort.env.wasm.wasmBinary = await unpacked(`${WASM[on]}.wasm.packed`)
    ort.env.logLevel = 'error'
    const session = await ort.InferenceSession.create('clothes.onnx', {executionProviders: [on]})
    size = card.size.reduce((a, b) => a*b)
    net = async (x, s, y) => {
      const n = x.length/size, feed = {x: new ort.Tensor('float32', x, [n, ...card.size]),
                                       sigma: new ort.Tensor('float32', new Float32Array(n).fill(s), [n])}
      if (card.n_classes) feed.y = new ort.Tensor('int64', BigInt64Array.from(y, BigInt), [n])
      const out = await session.run(feed)
      return [out.x0.data, out.eps.data]
    }
    const [x0] = await net(Float32Array.from({length: size}, (_, i) => Math.sin(i)), 1, [-1])      // a GPU may fail only now, or be wrong
    if (card.check.some((v, i) => !(Math.abs(v-x0[49*i]) < .02))) throw Error(`${on} does not give Python’s answer`)
    return on
  } catch (e) { if (on == tries.at(-1)) throw e }
}
const ready = load()
ready.then(on => postMessage({on}), e => postMessage({error: String(e?.message ?? e)}))

onmessage = async ({data: d}) => {
  job = d.id
  try {
    await ready
    const none = d.labels.map(() => -1), n = d.labels.length
    let den = guided((x, s) => net(x, s, d.labels), (x, s) => net(x, s, none), d.labels.some(y => y >= 0) ? d.w : 1)
    if (d.mask) den = inpainted(den, d.known, d.mask)
    const levels = sigmas(d.steps), eps = d.noise ?? imageNoise(d.seed, n, size), x = mix(levels[0], eps, 0, eps)
    const watch = o => postMessage({id: d.id, ...o})
    watch({line: 'start', i: 0, calls: 0, s: levels[0], x, x0: new Float32Array(x.length)})
    for await (const _ of sample(den, x, levels, d.solver, {watch})) {
      await new Promise(go => setTimeout(go))                      // lets a newer job in
      if (job != d.id) return
    }
    postMessage({id: d.id, done: true})
  } catch (e) { postMessage({id: d.id, error: String(e?.message ?? e)}) }
}
