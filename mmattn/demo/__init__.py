"""The demo: ask, compare, ground, prompt and inspect in a browser. Needs the extra "demo" (gradio)."""
