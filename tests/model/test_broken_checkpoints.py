"""Torn, foreign and hostile files are refused by name, run nothing, and leave nothing half written."""

import functools
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save as safetensors_bytes

from mu2llm.model import Mu2ForConditionalGeneration
from mu2llm.model.convert import convert
from mu2llm.model.weights import read_tensors
from tests.model.checkpoints import write


@functools.cache
def whole_file(kind):
    """Once, for torch.save writes addresses into its older layout, which are not always of one length."""
    whole = io.BytesIO()
    tensors = {"a": torch.arange(6.0), "b": torch.ones(2, 2)}
    if kind == "safetensors":
        whole.write(safetensors_bytes(tensors))
    else:
        torch.save(tensors, whole, _use_new_zipfile_serialization=kind == "zip")
    return whole.getvalue()


def drawn_file(single, data):
    return whole_file(data.draw(st.sampled_from(["zip", "old"])) if single.endswith("bin") else "safetensors")


FUZZ = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("fault", ["cut", "preceded", "foreign"])
@pytest.mark.parametrize("single", ["pytorch_model.bin", "model.safetensors"])
@FUZZ
@given(data=st.data())
def test_torn_and_foreign_weights_are_refused_with_their_path(tmp_path, single, fault, data):
    """A whole file that ends anywhere before its end, or has zeros before it; bytes of something else."""
    content = drawn_file(single, data)
    size = data.draw(st.integers(0, len(content) - 1))
    torn = {
        "cut": content[:size],
        "preceded": b"\0" * (size + 1) + content,
        "foreign": data.draw(st.binary(max_size=99)),
    }[fault]
    (tmp_path / single).write_bytes(torn)
    with pytest.raises(ValueError, match="copy it again") as error:
        read_tensors(tmp_path)
    assert str(tmp_path / single) in str(error.value)


@pytest.mark.parametrize("single", ["pytorch_model.bin", "model.safetensors"])
@FUZZ
@given(data=st.data())
def test_a_changed_byte_is_read_or_refused_with_its_path(tmp_path, single, data):
    """Never another error: a byte of a tensor's own makes another number, any other a broken file."""
    content = bytearray(drawn_file(single, data))
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    (tmp_path / single).write_bytes(content)
    try:
        found = read_tensors(tmp_path)
    except ValueError as error:
        assert str(tmp_path / single) in str(error)
    else:
        assert all(isinstance(tensor, torch.Tensor) for tensor in found.values())


class Harm:
    """What a pickle may run."""

    def __reduce__(self):
        return (Path.touch, (Path(self.path),))


@pytest.mark.parametrize("content", ["code", "list", "entry"])
def test_a_bin_file_of_other_things_is_refused(tmp_path, content):
    harm = Harm()
    harm.path = str(tmp_path / "ran")
    held = {"code": {"a": harm}, "list": [torch.ones(1)], "entry": {"a": torch.ones(1), "epoch": 3}}[content]
    torch.save(held, tmp_path / "pytorch_model.bin")
    with pytest.raises(
        ValueError, match=r"pytorch_model\.bin.*(never unpickled|holds a list|'epoch' is a int)"
    ):
        read_tensors(tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("text", ["{", "[]", "\xff\xfe", '"x"', ""])
@pytest.mark.parametrize("file", ["config.json", "model.safetensors.index.json"])
def test_a_broken_json_file_is_named(tmp_path, published, file, text):
    source = write(tmp_path / "source", published, form="safetensors sharded")
    (source / file).write_bytes(text.encode("latin1"))
    with pytest.raises(ValueError, match=f"{re.escape(file)} (is not JSON|holds a)"):
        convert(source, tmp_path / "ours", image_token_id=319)


@pytest.mark.parametrize("index", [{}, {"weight_map": {}}, {"weight_map": {"a": "../a.safetensors"}}])
def test_an_index_that_names_no_files_of_the_folder_is_refused(tmp_path, published, index):
    source = write(tmp_path / "source", published, form="safetensors sharded")
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"index\.json: its weight_map does not say"):
        convert(source, tmp_path / "ours", image_token_id=319)


@pytest.mark.parametrize("existing", [True, False])
def test_a_conversion_that_breaks_off_leaves_nothing(tmp_path, published, existing):
    """Broken off in the middle of the weights, by a limit on a file; the second try succeeds."""
    source = write(tmp_path / "source", published)
    if existing:
        (tmp_path / "ours").mkdir()
    command = [sys.executable, "-m", "mu2llm.cli", "convert", str(source), str(tmp_path / "ours")]
    command += ["--volume-token-id", "319"]
    limit = ["bash", "-c", 'trap "" XFSZ; ulimit -f 512; "$@"', "bash"]
    broken = subprocess.run([*limit, *command], capture_output=True, text=True)
    assert broken.returncode != 0 and broken.stderr.startswith("mu2: error: "), broken.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours"] * existing + ["source"]
    assert not list(tmp_path.glob("ours/*"))
    subprocess.run(command, check=True)
    Mu2ForConditionalGeneration.from_pretrained(tmp_path / "ours")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours", "source"]


def test_a_folder_is_not_taken_for_weights(tmp_path, published):
    source = write(tmp_path / "source", published)
    (source / "model.safetensors").rename(tmp_path / "aside")
    (source / "model.safetensors").mkdir()
    with pytest.raises(ValueError, match=r"model\.safetensors is a folder, not a file of tensors: copy"):
        convert(source, tmp_path / "ours", image_token_id=319)
