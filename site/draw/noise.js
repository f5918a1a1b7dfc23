// The noise that `sample(den, n, seed=seed)` starts from in Python, number for number: NumPy's SeedSequence
// names a generator for each image, torch's Mersenne twister draws from it, Box and Muller make it normal.

export function seedSequence(seed) {                      // np.random.SeedSequence(seed).generate_state(1)[0]
  let c = 0x43b0d7e5
  const scramble = (v, mult) => { v ^= c; c = Math.imul(c, mult); v = Math.imul(v, c); return v ^ v >>> 16 }
  const hash = v => scramble(v, 0x931e8875)
  const mix = (x, y) => { const r = Math.imul(0xca01f9dd, x) - Math.imul(0x4973f715, y) | 0; return r ^ r >>> 16 }
  const pool = [seed | 0, 0, 0, 0].map(hash)
  for (let i = 0; i < 4; i++) for (let j = 0; j < 4; j++) if (i != j) pool[j] = mix(pool[j], hash(pool[i]))
  c = 0x8b51f9dd
  return scramble(pool[0], 0x58f38ded) >>> 0
}

export function twister(seed) {                           // MT19937 (Matsumoto and Nishimura 1998): 32 random bits a call
  const N = 624, M = 397, s = new Uint32Array(N)
  s[0] = seed
  for (let i = 1; i < N; i++) s[i] = Math.imul(1812433253, s[i-1] ^ s[i-1] >>> 30) + i
  let at = N
  const turn = () => {
    for (let k = 0; k < N; k++) {
      const y = s[k] & 0x80000000 | s[(k+1) % N] & 0x7fffffff
      s[k] = s[(k+M) % N] ^ y >>> 1 ^ (y & 1 ? 0x9908b0df : 0)
    }
    at = 0
  }
  return () => {
    if (at >= N) turn()
    let y = s[at++]
    y ^= y >>> 11; y ^= y << 7 & 0x9d2c5680; y ^= y << 15 & 0xefc60000
    return (y ^ y >>> 18) >>> 0
  }
}

export function randn(bits, n) {                          // n standard normal numbers, in sixteens as torch.randn draws them
  const u = new Float32Array(Math.ceil(n/16)*16)
  for (let i = 0; i < u.length; i++) u[i] = (bits() & 0xffffff)/0x1000000
  for (let i = 0; i < u.length; i += 16) for (let j = i; j < i+8; j++) {
    const r = Math.sqrt(-2*Math.log(1-u[j])), angle = 2*Math.PI*u[j+8]
    u[j] = r*Math.cos(angle); u[j+8] = r*Math.sin(angle)
  }
  return u.subarray(0, n)
}

export function imageNoise(seed, n, size) {               // `denoiser.image_noise`: a generator of its own for each image
  const first = seedSequence(seed), x = new Float32Array(n*size)
  for (let i = 0; i < n; i++) x.set(randn(twister((first+i) % 2**32), size), i*size)
  return x
}
