"""A small random model's questions, and what it writes."""

TEXTS = ["The lungs are clear. No pleural effusion.", "Cardiomegaly.", "Write the report of this CT."]
QUESTIONS = ["Cardiomegaly?", "Write the report of this CT, please."]


def new_tokens(model, batch, **settings):
    return model.generate(**batch, max_new_tokens=9, **settings)[:, batch["input_ids"].shape[1] :]
