"""Ask about a picture, decode with a contrast, and look at where the model looked. Runs without downloads.

python examples/ask_and_look.py
"""

import mmattn
from mmattn.grounding import save_overlay
from mmattn.scenes import dataset

model = mmattn.load("scenes-llava")
picture = sorted(dataset("val").images.iterdir())[0]

caption = model.generate(picture, "Describe the image.", max_new_tokens=64)[0]
print("plain:", caption.text)
print("vcd:  ", model.generate(picture, "Describe the image.", method="vcd", max_new_tokens=64)[0].text)

# Attention of every word of the answer: (layers, heads, words, image tokens), and its map in original pixels.
looked = model.attend(picture, "Describe the image.", caption)
layer, head = model.localisation_head or (None, None)
print("weights:", tuple(looked.weights.shape), "strongest at", looked.peak(layers=layer, heads=head))
save_overlay("looked.png", mmattn.open_image(picture), looked.heatmap(layers=layer, heads=head), caption.text)
