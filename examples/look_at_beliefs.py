"""Train a cascade on handwritten digits, then look at its beliefs and plot them.

    python examples/look_at_beliefs.py
    torchrun --standalone --nproc_per_node=2 examples/look_at_beliefs.py

Each `# %%` begins a cell: VS Code, PyCharm and Spyder run this file cell by cell, as a notebook.
"""

# %% Imports
import os
import sys
from pathlib import Path

import torch
from matplotlib import pyplot as plt

import sidpar
from sidpar.data.datasets import load as load_dataset
from sidpar.train import main as train

# %% Train. All ranks do this; a run that is complete is not trained again.
RUN = Path("runs/look_at_beliefs")
network = ["--model.name=wide_mlp", "--model.width=256", "--model.num_refiners=6"]
train([f"--run.dir={RUN}", "--data.name=digits", "--data.batch_size=64", *network, "--optim.epochs=10"])
if os.environ.get("RANK", "0") != "0":
    sys.exit()  # the rest is for one process

# %% The belief about each test image after each refiner
cascade, preprocessing = sidpar.load(RUN), sidpar.load_preprocessing(RUN)
test = load_dataset("digits").test
images, labels = test.first(len(test)), test.labels  # [N, 1, 8, 8] with values 0..16, and [N]
with torch.no_grad():
    beliefs = cascade.beliefs(preprocessing.normalise(images))  # [L + 1, N, C]; beliefs[0] is uniform
num_refiners = len(beliefs) - 1

# %% Accuracy, and the mean probability of the label, by depth
predicted = beliefs[1:].argmax(-1)  # [L, N]
accuracy = (predicted == labels).float().mean(1)
of_label = beliefs[:, torch.arange(len(labels)), labels].mean(1)
for i in range(num_refiners):
    print(f"refiner {i + 1}: accuracy {accuracy[i]:.3f}, mean probability of the label {of_label[i + 1]:.3f}")

# %% The depth from which on the prediction stays the same: 1 if the first refiner decides, L if the last one does
depths = torch.arange(1, num_refiners + 1)
settled = ((predicted != predicted[-1]) * depths[:, None]).amax(0) + 1
for depth in depths.tolist():
    print(f"settled by refiner {depth}: {int((settled == depth).sum())} of {len(labels)} images")

# %% Plot both, and the beliefs about the four images that settle last
figure = plt.figure(figsize=(10, 5), layout="constrained")
axes = figure.subplot_mosaic("AABB;wxyz")
axes["A"].plot(depths, accuracy, marker="o", label="accuracy")
axes["A"].plot(range(num_refiners + 1), of_label, marker="o", label="mean probability of the label")
axes["A"].set(xlabel="refiners", ylim=(0, 1.02))
axes["A"].legend()
axes["B"].bar(depths, torch.bincount(settled, minlength=num_refiners + 1)[1:])
axes["B"].set(xlabel="refiner from which on the prediction stays", ylabel="images")
for name, k in zip("wxyz", settled.argsort(descending=True).tolist(), strict=False):
    for digit in beliefs[:, k].amax(0).topk(3).indices.tolist():
        axes[name].plot(beliefs[:, k, digit], label=f"{digit}")
    axes[name].set(xlabel="refiners", ylim=(0, 1.02), title=f"a {labels[k]}, test image {k}")
    axes[name].legend(title="belief in")
    corner = axes[name].inset_axes((0.02, 0.68, 0.3, 0.3))
    corner.imshow(images[k, 0], cmap="gray_r")
    corner.set_axis_off()
figure.savefig(RUN / "look_at_beliefs.png", dpi=120)
print(f"drawn: {RUN / 'look_at_beliefs.png'}")
