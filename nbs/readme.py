"README.md from nbs/index.ipynb, as it was last run: `python nbs/readme.py`, or `make readme` to run it first"
import base64, json, re
from pathlib import Path

def has(src, directive): return re.search(rf'^#\|\s*{directive}\s*$', src, re.M)

def image_path(c): return f'images/index_{c["id"]}.png'

def output(o, c):
    "An output as Markdown: tables as they are, text in a block, images as links; progress bars stay in the notebook"
    data = o.get('data', {})
    if 'image/png' in data: return f'![The output of the code above]({image_path(c)})'
    if 'text/html' in data or '<table' in ''.join(data.get('text/markdown', '')): return ''
    if 'text/markdown' in data: return ''.join(data['text/markdown'])
    text = ''.join(o.get('text') or data.get('text/plain', ''))
    return f'```\n{text.rstrip()}\n```' if text.strip() else ''

def cell(c):
    "A cell as Markdown. `#| hide`: nothing of it; `#| echo: false`: only what it shows"
    src = ''.join(c['source'])
    if c['cell_type'] != 'code': return src
    if has(src, 'hide'): return ''
    shown = '' if has(src, 'echo: *false') else f'```python\n{src}\n```'
    return '\n\n'.join(filter(None, [shown, *(output(o, c) for o in c['outputs'])]))

def render(
    path,  # of the notebook
):
    "The notebook's text, code, tables and printed lines as Markdown, its links made to work from one folder up"
    cells = json.loads(Path(path).read_text(encoding='utf-8'))['cells']
    text = '\n\n'.join(filter(None, (cell(c).strip() for c in cells))) + '\n'
    return re.sub(r'\]\((?!https?:|#|\.\./|/)', '](nbs/', text).replace('](../', '](')

def write_images(
    path,  # of the notebook
):
    "The images among its outputs as files, which the README shows"
    for c in json.loads(Path(path).read_text(encoding='utf-8'))['cells']:
        if c['cell_type'] != 'code' or has(''.join(c['source']), 'hide'): continue
        for o in c['outputs']:
            if (png := o.get('data', {}).get('image/png')):
                (Path(path).parent/image_path(c)).write_bytes(base64.b64decode(''.join(png)))

if __name__ == '__main__':
    here = Path(__file__).resolve().parent
    write_images(here/'index.ipynb')
    (here.parent/'README.md').write_text(render(here/'index.ipynb'), encoding='utf-8')
