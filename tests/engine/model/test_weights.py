"""Every layout of a checkpoint fills the same parameters; every defect is one clear error."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.config import ModelConfig
from engine.model.checkpoint import CheckpointError
from engine.model.qwen3_5 import Qwen3_5
from engine.model.weights import LoadedModel, load_model
from tests.checkpoints import (
    Oracle,
    Tensors,
    build_checkpoint,
    edit_config,
    edit_tensors,
    load_oracle,
)
from tests.engine.model.driver import Driver

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def load(folder: Path, dtype: str = "auto") -> LoadedModel:
    return load_model(folder, ModelConfig.from_dir(folder), dtype, shows_progress=False)


def parameters(model: Qwen3_5) -> Tensors:
    return model.places()


def assert_same(folder: Path, expected: Tensors) -> None:
    found = parameters(load(folder).model)
    assert found.keys() == expected.keys()
    assert not [name for name in found if not torch.equal(found[name], expected[name])]


def split_experts(tensors: Tensors, layers: range) -> Tensors:
    """Store the experts of these layers one by one."""
    for i in layers:
        prefix = f"model.layers.{i}.mlp.experts"
        gate_up, down = tensors.pop(f"{prefix}.gate_up_proj"), tensors.pop(f"{prefix}.down_proj")
        for e in range(gate_up.shape[0]):
            gate, up = gate_up[e].chunk(2)
            tensors[f"{prefix}.{e}.gate_proj.weight"] = gate.clone()
            tensors[f"{prefix}.{e}.up_proj.weight"] = up.clone()
            tensors[f"{prefix}.{e}.down_proj.weight"] = down[e].clone()
    return tensors


@pytest.fixture
def moe_dir(tiny_moe_dir: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_moe_dir, tmp_path / "moe")


@pytest.fixture
def dense_dir(tiny_dense_dir: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_dense_dir, tmp_path / "dense")


@pytest.fixture
def tied_dir(tmp_path: Path) -> Path:
    return build_checkpoint(tmp_path / "tied", moe=False, tied=True)


@pytest.fixture(scope="module")
def moe_parameters(tiny_moe_dir: Path) -> Tensors:
    return parameters(load(tiny_moe_dir).model)


@pytest.fixture(scope="module")
def dense_parameters(tiny_dense_dir: Path) -> Tensors:
    return parameters(load(tiny_dense_dir).model)


# Layouts


@pytest.mark.parametrize("layout", ["text", "vision"])
@pytest.mark.parametrize("single_experts", [False, True])
@pytest.mark.parametrize("max_shard_size", ["1GB", "100KB"])
def test_layouts_of_transformers(
    tmp_path: Path,
    moe_parameters: Tensors,
    layout: str,
    single_experts: bool,
    max_shard_size: str,
) -> None:
    build_checkpoint(
        tmp_path,
        moe=True,
        layout=layout,  # type: ignore[arg-type]
        single_experts=single_experts,
        max_shard_size=max_shard_size,
    )
    assert (tmp_path / INDEX).is_file() == (max_shard_size == "100KB")
    names = {name for path in tmp_path.glob("*.safetensors") for name in load_file(path)}
    assert ("model.visual.pos_embed.weight" in names) == (layout == "vision")
    assert any(".experts.7.up_proj.weight" in name for name in names) == single_experts
    assert_same(tmp_path, moe_parameters)


def test_dense_with_a_vision_tower(tmp_path: Path, dense_parameters: Tensors) -> None:
    build_checkpoint(tmp_path, moe=False, layout="vision")
    assert_same(tmp_path, dense_parameters)


@pytest.mark.parametrize(
    ("prefix", "head"),
    [
        ("model.language_model.", "lm_head.weight"),
        ("language_model.model.", "language_model.lm_head.weight"),
        ("", "lm_head.weight"),
    ],
)
def test_prefixes(moe_dir: Path, moe_parameters: Tensors, prefix: str, head: str) -> None:
    def rename(tensors: Tensors) -> Tensors:
        renamed = {name.replace("model.", prefix, 1): x for name, x in tensors.items()}
        renamed[head] = renamed.pop("lm_head.weight")
        return renamed

    edit_tensors(moe_dir, rename)
    assert_same(moe_dir, moe_parameters)


def test_fused_experts_may_be_called_weights(moe_dir: Path, moe_parameters: Tensors) -> None:
    def rename(tensors: Tensors) -> Tensors:
        fused = ("experts.gate_up_proj", "experts.down_proj")
        return {name + ".weight" * name.endswith(fused): x for name, x in tensors.items()}

    edit_tensors(moe_dir, rename)
    assert_same(moe_dir, moe_parameters)


def test_layers_may_differ_in_how_they_store_experts(
    moe_dir: Path, moe_parameters: Tensors
) -> None:
    edit_tensors(moe_dir, lambda tensors: split_experts(tensors, range(2, 5)))
    assert_same(moe_dir, moe_parameters)


def test_shards_without_an_index(moe_dir: Path, moe_parameters: Tensors) -> None:
    tensors = list(load_file(moe_dir / WEIGHTS).items())
    for i in range(3):
        save_file(dict(tensors[i::3]), moe_dir / f"part-{i}.safetensors")
    (moe_dir / WEIGHTS).unlink()
    assert_same(moe_dir, moe_parameters)


def test_an_index_decides_between_copies(moe_dir: Path, moe_parameters: Tensors) -> None:
    tensors = load_file(moe_dir / WEIGHTS)
    norm = {"model.norm.weight": tensors.pop("model.norm.weight")}
    stale = {name: torch.zeros_like(x) for name, x in tensors.items() if "layers.0" in name}
    save_file(tensors, moe_dir / "most.safetensors")
    save_file(stale | norm | {"other": torch.zeros(1)}, moe_dir / "norm.safetensors")
    (moe_dir / WEIGHTS).unlink()
    weight_map = dict.fromkeys(tensors, "most.safetensors") | dict.fromkeys(
        norm, "norm.safetensors"
    )
    (moe_dir / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    assert_same(moe_dir, moe_parameters)


def test_dtypes_of_the_decay_and_the_model(moe_dir: Path) -> None:
    """fp32 parameters stay fp32 whatever the file says; the rest takes the model's dtype."""

    def store_as_released(tensors: Tensors) -> Tensors:
        keeps = ("A_log", "linear_attn.norm.weight")
        return {name: x if name.endswith(keeps) else x.bfloat16() for name, x in tensors.items()}

    def round_all(tensors: Tensors) -> Tensors:
        return {name: x.bfloat16() for name, x in tensors.items()}

    for change in (store_as_released, round_all):
        edit_tensors(moe_dir, change)
        edit_config(moe_dir, dtype="bfloat16")
        stored = load_file(moe_dir / WEIGHTS)
        for dtype, expected in (("auto", torch.bfloat16), ("float32", torch.float32)):
            found = parameters(load(moe_dir, dtype).model)
            for name in (
                "norm.weight",
                "layers.0.input_layernorm.weight",
                "layers.0.mlp.experts.down_proj",
                "layers.0.linear_attn.conv1d.weight",
                "layers.3.self_attn.k_norm.weight",
            ):
                assert found[name].dtype == expected
            for name in (
                "layers.0.linear_attn.A_log",
                "layers.0.linear_attn.dt_bias",
                "layers.0.linear_attn.norm.weight",
            ):
                assert found[name].dtype == torch.float32
                assert torch.equal(found[name], stored[f"model.{name}"].float())


def test_unserved_parts_are_skipped_and_logged_once(
    moe_dir: Path, moe_parameters: Tensors, caplog: pytest.LogCaptureFixture
) -> None:
    extra = {
        "mtp.fc.weight": torch.zeros(4, 8),
        "mtp.layers.0.mlp.experts.0.up_proj.weight": torch.zeros(2, 2, dtype=torch.bfloat16),
        "model.visual.pos_embed.weight": torch.zeros(3),
        "visual.merger.norm.bias": torch.zeros(1),
    }
    edit_tensors(moe_dir, lambda tensors: tensors | extra)
    with caplog.at_level(logging.INFO, logger="engine.model.weights"):
        assert_same(moe_dir, moe_parameters)
    assert [record.getMessage() for record in caplog.records] == [
        "not loaded, because not served: 2 vision tensors (16 bytes) "
        "and 2 multi-token prediction tensors (136 bytes)"
    ]


# The vision tower


@pytest.fixture
def vision_dir(tmp_path: Path) -> Path:
    return build_checkpoint(tmp_path / "vision", moe=False, layout="vision")


def without_tower(tensors: Tensors) -> Tensors:
    return {name: x for name, x in tensors.items() if "visual." not in name}


def test_the_tower_is_filled_and_counted(
    vision_dir: Path, dense_parameters: Tensors, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="engine.model.weights"):
        loaded = load(vision_dir)
    assert caplog.records == []
    assert loaded.tower is not None
    stored = load_file(vision_dir / WEIGHTS)
    places = loaded.tower.places()
    assert {f"model.visual.{name}" for name in places} == {n for n in stored if "visual." in n}
    for name, place in places.items():
        assert torch.equal(place, stored[f"model.visual.{name}"])
    assert loaded.num_parameters == sum(x.numel() for x in stored.values())
    assert loaded.weight_bytes == 4 * loaded.num_parameters
    assert_same(vision_dir, dense_parameters)


@pytest.mark.parametrize("prefix", ["visual.", "model.visual.", "model.language_model.visual."])
def test_prefixes_of_the_tower(vision_dir: Path, prefix: str) -> None:
    edit_tensors(
        vision_dir,
        lambda tensors: {n.replace("model.visual.", prefix): x for n, x in tensors.items()},
    )
    assert load(vision_dir).tower is not None


def test_a_tower_that_is_only_configured_is_not_served(
    vision_dir: Path, dense_parameters: Tensors
) -> None:
    edit_tensors(vision_dir, without_tower)
    assert load(vision_dir).tower is None
    assert_same(vision_dir, dense_parameters)


def test_a_tower_may_be_left_out(vision_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = ModelConfig.from_dir(vision_dir)
    with caplog.at_level(logging.INFO, logger="engine.model.weights"):
        loaded = load_model(vision_dir, config, language_model_only=True, shows_progress=False)
    assert loaded.tower is None
    (record,) = caplog.records
    assert record.getMessage().startswith("not loaded, because not served: 33 vision tensors (")
    edit_tensors(vision_dir, without_tower)
    assert loaded.num_parameters == load(vision_dir).num_parameters


def test_half_a_tower_is_refused(vision_dir: Path) -> None:
    def lose_one(tensors: Tensors) -> Tensors:
        del tensors["model.visual.blocks.1.attn.qkv.bias"]
        return tensors

    edit_tensors(vision_dir, lose_one)
    with pytest.raises(
        CheckpointError, match=r"json; 1 missing: visual\.blocks\.1\.attn\.qkv\.bias$"
    ):
        load(vision_dir)


def test_a_tower_of_another_size_is_refused(vision_dir: Path) -> None:
    config = json.loads((vision_dir / "config.json").read_text())
    edit_config(vision_dir, vision_config=config["vision_config"] | {"depth": 1})
    with pytest.raises(CheckpointError, match=r"12 unexpected: model\.visual\.blocks\.1\."):
        load(vision_dir)


# Tied and untied heads


def test_a_tied_head_is_the_embedding(tied_dir: Path) -> None:
    model = load(tied_dir).model
    assert model.head_VD is model.embedding_VD
    ids = list(range(65))
    driver = Driver(model, ModelConfig.from_dir(tied_dir))
    error = driver.prefill(driver.add(ids)) - load_oracle(tied_dir).logits(ids)
    assert error.abs().max().item() < 1e-4


def test_a_tied_head_may_be_stored_all_the_same(
    tied_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def store_head(tensors: Tensors) -> Tensors:
        return tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}

    edit_tensors(tied_dir, store_head)
    model = load(tied_dir).model
    assert model.head_VD is model.embedding_VD
    assert not caplog.records


def test_a_stored_head_that_differs_is_used(
    tied_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    head = torch.randn(512, 64)
    edit_tensors(tied_dir, lambda tensors: tensors | {"lm_head.weight": head})
    model = load(tied_dir).model
    assert torch.equal(model.head_VD, head)
    assert not torch.equal(model.embedding_VD, head)
    assert "differs" in caplog.text


def test_an_untied_head_must_be_there(moe_dir: Path) -> None:
    edit_tensors(
        moe_dir, lambda tensors: {k: x for k, x in tensors.items() if k != "lm_head.weight"}
    )
    with pytest.raises(CheckpointError, match=r"1 missing: lm_head\.weight$"):
        load(moe_dir)


# Facts


@pytest.mark.parametrize("kind", ["moe", "dense"])
def test_facts(request: pytest.FixtureRequest, kind: str) -> None:
    folder: Path = request.getfixturevalue(f"tiny_{kind}_dir")
    oracle: Oracle = request.getfixturevalue(f"tiny_{kind}_oracle")
    loaded = load(folder)
    assert loaded.num_parameters == sum(x.numel() for x in oracle.model.parameters())
    assert loaded.weight_bytes == 4 * loaded.num_parameters
    assert loaded.load_s > 0
    in_bf16 = load(folder, "bfloat16")
    assert in_bf16.num_parameters == loaded.num_parameters
    assert 2 * loaded.num_parameters < in_bf16.weight_bytes < 2.05 * loaded.num_parameters


def test_places_cover_every_parameter_once(tiny_moe_dir: Path) -> None:
    """No byte is filled twice, and none is left as it was allocated."""
    for single in (frozenset[int](), frozenset({0, 3})):
        model = load(tiny_moe_dir).model
        for place in model.places(single).values():
            place.zero_()
        for place in model.places(single).values():
            place += 1
        for layer in model.layers:
            for owner in (layer.mixer, layer.ffn, layer):
                fields = list(vars(owner).values()) + slot_values(getattr(owner, "weights", None))
                tensors = [x for x in fields if isinstance(x, torch.Tensor)]
                assert tensors
                assert all(bool((x == 1).all()) for x in tensors)


def slot_values(weights: object) -> list[object]:
    return [getattr(weights, name) for name in getattr(weights, "__slots__", ())]


def test_progress_goes_to_stderr(tiny_moe_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = ModelConfig.from_dir(tiny_moe_dir)
    load_model(tiny_moe_dir, config, shows_progress=False)
    assert capsys.readouterr() == ("", "")
    load_model(tiny_moe_dir, config)
    out, err = capsys.readouterr()
    assert out == ""
    assert "Loading weights: 100%" in err


def test_an_unknown_dtype_is_refused(tiny_moe_dir: Path) -> None:
    with pytest.raises(ValueError, match="dtype int8 is not one of auto, bfloat16"):
        load(tiny_moe_dir, "int8")


# Weights that do not fit


def test_all_that_does_not_fit_is_said_at_once(moe_dir: Path) -> None:
    def spoil(tensors: Tensors) -> Tensors:
        del tensors["model.norm.weight"]
        del tensors["model.layers.3.self_attn.k_proj.weight"]
        tensors["model.layers.0.linear_attn.A_log"] = torch.zeros(7)
        tensors["model.layers.0.linear_attn.bias"] = torch.zeros(7)
        return tensors

    edit_tensors(moe_dir, spoil)
    with pytest.raises(CheckpointError) as caught:
        load(moe_dir)
    assert str(caught.value) == (
        "the weights do not fit config.json; "
        "2 missing: norm.weight, layers.3.self_attn.k_proj.weight; "
        "1 misshapen: model.layers.0.linear_attn.A_log (expected [4], found [7]); "
        "1 unexpected: model.layers.0.linear_attn.bias"
    )


def test_long_lists_are_cut(moe_dir: Path) -> None:
    edit_tensors(moe_dir, lambda tensors: {k: x for k, x in tensors.items() if "layers" not in k})
    with pytest.raises(CheckpointError, match=r"^.{0,900} and \d+ more$") as caught:
        load(moe_dir)
    assert "layers.0.input_layernorm.weight" in str(caught.value)


def test_one_lost_expert_is_named(moe_dir: Path) -> None:
    def lose_one(tensors: Tensors) -> Tensors:
        tensors = split_experts(tensors, range(8))
        del tensors["model.layers.5.mlp.experts.6.up_proj.weight"]
        return tensors

    edit_tensors(moe_dir, lose_one)
    with pytest.raises(
        CheckpointError, match=r"json; 1 missing: layers\.5\.mlp\.experts\.6\.up_proj\.weight$"
    ):
        load(moe_dir)


def test_experts_stored_both_ways_are_refused(moe_dir: Path) -> None:
    def store_twice(tensors: Tensors) -> Tensors:
        return split_experts(dict(tensors), range(1)) | tensors

    edit_tensors(moe_dir, store_twice)
    with pytest.raises(CheckpointError, match=r"2 unexpected: model\.layers\.0\.mlp\.experts\."):
        load(moe_dir)


def test_another_model_size_is_refused(moe_dir: Path) -> None:
    edit_config(moe_dir, hidden_size=128)
    with pytest.raises(CheckpointError, match=r"misshapen: .*expected \[512, 128\].*\[512, 64\]"):
        load(moe_dir)


def test_one_tensor_under_two_names_is_refused(moe_dir: Path) -> None:
    copy = {"model.language_model.norm.weight": torch.zeros(64)}
    edit_tensors(moe_dir, lambda tensors: tensors | copy)
    with pytest.raises(CheckpointError, match="are the same tensor"):
        load(moe_dir)
