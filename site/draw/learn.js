// What field.html begins with: `node site/draw/learn.js` trains a network for each kind of data and writes field.json.
import {writeFileSync} from 'node:fs'
import {Net, points, spread, train} from './net.js'
import {randn, twister} from './noise.js'

const out = {}, N = +(process.argv[2] ?? 3000)
for (const kind of ['blobs', 'moons', 'spiral']) {
  const bits = twister(1), rand = () => bits()/2**32
  let spare = []
  const normal = () => { if (!spare.length) spare = [...randn(bits, 64)]; return spare.pop() }
  const data = points(kind, rand, normal, 4000), sd = +spread(data).toFixed(4), net = new Net(rand)
  let loss = 0
  for (let k = 0; k < N; k++) loss = .98*loss + .02*train(net, data, sd, rand, normal, 128, 4e-3*(1-k/N))
  console.log(kind, loss.toFixed(4))
  out[kind] = {sd, weights: net.give()}
  writeFileSync(new URL('field.json', import.meta.url), JSON.stringify(out))
}
