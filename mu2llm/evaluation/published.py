"""Table 1 of the μ²LLM paper (arXiv 2507.00316, version 2), for the page: context, no yardstick."""

# Dataset, model, ROUGE-1, METEOR, BERTScore, GREEN; None is not given.
TABLE_1: tuple[tuple[str, str, float | None, float | None, float | None, float | None], ...] = (
    ("AbdomenAtlas", "LaMed-Phi-3-4B", 0.136, 0.058, 0.807, 0.011),
    ("AbdomenAtlas", "LaMed-Llama-2-7B", 0.139, 0.060, 0.810, 0.009),
    ("AbdomenAtlas", "RadFM-14B", 0.037, 0.013, 0.794, 0.000),
    ("AbdomenAtlas", "RadGPT-N", 0.247, 0.112, None, None),
    ("AbdomenAtlas", "μ²LLM-1B SFT", 0.529, 0.295, 0.891, 0.281),
    ("AbdomenAtlas", "μ²LLM-1B SFT+DPO", 0.567, 0.319, 0.895, 0.346),
    ("CT-RATE", "LaMed-Phi-3-4B", 0.130, 0.050, 0.814, 0.002),
    ("CT-RATE", "LaMed-Llama-2-7B", 0.103, 0.048, 0.815, 0.001),
    ("CT-RATE", "RadFM-14B", 0.054, 0.017, 0.812, 0.014),
    ("CT-RATE", "CT-CHAT-8B", 0.294, 0.221, 0.815, 0.113),
    ("CT-RATE", "μ²LLM-1B SFT", 0.517, 0.330, 0.879, 0.384),
    ("CT-RATE", "μ²LLM-1B SFT+DPO", 0.539, 0.359, 0.890, 0.429),
    ("AMOS-MM", "LaMed-Phi-3-4B", 0.126, 0.047, 0.821, 0.009),
    ("AMOS-MM", "LaMed-Llama-2-7B", 0.163, 0.065, 0.823, 0.009),
    ("AMOS-MM", "RadFM-14B", 0.046, 0.015, 0.812, 0.001),
    ("AMOS-MM", "μ²LLM-1B SFT", 0.421, 0.249, 0.881, 0.339),
    ("AMOS-MM", "μ²LLM-1B SFT+DPO", 0.459, 0.876, 0.881, 0.400),
)

CAVEATS = (
    "GREEN there comes from a language model as judge. Numbers of another judge, such as “rules”, do not "
    "compare with it, and GREEN itself was made for chest X-rays.",
    "The same metric ranked the training pairs of SFT+DPO: part of that gain is the judge's taste.",
    "No intervals, seeds or decoding settings are given, and no floor of blank or shuffled volumes.",
    "The other models were run as published, with a general prompt, against one trained on each dataset. "
    "The scripts beside the paper pass CT-CHAT no image; another paper reports a GREEN of 0.358 for it on "
    "CT-RATE.",
    "METEOR of 0.876 on AMOS-MM stands so in the paper; next to 0.249 it is likely a slip.",
    "The table has no clinical F1. Where others report one for CT-RATE, a model that saw no image came close "
    "to the best.",
)
