# %% [markdown]
# # A classifier, cell by cell
#
# Editors run this file as a notebook (`# %%` begins a cell), and `python notebook.py` as a script. Beside it lie
# `config.yaml`, which `gpta-local init` writes and you fill in, and the rows that it names.

# %%
from gpta_local import GptaError, Observer, evaluate, load_config, predict, train

config = load_config("config.yaml", {"seed": 1})
print(config.card.description)
for label in config.card.labels or {}:
    print("-", label)

# %% [markdown]
# ## Training
#
# An observer hears how far it is. What is wrong with the configuration or the data is told at once, in one sentence.


# %%
class Progress(Observer):
    def stage(self, title, steps):
        print(f"{title} ({steps} steps)")

    def warn(self, text):
        print("warning:", text)


try:
    train("config.yaml", {"search.round": 2})
except GptaError as problem:
    print(problem)  # search.round: did you mean search.rounds?

result = train("config.yaml", {"seed": 1}, observer=Progress())

# %% [markdown]
# ## What came out
#
# As the last line of a cell `result` shows its verdict and its table; `result.report` is the whole page.

# %%
result

# %%
low, high = result.interval
print(f"{result.accuracy:.3f} ({low:.3f} to {high:.3f}) on {result.measured_on} rows")
for control, of in result.against.items():
    print(f"less {control}: {of.value:+.3f} ({of.low:+.3f} to {of.high:+.3f}), {of.verdict}")
print(result.report)

# %% [markdown]
# ## Label by label, on any file with labels

# %%
figures = evaluate(result.folder, "other.csv")
for label, of in figures["labels"].items():
    print(f"{label}: {of['rows']} rows, precision {of['precision']:.2f}, recall {of['recall']:.2f}")

# %% [markdown]
# ## Labels for new texts
#
# Where the model is unsure, a person looks. The probabilities are calibrated where there were rows to do so.

# %%
texts = ["When does the registry open?", "The lamp before our house is broken."]
for text, found in zip(texts, predict(result.folder, texts), strict=True):
    sure = found.probabilities[found.label]
    print(f"{found.label if sure >= 0.7 else 'ask a person'} ({sure:.2f}): {text}")

# %% [markdown]
# ## The model by itself
#
# A plain folder of sentence-transformers, which needs no gpta-local: `result.model` says where.

# %%
logits = result.load().encode(texts)
print([result.labels[best] for best in logits.argmax(axis=1)])
