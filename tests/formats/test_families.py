"""Every named model has a Hugging Face family that says all of it; released configs read as the named models.

Switches that no network of ours has are refused by name, and the names that other files use find their arrays.
"""

import dataclasses
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from slmjax.errors import UserError
from slmjax.formats.huggingface.directory import open_huggingface, read_weights
from slmjax.formats.huggingface.export import family_for
from slmjax.formats.huggingface.families import FAMILIES
from slmjax.models.config import ModelConfig
from slmjax.models.counting import count_parameters
from slmjax.models.families.registry import FAMILIES as NAMED
from slmjax.models.families.registry import model_config
from slmjax.models.parameters import abstract_leaves

NAMES = [name for _, sizes in NAMED.values() for name in sizes]


@pytest.mark.parametrize("name", NAMES)
def test_every_named_model_has_a_family(name):
    family = family_for(model_config(name))
    again = family.config_from(json.loads(json.dumps(family.config_to(model_config(name)))))
    assert count_parameters(again) == count_parameters(model_config(name))


@pytest.mark.parametrize("name", [next(iter(sizes)) for _, sizes in NAMED.values()])
def test_the_tensors_of_a_family_are_the_arrays_of_its_network(name):
    """Every array, every layer of it, once."""
    config = model_config(name)
    named = [(leaf.path, leaf.repeat) for entry in family_for(config).entries(config) for leaf in entry.leaves]
    leaves = abstract_leaves(config).items()
    layers = {path: range(leaf.shape[0]) if path.startswith("segment_") else [None] for path, leaf in leaves}
    assert sorted(named, key=str) == sorted(((p, layer) for p in layers for layer in layers[p]), key=str)


LAMINI = {"activation_function": "gelu_new", "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_inner": None, "n_layer": 12}
LAMINI |= {"n_positions": 1024, "scale_attn_by_inverse_layer_idx": False, "scale_attn_weights": True}
LAMINI |= {"layer_norm_epsilon": 1e-5, "reorder_and_upcast_attn": False, "vocab_size": 50258}
GALACTICA = {"_remove_final_layer_norm": False, "activation_function": "gelu", "do_layer_norm_before": True}
GALACTICA |= {"enable_bias": True, "ffn_dim": 3072, "hidden_size": 768, "layer_norm_elementwise_affine": True}
GALACTICA |= {"learned_embeddings": True, "max_position_embeddings": 2048, "num_attention_heads": 12}
GALACTICA |= {"num_hidden_layers": 12, "scale_embeddings": False, "vocab_size": 50000, "word_embed_proj_dim": 768}
MOBILELLM = {"attention_bias": False, "head_dim": 64, "hidden_act": "silu", "hidden_size": 576, "layer_sharing": True}
MOBILELLM |= {"intermediate_size": 1536, "max_position_embeddings": 2048, "mlp_bias": False, "num_hidden_layers": 30}
MOBILELLM |= {"num_attention_heads": 9, "num_key_value_heads": 3, "rms_norm_eps": 1e-5, "rope_scaling": None}
MOBILELLM |= {"rope_theta": 1e4, "share_embedding": True, "tie_word_embeddings": False, "vocab_size": 32000}
OPENELM = {"activation_fn_name": "swish", "ffn_dim_divisor": 256, "ffn_with_glu": True, "head_dim": 64}
OPENELM |= {"max_context_length": 2048, "model_dim": 1280, "normalization_layer_name": "rms_norm"}
OPENELM |= {"normalize_qk_projections": True, "num_gqa_groups": 4, "num_kv_heads": [3] * 5 + [4] * 7 + [5] * 4}
OPENELM |= {"num_query_heads": [12] * 5 + [16] * 7 + [20] * 4, "num_transformer_layers": 16, "vocab_size": 32000}
OPENELM |= {
    "ffn_multipliers": [0.5, 0.73, 0.97, 1.2, 1.43, 1.67, 1.9, 2.13, 2.37, 2.6, 2.83, 3.07, 3.3, 3.53, 3.77, 4.0]
}
OPENELM |= {"rope_freq_constant": 10000, "rope_max_length": 4096, "share_input_output_layers": True}
DCLM = {"apply_qk_norm": True, "attn_activation": None, "attn_seq_scalar": None, "dim": 2048, "moe_freq": 0}
DCLM |= {"ffn_type": "swiglu_torch", "n_heads": 16, "n_layers": 24, "norm_eps": 1e-5, "post_embed_norm": False}
DCLM |= {"positional_embedding_type": "rotary", "qk_norm": True, "seq_len": 2048, "vocab_size": 50432}
DCLM |= {"weight_tying": False}
MINICPM = {"attention_bias": False, "dim_model_base": 256, "hidden_act": "silu", "hidden_size": 1536}
MINICPM |= {"intermediate_size": 3840, "max_position_embeddings": 4096, "num_attention_heads": 24}
MINICPM |= {"num_hidden_layers": 52, "num_key_value_heads": 8, "rms_norm_eps": 1e-5, "rope_scaling": None}
MINICPM |= {"rope_theta": 1e4, "scale_depth": 1.4, "scale_emb": 12, "vocab_size": 73440}
FALCON = {"alibi": False, "bias": False, "hidden_size": 4544, "layer_norm_epsilon": 1e-5, "multi_query": True}
FALCON |= {"new_decoder_architecture": False, "num_attention_heads": 71, "num_hidden_layers": 32}
FALCON |= {"parallel_attn": True, "vocab_size": 65024}

TINY_STORIES = {"activation_function": "gelu_new", "attention_layers": ["global", "local"] * 4, "hidden_size": 64}
TINY_STORIES |= {"attention_types": [[["global", "local"], 4]], "intermediate_size": None, "window_size": 256}
TINY_STORIES |= {"layer_norm_epsilon": 1e-5, "max_position_embeddings": 2048, "num_heads": 16, "num_layers": 8}
GPTJ = {"activation_function": "gelu_new", "n_embd": 4096, "n_head": 16, "n_inner": None, "n_layer": 28}
GPTJ |= {"n_positions": 2048, "rotary": True, "rotary_dim": 64, "scale_attn_weights": True, "vocab_size": 50400}
STARCODER = {"activation_function": "gelu_pytorch_tanh", "multi_query": True, "n_embd": 2048, "n_head": 16}
STARCODER |= {"n_inner": 8192, "n_layer": 24, "n_positions": 8192, "scale_attn_weights": True, "vocab_size": 49152}
STARCODER_2 = {"hidden_act": "gelu_pytorch_tanh", "hidden_size": 3072, "intermediate_size": 12288, "use_bias": True}
STARCODER_2 |= {"max_position_embeddings": 16384, "num_attention_heads": 24, "num_hidden_layers": 30}
STARCODER_2 |= {"num_key_value_heads": 2, "rope_theta": 999999.4420358813, "sliding_window": 4096}
STARCODER_2 |= {"norm_epsilon": 1e-5, "norm_type": "layer_norm", "mlp_type": "default", "vocab_size": 49152}
MPT_ATTENTION = {"alibi": True, "alibi_bias_max": 16, "attn_impl": "torch", "attn_pdrop": 0, "clip_qkv": 6}
MPT_ATTENTION |= {"attn_type": "multihead_attention", "prefix_lm": False, "qk_ln": False, "softmax_scale": None}
MPT = {"attn_config": MPT_ATTENTION, "d_model": 4096, "expansion_ratio": 4, "logit_scale": None, "max_seq_len": 65536}
MPT |= {"n_heads": 32, "n_layers": 32, "no_bias": True, "norm_type": "low_precision_layernorm", "vocab_size": 50432}
MPT |= {"learned_pos_emb": True}
GLM_4 = {"attention_bias": True, "head_dim": 128, "hidden_size": 4096, "intermediate_size": 13696, "rms_norm_eps": 1e-5}
GLM_4 |= {"max_position_embeddings": 32768, "num_attention_heads": 32, "num_hidden_layers": 40, "rope_theta": 1e4}
GLM_4 |= {"num_key_value_heads": 2, "partial_rotary_factor": 0.5, "vocab_size": 151552}
COMMAND_R7B = {"hidden_size": 4096, "intermediate_size": 14336, "layer_norm_eps": 1e-5, "layer_switch": 4}
COMMAND_R7B |= {"logit_scale": 0.25, "max_position_embeddings": 132096, "num_attention_heads": 32}
COMMAND_R7B |= {"num_hidden_layers": 32, "num_key_value_heads": 8, "rope_theta": 50000, "sliding_window": 4096}
COMMAND_R7B |= {"rotary_pct": 1.0, "use_qk_norm": False, "vocab_size": 256000}
INTERNLM_2 = {"bias": False, "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 8192, "rms_norm_eps": 1e-5}
INTERNLM_2 |= {"max_position_embeddings": 32768, "num_attention_heads": 16, "num_hidden_layers": 24}
INTERNLM_2 |= {"num_key_value_heads": 8, "rope_scaling": {"type": "dynamic", "factor": 2.0}, "rope_theta": 1000000}
INTERNLM_2 |= {"vocab_size": 92544, "tie_word_embeddings": False}

# (model_type, what the released config.json says of the network, the name we have for it)
RELEASED = [
    ("gpt2", LAMINI, "lamini-gpt-124m"),
    ("opt", GALACTICA, "galactica-125m"),
    ("mobilellm", MOBILELLM, "mobilellm-125m-layer-share"),
    ("openelm", OPENELM, "openelm-270m"),
    ("openlm", {"params": None, **DCLM, "norm_type": "gain_only_lp_layer_norm"}, "dclm-1b"),
    ("openlm", {"params_args_dict": {**DCLM, "model_norm": "gain_only_lp_layer_norm"}}, "dclm-1b"),
    ("minicpm", MINICPM, "minicpm-1b"),
    ("falcon", FALCON, "falcon-7b"),
    ("gpt_neo", TINY_STORIES, "tinystories-1m"),
    ("gptj", GPTJ, "gpt-j-6b"),
    ("gpt_bigcode", STARCODER, "starcoderbase-1b"),
    ("starcoder2", STARCODER_2, "starcoder2-3b"),
    ("mpt", MPT, "mpt-7b-storywriter"),
    ("glm4", GLM_4, "glm-4-9b-0414"),
    ("cohere2", COMMAND_R7B, "command-r7b"),
    ("internlm2", INTERNLM_2, "internlm2-1.8b"),
]


@pytest.mark.parametrize(("model_type", "values", "name"), RELEASED)
def test_released_configs_are_the_named_models(model_type, values, name):
    named = model_config(name)
    read = FAMILIES[model_type].config_from(values)
    assert dataclasses.replace(read, init_std=named.init_std, init_scale_residual=named.init_scale_residual) == named


REFUSED = [
    ("gpt2", {**LAMINI, "scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
    ("gpt2", {**LAMINI, "n_layer": "12"}, "num_hidden_layers"),
    ("opt", {**GALACTICA, "learned_embeddings": False}, "learned_embeddings"),
    ("bloom", {"apply_residual_connection_post_layernorm": True}, "apply_residual_connection_post_layernorm"),
    ("phi", {"qk_layernorm": True}, "qk_layernorm"),
    ("stablelm", {"qk_layernorm": True}, "qk_layernorm"),
    ("olmo", {"clip_qkv": "much"}, "clip_qkv"),
    ("openelm", {**OPENELM, "ffn_multipliers": [0.5, 4.0]}, "ffn_multipliers"),
    ("openelm", {**OPENELM, "normalize_qk_projections": False}, "normalize_qk_projections"),
    ("openlm", {**DCLM, "norm_type": "rms_norm"}, "norm_type"),
    ("openlm", {**DCLM, "norm_type": "gain_only_lp_layer_norm", "apply_qk_norm": False}, "qk_norm and apply_qk_norm"),
    ("minicpm", {**MINICPM, "hidden_act": "fatrelu"}, "hidden_act"),
    ("minicpm", {**MINICPM, "dim_model_base": 0}, "dim_model_base"),
    ("gpt_neo", {**TINY_STORIES, "num_layers": 7}, "attention_types gives 8 layers; num_layers says 7"),
    ("gpt_neo", {**TINY_STORIES, "attention_types": [[["global", "sparse"], 4]]}, "attention_types"),
    ("gpt_neo", {**TINY_STORIES, "attention_types": [[["global"], 10**9]]}, "attention_types"),
    ("gpt_neo", {**TINY_STORIES, "attention_types": 8}, "attention_types"),
    ("gpt_neo", {**TINY_STORIES, "window_size": "wide"}, "window_size"),
    ("gptj", {**GPTJ, "rotary_dim": None}, "rotary_dim is null"),
    ("gptj", {**GPTJ, "rotary_dim": 512}, "rope_fraction"),
    ("gpt_bigcode", {**STARCODER, "add_cross_attention": True}, "add_cross_attention"),
    ("mpt", {**MPT, "attn_config": {**MPT_ATTENTION, "alibi": False}}, "alibi is False"),
    ("mpt", {**MPT, "attn_config": {**MPT_ATTENTION, "qk_ln": True}}, "qk_ln"),
    ("mpt", {**MPT, "attn_config": {**MPT_ATTENTION, "attn_type": "multiquery_attention"}}, "attn_type"),
    ("mpt", {**MPT, "attn_config": {**MPT_ATTENTION, "alibi_bias_max": 0}}, "alibi_max_bias"),
    ("mpt", {**MPT, "no_bias": False}, "no_bias"),
    ("mpt", {**MPT, "logit_scale": "inv_sqrt_d_model"}, "logit_scale"),
    ("mpt", {**MPT, "norm_type": "rmsnorm"}, "norm_type"),
    ("cohere", {"logit_scale": 0}, "logit_scale"),
    ("cohere2", {**COMMAND_R7B, "layer_types": ["full_attention"]}, "layer_types"),
]


@pytest.mark.parametrize(("model_type", "values", "key"), REFUSED)
def test_what_no_network_of_ours_has_is_refused_by_name(model_type, values, key):
    with pytest.raises(UserError, match=key):
        FAMILIES[model_type].config_from(values)


def tensors_of(model_type: str, config: ModelConfig) -> dict[str, np.ndarray]:
    """Random tensors of a network, under the names that the family writes."""
    rng, shapes = np.random.default_rng(0), abstract_leaves(config)

    def draw(leaf):
        shape = shapes[leaf.path].shape
        return rng.standard_normal(shape if leaf.repeat is None else shape[1:]).astype(np.float32)

    entries = FAMILIES[model_type].entries(config)
    return {e.name: np.ascontiguousarray(e.join([draw(leaf) for leaf in e.leaves])) for e in entries}


TINY = {"vocab_size": 11, "hidden_size": 8, "rotary_pct": 0.5, "num_hidden_layers": 1, "num_attention_heads": 2}
MASK = np.ones((1, 1, 4, 4), np.uint8)
BARE_GPT2 = {"h.0.attn.bias": MASK, "h.0.attn.masked_bias": np.float32([-1e4])}
# (model_type, config, what its names begin with, what other files' begin with, what else lies there)
SPELLINGS = [
    ("gpt2", {**TINY, "max_position_embeddings": 8}, "transformer.", "", BARE_GPT2),
    ("opt", {**TINY, "ffn_dim": 16, "max_position_embeddings": 8, "word_embed_proj_dim": 8}, "model.", "", {}),
    ("bloom", TINY, "transformer.", "", {}),
    (
        "gpt_neox",
        {**TINY, "intermediate_size": 16},
        "embed_out.",
        "lm_head.",
        {"gpt_neox.layers.0.attention.bias": MASK},
    ),
    (
        "openlm",
        {**DCLM, "norm_type": "gain_only_lp_layer_norm", "dim": 8, "n_heads": 2, "n_layers": 1},
        "model.",
        "",
        {},
    ),
]


@pytest.mark.parametrize(("model_type", "values", "prefix", "other", "more"), SPELLINGS)
def test_other_spellings_are_the_same_tensors(model_type, values, prefix, other, more, tmp_path):
    values = {"model_type": model_type, **values}
    tensors = tensors_of(model_type, FAMILIES[model_type].config_from(values))
    respelled = {other + n.removeprefix(prefix) if n.startswith(prefix) else n: x for n, x in tensors.items()}
    assert respelled.keys() != tensors.keys()
    found = []
    for name, files in (("written", tensors), ("other", respelled | more)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(values))
        save_file(files, tmp_path / name / "model.safetensors")
        found.append(read_weights(open_huggingface(tmp_path / name)))
    assert jax.tree.all(jax.tree.map(np.array_equal, *found))


@pytest.mark.parametrize("model_type", ["bloom", "gpt_neox"])
def test_a_fused_tensor_of_the_wrong_size_is_named(model_type, tmp_path):
    values = {"model_type": model_type, "intermediate_size": 32, **TINY}
    tensors = tensors_of(model_type, FAMILIES[model_type].config_from(values))
    wrong = next(name for name in tensors if "query_key_value.weight" in name)
    tensors[wrong] = np.ascontiguousarray(tensors[wrong][:-1])
    (tmp_path / "config.json").write_text(json.dumps(values))
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"query_key_value.weight has shape \[23, 8\]"):
        open_huggingface(tmp_path)
