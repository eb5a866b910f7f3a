"""The page of tn_memory_write_page in a browser: it draws, hovering names an owner, a click shows the live set, the table sorts, it needs no
network, and it holds on a phone and in the dark. Skipped without Chromium."""

import atexit
import functools
import os
import re
import shutil
import subprocess
import sys
import tempfile

import chromium
import script_cases
from script_cases import BUILD, skip, want

MODEL = ["--task=uniform", "--task_length=32", "--task_vocab=64", "--layers=2", "--width=32", "--heads=2", "--batch=2"]


@functools.cache
def page_url():
    if not chromium.starts():
        skip("there is no Chromium that starts")
    folder = tempfile.mkdtemp(prefix="tenon-page-")
    atexit.register(shutil.rmtree, folder, True)
    path = os.path.join(folder, "memory.html")
    done = subprocess.run([BUILD + "/examples/tenon-mem", "--device=cpu", "--no-growth", "--html=" + path, *MODEL], capture_output=True, text=True)
    want(done.returncode == 0, f"tenon-mem: exit code {done.returncode}: {done.stderr}")
    return "file://" + path


def open_page(**how):
    return chromium.Page(page_url(), **how)


def plot_box(page):
    return page.evaluate("(b => ({x: b.x, y: b.y, width: b.width, height: b.height}))(canvas.getBoundingClientRect())")


def place_of(page, event, height=0.0):
    """Where on the page the plot shows an event, and a height of so many bytes at it."""
    box = plot_box(page)
    x, y = page.evaluate(f"[(xOf({event} - 1, {box['width']}) + xOf({event}, {box['width']})) / 2, yOf({height}, {box['height']})]")
    return box["x"] + x, box["y"] + y


# Colours of the plot that are categories'; drawn once more into plain numbers, since a canvas reads back slowly.
DRAWN = """(() => {
  const g = canvas.getContext("2d"), seen = new Set(), rgb = g.getImageData(0, 0, canvas.width, canvas.height).data;
  for (let i = 0; i < rgb.length; i += 4) seen.add("#" + [rgb[i], rgb[i + 1], rgb[i + 2]].map(v => v.toString(16).padStart(2, "0")).join(""));
  return data.categories.map((name, c) => seen.has(color(c)) ? name : "").filter(Boolean);
})()"""


def draws():
    with open_page() as page:
        drawn = page.evaluate(DRAWN)
        want({"parameter", "optimizer", "saved", "temporary"} <= set(drawn), f"drawn are {drawn}")
        want(page.evaluate("document.querySelectorAll('#legend label').length") == page.evaluate("order.length"), "the legend has all categories")
        stats = page.evaluate("$('stats').textContent")
        want("allocated, peak" in stats and re.search(r"\d (KiB|MiB)", stats), f"figures: {stats}")
        want("the peak" in page.evaluate("$('moment').textContent"), "it begins with the peak")
        live = page.evaluate("[data.lives.filter(l => l[BEGIN] <= moment && moment < l[END]).reduce((s, l) => s + l[BYTES], 0), total(moment)]")
        want(live[0] == live[1] == page.evaluate("data.stats.allocatedPeak"), f"what lives at the peak is the peak: {live}")
        want(not page.complaints, f"the console says {page.complaints}")


def hovering_names_an_owner():
    with open_page() as page:
        event, owner, form, at = page.evaluate("""(() => {
          const e = data.peakEvent, life = liveAt(e).filter(l => l[CATEGORY] === 4).sort((a, b) => b[BYTES] - a[BYTES])[0];
          for (let v = 0; v < total(e); v += 256) if (blockAt(e, v) === life) return [e, ownerOf(life), data.forms[life[FORM]], v + life[BYTES] / 2];
        })()""")
        want(page.evaluate("getComputedStyle($('tip')).display") == "none", "nothing is named before")
        page.hover(*place_of(page, event, at))
        tip = page.evaluate("$('tip').textContent")
        want(page.evaluate("getComputedStyle($('tip')).display") == "block", "the tip shows")
        want(owner in tip and "layer." in owner and form in tip and "saved" in tip and re.search(r"\d (B|KiB|MiB)", tip),
             f"the tip names {owner}, {form}: {tip}")
        box = plot_box(page)
        page.hover(box["x"] + box["width"] / 2, box["y"] + box["height"] + 60)
        want(page.evaluate("getComputedStyle($('tip')).display") == "none", "it goes when the pointer does")


def a_click_shows_the_live_set():
    with open_page() as page:
        for event in page.evaluate("[data.events >> 2, data.events >> 1, data.events - 1]"):
            page.click(*place_of(page, event))
            moment = page.evaluate("moment")
            want(abs(moment - event) <= 1, f"the click went to event {moment}, and was at {event}")
            n_rows, n_live, listed, live = page.evaluate("""[$("rows").children.length, liveAt(moment).length,
              [...$("rows").querySelectorAll("td:first-child")].reduce((s, td) => s + parseInt(td.title), 0), total(moment)]""")
            want(n_rows == n_live > 0 and listed == live, f"{n_rows} rows of {n_live} blocks, {listed} bytes of {live}")
        page.evaluate("canvas.focus()")
        before = page.evaluate("moment")
        page.key("ArrowLeft")
        want(page.evaluate("moment") == before - 1, "an arrow goes one event back")
        page.key("Home")
        want(page.evaluate("moment") == -1, "Home goes to the first moment")
        page.evaluate("$('peak').click()")
        want(page.evaluate("moment === data.peakEvent"), "the button goes to the peak")


def column(page, index):
    return page.evaluate(f"[...$('rows').children].map(tr => tr.children[{index}].title || tr.children[{index}].textContent)")


def the_table_sorts():
    def press(index):
        page.evaluate(f"$('head').children[{index}].querySelector('button').click()")

    with open_page() as page:
        sizes = [int(text.split()[0]) for text in column(page, 0)]
        want(sizes == sorted(sizes, reverse=True) and len(set(sizes)) > 3, "the largest come first")
        press(0)
        want([int(text.split()[0]) for text in column(page, 0)] == sizes[::-1] or sorted(sizes) ==
             [int(text.split()[0]) for text in column(page, 0)], "pressed again, the smallest")
        want(page.evaluate("$('head').children[0].getAttribute('aria-sort')") == "ascending", "aria-sort says so")
        press(3)
        ops = column(page, 3)
        want(ops == sorted(ops) and len(set(ops)) > 2, f"by op: {ops[:5]}")
        page.evaluate("$('filter').value = 'layer.1/'; $('filter').dispatchEvent(new Event('input'))")
        labels = column(page, 4)
        want(labels and all(label.startswith("layer.1/") for label in labels), f"the filter leaves layer.1: {labels[:5]}")
        page.evaluate("$('filter').value = ''; $('group').value = 'category'; $('group').dispatchEvent(new Event('change'))")
        total = page.evaluate("total(moment)")
        want(sum(int(text.split()[0]) for text in column(page, 0)) == total, "categories add up to all")
        before = page.evaluate("$('rows').children.length")
        page.evaluate("$('legend').querySelector('input').click()")
        want(page.evaluate("$('rows').children.length") == before - 1, "a category that is put out goes from the table")


def needs_no_network():
    with open_page() as page:
        others = [url for url in page.requests if url != page_url()]
        want(not others and page.requests, f"it asks for {others}")
        text = open(page_url()[len("file://"):], encoding="utf-8").read()
        links = [link for link in re.findall(r"(?:https?:)?//[\w.-]+\.\w+|@import|url\(|src=", text)]
        want(not links, f"it names {links}")


def contrast(page, ink, back):
    def light(color):
        parts = [int(v) / 255 for v in re.findall(r"\d+", color)[:3]]
        return sum(w * (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4) for w, v in zip((0.2126, 0.7152, 0.0722), parts))

    a, b = sorted((light(page.evaluate(ink)), light(page.evaluate(back))))
    return (b + 0.05) / (a + 0.05)


def holds_on_a_phone():
    for width in (320, 375, 414):
        with open_page(width=width, height=740) as page:
            want(page.evaluate("document.documentElement.scrollWidth") <= width, f"at {width} wide the page goes off to the side")
            for x in (0.02, 0.5, 0.98):
                box = plot_box(page)
                page.hover(box["x"] + box["width"] * x, box["y"] + box["height"] * 0.5)
                left, right = page.evaluate("(b => [b.left, b.right])($('tip').getBoundingClientRect())")
                want(left >= 0 and right <= width, f"at {width} wide the tip lies from {left} to {right}")
            small = page.evaluate("[...document.querySelectorAll('p, dt, dd, td, button, label')].filter(n => parseFloat(getComputedStyle(n).fontSize) < 12).length")
            want(small == 0, f"{small} texts are smaller than 12 px")
            if os.environ.get("TENON_TEST_SCREENSHOTS"):
                page.screenshot(f"{os.environ['TENON_TEST_SCREENSHOTS']}/memory-{width}.png")


def holds_in_the_dark():
    for dark in (False, True):
        with open_page(dark=dark) as page:
            body, ink = "getComputedStyle(document.body).backgroundColor", "getComputedStyle(document.body).color"
            want(page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches") == dark, "the scheme is as asked")
            want(contrast(page, ink, body) >= 7, f"text on the page: contrast {contrast(page, ink, body):.1f}")
            soft = contrast(page, "getComputedStyle($('note')).color", body)
            want(soft >= 4.5, f"notes on the page: contrast {soft:.1f}")
            bright = page.evaluate(body)
            want((sum(map(int, re.findall(r"\d+", bright)[:3])) < 200) == dark, f"dark: {dark}, and the page is {bright}")
            want({"parameter", "saved"} <= set(page.evaluate(DRAWN)), "the plot has this scheme's colours")
            if os.environ.get("TENON_TEST_SCREENSHOTS"):
                page.screenshot(f"{os.environ['TENON_TEST_SCREENSHOTS']}/memory-{'dark' if dark else 'light'}.png")


if __name__ == "__main__":
    sys.exit(script_cases.main("test_memory_page", {f.__name__: f for f in (
        draws, hovering_names_an_owner, a_click_shows_the_live_set, the_table_sorts, needs_no_network, holds_on_a_phone, holds_in_the_dark)}))
