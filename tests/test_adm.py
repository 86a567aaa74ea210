"""ADM checkpoints in diffusers' network: golden files, published names, an independent oracle."""

import hashlib
import importlib
import importlib.util
import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file

from mmdiffrep.diffusion import adm, aliases

diffusers = pytest.importorskip('diffusers')
GOLDEN = Path(__file__).parent / 'data' / 'golden'
TOOL = Path(__file__).parents[1] / 'tools' / 'convert_adm.py'
NAMES = ['uncond', 'classcond']


def make_weights(parameters, seed):
    """The golden files' recipe: (name, shape) in order -> state dict."""
    g = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in parameters:
        if len(shape) > 1:
            value = torch.randn(shape, generator=g) / math.prod(shape[1:]) ** 0.5
        elif name.endswith('weight'):
            value = 1 + 0.1 * torch.randn(shape, generator=g)
        else:
            value = 0.1 * torch.randn(shape, generator=g)
        state[name] = value
    return state


class Golden:
    def __init__(self, name):
        with safe_open(str(GOLDEN / f'adm_{name}_tiny.safetensors'), 'pt') as file:
            meta = file.metadata()
            tensors = {key: file.get_tensor(key) for key in file.keys()}
        self.config = json.loads(meta['config'])
        self.state = make_weights(json.loads(meta['parameters']), int(meta['seed']))
        self.inputs = {k[3:]: v for k, v in tensors.items() if k.startswith('in/')}
        self.output = tensors['act/out']
        self.options = dict(
            num_head_channels=self.config['num_head_channels'],
            use_new_attention_order=self.config.get('use_new_attention_order', False),
        )
        self.activations = {}  # by paper alias, with its side
        for key, value in tensors.items():
            if 'block' in key:
                block, side = key.removeprefix('act/').split(':')
                for ours, theirs in (('adm:in', 'input_blocks'), ('adm:out', 'output_blocks'),
                                     ('adm:mid', 'middle_block')):  # fmt: skip
                    block = block.replace(theirs, ours)
                self.activations[f'{block}:{side}'] = value

    def unet(self):
        config = adm.infer_adm_config(shapes_of(self.state), **self.options)
        return build(self.state, config)


def shapes_of(state):
    return {key: tuple(value.shape) for key, value in state.items()}


def build(state, config):
    unet = diffusers.UNet2DModel.from_config(adm.adm_to_diffusers_config(config)).eval()
    unet.load_state_dict(adm.convert_adm_state_dict(state, config))
    return unet


def relative_error(value, expected):
    return ((value - expected).norm() / expected.norm()).item()


@pytest.fixture(scope='module', params=NAMES)
def golden(request):
    return Golden(request.param)


# --- golden files ---------------------------------------------------------------------------------


def test_settings_are_read_from_shapes(golden):
    config = adm.infer_adm_config(shapes_of(golden.state), image_size=32, **golden.options)
    for key, value in golden.config.items():
        assert (list(config[key]) if isinstance(config[key], tuple) else config[key]) == value, key
    assert config['num_classes'] == golden.config.get('num_classes')
    assert adm.adm_scheduler_config(config) == adm.ADM_SCHEDULER_CONFIG


@torch.no_grad()
def test_every_block_by_plain_hooks(golden):
    unet, seen = golden.unet(), {}
    for alias in golden.activations:
        path, _, side = aliases.resolve_alias(alias, unet.config).partition(':')
        module = unet.get_submodule(path)
        if side == 'in':
            module.register_forward_pre_hook(
                lambda _m, args, alias=alias: seen.__setitem__(alias, args[0])
            )
        else:
            module.register_forward_hook(
                lambda _m, _args, out, alias=alias: seen.__setitem__(alias, out)
            )
    x, t, y = golden.inputs['x'], golden.inputs['t'], golden.inputs.get('y')
    output = unet(x, t, class_labels=y).sample
    assert relative_error(output, golden.output) < 1e-5
    assert len(golden.activations) == 4 + 4 + 1 + 4 + 4 and seen.keys() == golden.activations.keys()
    for alias, expected in golden.activations.items():
        assert seen[alias].shape == expected.shape, alias
        assert relative_error(seen[alias], expected) < 1e-5, alias
        assert (seen[alias] - expected).abs().max() < 1e-5 * expected.abs().max(), alias


@pytest.mark.parametrize('suffix', ['.pt', '.safetensors'])
@torch.no_grad()
def test_every_block_through_pixel_unet(golden, tmp_path, suffix):
    pixel_unet = importlib.import_module('mmdiffrep.diffusion.pixel_unet')
    denoiser_module = importlib.import_module('mmdiffrep.diffusion.denoiser')
    file = write_checkpoint(golden.state, tmp_path / f'adm{suffix}')
    denoiser = pixel_unet.PixelUNet(str(file), adm_options=golden.options)
    condition = None
    if 'y' in golden.inputs:
        condition = denoiser_module.Condition(class_ids=golden.inputs['y'])
    found = denoiser.features(
        golden.inputs['x'], golden.inputs['t'].long(), condition, list(golden.activations)
    )
    for alias, expected in golden.activations.items():
        assert relative_error(found[alias], expected) < 1e-5, alias


def write_checkpoint(state, path):
    if path.suffix == '.safetensors':
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


@pytest.fixture(scope='module')
def tool():
    spec = importlib.util.spec_from_file_location('convert_adm', TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def heads_arguments(golden):
    arguments = ['--head-channels', str(golden.options['num_head_channels'])]
    return arguments + ['--new-attention-order'] * golden.options['use_new_attention_order']


@pytest.mark.parametrize('suffix', ['.pt', '.safetensors'])
@torch.no_grad()
def test_round_trip_through_the_tool(golden, tool, tmp_path, suffix):
    file, out = write_checkpoint(golden.state, tmp_path / f'adm{suffix}'), tmp_path / 'out'
    arguments = [str(file), str(out), '--image-size', '32', *heads_arguments(golden)]
    assert tool.main(arguments) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [file.name, 'out']
    unet = diffusers.UNet2DModel.from_pretrained(out, subfolder='unet')
    y = golden.inputs.get('y')
    output = unet(golden.inputs['x'], golden.inputs['t'], class_labels=y).sample
    assert relative_error(output, golden.output) < 1e-5
    scheduler = diffusers.DDPMPipeline.from_pretrained(out).scheduler
    assert scheduler.config.variance_type == 'learned_range'
    assert scheduler.config.beta_schedule == 'linear'
    card = (out / 'README.md').read_text()
    assert hashlib.sha256(file.read_bytes()).hexdigest() in card


def test_tool_writes_half_precision_and_replaces_only_its_own(tool, tmp_path, capsys):
    golden = Golden('uncond')
    file, out = write_checkpoint(golden.state, tmp_path / 'adm.pt'), tmp_path / 'out'
    arguments = [str(file), str(out), '--dtype', 'fp16', *heads_arguments(golden)]
    assert tool.main(arguments) == 0
    with safe_open(str(out / 'unet' / 'diffusion_pytorch_model.safetensors'), 'pt') as weights:
        assert {weights.get_tensor(key).dtype for key in weights.keys()} == {torch.float16}
    assert tool.main(arguments) == 1
    assert 'choose another folder or give --overwrite' in capsys.readouterr().err
    assert tool.main([*arguments, '--overwrite']) == 0
    (tmp_path / 'mine').mkdir()
    assert tool.main([str(file), str(tmp_path / 'mine'), '--overwrite']) == 1
    assert 'not replaced' in capsys.readouterr().err


# --- the published 256² checkpoint ----------------------------------------------------------------


@pytest.fixture(scope='module')
def published():
    text = (GOLDEN / 'adm_256_uncond_keys.json').read_text()
    return {key: tuple(shape) for key, shape in json.loads(text).items()}


def test_all_566_published_parameters_find_their_place(published):
    assert len(published) == 566 and adm.is_adm_state_dict(published)
    config = adm.infer_adm_config(published)
    assert config['channel_mult'] == (1, 1, 2, 2, 4, 4) and config['num_res_blocks'] == 2
    assert config['attention_resolutions'] == (8, 16, 32)  # 32², 16², 8² of 256²
    key_map = adm.adm_key_map(config)
    assert {key: entry.shape for key, entry in key_map.items()} == published
    with torch.device('meta'):
        unet = diffusers.UNet2DModel.from_config(adm.adm_to_diffusers_config(config))
        state = {key: torch.empty(shape) for key, shape in published.items()}
        converted = adm.convert_adm_state_dict(state, config)
    assert shapes_of(converted) == shapes_of(unet.state_dict())
    assert unet.mid_block.attentions[0].heads == 16
    assert unet.mid_block.attentions[0].group_norm is not None


def test_published_blocks_have_the_papers_widths(published):
    """METHODS: output blocks at 256², k -> channels @ side; found on meta tensors."""
    config = adm.adm_to_diffusers_config(adm.infer_adm_config(published))
    with torch.device('meta'):
        unet = diffusers.UNet2DModel.from_config(config)
        x, t = torch.empty(1, 3, 256, 256), torch.zeros(1)
    seen = {}
    for k in range(18):
        path = aliases.resolve_alias(f'adm:out.{k}', config)
        unet.get_submodule(path).register_forward_hook(
            lambda _m, _args, out, k=k: seen.__setitem__(k, (out.shape[1], out.shape[2]))
        )
    unet(x, t)
    table = [(1024, 8)] * 2 + [(1024, 16)] * 3 + [(1024, 32)] + [(512, 32)] * 2 + [(512, 64)] * 3
    table += [(512, 128)] + [(256, 128)] * 2 + [(256, 256)] * 4
    assert [seen[k] for k in range(18)] == table
    assert aliases.resolve_alias('gdc:b24', config) == aliases.resolve_alias('adm:out.4', config)
    assert aliases.resolve_alias('gdc:b1', config) == 'conv_in'
    assert aliases.resolve_alias('gdc:b19', config) == 'mid_block'
    assert aliases.resolve_alias('gdc:b37', config) == aliases.resolve_alias('ddpmseg:17', config)


# --- an independent ADM, straight from its state dict ---------------------------------------------


def oracle(state, x, t, head_channels=None, heads=None, y=None):
    """guided-diffusion's forward: every module is recognised by the parameters it holds."""

    def linear(name, h):
        return F.linear(h, state[f'{name}.weight'], state[f'{name}.bias'])

    def conv(name, h, **kwargs):
        weight = state[f'{name}.weight']
        return F.conv2d(h, weight, state[f'{name}.bias'], padding=weight.shape[-1] // 2, **kwargs)

    def norm(name, h):
        return F.group_norm(h, 32, state[f'{name}.weight'], state[f'{name}.bias'], 1e-5)

    def res(name, h, resize):
        skip, h = resize(h), resize(F.silu(norm(f'{name}.in_layers.0', h)))
        h = conv(f'{name}.in_layers.2', h)
        e = linear(f'{name}.emb_layers.1', F.silu(emb))[..., None, None]
        if e.shape[1] == 2 * h.shape[1]:
            scale, shift = e.chunk(2, 1)
            h = norm(f'{name}.out_layers.0', h) * (1 + scale) + shift
        else:
            h = norm(f'{name}.out_layers.0', h + e)
        h = conv(f'{name}.out_layers.3', F.silu(h))
        if f'{name}.skip_connection.weight' in state:
            skip = conv(f'{name}.skip_connection', skip)
        return skip + h

    def attention(name, h):
        b, c, *size = h.shape
        n = heads or c // head_channels
        qkv = F.conv1d(
            norm(f'{name}.norm', h).flatten(2),
            state[f'{name}.qkv.weight'],
            state[f'{name}.qkv.bias'],
        )
        q, k, v = qkv.reshape(b * n, 3 * c // n, -1).split(c // n, 1)
        weight = torch.softmax(torch.einsum('bct,bcs->bts', q, k) / (c // n) ** 0.5, -1)
        a = torch.einsum('bts,bcs->bct', weight, v).reshape(b, c, -1)
        a = F.conv1d(a, state[f'{name}.proj_out.weight'], state[f'{name}.proj_out.bias'])
        return h + a.view(b, c, *size)

    def block(name, h, resize_at=None, resize=None):
        n = 0
        while any(key.startswith(f'{name}.{n}.') for key in state):
            part = f'{name}.{n}'
            if f'{part}.qkv.weight' in state:
                h = attention(part, h)
            elif f'{part}.in_layers.0.weight' in state:
                h = res(part, h, resize if n == resize_at else lambda z: z)
            elif f'{part}.op.weight' in state:
                h = conv(f'{part}.op', h, stride=2)
            elif f'{part}.conv.weight' in state:
                h = conv(f'{part}.conv', F.interpolate(h, scale_factor=2))
            else:
                h = conv(part, h)
            n += 1
        return h

    count = 1 + max(int(key.split('.')[1]) for key in state if key.startswith('input_blocks'))
    ends = [k for k in range(count) if ends_level(state, k)]  # output blocks with an upsampler
    width = state['time_embed.0.weight'].shape[1]
    angle = t[:, None] * 10000 ** (-torch.arange(width // 2) / (width // 2))
    emb = linear('time_embed.0', torch.cat([angle.cos(), angle.sin()], 1))
    emb = linear('time_embed.2', F.silu(emb))
    if y is not None:
        emb = emb + state['label_emb.weight'][y]
    per_level = count // (len(ends) + 1)
    h, skips = x, []
    for k in range(count):
        down = 0 if k and k % per_level == 0 else None
        h = block(f'input_blocks.{k}', h, down, lambda z: F.avg_pool2d(z, 2))
        skips.append(h)
    h = block('middle_block', h)
    for k in range(count):
        h = torch.cat([h, skips.pop()], 1)
        up = last_part(state, k) if k in ends else None
        h = block(f'output_blocks.{k}', h, up, lambda z: F.interpolate(z, scale_factor=2))
    return conv('out.2', F.silu(norm('out.0', h)))


def last_part(state, k):
    return max(int(key.split('.')[2]) for key in state if key.startswith(f'output_blocks.{k}.'))


def ends_level(state, k):
    names = [
        key for key in state if key.startswith(f'output_blocks.{k}.') and key.split('.')[2] != '0'
    ]
    return any('in_layers' in key or '.conv.' in key for key in names)


VARIANTS = {
    'convolutions resample': dict(resblock_updown=False, attention_resolutions=[2]),
    'no scale-shift': dict(use_scale_shift_norm=False, attention_resolutions=[1, 4]),
    'one head': dict(num_head_channels=-1, num_heads=1, attention_resolutions=[4]),
    'two heads': dict(num_head_channels=-1, num_heads=2, attention_resolutions=[2, 4],
                      channel_mult=[1, 2, 2]),
    'no attention levels': dict(attention_resolutions=[], num_res_blocks=2),
    'one level': dict(attention_resolutions=[1], channel_mult=[1]),
    'classes': dict(attention_resolutions=[2], num_classes=3, out_channels=3,
                    resblock_updown=False),
    'broad first level': dict(attention_resolutions=[1], channel_mult=[1, 3], num_res_blocks=3),
}  # fmt: skip


def variant(name):
    base = dict(
        model_channels=32, out_channels=6, num_res_blocks=1, channel_mult=[1, 2, 1],
        num_head_channels=16, use_scale_shift_norm=True, resblock_updown=True,
    )  # fmt: skip
    return base | VARIANTS[name]


def test_the_oracle_gives_the_golden_output():
    g = Golden('uncond')
    output = oracle(g.state, g.inputs['x'], g.inputs['t'], g.config['num_head_channels'])
    assert relative_error(output, g.output) < 1e-5


@pytest.mark.parametrize('name', VARIANTS)
@torch.no_grad()
def test_variants_equal_the_oracle(name):
    config = variant(name)
    key_map = adm.adm_key_map(config)
    state = make_weights([(key, entry.shape) for key, entry in key_map.items()], 3)
    heads = config.get('num_heads')
    inferred = adm.infer_adm_config(shapes_of(state), num_head_channels=16, num_heads=heads)
    if len(config['channel_mult']) > 1:  # one level has no resampling to read off
        assert adm.adm_key_map(inferred) == key_map
        assert inferred['resblock_updown'] == config['resblock_updown']
    x = torch.randn(2, 3, 8, 12, generator=torch.Generator().manual_seed(0))
    t, y = torch.tensor([3.0, 700.0]), None
    if config.get('num_classes'):
        y = torch.tensor([2, 0])
    output = build(state, inferred)(x, t, class_labels=y).sample
    assert relative_error(output, oracle(state, x, t, 16, heads, y)) < 1e-5


def test_one_tensor_at_a_time_gives_the_whole_dict():
    g = Golden('classcond')
    config = adm.infer_adm_config(shapes_of(g.state), **g.options)
    read, names = adm.adm_reader(g.state.__getitem__, shapes_of(g.state), config)
    whole = adm.convert_adm_state_dict(g.state, config)
    assert names == set(whole)
    assert all(torch.equal(read(name), whole[name]) for name in names)


def test_schedulers():
    config = variant('classes')
    assert adm.adm_scheduler_config(config, 'cosine')['beta_schedule'] == 'squaredcos_cap_v2'
    assert adm.adm_scheduler_config(config)['variance_type'] == 'fixed_large'
    scheduler = adm.adm_scheduler_config(config, diffusion_steps=4000)
    betas = diffusers.DDPMScheduler.from_config(scheduler).betas
    assert len(betas) == 4000 and betas[0].item() == pytest.approx(2.5e-5)
    with pytest.raises(ValueError, match="'linear' and 'cosine'"):
        adm.adm_scheduler_config(config, 'sigmoid')


# --- wrong checkpoints ----------------------------------------------------------------------------


def convert(state, **options):
    options = dict(num_head_channels=16) | options
    return adm.convert_adm_state_dict(state, adm.infer_adm_config(shapes_of(state), **options))


def test_missing_unknown_and_misshaped_parameters_are_named():
    state = Golden('uncond').state
    key = 'output_blocks.1.1.qkv.weight'
    without = {k: v for k, v in state.items() if k != key}
    with pytest.raises(ValueError, match=rf"'{key}' is missing"):
        convert(without)
    with pytest.raises(
        ValueError, match=rf"is missing \(nearest there: \['{key}s'\]\).*'{key}s' is unknown"
    ):
        convert(without | {f'{key}s': state[key]})
    with pytest.raises(
        ValueError, match=rf"'{key}s' is unknown \(nearest in an ADM network like this: \['{key}'"
    ):
        convert(state | {f'{key}s': state[key]})
    with pytest.raises(
        ValueError, match=rf"'{key}' has shape \(192, 64\), expected \(192, 64, 1\)"
    ):
        convert(state | {key: state[key][..., 0]})
    with pytest.raises(ValueError, match="'time_embed.0.weight' is missing.*nearest.*time_embed"):
        convert({k: v for k, v in state.items() if k != 'time_embed.0.weight'})
    without_block = {k: v for k, v in state.items() if not k.startswith('output_blocks.3')}
    with pytest.raises(ValueError, match='4 input and 3 output blocks.*Is the checkpoint complete'):
        convert(without_block)


def test_any_fault_in_any_parameter_is_found():
    golden = Golden('classcond')
    shapes = shapes_of(golden.state)

    def fit(changed):
        config = adm.infer_adm_config(changed, **golden.options)
        adm.check_adm_shapes(changed, adm.adm_key_map(config))

    fit(shapes)
    for key, shape in shapes.items():
        if key != 'label_emb.weight':  # without it, it is a complete unconditional network
            with pytest.raises(ValueError, match='ADM'):
                fit({k: s for k, s in shapes.items() if k != key})
        for wrong in ((), shape[:-1], (*shape, 2), (shape[0] + 1, *shape[1:])):
            if key == 'label_emb.weight' and len(wrong) == 2:
                continue  # another number of classes
            with pytest.raises(ValueError, match='ADM'):
                fit(shapes | {key: wrong})


def test_what_diffusers_cannot_express_is_said():
    def config(name, **changes):
        return adm.adm_to_diffusers_config(variant(name) | changes)

    with pytest.raises(ValueError, match='channel_mult starts with 1'):
        config('one head', model_channels=64, channel_mult=[0.5, 1])
    with pytest.raises(ValueError, match='conv_resample=False'):
        config('convolutions resample', conv_resample=False)
    with pytest.raises(ValueError, match=r'num_heads=2.*one width.*\[32, 64\]'):
        config('two heads', attention_resolutions=[1, 2, 4])
    with pytest.raises(ValueError, match=r'num_head_channels=64.*must divide.*\[32, 64\]'):
        config('convolutions resample', num_head_channels=64)
    with pytest.raises(ValueError, match=r'channels \[48\] are not multiples of 32'):
        config('one head', channel_mult=[1, 1.5, 1])
    with pytest.raises(ValueError, match="UNetModel arguments.*'depth'"):
        config('one head', depth=3)


def test_other_networks_are_no_adm():
    keys = ['time_embed.0.weight', 'input_blocks.0.0.weight', 'middle_block.0.in_layers.0.weight',
            'output_blocks.0.0.in_layers.0.weight']  # fmt: skip
    assert adm.is_adm_state_dict(keys)
    assert not adm.is_adm_state_dict([*keys, 'input_blocks.1.1.transformer_blocks.0.norm1.weight'])
    assert not adm.is_adm_state_dict(['conv_in.weight', 'down_blocks.0.resnets.0.norm1.weight'])


class Payload:
    def __reduce__(self):
        return (exec, ('raise SystemExit("code in a checkpoint was run")',))


def test_tool_refuses_what_it_cannot_read(tool, tmp_path, capsys):
    def error(file):
        assert tool.main([str(file), str(tmp_path / 'out')]) == 1
        assert not (tmp_path / 'out').exists()
        return capsys.readouterr().err

    assert 'no such file' in error(tmp_path / 'absent.pt')
    torch.save({'time_embed.0.weight': Payload()}, tmp_path / 'code.pt')
    message = error(tmp_path / 'code.pt')
    assert 'could run code, so it is refused' in message and 'save_file' in message
    torch.save({'conv_in.weight': torch.zeros(1)}, tmp_path / 'other.pt')
    assert 'is no guided-diffusion U-Net' in error(tmp_path / 'other.pt')
    (tmp_path / 'adm.onnx').touch()
    assert "ends in one of ('.safetensors'" in error(tmp_path / 'adm.onnx')
