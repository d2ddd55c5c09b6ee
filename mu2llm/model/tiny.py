"""A small model from nothing: its tokenizer learned from the training texts, its weights random.

For the demo, for tests, and for teams that start from their own data instead of a published checkpoint.
"""

from collections.abc import Iterable

from transformers import PreTrainedTokenizerFast

from mu2llm.model.configuration import Mu2Config, Mu2VisionConfig
from mu2llm.model.modeling import Mu2ForConditionalGeneration
from mu2llm.model.processing import PLACEHOLDER, Mu2Processor
from mu2llm.volume import SOFT_LUNG_WINDOW

SPECIAL = ["<pad>", "<bos>", "<eos>", PLACEHOLDER]


def train_tokenizer(texts: Iterable[str], vocab_size: int = 1024) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: any text round-trips, frequent words are one token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        additional_special_tokens=[PLACEHOLDER],
    )


def build_tiny(
    texts: Iterable[str],
    *,
    size: int = 32,
    depth: int = 32,
    frame_slices: int = 16,
    patch_size: tuple[int, int, int] = (4, 8, 8),
    width: int = 128,
    vision_layers: int = 4,
    text_layers: int = 4,
    num_query_tokens: int = 32,
    num_selected_tokens: int = 64,
    pooling_size: int = 1,
    refiner: str = "residual",
    position: str = "relative",
    selection: str = "soft",
    pooling: str = "dynamic",
    vocab_size: int = 1024,
    max_length: int = 512,
) -> tuple[Mu2ForConditionalGeneration, Mu2Processor]:
    """A random model with a Llama decoder, and its processor, for volumes of `depth` × `size` × `size`.

    `refiner`, `position`, `selection` and `pooling` are `Mu2Config`'s choices.
    """
    tokenizer = train_tokenizer(texts, vocab_size)
    processor = Mu2Processor(
        tokenizer,
        num_query_tokens=num_query_tokens,
        mode="hu",
        window=SOFT_LUNG_WINDOW,
        crop_to_body=False,  # phantoms lie on no table, and fill most of their volumes
        size=size,
        depth=depth,
        frame_slices=frame_slices,
        max_length=max_length,
    )
    config = Mu2Config(
        vision_config=Mu2VisionConfig(
            image_size=(frame_slices, size, size),
            patch_size=patch_size,
            hidden_size=width,
            num_hidden_layers=vision_layers,
            num_attention_heads=4,
            intermediate_size=4 * width,
            image_mean=0.17,
            image_std=0.18,
        ),
        text_config={
            "model_type": "llama",
            "hidden_size": width,
            "intermediate_size": 3 * width,
            "num_hidden_layers": text_layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 2 * max_length,
            "tie_word_embeddings": True,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        pooling_size=pooling_size,
        num_refiner_layers=1,
        num_aggregator_layers=2,
        num_heads=4,
        num_selected_tokens=num_selected_tokens,
        num_query_tokens=num_query_tokens,
        refiner=refiner,
        position=position,
        selection=selection,
        pooling=pooling,
        query_std=0.5,
        output_norm=True,
        image_token_id=processor.image_token_id,
    )
    return Mu2ForConditionalGeneration(config), processor
