"""The page, and the server behind it."""

from __future__ import annotations

from typing import Any

import gradio as gr

import mmattn
from mmattn.demo.ask import AskTab
from mmattn.demo.compare import CompareTab
from mmattn.demo.desk import Desk, Shop
from mmattn.demo.examples import Examples
from mmattn.demo.ground import GroundTab
from mmattn.demo.inspect import InspectTab
from mmattn.demo.models import Models
from mmattn.demo.prompt import PromptTab
from mmattn.demo.uploads import MAX_BYTES, upload

FONTS = ["ui-sans-serif", "system-ui", "sans-serif"]
MONO = ["ui-monospace", "Consolas", "monospace"]
STARTERS = ["Describe the image.", "Is there a bowl in the image?", "Where is the umbrella?"]
FIRST = 3  # the example that is there at the start

TABS = {"Ask": AskTab, "Compare": CompareTab, "Ground": GroundTab, "Prompt": PromptTab, "Inspect": InspectTab}

CSS = """
.gradio-container {max-width: 1500px !important}
.words span.textspan {cursor: pointer; padding: 1px 2px}
#line, #status {padding: 0 4px; min-height: 1.5em}
.dark .words .text {color: #f3f4f6}
.thumbs .grid-wrap {max-height: none !important; min-height: 0 !important; height: auto !important; padding: 4px}
.thumbs .grid-container {grid-template-columns: repeat(auto-fill, minmax(76px, 1fr)) !important; gap: 6px}
@media (max-width: 640px) {#examples .grid-container {grid-template-columns: repeat(6, 1fr) !important}}
.thumbs .thumbnail-lg {width: 100% !important; height: auto !important}
.thumbs .caption-label {font-size: 11px; padding: 1px 4px}
"""


def page(shop: Shop) -> gr.Blocks:
    """The whole page."""
    blocks = gr.Blocks(title="mmattn", analytics_enabled=False, delete_cache=(3600, 86400))
    with blocks:
        gr.Markdown("# mmattn\nSee where a vision-language model looks, and change where it looks.")
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=320):
                desk = _desk(shop)
            with gr.Column(scale=3, min_width=320), gr.Tabs():
                for name, tab in TABS.items():
                    with gr.Tab(name):
                        tab(desk)
        blocks.unload(_closed(shop))
    blocks.queue(default_concurrency_limit=4, max_size=64)
    return blocks


def _closed(shop: Shop) -> Any:
    def closed(request: gr.Request) -> None:
        shop.stops.forget(str(request.session_hash))

    return closed


def _desk(shop: Shop) -> Desk:
    names = shop.models.names
    model = gr.Dropdown(names, value=names[0], label="Model", elem_id="model", visible=len(names) > 1)
    examples = [*shop.examples.all, shop.examples.screen]
    picture = upload(
        value=examples[FIRST].picture.image,
        label="Picture",
        sources=["upload", "clipboard", "webcam"],
        height=340,
        elem_id="picture",
        buttons=["fullscreen"],
    )
    prompt = gr.Textbox(STARTERS[0], label="Question", lines=1, max_lines=6, elem_id="prompt", submit_btn=False)
    gr.Examples([[one] for one in STARTERS], prompt, label="Try")
    gr.HTML("<b>Examples</b>: scenes whose content is known, and a window to ground in")
    gallery = gr.Gallery(
        [(one.picture.image, "") for one in examples], show_label=False, columns=6, height="auto", format="webp",
        allow_preview=False, elem_id="examples", elem_classes="thumbs", buttons=[],
    )  # fmt: skip

    def pick(event: gr.SelectData) -> Any:
        return examples[int(event.index)].picture.image

    gallery.select(pick, None, picture, show_progress="hidden", api_visibility="private")
    return Desk(shop, model, picture, prompt, examples[FIRST].picture.image)


def launch(
    models: Models, *, host: str = "127.0.0.1", port: int | None = None, open_browser: bool = False
) -> gr.Blocks:
    """Serve the page; its address is the result's `local_url`, and `block_thread()` waits until it is interrupted.

    Args:
        host: the address to listen on; anything but 127.0.0.1 lets others in.
        port: 7860 or the next free one by default.

    Raises:
        MmattnError: the model cannot be loaded, or the address is taken.
    """
    models.get(models.names[0])
    blocks = page(Shop(models, Examples()))
    try:
        blocks.launch(
            server_name=host, server_port=port, inbrowser=open_browser, prevent_thread_lock=True, quiet=True,
            share=False, max_file_size=MAX_BYTES, ssr_mode=False, allowed_paths=[], state_session_capacity=64,
            theme=gr.themes.Soft(font=FONTS, font_mono=MONO), css=CSS, footer_links=[], enable_monitoring=False,
        )  # fmt: skip
    except OSError as error:
        raise mmattn.MmattnError(f"Cannot listen on {host} ({error})", "Choose another --host or --port.") from error
    return blocks
