// All that the pages do by themselves: light terms and variables, copy code, search. No library, no request.

const $$ = (q, e = document) => [...e.querySelectorAll(q)]

// --- equations: a term lights its variable in the code near it, and the other way round

function unlight() { for (const e of $$('.lit')) e.classList.remove('lit') }

function light(el) {
  unlight()
  const near = el.closest('[data-eq]')
  if (!near) return
  const vars = el.dataset.v.split(' '), ids = near.dataset.eq.split(' ')
  for (const id of ids)
    for (const block of $$(`[data-eq~="${id}"]`))
      for (const e of $$('[data-v]', block))
        if (e.dataset.v.split(' ').some(v => vars.includes(v))) e.classList.add('lit')
}

const terms = $$('.eq g[data-v]').map(g => [g, g.getBBox()])     // all measured before the page changes: one layout, not one a term
for (const [g, b] of terms) {                     // a thin letter is hard to meet with a pointer: give it its box
  const r = document.createElementNS('http://www.w3.org/2000/svg', 'rect')
  for (const [k, v] of Object.entries({ x: b.x - 60, y: b.y - 60, width: b.width + 120, height: b.height + 120, rx: 80 })) r.setAttribute(k, v)
  r.setAttribute('class', 'box')
  g.prepend(r)
}
document.addEventListener('pointerover', e => { const t = e.target.closest?.('[data-v]'); t ? light(t) : unlight() })

for (const eq of $$('.eq[tabindex]')) {           // by keyboard: arrows walk through the terms
  let at = -1
  eq.addEventListener('keydown', e => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[e.key]
    if (e.key === 'Escape') unlight()
    if (!step) return
    e.preventDefault()
    const own = $$('g[data-v]', eq)
    if (own.length) light(own[at = (at + step + own.length) % own.length])
  })
  eq.addEventListener('blur', () => { at = -1; unlight() })
}

// --- prose stays beside its code while that is read, and code beside its prose, unless it is taller than the window

function tall() { for (const [e, h] of $$('.row > .prose, .row > .code').map(e => [e, e.offsetHeight])) e.classList.toggle('tall', h > innerHeight - 90) }
addEventListener('resize', tall); addEventListener('load', tall)

// --- copy

document.addEventListener('click', async e => {
  const b = e.target.closest('.copy')
  if (!b) return
  const text = b.parentElement.querySelector('pre').textContent
  try { await navigator.clipboard.writeText(text) }
  catch {                                         // a page opened from a file has no clipboard in some browsers
    const t = Object.assign(document.createElement('textarea'), { value: text })
    document.body.append(t); t.select(); document.execCommand('copy'); t.remove()
  }
  b.textContent = 'Copied'
  setTimeout(() => b.textContent = 'Copy', 1500)
})

// --- contents and search

const toc = document.querySelector('.toc'), box = document.getElementById('search')
const field = box.querySelector('input'), list = box.querySelector('ol'), count = box.querySelector('.count')
document.addEventListener('click', e => { if (toc.open && !toc.contains(e.target)) toc.open = false })
document.addEventListener('keydown', e => {
  if (e.key === 'Escape' && toc.open) { toc.open = false; toc.firstElementChild.focus() }
  if ((e.key === '/' || (e.key === 'k' && (e.ctrlKey || e.metaKey))) && !/input|textarea|select/i.test(e.target.tagName)) { e.preventDefault(); open() }
})
document.getElementById('find').addEventListener('click', open)
box.addEventListener('click', e => { if (e.target === box) box.close() })

const fold = s => s.normalize('NFKD').replace(/\p{M}/gu, '').toLowerCase()
const esc = s => s.replace(/[&<>"]/g, c => ({ '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;' })[c])
let index

function open() {
  if (!box.open) box.showModal()
  field.focus(); field.select()
  if (index || document.getElementById('index')) return
  const s = document.createElement('script')      // a script, not a fetch: it also works from a file
  s.id = 'index'; s.src = 'search.js'
  s.onload = () => { index = SEARCH.map(([url, name, page, text]) => ({ url, name, page, text, n: fold(name), p: fold(page), t: fold(text) })); find() }
  document.head.append(s)
}

function score(r, words) {
  let sum = 0
  for (const w of words) {
    const at = new RegExp('(^|[^\\p{L}\\p{N}])' + w.replace(/[.*+?^${}()|[\]\\]/g, '\\$&'), 'gu')
    const body = (r.t.match(at) || []).length
    const s = (r.n === w ? 120 : 0) + (at.test(r.n) ? 30 : 0) + (r.p.search(at) >= 0 ? 8 : 0) + Math.min(body, 5)*2 + (r.t.includes(w) || r.n.includes(w) ? 1 : 0)
    if (!s) return 0
    sum += s
  }
  return sum
}

function snippet(r, words) {
  const i = Math.max(0, Math.min(...words.map(w => { const k = r.t.indexOf(w); return k < 0 ? 1e9 : k })))
  if (i > 1e8) return esc(r.text.slice(0, 140))
  const from = Math.max(0, i - 50), cut = r.text.slice(from, from + 170)
  const re = new RegExp('(' + words.map(w => w.replace(/[.*+?^${}()|[\]\\]/g, '\\$&')).join('|') + ')', 'gi')
  return (from ? '… ' : '') + esc(cut).replace(re, '<mark>$1</mark>') + ' …'
}

function find() {
  const words = fold(field.value).split(/\s+/).filter(Boolean)
  if (!index || !words.length) { list.replaceChildren(); count.textContent = ''; return }
  const hits = index.map(r => [score(r, words), r]).filter(h => h[0]).sort((a, b) => b[0] - a[0])
  count.textContent = hits.length ? `${hits.length} places` : `Nothing has “${field.value}”.`
  list.innerHTML = hits.slice(0, 30).map(([, r]) =>
    `<li><a href="${r.url}"><b>${esc(r.name)}</b> <span>${esc(r.page)}</span><p>${snippet(r, words)}</p></a></li>`).join('')
}
field.addEventListener('input', find)
list.addEventListener('click', e => { if (e.target.closest('a')) box.close() })
box.addEventListener('keydown', e => {
  const links = $$('a', list), i = links.indexOf(document.activeElement)
  if (e.key === 'ArrowDown' && links.length) { e.preventDefault(); links[Math.min(i + 1, links.length - 1)].focus() }
  if (e.key === 'ArrowUp' && i >= 0) { e.preventDefault(); (links[i - 1] || field).focus() }
  if (e.key === 'Enter' && document.activeElement === field && links.length) links[0].click()
})
