"""Pictures of Trackio's dashboard with the three runs of notebook 21 on it: `python experiments/dashboard.py FOLDER`.

FOLDER is the `TRACKIO_DIR` that holds the project 'boots'. Needs Chromium, which works without a screen here. The server is
bound to 127.0.0.1. Writes nbs/images/trackio_metrics.png and trackio_media.png."""
import os, socket, subprocess, sys, tempfile, time, urllib.request
from pathlib import Path

from fastcore.script import call_parse
from PIL import Image

IMAGES = Path(__file__).parents[1]/'nbs/images'
FLAGS = '''headless no-sandbox disable-gpu disable-background-networking disable-quic no-first-run
           disable-component-update disable-sync hide-scrollbars virtual-time-budget=20000'''.split()

def serve(folder, project):
    "Trackio's server for a project, in a process of its own: `(process, port)`"
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    code = f"import trackio; trackio.show(project={project!r}, host='127.0.0.1', server_port={port}, open_browser=False)"
    p = subprocess.Popen([sys.executable, '-c', code], env=os.environ | {'TRACKIO_DIR': str(folder)},
                         stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(600):
        try:
            urllib.request.urlopen(f'http://127.0.0.1:{port}/', timeout=5).close()
            return p, port
        except OSError: time.sleep(0.2)
    p.terminate()
    raise TimeoutError("Trackio's server did not answer within two minutes")

def look(url, path, size='1280,900'):
    "A picture of a page, by Chromium without a screen"
    cmd = ['chromium', *(f'--{o}' for o in FLAGS), f'--user-data-dir={tempfile.mkdtemp()}',
           f'--window-size={size}', f'--screenshot={path}', url]
    subprocess.run(cmd, timeout=300, capture_output=True, check=True)
    im = Image.open(path).convert('RGB')
    im.resize((im.width*3//4, im.height*3//4), Image.Resampling.LANCZOS).quantize(128).save(path, optimize=True)

@call_parse
def main(
    folder:str,             # `TRACKIO_DIR`
    project:str='boots',    # which project
):
    "Keep pictures of the dashboard's two pages"
    server,port = serve(folder, project)
    try:
        for page in ('metrics', 'media'):
            look(f'http://127.0.0.1:{port}/{page}?project={project}', IMAGES/f'trackio_{page}.png')
    finally: server.terminate()
