"Every name that SPEC §1 promises imports from its module and says what it is"
import importlib, inspect
import pytest

NAMES = {
    'core': 'def_device to_device to_cpu set_seed save load at_scale run_scale how_run log_record read_records Table',
    'datasets': '''inplace collate_dict DataLoaders show_image subplots get_grid show_images TensorLoader
                   fashion_mnist fashion_arrays fashion_dls to_unit to_uint8 read_idx check_md5 find_data cifar10_arrays''',
    'conv': 'conv def_device to_device collate_device',
    'learner': '''Learner TrainLearner MomentumLearner Callback CancelFitException CancelBatchException CancelEpochException
                  with_cbs run_cbs SingleBatchCB MetricsCB DeviceCB TrainCB ProgressCB LRFinderCB lr_find''',
    'checkpoint': 'CheckpointCB',
    'activations': 'Hook Hooks HooksCallback ActivationStats',
    'init': 'GeneralRelu init_weights lsuv_init BatchTransformCB get_model conv',
    'sgd': 'BaseSchedCB BatchSchedCB EpochSchedCB HasLearnCB RecorderCB',
    'resnet': 'ResBlock act_gr',
    'augment': '''show_image_batch CapturePreds capture_preds rand_erase RandErase rand_copy RandCopy Dropout Dropout2d FlipCB get_preds''',
    'diffusion': 'Level levels Form FORMS as_form ddpm noisify NoiseCB DDPMCB sample_loop step_ddpm prediction',
    'denoiser': 'Denoiser WrappedDenoiser clip_x0 unmix sample_ddpm image_noise as_denoiser',
    'accel': 'MixedPrecision AccelerateCB EMACB ClipGradCB',
    'fid': 'ImageEval',
    'ddim': 'step_ddim subsequence sample_ddim',
    'schedules': 'abar inv_abar linear_gamma cosine_gamma sigmoid_gamma log_snr cosine sample_grid',
    'karras': '''sigmas_karras sample sample_euler sample_euler_ancestral sample_heun sample_lms sample_dpmpp_2m scalings denoise edm
                 step_heun step_churn step_lms step_dpmpp_2m''',
    'solvers': 'SOLVERS get_solver sample invert flow step_dpmpp_3m step_unipc step_ipndm logsnr_grid',
    'learned': 'LearnedSolver fit_solver keep_solver',
    'flow': 'flow_grid flow_logit straightness coupling CouplingCB MeanFlowCB MeanDenoiser step_leap',
    'bridge': 'from_diffusers to_diffusers',
    'recipes': 'small_unet diffusion_learner load_denoiser save_denoiser reference_eval score suggest_sigmas measured_form Card',
    'cli': 'train sample_images evaluate quickstart',
    'unet': 'UNet load_unet weights_names',
    'watching': 'EarlyStopCB SaveBestCB SaveGridCB ScoreCB',
    'tracking': 'TrackerCB WandBCB TrackioCB TensorBoardCB JSONLCB SaveGridCB LiveGridCB NotifyCB'}
METHODS = {'Learner': 'fit callback one_epoch lr_find summary show_image_batch capture_preds', 'DataLoaders': 'from_dd',
           'ActivationStats': 'color_dim dead_chart plot_stats', 'RecorderCB': 'plot'}
ALL = [(m,n) for m,ns in NAMES.items() for n in ns.split()]

@pytest.mark.parametrize('module,name', ALL, ids=[f'{m}.{n}' for m,n in ALL])
def test_name(module, name):
    o = getattr(importlib.import_module(f'miniai.{module}'), name)
    assert o is not None
    if inspect.isroutine(o) or inspect.isclass(o): assert inspect.getdoc(o)

@pytest.mark.parametrize('cls', METHODS)
def test_methods(cls):
    import miniai.imports as im
    for nm in METHODS[cls].split(): assert inspect.getdoc(getattr(getattr(im, cls), nm)), nm

def test_nothing_exported_is_none():
    from common import MODULES
    mods = [importlib.import_module(f'miniai.{p.stem}') for p in MODULES]
    assert not [(m.__name__,k) for m in mods for k in m.__all__ if getattr(m, k) is None]

def test_imports_hide_nothing():
    "The prelude's names are those that it writes out, and none is Python's own"
    import builtins, miniai.imports as im
    assert len(set(im.__all__)) == len(im.__all__) and not [k for k in im.__all__ if hasattr(builtins, k)]
    assert all(hasattr(im, k) for k in im.__all__)
    common = 'train zero parts watch save load level step public table flow table cosine'.split()
    assert not set(common) & set(im.__all__)

def test_one_device_and_one_conv():
    from miniai import conv, core, init, datasets
    assert conv.def_device is core.def_device is datasets.def_device and conv.to_device is core.to_device
    assert init.conv is conv.conv

def test_commands_lead_to_functions():
    from configparser import ConfigParser
    from common import ROOT
    cfg = ConfigParser(); cfg.read(ROOT/'settings.ini', encoding='utf-8')
    cmds = cfg['DEFAULT']['console_scripts'].split(); assert cmds
    for c in cmds:
        module,func = c.split('=')[1].split(':'); assert inspect.getdoc(getattr(importlib.import_module(module), func))
