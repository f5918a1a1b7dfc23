"`python -m miniai`: the commands, a line each; `--version`: the version"
import sys
from importlib.metadata import entry_points, version

if __name__ == '__main__':
    print('miniai', version('miniai'))
    if '--version' in sys.argv[1:]: sys.exit()
    print('Its commands; each says more with --help:')
    for e in entry_points(group='console_scripts'):
        if e.value.startswith('miniai.'): print(f'  {e.name:18s}{e.load().__doc__}')
