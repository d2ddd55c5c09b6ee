"""The rows that the decoder writes at the same time: one joins or leaves at any step.

Keys and values of all rows stand in one buffer a layer, row by row from the left, so every row has positions
of its own and none is padded. A row that leaves is replaced by the last one. Greedy rows write what
`model.generate` writes for each alone; sampled rows draw from generators of their own.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, DynamicLayer

CHUNK = 256  # columns by which the buffers grow


@dataclass(eq=False)
class Row:
    """One text that is being written. `tokens` are its new tokens; the last one has not been read yet."""

    tokens: list[int] = field(default_factory=list)
    temperature: float = 0.0  # 0 is greedy
    generator: torch.Generator | None = None
    length: int = 0  # tokens that have been read, and stand in the buffers


def choose(rows: list[Row], logits: Tensor) -> list[int]:
    """The rows' next tokens, by logits (rows, V): the likeliest, or one drawn at the row's temperature."""
    tokens = logits.argmax(-1).tolist()
    drawn = [place for place, row in enumerate(rows) if row.temperature > 0]
    if drawn:
        heat = torch.tensor([[rows[place].temperature] for place in drawn], device=logits.device)
        chances = (logits[drawn].float() / heat).softmax(-1).cpu()
        for place, row_chances in zip(drawn, chances, strict=True):
            tokens[place] = int(torch.multinomial(row_chances, 1, generator=rows[place].generator))
    return tokens


class _Layer(CacheLayerMixin):
    """One layer's buffers (rows, heads, columns, width). `places` says where each row's next token stands."""

    def __init__(self) -> None:
        super().__init__()
        self.places = torch.zeros(0, dtype=torch.long)
        self.columns = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        raise NotImplementedError("rows join by Batch.join")

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        rows = torch.arange(len(self.places), device=key_states.device)
        assert self.keys is not None and self.values is not None
        self.keys[rows, :, self.places] = key_states[:, :, 0]
        self.values[rows, :, self.places] = value_states[:, :, 0]
        return self.keys[: len(rows), :, : self.columns], self.values[: len(rows), :, : self.columns]

    def resize(self, like: Tensor, like_values: Tensor, rows: int, columns: int) -> None:
        """Makes room, and keeps what stands in the buffers."""
        for name, pattern in (("keys", like), ("values", like_values)):
            old = getattr(self, name)
            new = pattern.new_zeros(rows, len(pattern), columns, pattern.shape[2])
            if old is not None:
                new[:, :, : old.shape[2]] = old
            setattr(self, name, new)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.columns, 0

    def get_seq_length(self) -> int:
        return self.columns

    def get_max_length(self) -> int:
        return -1


@dataclass
class Prompt:
    """A prompt that was read: the next token's logits (1, V), each layer's keys and values (heads, L, d)."""

    logits: Tensor
    layers: list[tuple[Tensor, Tensor]]

    @property
    def length(self) -> int:
        return self.layers[0][0].shape[1]


@torch.inference_mode()
def read(model: Any, input_ids: Tensor, mask: Tensor, visual_tokens: Tensor) -> list[Prompt]:
    """Reads prompts (B, L) with visual tokens (B, Q, D); `mask` is 0 where one is padded on its left."""
    cache = DynamicCache()
    logits = model(
        input_ids=input_ids,
        visual_tokens=visual_tokens,
        attention_mask=mask,
        position_ids=(mask.cumsum(1) - 1).clamp(min=0),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    ).logits[:, -1]
    layers = []
    for layer in cache.layers:
        assert isinstance(layer, DynamicLayer)  # attention, which is all that the decoders have
        assert layer.keys is not None and layer.values is not None
        layers.append((layer.keys, layer.values))
    return [
        Prompt(logits[row, None], [(keys[row, :, start:], values[row, :, start:]) for keys, values in layers])
        for row, start in enumerate(mask.argmax(1).tolist())
    ]


class Batch:
    """At most `size` rows of one model, on its device."""

    def __init__(self, model: Any, size: int):
        self.model = model
        self.size = size
        self.rows: list[Row] = []
        self._layers: list[_Layer] = []

    @torch.inference_mode()
    def join(self, row: Row, prompt: Prompt, max_tokens: int) -> None:
        """Adds a row of at most `max_tokens` new tokens behind a prompt, and chooses the first."""
        assert len(self.rows) < self.size
        row.tokens += choose([row], prompt.logits)
        row.length = prompt.length
        place, room = len(self.rows), prompt.length + max_tokens
        self._layers = self._layers or [_Layer() for _ in prompt.layers]
        for mine, (keys, values) in zip(self._layers, prompt.layers, strict=True):
            if mine.keys is None or mine.keys.shape[2] < room:
                mine.resize(keys, values, self.size, -(-room // CHUNK) * CHUNK)
            assert mine.keys is not None and mine.values is not None
            mine.keys[place, :, : row.length] = keys
            mine.values[place, :, : row.length] = values
        self.rows.append(row)

    @torch.inference_mode()
    def step(self) -> None:
        """Every row reads its last token and chooses one more."""
        device = self.model.device
        tokens = torch.tensor([[row.tokens[-1]] for row in self.rows], device=device)
        places = torch.tensor([row.length for row in self.rows], device=device)
        columns = max(row.length for row in self.rows) + 1
        for layer in self._layers:
            layer.places, layer.columns = places, columns
        logits = self.model.language_model(
            input_ids=tokens,
            attention_mask=self._seen(places, columns),
            position_ids=places[:, None],
            past_key_values=Cache(layers=self._layers),  # type: ignore[arg-type]
            use_cache=True,
        ).logits[:, -1]
        for row, token in zip(self.rows, choose(self.rows, logits), strict=True):
            row.length += 1
            row.tokens.append(token)

    def _seen(self, places: Tensor, columns: int) -> Tensor | dict[str, Tensor]:
        """What is added to each row's scores (rows, 1, 1, columns): 0 up to its own place, within the
        layer's window, and the lowest number beyond. Eager attention would add truth values as 1 and 0."""
        column = torch.arange(columns, device=places.device)
        seen = (column <= places[:, None])[:, None, None]
        decoder = self.model.language_model.config
        window = getattr(decoder, "sliding_window", None)
        if window is None:
            return self._added(seen)
        near = self._added(seen & (column > places[:, None] - window)[:, None, None])
        if "full_attention" in (getattr(decoder, "layer_types", None) or ()):
            return {"full_attention": self._added(seen), "sliding_attention": near}
        return near

    def _added(self, seen: Tensor) -> Tensor:
        dtype = self.model.language_model.dtype
        return torch.zeros_like(seen, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)

    @torch.inference_mode()
    def leave(self, row: Row) -> None:
        """Frees a row's place; the last row moves there. An empty batch gives its memory back."""
        place = self.rows.index(row)
        last = self.rows.pop()
        if not self.rows:
            self._layers = []
        elif last is not row:
            self.rows[place] = last
            for layer in self._layers:
                for buffer in (layer.keys, layer.values):
                    assert buffer is not None
                    buffer[place, :, : last.length] = buffer[len(self.rows), :, : last.length]

    def clear(self) -> None:
        """Drops all rows."""
        self.rows, self._layers = [], []
