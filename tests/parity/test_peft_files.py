"""Adapters' files both ways: peft writes and we read, we write and peft reads; the same logits in float32.

Every adapter's numbers are random, as if trained; a case that would not change the logits proves nothing and fails.
"""

import functools
import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import slmjax
from slmjax.formats.adapters.adapter import attached
from slmjax.formats.adapters.door import Tuned, adapter_of, family_at, read_adapter, save_as_peft
from slmjax.formats.huggingface import tokenizer as huggingface_tokenizer
from slmjax.models.transformer import Transformer
from slmjax.peft.config import PeftConfig
from slmjax.peft.forward import Network, forward
from slmjax.peft.method import make_method

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
from tests.parity import miniatures as mini  # after the skips: it needs all three

V, D, L, N = mini.VOCAB, 32, 3, 5
TOKENS = mini.random_tokens(2, 12).astype(np.int32)
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
COMMON = {"vocab_size": V, "hidden_size": D, "num_hidden_layers": L, "num_attention_heads": 4}
ROTARY = COMMON | {"intermediate_size": 48, "max_position_embeddings": 64}
GQA = ROTARY | {"num_key_value_heads": 2}
FAMILIES = {
    "llama": ("Llama", GQA | {"tie_word_embeddings": True, "head_dim": 12}),
    "qwen2": ("Qwen2", GQA | {"tie_word_embeddings": False}),
    "gpt2": ("GPT2", {"vocab_size": V, "n_embd": D, "n_layer": L, "n_head": 4, "n_positions": 64}),
    "gpt_neox": ("GPTNeoX", ROTARY | {"rotary_pct": 0.5}),
    "phi3": ("Phi3", GQA | {"pad_token_id": 0, "tie_word_embeddings": False}),
    "falcon": ("Falcon", COMMON | {"new_decoder_architecture": True, "num_kv_heads": 2, "bias": True}),
    "bloom": ("Bloom", {"vocab_size": V, "hidden_size": D, "n_layer": L, "n_head": 4}),
    "gptj": ("GPTJ", {"vocab_size": V, "n_embd": D, "n_layer": L, "n_head": 4, "n_positions": 64, "rotary_dim": 4}),
}
FIVE = ["llama", "qwen2", "gpt2", "gpt_neox", "phi3"]


def cases(names, quick):
    """All of them; those that are not quick are for CI."""
    return [pytest.param(name, marks=[] if name in quick else [pytest.mark.slow]) for name in names]


IA3 = {  # targets, and those of them whose inputs are scaled
    "llama": (["k_proj", "v_proj", "down_proj"], ["down_proj"]),
    "qwen2": (["q_proj", "v_proj", "down_proj"], ["down_proj"]),
    "gpt2": (["c_attn", "mlp.c_proj"], ["mlp.c_proj"]),
    "gpt_neox": (["query_key_value", "dense_4h_to_h"], ["dense_4h_to_h"]),
    "phi3": (["qkv_proj", "gate_up_proj", "down_proj"], ["gate_up_proj", "down_proj"]),
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """bases(family): a directory of a tiny random model of transformers."""

    @functools.cache
    def make(family):
        kind, arguments = FAMILIES[family]
        directory = tmp_path_factory.mktemp(family)
        mini.random_model(getattr(transformers, f"{kind}Config")(**arguments)).save_pretrained(directory)
        huggingface_tokenizer.write(mini.tokenizer(), directory, 64)
        return directory

    return make


def their_base(directory):
    return transformers.AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager").eval()


def trained(base, config, seed=1):
    """A peft model whose adapter is off its start."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tied weights, of Conv1D
        model = peft.get_peft_model(their_base(base), config).eval()
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def their_logits(model):
    return mini.their_logits(model, TOKENS.astype(np.int64))[:, -TOKENS.shape[1] :]


@functools.cache  # by the network: most cases merge into one of the same shapes
def network(config, options):
    return quick_jit(lambda variables: forward(Network(Transformer(config), options), variables, TOKENS))


def our_logits(lm):
    variables = {"params": lm.params} | ({"peft": lm.peft} if lm.peft else {})
    return np.asarray(network(lm.config, lm.options)(variables))


def loaded_by_peft(base, directory):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # peft warns of keys that it misses
        warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True`")
        return peft.PeftModel.from_pretrained(their_base(base), directory).eval()


def assert_both_ways(base, model, directory):
    """What peft wrote gives its logits here, and written by us again, its logits there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(directory / "theirs")
    expected = their_logits(model)
    assert np.abs(expected - their_logits(their_base(base))).max() > 0.05
    lm = slmjax.load(directory / "theirs")
    mini.assert_close(our_logits(lm), expected)
    tuned = read_adapter(directory / "theirs", lambda path: slmjax.load(path, dtype="float32"))
    save_as_peft(tuned, directory / "ours")
    mini.assert_close(their_logits(loaded_by_peft(base, directory / "ours")), expected)
    mini.assert_close(our_logits(slmjax.load(directory / "ours")), expected)
    return lm


def lora(**options):
    return peft.LoraConfig(
        **({"task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 6, "target_modules": "all-linear"} | options)
    )


@pytest.mark.parametrize("family", cases(FAMILIES, FIVE))
def test_lora(bases, family, tmp_path):
    assert_both_ways(bases(family), trained(bases(family), lora()), tmp_path)


@pytest.mark.parametrize("family", cases([*FIVE, "gptj"], ["gpt_neox"]))
def test_dora(bases, family, tmp_path):
    assert_both_ways(bases(family), trained(bases(family), lora(use_dora=True, use_rslora=True)), tmp_path)


def test_lora_with_patterns(bases, tmp_path):
    """Ranks and alphas of some modules and layers, some layers alone, rsLoRA."""
    options = {"rank_pattern": {"up_proj": 2, r"layers\.2\.self_attn\.q_proj": 6}, "alpha_pattern": {"q_proj": 3}}
    config = lora(target_modules=["q_proj", "up_proj"], layers_to_transform=[0, 2], use_rslora=True, **options)
    assert_both_ways(bases("llama"), trained(bases("llama"), config), tmp_path)
    written = json.loads((tmp_path / "ours" / "adapter_config.json").read_text())
    assert written["use_rslora"] and written["rank_pattern"] and written["alpha_pattern"]
    assert len(written["target_modules"]) == 4  # layer by layer, since layer 1 has none


@pytest.mark.parametrize("family", cases(["llama", "qwen2", "gpt2"], ["llama"]))
def test_lora_of_the_ends_and_modules_to_save(bases, family, tmp_path):
    """The table adapted, the head trained wholly (which a tied model's then no longer follows), a norm trained."""
    table, norm = {"gpt2": ("wte", "ln_f")}.get(family, ("embed_tokens", "model.norm"))
    config = lora(target_modules=[table, "c_fc" if family == "gpt2" else "up_proj"], modules_to_save=["lm_head", norm])
    lm = assert_both_ways(bases(family), trained(bases(family), config), tmp_path)
    assert not lm.config.tie_embeddings


@pytest.mark.slow
def test_lora_of_a_tied_table_leaves_the_head_to_itself(bases, tmp_path):
    config = lora(target_modules=["embed_tokens", "q_proj"])
    lm = assert_both_ways(bases("llama"), trained(bases("llama"), config), tmp_path)
    assert not lm.config.tie_embeddings


@pytest.mark.slow
def test_lora_of_the_head(bases, tmp_path):
    assert_both_ways(bases("qwen2"), trained(bases("qwen2"), lora(target_modules=["lm_head", "o_proj"])), tmp_path)


@pytest.mark.slow
def test_biases(bases, tmp_path):
    """lora_bias and trained biases are biases of the base in the end."""
    config = lora(target_modules=["q_proj", "v_proj"], lora_bias=True)
    assert_both_ways(bases("qwen2"), trained(bases("qwen2"), config), tmp_path / "lora_bias")
    config = lora(target_modules=["q_proj", "v_proj"], bias="all")
    assert_both_ways(bases("qwen2"), trained(bases("qwen2"), config), tmp_path / "all")


@pytest.mark.parametrize("family", cases(FIVE, ["llama", "gpt2"]))
def test_ia3(bases, family, tmp_path):
    targets, inputs = IA3[family]
    config = peft.IA3Config(task_type="CAUSAL_LM", target_modules=targets, feedforward_modules=inputs)
    assert_both_ways(bases(family), trained(bases(family), config), tmp_path)


@pytest.mark.parametrize("family", cases([*FIVE, "gptj"], ["llama", "gpt2"]))
def test_prefix_tuning(bases, family, tmp_path):
    """Keys and values at positions 0 to n - 1; the text's are moved on by n."""
    options = {"token_dim": 24, "num_attention_heads": 2} if family == "llama" else {}  # its heads are narrow
    config = peft.PrefixTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=N, prefix_projection=family == "qwen2", **options
    )
    lm = assert_both_ways(bases(family), trained(bases(family), config), tmp_path)
    assert lm.peft["segment_0"]["block_0"]["attention"]["prefix_key"].shape[:2] == (L, N)


@pytest.mark.parametrize("family", cases(FIVE, ["qwen2"]))
def test_prompt_tuning(bases, family, tmp_path):
    """peft's virtual tokens pass through the network with the text; ours leave their keys and values before it."""
    assert_both_ways(
        bases(family),
        trained(bases(family), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=N)),
        tmp_path,
    )


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ["MLP", "LSTM"])
def test_p_tuning(bases, encoder, tmp_path):
    """peft folds the encoder away when it saves, and so do we."""
    config = peft.PromptEncoderConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=N,
        encoder_reparameterization_type=encoder,
        encoder_hidden_size=16,
    )
    assert_both_ways(bases("llama"), trained(bases("llama"), config), tmp_path)


OURS = {
    "lora": {"lora": {"r": 3, "alpha": 5.0}},
    "dora, patterns": {
        "lora": {
            "r": 3,
            "dora": True,
            "targets": ("q_proj", "v_proj", "down_proj"),
            "layers": (0, 2),
            "rank_pattern": (("layers/2/.*", 2),),
        }
    },
    "alphas": {"lora": {"r": 2, "targets": ("q_proj", "k_proj"), "alpha_pattern": (("q_proj", 7.0),), "rslora": True}},
    "pissa": {"lora": {"r": 2, "init": "pissa"}},
    "ends": {
        "lora": {"r": 2, "targets": ("embedder", "v_proj")},
        "train": ("final_norm/scale", "layers/1/ffn_norm/.*"),
    },
    "both": {"lora": {"r": 2, "targets": ("q_proj",)}, "train": ("embedder/embedding", "layers/0/attention/q_proj/.*")},
    "ia3": {},
    "prefix": {"prefix": {"num_virtual_tokens": N, "projection": True, "hidden_size": 16}},
    "prompt": {"prompt": {"num_virtual_tokens": N}},
    "p_tuning": {"p_tuning": {"num_virtual_tokens": N, "hidden_size": 16}},
}


def fine_tuned(base, case):
    """(Tuned, our logits) of a fine-tune that began here, its numbers off their start."""
    lm = slmjax.load(base, dtype="float32")
    method = case if case in ("ia3", "prefix", "prompt", "p_tuning") else "lora"
    config = PeftConfig(method=method, **OURS[case])
    tuning = make_method(config, Transformer(lm.config))
    start, frozen = quick_jit(tuning.split)(lm.params, jax.random.key(0))
    rng = np.random.default_rng(0)
    # Zeros that fill up a smaller rank have no gradient and stay.
    moved = jax.tree.map(lambda x: x + 0.1 * rng.standard_normal(x.shape).astype(np.float32), start)
    moved = jax.tree_util.tree_map_with_path(functools.partial(_kept, start), moved)
    adapter = adapter_of(config, tuning, moved, frozen)
    logits = quick_jit(
        lambda t, f: forward(Network(Transformer(lm.config)), tuning.variables(t, f), jnp.asarray(TOKENS))
    )
    return Tuned(adapter, lm, str(base), family_at(str(base), lm.config, [])), np.asarray(logits(moved, frozen))


def _kept(start, path, leaf):
    """A's columns and B's rows that were zero on both sides."""
    node = start
    for key in path[:-1]:
        node = node[key.key]
    if path[-1].key not in ("lora_a", "lora_b"):
        return leaf
    filled = jnp.any(node["lora_a"] != 0, axis=-2)  # fresh: B is zero everywhere, A only where it fills up
    if not filled.any():  # a table's A starts at zero
        return leaf
    return leaf * (filled[..., None, :] if path[-1].key == "lora_a" else filled[..., :, None])


QUICK = [("llama", "both"), ("gpt_neox", "dora, patterns"), ("phi3", "lora"), ("phi3", "ia3")]
PAIRS = [(family, case) for family in ("llama", "gpt_neox", "phi3") for case in OURS]


@pytest.mark.parametrize(
    ("family", "case"), [pytest.param(*p, marks=[] if p in QUICK else [pytest.mark.slow]) for p in PAIRS]
)
def test_a_fine_tune_of_ours_in_peft(bases, family, case, tmp_path):
    """q, k and v are apart here: on a fused product their terms become blocks."""
    base = bases(family)
    tuned, ours = fine_tuned(base, case)
    plain = our_logits(tuned.base)
    assert np.abs(ours - plain).max() > 0.05
    save_as_peft(tuned, tmp_path / "ours")
    mini.assert_close(their_logits(loaded_by_peft(base, tmp_path / "ours")), ours)
    mini.assert_close(our_logits(attached(tuned.base, tuned.adapter)), ours)
    mini.assert_close(our_logits(slmjax.load(tmp_path / "ours")), ours)


@pytest.mark.slow
def test_merged_models_carry_the_merged_logits(bases, tmp_path):
    model = trained(bases("llama"), lora(target_modules=["embed_tokens", "q_proj"], modules_to_save=["lm_head"]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(tmp_path / "theirs")
    expected = their_logits(model)
    lm = slmjax.load(tmp_path / "theirs")
    slmjax.save(lm, tmp_path / "merged", format="huggingface")
    mini.assert_close(their_logits(their_base(tmp_path / "merged")), expected)
