"Everything about the package is in settings.ini; this only reads it."
from configparser import ConfigParser
from pathlib import Path
from setuptools import setup, find_packages

cfg = ConfigParser(); cfg.read(Path(__file__).parent/'settings.ini', encoding='utf-8')
cfg = cfg['DEFAULT']

setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'], keywords=cfg['keywords'],
    author=cfg['author'], license='Apache-2.0', python_requires='>='+cfg['min_python'],
    packages=find_packages(include=['miniai*']), package_data={'miniai': ['weights/*', 'data/*', 'py.typed']},
    install_requires=cfg['requirements'].split(),
    extras_require=dict(dev=cfg['dev_requirements'].split(), lab=cfg['lab_requirements'].split(), track=cfg['track_requirements'].split(), onnx=cfg['onnx_requirements'].split()),
    entry_points=dict(console_scripts=cfg['console_scripts'].split()),
    long_description=(Path(__file__).parent/'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown')
