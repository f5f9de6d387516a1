"""Which tensors an alias names in each architecture, and how plans are read."""

from __future__ import annotations

import numpy as np
import pytest

from laser_kernels.architectures import layer_of
from laser_kernels.checkpoint.shard import Entry
from laser_kernels.errors import CheckpointError
from laser_kernels.selection import Plan, Rule, parse_layers, parse_rank, parse_targets, select

# model_type, what a layer's names begin with, alias -> ends of the names it must select (".weight" added unless "=")
LLAMA = {
    "q_proj": ["self_attn.q_proj"],
    "k_proj": ["self_attn.k_proj"],
    "v_proj": ["self_attn.v_proj"],
    "out_proj": ["self_attn.o_proj"],
    "fc_in": ["mlp.gate_proj"],
    "fc_up": ["mlp.up_proj"],
    "fc_out": ["mlp.down_proj"],
}


def fused(name: str) -> dict[str, list[str]]:
    return {alias: [name] for alias in ("q_proj", "k_proj", "v_proj")}


def experts(pattern: str) -> list[str]:
    return [pattern.format(E=expert) for expert in (0, 1, 11)]


ROTARY = {f"{x}_proj": [f"self_attn.{x}_proj"] for x in "qkv"}
H_4H = {"fc_in": ["mlp.dense_h_to_4h"], "fc_out": ["mlp.dense_4h_to_h"]}
ENCODER = {
    "q_proj": ["attention.self.query"],
    "k_proj": ["attention.self.key"],
    "v_proj": ["attention.self.value"],
    "out_proj": ["attention.output.dense"],
    "fc_in": ["intermediate.dense"],
    "fc_out": ["output.dense"],
}
GPT2 = {**fused("attn.c_attn"), "out_proj": ["attn.c_proj"], "fc_in": ["mlp.c_fc"], "fc_out": ["mlp.c_proj"]}
ARCHITECTURES = {
    **{kind: ("model.layers.", LLAMA) for kind in ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2")},
    "gemma3": ("language_model.model.layers.", LLAMA),
    "gpt2": ("transformer.h.", GPT2),
    "gpt2-bare": ("h.", GPT2),
    "gptj": (
        "transformer.h.",
        {
            **{f"{x}_proj": [f"attn.{x}_proj"] for x in "qkv"},
            **{"out_proj": ["attn.out_proj"], "fc_in": ["mlp.fc_in"], "fc_out": ["mlp.fc_out"]},
        },
    ),
    "opt": (
        "model.decoder.layers.",
        {**ROTARY, "out_proj": ["self_attn.out_proj"], "fc_in": ["fc1"], "fc_out": ["fc2"]},
    ),
    "gpt_neox": (
        "gpt_neox.layers.",
        {**fused("attention.query_key_value"), "out_proj": ["attention.dense"], **H_4H},
    ),
    **{
        kind: (
            "transformer.h.",
            {**fused("self_attention.query_key_value"), "out_proj": ["self_attention.dense"], **H_4H},
        )
        for kind in ("falcon", "bloom")
    },
    "bert": ("bert.encoder.layer.", ENCODER),
    "bert-bare": ("encoder.layer.", ENCODER),
    "roberta": ("roberta.encoder.layer.", ENCODER),
    "phi": (
        "model.layers.",
        {**ROTARY, "out_proj": ["self_attn.dense"], "fc_in": ["mlp.fc1"], "fc_out": ["mlp.fc2"]},
    ),
    "phi3": (
        "model.layers.",
        {
            **fused("self_attn.qkv_proj"),
            "out_proj": ["self_attn.o_proj"],
            **{alias: ["mlp.gate_up_proj"] for alias in ("fc_in", "fc_up")},
            "fc_out": ["mlp.down_proj"],
        },
    ),
    "mixtral": (
        "model.layers.",
        {
            **LLAMA,
            "fc_in": experts("block_sparse_moe.experts.{E}.w1"),
            "fc_up": experts("block_sparse_moe.experts.{E}.w3"),
            "fc_out": experts("block_sparse_moe.experts.{E}.w2"),
        },
    ),
    "qwen3_moe": (
        "model.layers.",
        {
            **LLAMA,
            "fc_in": [*experts("mlp.experts.{E}.gate_proj"), "mlp.shared_expert.gate_proj"],
            "fc_up": [*experts("mlp.experts.{E}.up_proj"), "mlp.shared_expert.up_proj"],
            "fc_out": [*experts("mlp.experts.{E}.down_proj"), "mlp.shared_expert.down_proj"],
        },
    ),
    "deepseek_v3": (
        "model.layers.",
        {
            "q_proj": ["self_attn.q_a_proj", "self_attn.q_b_proj"],
            **{f"{x}_proj": ["self_attn.kv_a_proj_with_mqa", "self_attn.kv_b_proj"] for x in "kv"},
            "out_proj": ["self_attn.o_proj"],
            "fc_in": [*experts("mlp.experts.{E}.gate_proj"), "mlp.shared_experts.gate_proj"],
            "fc_up": [*experts("mlp.experts.{E}.up_proj"), "mlp.shared_experts.up_proj"],
            "fc_out": [*experts("mlp.experts.{E}.down_proj"), "mlp.shared_experts.down_proj"],
        },
    ),
}

# Two-dimensional tensors that no alias may hit, whatever the architecture.
NEVER = [
    "model.embed_tokens.weight",
    "lm_head.weight",
    "transformer.wte.weight",
    "transformer.wpe.weight",
    "bert.embeddings.word_embeddings.weight",
    "pooler.dense.weight",
    "{layer}mlp.gate.weight",
    "{layer}block_sparse_moe.gate.weight",
    "{layer}mlp.shared_expert_gate.weight",
    "{layer}self_attn.q_norm.weight",
    "{layer}input_layernorm.weight",
    "{layer}attn.bias",
    "vision_tower.encoder.layers.0.self_attn.q_proj.weight",
]


def entry(name: str, shape: tuple[int, ...] = (8, 12), dtype: str = "BF16") -> Entry:
    return Entry(name, dtype, shape, 0, 0)


def chosen(entries: list[Entry], config: dict, **rule) -> list[str]:
    plan = Plan((Rule(**{"rank": 2, **rule}),))
    return [target.name for target in select(entries, config, plan).targets]


def checkpoint_of(kind: str, layers: int = 2) -> tuple[list[Entry], dict[str, list[str]]]:
    """All tensors of a small checkpoint, and the names each alias must select."""
    prefix, names = ARCHITECTURES[kind]
    want = {
        alias: [f"{prefix}{layer}.{tail}.weight" for layer in range(layers) for tail in tails]
        for alias, tails in names.items()
    }
    matrices = dict.fromkeys(name for group in want.values() for name in group)
    others = [name.format(layer=f"{prefix}0.") for name in NEVER]
    biases = [name.removesuffix("weight") + "bias" for name in matrices]
    entries = [entry(name) for name in [*matrices, *others]] + [entry(name, (8,)) for name in biases]
    return entries, want


@pytest.mark.parametrize("with_config", [True, False], ids=["config", "names"])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_aliases_select_exactly_their_tensors(kind, with_config):
    entries, want = checkpoint_of(kind)
    config = {"model_type": kind.removesuffix("-bare")} if with_config else {}
    for alias, names in want.items():
        assert sorted(chosen(entries, config, targets=(alias,))) == sorted(names), alias
    attention = {name for alias in ("q_proj", "k_proj", "v_proj", "out_proj") for name in want[alias]}
    mlp = {name for alias in ("fc_in", "fc_up", "fc_out") for name in want.get(alias, [])}
    assert set(chosen(entries, config, targets=("attn",))) == attention
    assert set(chosen(entries, config, targets=("mlp",))) == mlp
    assert set(chosen(entries, config, targets=("all",))) == attention | mlp


@pytest.mark.parametrize("kind", ["qwen3_moe", "mixtral", None])
def test_fused_experts_are_selected_as_a_stack(kind):
    entries = [
        entry("model.layers.0.self_attn.q_proj.weight"),
        entry("model.layers.0.mlp.experts.gate_up_proj", (4, 16, 8)),
        entry("model.layers.0.mlp.experts.down_proj", (4, 8, 8)),
        entry("model.layers.0.mlp.experts.down_proj_bias", (4, 8)),
    ]
    config = {"model_type": kind} if kind else {}
    targets = select(entries, config, Plan((Rule(("mlp",), 0.5),))).targets
    assert [(target.name, target.experts, target.rank) for target in targets] == [
        ("model.layers.0.mlp.experts.gate_up_proj", 4, 4),
        ("model.layers.0.mlp.experts.down_proj", 4, 4),
    ]


def test_the_first_rule_that_matches_decides():
    entries, _ = checkpoint_of("llama", layers=3)
    plan = Plan((Rule(("fc_in",), 1, frozenset({1})), Rule(("mlp",), 2), Rule(("fc_out",), 3)))
    selection = select(entries, {}, plan)
    ranks = {target.name: target.rank for target in selection.targets}
    assert ranks["model.layers.1.mlp.gate_proj.weight"] == 1
    assert ranks["model.layers.0.mlp.gate_proj.weight"] == 2
    assert ranks["model.layers.0.mlp.down_proj.weight"] == 2
    assert len(ranks) == 9
    assert any("rule 3 changes nothing" in note for note in selection.notes)


def test_a_regex_searches_the_name_and_layers_restrict_it():
    entries, _ = checkpoint_of("llama", layers=12)
    assert chosen(entries, {}, targets=("re:lm_head",)) == ["lm_head.weight"]
    assert chosen(entries, {}, targets=(r"re:layers\.1\.mlp.up",)) == ["model.layers.1.mlp.up_proj.weight"]
    every = chosen(entries, {}, targets=("re:.*",), layers=frozenset({1}))
    assert len(every) == 7 and all(layer_of(name) == 1 for name in every)


def test_a_regex_takes_no_vector_convolution_or_integer():
    entries = [
        entry("a.0.norm", (8,)),
        entry("a.0.conv", (8, 4, 3)),
        entry("a.0.ids", (8, 8), "I64"),
        entry("a.0.empty", (0, 8)),
        entry("a.0.w"),
    ]
    assert chosen(entries, {}, targets=("re:.",)) == ["a.0.w"]


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ({"targets": ("re:nothing_like_it",)}, ["re:nothing_like_it", "fc_in", "model.layers.0"]),
        ({"targets": ("fc_in", "re:norm.bias")}, ["re:norm.bias"]),
        ({"targets": ("q_proj",), "layers": frozenset({7})}, ["layers 7", "0-1"]),
        ({"targets": ("q_proj",), "rank": 9}, ["model.layers.0.self_attn.q_proj.weight", "9"]),
    ],
)
def test_what_matches_nothing_or_does_not_fit_is_an_error(rule, words):
    entries, _ = checkpoint_of("llama")
    with pytest.raises(CheckpointError) as caught:
        chosen(entries, {}, **rule)
    for word in words:
        assert word in str(caught.value)


def test_an_alias_the_architecture_lacks_is_an_error():
    entries, _ = checkpoint_of("gpt2")
    with pytest.raises(CheckpointError, match=r"fc_up.*gpt2 architecture has q_proj"):
        chosen(entries, {"model_type": "gpt2"}, targets=("fc_up",))
    with pytest.raises(CheckpointError, match="no known architecture"):
        chosen([entry("some.matrix")], {}, targets=("fc_in",))


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        ("27", {27}),
        ("2-4", {2, 3, 4}),
        ("0, 3-4", {0, 3, 4}),
        (5, {5}),
        ([1, "3-4"], {1, 3, 4}),
        (range(2, 5), {2, 3, 4}),
        ({7}, {7}),
    ],
)
def test_layers(text, layers):
    assert parse_layers(text) == layers


def test_layers_all():
    assert parse_layers("all") is None and parse_layers(None) is None


@pytest.mark.parametrize("text", ["", "a", "4-2", "-1", "1.5", True, "1--2", []])
def test_bad_layers(text):
    with pytest.raises(ValueError, match="layer"):
        parse_layers(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("mlp, q_proj", ("mlp", "q_proj")),
        (r"re:h\.\d{1,2}\.w,attn,re:x", (r"re:h\.\d{1,2}\.w", "attn", "re:x")),
        (["re:a,b", "all"], ("re:a,b", "all")),
    ],
)
def test_targets(text, words):
    assert parse_targets(text) == words


@pytest.mark.parametrize(("text", "hint"), [("fc_inn", "did you mean 'fc_in'"), ("", "no target"), ("re:(", "regular")])
def test_bad_targets(text, hint):
    with pytest.raises(ValueError, match=hint):
        parse_targets(text)


@pytest.mark.parametrize(("rank", "number"), [(np.int64(64), 64), (np.float32(0.25), 0.25), (1.0, 1.0), (1, 1)])
def test_a_rank_may_be_numpys_number(rank, number):
    found = parse_rank(rank)
    assert found == number and type(found) is type(number)


@pytest.mark.parametrize("rank", [0, -3, 0.0, 1.5, True, "64", None, float("nan")])
def test_bad_ranks(rank):
    with pytest.raises(ValueError, match="rank"):
        parse_rank(rank)


def test_plan_from_yaml(tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text('rules:\n- {targets: [fc_in, "re:.*x"], layers: "20-29", rank: 0.1}\n- {targets: attn, rank: 64}\n')
    plan = Plan.from_yaml(path)
    assert plan == Plan((Rule(("fc_in", "re:.*x"), 0.1, frozenset(range(20, 30))), Rule(("attn",), 64)))
    assert Plan.from_dict(plan.as_dict()) == plan


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rules: [{targets: mlp, layer: 3, rank: 2}]", ["'layer'", "did you mean 'layers'", "targets, layers, rank"]),
        ("rulez: []", ["'rulez'", "rules"]),
        ("rules: [{targets: mlp}]", ["lacks 'rank'"]),
        ("rules: []", ["non-empty"]),
        ("- a", ["mapping"]),
        ("a: [", ["plan.yaml"]),
        ("rules: [3]", ["rule 1"]),
    ],
)
def test_a_bad_plan_says_where_and_what_is_known(tmp_path, text, words):
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    with pytest.raises(ValueError) as caught:
        Plan.from_yaml(path)
    for word in ["plan.yaml", *words]:
        assert word in str(caught.value)
