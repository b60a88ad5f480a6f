"""Every architecture through a file and back: the config, the weights to the bit, the same function."""

import copy
import dataclasses
import re
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slmjax.errors import UserError
from slmjax.formats.catalog import GGUF
from slmjax.formats.gguf import model as gguf
from slmjax.formats.gguf.architectures import ROUNDING, config_to, read_back, written_as
from slmjax.formats.gguf.archs import ARCHS, BY_NAME
from slmjax.formats.gguf.blocks import BLOCK_TYPES
from slmjax.formats.gguf.file import open_gguf
from slmjax.formats.gguf.model import load_gguf, save_gguf
from slmjax.inference.language_model import LanguageModel
from slmjax.models.config import ModelConfig, RopeScaling
from slmjax.models.families.registry import FAMILIES, model_config
from slmjax.models.transformer import Transformer
from slmjax.sharding.mesh import MeshConfig, make_mesh
from slmjax.tokenization.tokenizer import Tokenizer, train_bpe

SIZE = {"vocab_size": 288, "num_layers": 3, "embed_dim": 64, "num_heads": 4, "ffn_dim": 96, "context_length": 64}
RMS = {**SIZE, "num_kv_heads": 2}
LAYER = {**SIZE, "norm": "layer", "norm_bias": True}
PLAIN = {**LAYER, "qkv_bias": True, "attention_output_bias": True, "ffn_bias": True, "gated": False}
GEMMA = {**RMS, "head_dim": 32, "activation": "gelu_tanh", "norm_unit_offset": True, "norm_scale_float32": True}
COHERE = {**RMS, "norm": "layer", "parallel_residual": True, "shared_norm": True}
GEMMA |= {"embedding_multiplier": 8.0}
FACTORS = {
    "short_factor": (1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0),
    "long_factor": (1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 9.0, 9.5),
}

# name -> (architecture that it is written as, switches)
MINIATURES = {
    "llama": ("llama", {**RMS, "tie_embeddings": False, "norm_eps": 1e-6}),
    "llama-biases": ("llama", {**RMS, "qkv_bias": True, "attention_output_bias": True, "ffn_bias": True}),
    "llama-3": ("llama", {**RMS, "rope_theta": 5e5, "rope_scaling": RopeScaling("llama3", 8.0, 32)}),
    "mistral": ("llama", {**RMS, "window": 16, "layer_pattern": ("local",), "head_dim": 8}),
    "linear": ("llama", {**RMS, "rope_scaling": RopeScaling("linear", 4.0)}),
    "yarn": ("llama", {**RMS, "rope_scaling": RopeScaling("yarn", 4.0, 16, beta_fast=16.0, beta_slow=2.0)}),
    "qwen2": ("qwen2", {**RMS, "qkv_bias": True, "rope_theta": 1e6}),
    "qwen3": ("qwen3", {**RMS, "qk_norm": "head", "head_dim": 32, "norm_eps": 1e-6}),
    "gemma": ("gemma", GEMMA),
    "gemma2": (
        "gemma2",
        {**GEMMA, "norm_placement": "sandwich", "window": 8, "layer_pattern": ("local", "global")}
        | {"attention_softcap": 50.0, "logit_softcap": 30.0},
    ),
    "gemma3": (
        "gemma3",
        {**GEMMA, "num_layers": 7, "norm_placement": "sandwich", "qk_norm": "head", "window": 8, "rope_theta": 1e6}
        | {"layer_pattern": ("local",) * 5 + ("global",), "rope_theta_local": 1e4}
        | {"rope_scaling": RopeScaling("linear", 8.0)},
    ),
    "olmo2": (
        "olmo2",
        {**RMS, "norm_placement": "output", "norm_scale_float32": True, "qk_norm": "full", "tie_embeddings": False},
    ),
    "olmo3": (
        "olmo2",
        {**RMS, "num_layers": 5, "norm_placement": "output", "norm_scale_float32": True, "qk_norm": "full"}
        | {"tie_embeddings": False, "window": 8, "layer_pattern": ("local",) * 3 + ("global",), "rope_theta": 5e5}
        | {"rope_theta_local": 5e5, "rope_scaling": RopeScaling("yarn", 4.0, 16)},
    ),
    "exaone4": (
        "exaone4",
        {**RMS, "norm_placement": "output", "qk_norm": "head", "head_dim": 32}
        | {"rope_scaling": RopeScaling("llama3", 16.0, 32)},
    ),
    "exaone4, windows": (
        "exaone4",
        {**RMS, "num_layers": 5, "norm_placement": "output", "qk_norm": "head", "tie_embeddings": False, "window": 8}
        | {"layer_pattern": ("local",) * 3 + ("global",), "rope_pattern": (True, True, True, False)},
    ),
    "hunyuan": ("hunyuan-dense", {**RMS, "qk_norm": "head", "qk_norm_after_rope": True, "head_dim": 32}),
    "openelm": (
        "openelm",
        {**SIZE, "qk_norm": "head", "head_dim": 16, "num_heads": (2, 4, 4), "num_kv_heads": (1, 2, 2)}
        | {"ffn_dim": (64, 96, 128)},
    ),
    "smollm3": ("smollm3", {**RMS, "num_layers": 4, "rope_pattern": (True, True, True, False)}),
    "minicpm": ("minicpm", {**RMS, "embedding_multiplier": 12.0, "residual_multiplier": 0.25, "logit_divisor": 0.5}),
    "granite": (
        "granite",
        {
            **RMS,
            "embedding_multiplier": 12.0,
            "residual_multiplier": 0.22,
            "logit_divisor": 8.0,
            "attention_scale": 0.1,
        },
    ),
    "phi3": ("phi3", {**RMS, "tie_embeddings": False, "rope_scaling": RopeScaling("longrope", 4.0, 16, **FACTORS)}),
    "gpt2": ("gpt2", {**PLAIN, "position": "learned", "activation": "gelu_tanh"}),
    "bloom": ("bloom", {**PLAIN, "position": "alibi", "activation": "gelu_tanh", "embedding_norm": True}),
    "falcon": (
        "falcon",
        {
            **LAYER,
            "num_kv_heads": 1,
            "gated": False,
            "activation": "gelu",
            "parallel_residual": True,
            "shared_norm": True,
        },
    ),
    "falcon-40b": (
        "falcon",
        {**LAYER, "num_kv_heads": 2, "gated": False, "activation": "gelu", "parallel_residual": True},
    ),
    "gptneox": (
        "gptneox",
        {**PLAIN, "rope_fraction": 0.25, "activation": "gelu", "parallel_residual": True, "tie_embeddings": False},
    ),
    "phi2": (
        "phi2",
        {**PLAIN, "rope_fraction": 0.5, "activation": "gelu_tanh", "parallel_residual": True, "shared_norm": True}
        | {"tie_embeddings": False, "head_bias": True},
    ),
    "olmo": ("olmo", {**SIZE, "norm": "layer", "norm_scale": False, "clip_qkv": 8.0}),
    "stablelm": ("stablelm", {**LAYER, "rope_fraction": 0.25, "tie_embeddings": False, "qkv_bias": True}),
    "nemotron": (
        "nemotron",
        {**LAYER, "num_kv_heads": 2, "norm_unit_offset": True, "rope_fraction": 0.5, "activation": "relu2"}
        | {"gated": False, "tie_embeddings": False},
    ),
    "starcoder": ("starcoder", {**PLAIN, "position": "learned", "activation": "gelu_tanh", "num_kv_heads": 1}),
    "starcoder2": ("starcoder2", {**PLAIN, "activation": "gelu_tanh", "num_kv_heads": 2}),
    "mpt": (
        "mpt",
        {**SIZE, "norm": "layer", "gated": False, "activation": "gelu", "position": "alibi", "clip_qkv": 0.25}
        | {"num_heads": 8, "alibi_max_bias": 16.0},
    ),
    "glm4": ("glm4", {**RMS, "head_dim": 24, "norm_placement": "sandwich", "qkv_bias": True, "rope_fraction": 0.5}),
    "chatglm": ("chatglm", {**RMS, "qkv_bias": True, "rope_fraction": 0.5, "tie_embeddings": False}),
    "command-r": ("command-r", {**COHERE, "logit_divisor": 16.0}),
    "cohere2": (
        "cohere2",
        {**COHERE, "num_layers": 5, "logit_divisor": 4.0, "window": 8, "rope_pattern": (True, True, True, False)}
        | {"layer_pattern": ("local", "local", "local", "global")},
    ),
}


@cache
def miniature(name: str) -> tuple[ModelConfig, dict]:
    """A config and random parameters."""
    config = ModelConfig(**MINIATURES[name][1])
    return config, random_params(config)


def random_params(config: ModelConfig) -> dict:
    """Every array is random, gains too, on a grid that adding 1 does not leave."""
    tree = jax.eval_shape(Transformer(config).init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    rng = np.random.default_rng(0)

    def random(leaf):
        return jnp.asarray(np.round(rng.normal(size=leaf.shape) * 2**7) / 2**10, jnp.float32)

    return jax.tree.map(random, tree)


@cache
def small_tokenizer() -> Tokenizer:
    return train_bpe(["the cat sat on the mat and the dog did not, 123 times\n" * 3], 280, progress=False)


# Families, or single models, that no architecture of GGUF expresses, and the switch that is named.
INEXPRESSIBLE = {
    "cerebras-gpt": "activation",
    "lamini-cerebras": "activation",
    "galactica": "activation",
    "opt": "position_offset|its shapes",
    "falcon-rw-1b": "alibi_scaled",
    "dclm": "qk_norm",
    "layer-share": "block_repeats",
    "gpt-neo": "qkv_bias",
    "tinystories": "qkv_bias",
    "gpt-j": "GGUF has no architecture",
    "internlm2": "rope_scaling",
}


def equal_trees(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_every_architecture_has_a_miniature():
    assert {arch for arch, _ in MINIATURES.values()} == {arch.name for arch in ARCHS}


@pytest.mark.filterwarnings("ignore:llama.cpp ignores")
@pytest.mark.parametrize("name", MINIATURES)
def test_config_and_weights_survive_to_the_bit(name, tmp_path):
    config, params = miniature(name)
    path = save_gguf(
        LanguageModel(config=config, params=params, tokenizer=small_tokenizer()),
        tmp_path / "model.gguf",
        dtype="float32",
    )
    assert open_gguf(path).metadata["general.architecture"] == MINIATURES[name][0]
    again = load_gguf(path)
    config2, params2, tokenizer = again.config, again.params, again.tokenizer
    assert config.differences(config2, ignore=ROUNDING, rel_tol=1e-6) == {}
    assert config2 == config
    equal_trees(params2, params)
    assert tokenizer.encode("the cat") == small_tokenizer().encode("the cat")


@pytest.mark.parametrize("name", ["llama", "phi3", "gemma2", "falcon-40b"])
@pytest.mark.parametrize("dtype", GGUF.dtypes)
def test_every_dtype_loads_close_to_what_was_saved(name, dtype, tmp_path):
    config, params = miniature(name)
    path = save_gguf(
        LanguageModel(config=config, params=params, tokenizer=small_tokenizer()), tmp_path / "model.gguf", dtype=dtype
    )
    file = open_gguf(path)
    for tensor, info in file.tensors.items():
        assert len(info.shape) > 1 or info.kind is BLOCK_TYPES["F32"], tensor
    kind = file.tensors["blk.0.attn_output.weight"].kind.name
    wanted = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}.get(dtype, dtype.upper())
    assert kind == wanted
    assert file.tensors["token_embd.weight"].kind.name == ("Q8_0" if dtype[0] == "q" else wanted)
    # A step of the type, for weights of standard deviation 1/8 in blocks of 32.
    step = {"float32": 0, "float16": 1e-4, "bfloat16": 2e-3, "q8_0": 3e-3}.get(
        dtype, 0.04 if dtype.startswith("q5") else 0.08
    )
    params2 = load_gguf(path).params
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=step, rtol=0), params2, params)


def test_written_files_read_in_the_gguf_package(tmp_path):
    package = pytest.importorskip("gguf")
    for name in ("llama-3", "openelm", "gpt2"):
        config, params = miniature(name)
        reader = package.GGUFReader(
            save_gguf(
                LanguageModel(config=config, params=params, tokenizer=small_tokenizer()),
                tmp_path / f"{name}.gguf",
                dtype="q5_1",
            )
        )
        ours = open_gguf(tmp_path / f"{name}.gguf")
        assert {t.name for t in reader.tensors} == set(ours.tensors)
        for tensor in reader.tensors:
            theirs = package.quants.dequantize(tensor.data, tensor.tensor_type)
            np.testing.assert_array_equal(ours.read(tensor.name), theirs)
        assert reader.fields["general.name"].contents() == name
        known = package.get_tensor_name_map(package.MODEL_ARCH[MINIATURES[name][0].upper()], config.num_layers)
        names = {block for _, block in known.mapping.values()}
        assert {t.name.rsplit(".", 1)[0] for t in reader.tensors} - {"rope_freqs"} <= names


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_expressed_or_the_switch_is_named(family):
    for name in FAMILIES[family][1]:
        config = model_config(name)
        switch = next((s for key, s in INEXPRESSIBLE.items() if key in (family, name) or name.endswith(key)), None)
        if switch:
            with pytest.raises(UserError, match=switch):
                config_to(config)
        else:
            assert config.differences(read_back(config, config_to(config)), ignore=ROUNDING, rel_tol=1e-6) == {}


@pytest.mark.parametrize(
    "change",
    [
        {"rope_scaling": RopeScaling("dynamic", 2.0, 32)},
        {"rope_scaling": RopeScaling("llama3", 8.0, 32, low_freq_factor=2.0)},
        {"rope_scaling": RopeScaling("yarn", 8.0, 32, attention_factor=1.5)},
        {"activation": "relu2"},
        {"window": 8, "layer_pattern": ("local", "local", "global")},
        {"final_norm": False},
        {"attention_scale": 0.5, "qk_norm": "head"},
        {"rope_fraction": 0.5, "attention_output_bias": True},
        {"norm_placement": "post"},
    ],
)
def test_a_switch_that_gguf_cannot_express_is_named(change):
    config = ModelConfig(**{**MINIATURES["llama"][1], **change})
    with pytest.raises(UserError, match="|".join(map(re.escape, change))):
        config_to(config)


@pytest.mark.parametrize("original", [8192, 32768, 100, 8193])
@pytest.mark.parametrize("factor", [8.0, 32.0])
@pytest.mark.parametrize("head_dim", [16, 64, 128])
def test_llama3_scaling_is_recovered_from_its_divisors(original, factor, head_dim):
    config = dataclasses.replace(
        model_config("llama-3.2-1b"), head_dim=head_dim, rope_scaling=RopeScaling("llama3", factor, original)
    )
    assert config.differences(read_back(config, config_to(config)), ignore=ROUNDING, rel_tol=1e-6) == {}


def test_general_keys_say_what_the_file_is(tmp_path):
    config, params = miniature("qwen2")
    path = save_gguf(
        LanguageModel(config=config, params=params, tokenizer=small_tokenizer()),
        tmp_path / "model.gguf",
        dtype="q8_0",
        name="Tiny",
        license="mit",
    )
    keys = {key.removeprefix("general."): value for key, value in open_gguf(path).metadata.items()}
    assert (keys["name"], keys["license"], keys["type"], keys["size_label"]) == ("Tiny", "mit", "model", "111K")
    assert (keys["file_type"], keys["quantization_version"]) == (7, 2)


def test_a_window_that_llama_cpp_ignores_is_warned_of(tmp_path):
    config, params = miniature("mistral")
    with pytest.warns(UserWarning, match="beyond 16 tokens"):
        save_gguf(LanguageModel(config=config, params=params, tokenizer=small_tokenizer()), tmp_path / "model.gguf")


def test_rows_of_q_and_k_are_interleaved():
    """Neighbouring rows of the file are the two halves of a head."""
    config, params = miniature("llama")
    entry = next(e for e in config_to(config).entries if e.name == "blk.1.attn_q.weight")
    kernel = np.asarray(params["segment_0"]["block_0"]["attention"]["q_proj"]["kernel"])[1]
    rows = entry.join([kernel])
    np.testing.assert_array_equal(rows[0:2], kernel.T[[0, config.head_dim // 2]])
    np.testing.assert_array_equal(entry.split(rows)[0], kernel)


def test_loading_onto_a_mesh_gives_the_same_numbers(tmp_path):
    config, params = miniature("phi3")
    path = save_gguf(
        LanguageModel(config=config, params=params, tokenizer=small_tokenizer()),
        tmp_path / "model.gguf",
        dtype="float32",
    )
    mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
    sharded = load_gguf(path, mesh=mesh, dtype="bfloat16").params
    equal_trees(sharded, jax.tree.map(lambda x: x.astype(jnp.bfloat16), params))
    kernel = sharded["segment_0"]["block_0"]["feedforward"]["up_proj"]["kernel"]
    assert kernel.addressable_shards[0].data.size * 8 == kernel.size


def test_sharded_parameters_are_saved_whole(tmp_path):
    config, params = miniature("llama")
    path = save_gguf(
        LanguageModel(config=config, params=params, tokenizer=small_tokenizer()), tmp_path / "a.gguf", dtype="float32"
    )
    sharded = load_gguf(path, mesh=make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))).params
    again = save_gguf(
        LanguageModel(config=config, params=sharded, tokenizer=small_tokenizer()),
        tmp_path / "b.gguf",
        dtype="float32",
        name="a",
    )
    assert again.read_bytes() == path.read_bytes()


def test_wrong_dtypes_and_places_are_refused(tmp_path):
    config, params = miniature("llama")
    with pytest.raises(UserError, match="q4_1"):
        save_gguf(
            LanguageModel(config=config, params=params, tokenizer=small_tokenizer()),
            tmp_path / "model.gguf",
            dtype="q3",
        )
    (tmp_path / "precious.txt").write_text("words")
    with pytest.raises(UserError, match="not a GGUF file"):
        save_gguf(LanguageModel(config=config, params=params, tokenizer=small_tokenizer()), tmp_path / "precious.txt")
    large = jax.tree.map(lambda x: x.at[..., 0].set(1e6), params)
    with pytest.raises(UserError, match="too large for f16"):
        save_gguf(
            LanguageModel(config=config, params=large, tokenizer=small_tokenizer()),
            tmp_path / "model.gguf",
            dtype="float16",
        )
    assert [p.name for p in tmp_path.iterdir()] == ["precious.txt"]


# transformers' loader does not read every key: where it does not, the miniature takes what that loader assumes.
ASSUMED = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 128},
    "gemma2": {"head_dim": 256},
    "gemma3": {"head_dim": 256, "rope_scaling": None},
    "phi3": {"rope_scaling": None},
    "gpt2": {"ffn_dim": 256, "context_length": 1024},
    "bloom": {"ffn_dim": 256},
    "falcon": {"ffn_dim": 256},
    "stablelm": {},
    "nemotron": {},
    "starcoder2": {},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ASSUMED)
def test_transformers_computes_the_same_logits_from_our_file(name, tmp_path, monkeypatch):
    pytest.importorskip("gguf")
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = ModelConfig(**{**MINIATURES[name][1], **ASSUMED[name]})
    params = random_params(config)
    tokenizer = copy.copy(small_tokenizer())
    tokenizer.pad_id = tokenizer.eos_id  # phi3's class assumes one beyond our vocabulary
    if name == "phi3":  # without its scaling llama would do, but the point is phi3's fused tensors
        monkeypatch.setattr(gguf, "config_to", lambda c: written_as(c, BY_NAME["phi3"]))
    gguf.save_gguf(
        LanguageModel(config=config, params=params, tokenizer=tokenizer),
        tmp_path / "model.gguf",
        dtype="float32",
        name=name,
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32)
    assert model.config.model_type.startswith(name)
    tokens = np.random.default_rng(1).integers(0, config.vocab_size, (2, 24))
    with torch.no_grad():
        theirs = model.eval()(torch.tensor(tokens)).logits.numpy()
    ours = jax.jit(Transformer(config).apply)({"params": params}, tokens.astype(np.int32))
    np.testing.assert_allclose(np.asarray(ours), theirs, atol=1e-4, rtol=1e-4)
